/* Four turned copies of uint8 images, every byte looked up: what rot90_batch.py's kernel writes. */
#include "texels.h"

typedef struct {
  const uint8_t *images;
  int64_t stride[4];     /* of the images: b, c, y, x */
  const int32_t *turns;  /* [B], or NULL for all four */
  const void *values;    /* [C, 256] */
  void *out;
  int64_t out_stride[4]; /* in values: b, c, y, x */
  int32_t batch, channels, side, itemsize, threads;
} Turns;

enum { ROWS = 32 }; /* rows of the result a block has: their source fits in the first cache */

/* Rows first..last of a turn: in[base + i di + j dj], for which the four turns differ in signs. */
#define TURN(TYPE)                                                                                 \
  CALLED void turn_##TYPE(const Turns *op, int64_t b, int turn, int64_t first, int64_t last,        \
                          TYPE *out) {                                                             \
    int64_t sy = op->stride[2], sx = op->stride[3], end = op->side - 1;                            \
    int64_t base[4] = {0, end * sx, end * (sy + sx), end * sy};                                    \
    int64_t di[4] = {sy, -sx, -sy, sx}, dj[4] = {sx, sy, -sx, -sy};                                \
    int64_t step = dj[turn], oy = op->out_stride[2], ox = op->out_stride[3];                       \
    for (int32_t c = 0; c < op->channels; c++) {                                                   \
      const TYPE *values = (const TYPE *)op->values + c * 256;                                     \
      const uint8_t *plane = op->images + b * op->stride[0] + c * op->stride[1] + base[turn];      \
      for (int64_t i = first; i < last; i++) {                                                     \
        const uint8_t *in = plane + i * di[turn];                                                  \
        TYPE *row = out + c * op->out_stride[1] + i * oy;                                          \
        for (int64_t j = 0; j < op->side; j++) row[j * ox] = values[in[j * step]];                 \
      }                                                                                            \
    }                                                                                              \
  }

TURN(uint16_t)
TURN(uint32_t)

const int64_t EXPORT(rot90_batch_bytes) = sizeof(Turns);

int EXPORT(rot90_batch)(const Turns *op) {
  int64_t copies = op->turns ? 1 : 4, blocks = (op->side + ROWS - 1) / ROWS;
#pragma omp parallel for collapse(3) schedule(static) num_threads(op->threads)
  for (int64_t b = 0; b < op->batch; b++)
    for (int64_t k = 0; k < copies; k++)
      for (int64_t block = 0; block < blocks; block++) {
        int64_t first = block * ROWS, last = first + ROWS < op->side ? first + ROWS : op->side;
        int turn = op->turns ? op->turns[b] & 3 : (int)k;
        int64_t place = (b * copies + k) * op->out_stride[0];
        if (op->itemsize == 2) turn_uint16_t(op, b, turn, first, last, (uint16_t *)op->out + place);
        else turn_uint32_t(op, b, turn, first, last, (uint32_t *)op->out + place);
      }
  return 0;
}
