/* Embeddings made rows of unit length, and gradients by these made gradients by the embeddings. */
#include <math.h>

#include "values.h"

typedef struct {
  const void *z[2];     /* views, [rows, width] each; the second NULL if there is one */
  void *grad[2];        /* dense, in z's type; or NULL */
  float *unit;          /* [views * rows, width] */
  float *inverse;       /* [views * rows] 1 / length, negative where that is eps at the least */
  const float *by_unit; /* [views * rows, width] gradients by unit */
  int64_t stride[2], rows, width;
  float eps, factor;    /* a gradient's */
  int32_t views, dtype;
  int32_t rounds;       /* unit to z's type */
  int32_t threads;
} UnitRows;

const int64_t EXPORT(unit_rows_bytes) = sizeof(UnitRows);

/* unit = z / max(length, eps) */
int EXPORT(unit_rows)(const UnitRows *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->views * op->rows; r++) {
    int64_t view = r / op->rows, width = op->width, i = 0;
    const void *z = row_of(op->z[view], r % op->rows, op->stride[view], op->dtype);
    float *unit = op->unit + r * width, square = 0;
    vf sum = splat(0.0f);
    for (; i + LANES <= width; i += LANES) {
      vf value = load(z, i, op->dtype);
      sum += value * value;
    }
    for (; i < width; i++) square += value_at(z, i, op->dtype) * value_at(z, i, op->dtype);
    float length = sqrtf(square + sum_of(sum));
    float by = length < op->eps ? op->eps : length; /* NaN stays */
    op->inverse[r] = length < op->eps ? -1 / by : 1 / by;
    for (i = 0; i + LANES <= width; i += LANES) AT(vf, unit + i) = load(z, i, op->dtype) / by;
    for (int64_t j = i; j < width; j++) unit[j] = value_at(z, j, op->dtype) / by;
    if (op->rounds)
      for (int64_t j = 0; j < width; j++) unit[j] = from_bf16(to_bf16(unit[j]));
  }
  return 0;
}

const int64_t EXPORT(unit_rows_grad_bytes) = sizeof(UnitRows);

/* grad = factor (g - (g · u) u) / length for g the gradient by u = z / length, of which `unit` may be
 * a rounding; g / eps for rows that are shorter. */
int EXPORT(unit_rows_grad)(const UnitRows *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->views * op->rows; r++) {
    int64_t view = r / op->rows, width = op->width, i = 0;
    if (!op->grad[view]) continue;
    const void *z = row_of(op->z[view], r % op->rows, op->stride[view], op->dtype);
    void *grad = (void *)row_of(op->grad[view], r % op->rows, width, op->dtype);
    const float *g = op->by_unit + r * width;
    float by = fabsf(op->inverse[r]), along = 0;
    if (op->inverse[r] > 0) {
      vf sum = splat(0.0f);
      for (; i + LANES <= width; i += LANES) sum += AT(vf, g + i) * load(z, i, op->dtype);
      for (; i < width; i++) along += g[i] * value_at(z, i, op->dtype);
      along = (along + sum_of(sum)) * by * by;
    }
    for (i = 0; i + LANES <= width; i += LANES) {
      vf value = (AT(vf, g + i) - load(z, i, op->dtype) * along) * (by * op->factor);
      store(grad, i, value, op->dtype, 0);
    }
    for (; i < width; i++) {
      float value = (g[i] - value_at(z, i, op->dtype) * along) * (by * op->factor);
      put(grad, i, value, op->dtype);
    }
  }
  return 0;
}
