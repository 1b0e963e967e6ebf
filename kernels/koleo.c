/* KoLeo's loss and its gradient by unit rows, once every row's nearest other one is known; and all of
 * it for few rows. */
#include <math.h>

#include "small_products.h"
#include "unit_rows.h"

typedef struct {
  const float *unit;   /* [rows, width] */
  const int32_t *at;   /* [rows] the nearest of each */
  float *distance;     /* [rows] */
  float *grad;         /* [rows, width], or NULL; of the sum of log(distance + eps) */
  double *loss;        /* that sum */
  int64_t rows, width;
  float eps;
  int32_t threads;
} KoLeo;

const int64_t EXPORT(koleo_bytes) = sizeof(KoLeo);

/* What a pair of rows adds to the first one's gradient. Not in the loop that adds it to one and takes
 * it from the other: a product that is added unrounded would not be taken away as it was added, and
 * rows that are each other's nearest at no distance have gradients that cancel. */
CALLED void pull(const float *a, const float *b, float eps, float by, int64_t width, float *step) {
  for (int64_t i = 0; i < width; i++) step[i] = (a[i] - b[i] + eps) * by;
}

/* distance = |unit - unit[at] + eps| */
int EXPORT(koleo)(const KoLeo *op) {
  int64_t width = op->width;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->rows; r++) {
    const float *a = op->unit + r * width, *b = op->unit + op->at[r] * width;
    vf sum = splat(0.0f);
    float square = 0;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
      vf gap = AT(vf, a + i) - AT(vf, b + i) + op->eps;
      sum += gap * gap;
    }
    for (; i < width; i++) square += (a[i] - b[i] + op->eps) * (a[i] - b[i] + op->eps);
    op->distance[r] = sqrtf(square + sum_of(sum));
  }
  double total = 0;
  for (int64_t r = 0; r < op->rows; r++) total += log((double)op->distance[r] + op->eps);
  *op->loss = total;
  if (!op->grad) return 0;
  float *step = scratch_of(width * sizeof(float));
  if (!step) return -1;
  memset(op->grad, 0, (size_t)op->rows * width * sizeof(float));
  for (int64_t r = 0; r < op->rows; r++) { /* rows may have one neighbour: one after another */
    const float *a = op->unit + r * width, *b = op->unit + op->at[r] * width;
    float *to = op->grad + r * width, *from = op->grad + op->at[r] * width, d = op->distance[r];
    float by = d == 0 ? 0 : 1 / (d * (d + op->eps));
    pull(a, b, op->eps, by, width, step);
    for (int64_t i = 0; i < width; i++) {
      to[i] += step[i];
      from[i] -= step[i];
    }
  }
  free(step);
  return 0;
}

typedef struct {
  const void *z;     /* [rows, width] */
  void *grad;        /* dense, in z's type; or NULL */
  float *loss;       /* -mean log of the distance to the nearest other row */
  int64_t stride, rows, width;
  float unit_eps, eps;
  int32_t dtype, threads;
} Small;

const int64_t EXPORT(koleo_small_bytes) = sizeof(Small);

/* The loss of few rows and its gradient: unit rows, the nearest of each, and the above. */
int EXPORT(koleo_small)(const Small *op) {
  int64_t rows = op->rows, width = op->width, all = rows * width;
  float *s = scratch_of((rows * rows + 2 * all + 3 * rows) * sizeof(float));
  if (!s) return -1;
  float *unit = s + rows * rows, *by_unit = unit + all, *inverse = by_unit + all, *distance = inverse + rows;
  int32_t *at = (int32_t *)(distance + rows);
  for (int64_t r = 0; r < rows; r++)
    inverse[r] = unit_row(row_of(op->z, r, op->stride, op->dtype), width, op->unit_eps, op->dtype, unit + r * width);
  dot_products(s, unit, unit, rows, rows, width, op->threads);
  for (int64_t r = 0; r < rows; r++) { /* the first of equals; some other row where all are NaN */
    float high = -INFINITY;
    at[r] = r == 0;
    for (int64_t j = 0; j < rows; j++)
      if (j != r && s[r * rows + j] > high) high = s[r * rows + j], at[r] = (int32_t)j;
  }
  double loss;
  KoLeo found = {unit, at, distance, op->grad ? by_unit : NULL, &loss, rows, width, op->eps, 1};
  int failed = EXPORT(koleo)(&found);
  if (!failed) *op->loss = (float)(-loss / rows);
  for (int64_t r = 0; r < rows && op->grad && !failed; r++)
    unit_row_grad(row_of(op->z, r, op->stride, op->dtype), by_unit + r * width, inverse[r], -1.0f / rows, width,
                  op->dtype, (void *)row_of(op->grad, r, width, op->dtype));
  free(s);
  return failed;
}
