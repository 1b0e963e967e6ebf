/* Gram anchoring of images of few patches, in one call: unit rows, similarities, their differences and
 * the gradient. One thread an image. Of an image with many patches a library's products are faster
 * (gram_panels.py).
 */

#include "unit_rows.h"

enum { NONE, BOTH, TEACHER };
enum { TILE = 4 }; /* rows that are multiplied together */

typedef struct {
  const void *student, *teacher; /* [batch, rows, width], [batch, rows, teacher_width] */
  void *grad;                    /* [batch, rows, width], dense; or NULL */
  float *sums;                   /* [batch] of squared differences, over `count` if there is no `total` */
  float *total;                  /* of all of them, over `count`; or NULL */
  int64_t image_stride, stride, teacher_image_stride, teacher_stride;
  int64_t batch, rows, width, teacher_width;
  double count;
  float eps, factor;             /* the gradient is `factor` / 4 times that of the sums */
  int32_t clamp, dtype, threads;
} Gram;

/* An image's rows made unit, with zeros behind: whole tiles of whole vectors. */
typedef struct {
  float *rows;
  int64_t stride;
} Unit;

/* A number of cache lines that is odd, so that the rows' lines lie in different sets of a cache. */
INLINE int64_t padded(int64_t width) {
  int64_t lines = (width + 15) / 16, vectors = (width + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
  lines = lines < vectors / 16 ? vectors / 16 : lines;
  return (lines | 1) * 16;
}

INLINE v4 without(i4 mask, v4 value) { return (v4)(~mask & (i4)value); }

/* Products of TILE rows from i on with two from j on: of each of these a vector of four. */
INLINE void products(Unit u, int64_t i, int64_t j, int64_t width, v4 out[2]) {
  const float *a = u.rows + i * u.stride, *b = u.rows + j * u.stride;
  vf sum[2][TILE];
  for (int r = 0; r < TILE; r++) sum[0][r] = sum[1][r] = splat(0.0f);
  for (int64_t k = 0; k < width; k += LANES) {
    vf first = AT(vf, b + k), second = AT(vf, b + u.stride + k);
    for (int r = 0; r < TILE; r++) {
      vf ours = AT(vf, a + r * u.stride + k);
      sum[0][r] += ours * first, sum[1][r] += ours * second;
    }
  }
  for (int c = 0; c < 2; c++) {
    Four of = {folded(sum[c][0]), folded(sum[c][1]), folded(sum[c][2]), folded(sum[c][3])};
    of = transposed(of);
    out[c] = of.a + of.b + (of.c + of.d);
  }
}

/* d[j, i] for all i of a tile and j from its first row on; the sum of all squares. */
CALLED double differences(const Gram *op, Unit x, Unit y, float *d, int64_t rows) {
  double total = 0;
  for (int64_t i = 0; i < rows; i += TILE) {
    v4 diagonal = {0}, square = {0}, zero = {0};
    for (int64_t j = i; j < rows; j += 2) {
      v4 s[2], t[2];
      products(x, i, j, op->width, s);
      products(y, i, j, op->teacher_width, t);
      for (int c = 0; c < 2; c++) {
        i4 low = s[c] < zero, below = t[c] < zero;
        i4 held = op->clamp == BOTH ? low : op->clamp == TEACHER ? low & below : (i4)zero;
        v4 gap = without(held, s[c]) - (op->clamp == NONE ? t[c] : without(below, t[c]));
        if (j < i + TILE) diagonal += gap * gap; /* where both ways are made */
        else square += gap * gap;
        AT(v4, d + (j + c) * rows + i) = without(held, gap);
      }
    }
    for (int r = 0; r < TILE; r++) total += (double)diagonal[r] + 2 * (double)square[r];
  }
  return total;
}

/* sum += d[r] x for TILE rows r, whose differences are `step` apart */
INLINE void add(vf sum[2][TILE], const float *x, const float *d, int64_t step) {
  vf first = AT(vf, x), second = AT(vf, x + LANES);
  for (int r = 0; r < TILE; r++) sum[0][r] += first * d[r * step], sum[1][r] += second * d[r * step];
}

/* g = d x, of which d[j, i] is read for i > j */
CALLED void weigh(Unit x, const float *d, float *g, int64_t rows, int64_t width) {
  for (int64_t k = 0; k < width; k += 2 * LANES)
    for (int64_t i = 0; i < rows; i += TILE) {
      vf sum[2][TILE];
      const float *row = x.rows + k;
      int64_t j = 0;
      for (int r = 0; r < TILE; r++) sum[0][r] = sum[1][r] = splat(0.0f);
      for (; j < i; j++, row += x.stride) add(sum, row, d + i * rows + j, rows);
      for (; j < rows; j++, row += x.stride) add(sum, row, d + j * rows + i, 1);
      for (int c = 0; c < 2; c++)
        for (int r = 0; r < TILE; r++) AT(vf, g + (i + r) * x.stride + k + c * LANES) = sum[c][r];
    }
}

const int64_t EXPORT(gram_bytes) = sizeof(Gram);

int EXPORT(gram)(const Gram *op) {
  int64_t rows = (op->rows + TILE - 1) / TILE * TILE;
  int64_t stride = padded(op->width), teacher_stride = padded(op->teacher_width);
  int64_t size = whole_lines(rows * (2 * stride + teacher_stride + rows + 1));
  float *scratch = scratch_of(op->threads * size * sizeof(float));
  if (!scratch) return -1;
  memset(scratch, 0, op->threads * size * sizeof(float));
  if (op->grad) in_huge_pages(op->grad, bytes_of(op->batch * op->rows * op->width, op->dtype));
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t b = 0; b < op->batch; b++) {
    Unit x = {scratch + thread_number() * size, stride}, y = {x.rows + rows * stride, teacher_stride};
    float *g = y.rows + rows * teacher_stride, *d = g + rows * stride, *inverse = d + rows * rows;
    const void *student = row_of(op->student, b, op->image_stride, op->dtype);
    const void *teacher = row_of(op->teacher, b, op->teacher_image_stride, op->dtype);
    for (int64_t r = 0; r < op->rows; r++) {
      const void *ours = row_of(student, r, op->stride, op->dtype);
      const void *theirs = row_of(teacher, r, op->teacher_stride, op->dtype);
      inverse[r] = unit_row(ours, op->width, op->eps, op->dtype, x.rows + r * stride);
      unit_row(theirs, op->teacher_width, op->eps, op->dtype, y.rows + r * teacher_stride);
    }
    op->sums[b] = differences(op, x, y, d, rows);
    if (!op->grad) continue;
    weigh(x, d, g, rows, op->width);
    void *grad = (void *)row_of(op->grad, b, op->rows * op->width, op->dtype);
    for (int64_t r = 0; r < op->rows; r++)
      unit_row_grad(row_of(student, r, op->stride, op->dtype), g + r * stride, inverse[r], op->factor,
                    op->width, op->dtype, (void *)row_of(grad, r, op->width, op->dtype));
  }
  free(scratch);
  double total = 0;
  for (int64_t b = 0; b < op->batch; b++) total += op->sums[b];
  if (op->total) *op->total = (float)(total / op->count);
  else
    for (int64_t b = 0; b < op->batch; b++) op->sums[b] = (float)(op->sums[b] / op->count);
  return 0;
}
