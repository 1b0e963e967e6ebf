/* Four turned copies of uint8 images: what rot90_batch.py's kernel writes. A strip of the image is
 * looked up once, into the cache; the turns are copies of it, mirrors and transposes. */
#include "values.h"

typedef struct {
  const uint8_t *images;
  int64_t stride[4];     /* of the images: b, c, y, x */
  const int32_t *turns;  /* [B], or NULL for all four */
  const void *values;    /* [C, 256] */
  void *out;
  int64_t out_stride[4]; /* in values: b, c, y, x */
  int32_t batch, channels, side, itemsize, threads;
} Turns;

enum { ROWS = 32 }; /* of a strip: a column of it, as a row of the result, fills whole cache lines */

/* look_up: rows first..last-1 of a channel, each byte's value, to `strip`. turn: those rows to where a
 * turn has them; pixel (i, j) of the image goes to out[base + i di + j dj], for which the four turns
 * differ in signs. */
#define TURN(TYPE, V, FOUR, TRANSPOSED)                                                            \
  CALLED void look_up_##TYPE(const Turns *op, int64_t b, int32_t c, int64_t first, int64_t last,   \
                             TYPE *strip) {                                                        \
    const TYPE *values = (const TYPE *)op->values + c * 256;                                       \
    int64_t side = op->side, step = op->stride[3];                                                 \
    for (int64_t i = first; i < last; i++, strip += side) {                                        \
      const uint8_t *in =                                                                          \
          op->images + b * op->stride[0] + c * op->stride[1] + i * op->stride[2];                  \
      for (int64_t j = 0; j < side; j++) strip[j] = values[in[j * step]];                          \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  CALLED void turn_##TYPE(const Turns *op, int turn, int64_t first, int64_t last,                  \
                          const TYPE *strip, TYPE *out) {                                          \
    int64_t oy = op->out_stride[2], ox = op->out_stride[3], side = op->side, end = side - 1;       \
    int64_t base[4] = {0, end * oy, end * (oy + ox), end * ox};                                    \
    int64_t di = (int64_t[]){oy, ox, -oy, -ox}[turn], dj = (int64_t[]){ox, -oy, -ox, oy}[turn];    \
    int64_t rows = last - first;                                                                   \
    out += base[turn] + first * di;                                                                \
    if (dj == 1 || dj == -1) {                                                                     \
      for (int64_t i = 0; i < rows; i++, strip += side, out += di)                                 \
        if (dj == 1) memcpy(out, strip, side * sizeof(TYPE));                                      \
        else                                                                                       \
          for (int64_t j = 0; j < side; j++) out[-j] = strip[j];                                   \
      return;                                                                                      \
    }                                                                                              \
    int64_t fours = di == 1 || di == -1 ? rows / 4 * 4 : 0, wide = fours ? side / 4 * 4 : 0;       \
    for (int64_t j = 0; j < wide; j += 4)                                                          \
      for (int64_t i = 0; i < fours; i += 4) {                                                     \
        const TYPE *in = strip + (di > 0 ? i : i + 3) * side + j;                                  \
        TYPE *to = out + (di > 0 ? i : -i - 3) + j * dj;                                           \
        FOUR m = TRANSPOSED((FOUR){AT(V, in), AT(V, in + di * side), AT(V, in + 2 * di * side),    \
                                   AT(V, in + 3 * di * side)});                                    \
        AT(V, to) = m.a;                                                                           \
        AT(V, to + dj) = m.b;                                                                      \
        AT(V, to + 2 * dj) = m.c;                                                                  \
        AT(V, to + 3 * dj) = m.d;                                                                  \
      }                                                                                            \
    for (int64_t i = 0; i < rows; i++) /* what is left */                                          \
      for (int64_t j = i < fours ? wide : 0; j < side; j++)                                        \
        out[i * di + j * dj] = strip[i * side + j];                                                \
  }

TURN(uint16_t, h4, FourHalves, transposed_halves)
TURN(uint32_t, v4, Four, transposed)

const int64_t EXPORT(rot90_batch_bytes) = sizeof(Turns);

/* 0, or -1 where memory ran out. */
int EXPORT(rot90_batch)(const Turns *op) {
  int64_t copies = op->turns ? 1 : 4, strips = (op->side + ROWS - 1) / ROWS;
  size_t bytes = (size_t)ROWS * op->side * op->itemsize;
  char *scratch = scratch_of(op->threads * bytes);
  if (!scratch) return -1;
  in_huge_pages(op->out, op->batch * copies * op->channels * op->side * op->side * op->itemsize);
#pragma omp parallel for collapse(3) schedule(static) num_threads(op->threads)
  for (int64_t b = 0; b < op->batch; b++)
    for (int32_t c = 0; c < op->channels; c++)
      for (int64_t block = 0; block < strips; block++) {
        int64_t first = block * ROWS, last = first + ROWS < op->side ? first + ROWS : op->side;
        void *strip = scratch + thread_number() * bytes;
        if (op->itemsize == 2) look_up_uint16_t(op, b, c, first, last, strip);
        else look_up_uint32_t(op, b, c, first, last, strip);
        for (int64_t k = 0; k < copies; k++) {
          int turn = op->turns ? op->turns[b] & 3 : (int)k;
          int64_t place = (b * copies + k) * op->out_stride[0] + c * op->out_stride[1];
          char *out = (char *)op->out + place * op->itemsize;
          if (op->itemsize == 2) turn_uint16_t(op, turn, first, last, strip, (uint16_t *)out);
          else turn_uint32_t(op, turn, first, last, strip, (uint32_t *)out);
        }
      }
  free(scratch);
  return 0;
}
