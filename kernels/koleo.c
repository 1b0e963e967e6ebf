/* KoLeo's loss and its gradient by unit rows, once every row's nearest other one is known. */
#include <math.h>
#include <stdlib.h>

#include "values.h"

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
  float *step = malloc((size_t)width * sizeof(float));
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
