/* A row made one of unit length, and a gradient by that made one by the row. */
#ifndef FASTEQUI_UNIT_ROWS_H
#define FASTEQUI_UNIT_ROWS_H

#include "values.h"

/* unit = z / max(length, eps); returns 1 / length, negative where that is eps at the least. */
INLINE float unit_row(const void *z, int64_t width, float eps, int32_t dtype, float *unit) {
  float square = 0;
  int64_t i = 0;
  vf sum = splat(0.0f);
  for (; i + LANES <= width; i += LANES) {
    vf value = load(z, i, dtype);
    sum += value * value;
  }
  for (; i < width; i++) square += value_at(z, i, dtype) * value_at(z, i, dtype);
  float length = sqrtf(square + sum_of(sum));
  float by = length < eps ? eps : length; /* NaN stays */
  for (i = 0; i + LANES <= width; i += LANES) AT(vf, unit + i) = load(z, i, dtype) / by;
  for (; i < width; i++) unit[i] = value_at(z, i, dtype) / by;
  return length < eps ? -1 / by : 1 / by;
}

INLINE void round_row(float *unit, int64_t width) { /* to bfloat16 */
  for (int64_t j = 0; j < width; j++) unit[j] = from_bf16(to_bf16(unit[j]));
}

/* grad = factor (g - (g · u) u) / length for g the gradient by u = z / length; g / eps for a row that
 * is shorter. */
INLINE void unit_row_grad(const void *z, const float *g, float inverse, float factor, int64_t width,
                          int32_t dtype, void *grad) {
  float by = fabsf(inverse), along = 0;
  int64_t i = 0;
  if (inverse > 0) {
    vf sum = splat(0.0f);
    for (; i + LANES <= width; i += LANES) sum += AT(vf, g + i) * load(z, i, dtype);
    for (; i < width; i++) along += g[i] * value_at(z, i, dtype);
    along = (along + sum_of(sum)) * by * by;
  }
  for (i = 0; i + LANES <= width; i += LANES) {
    vf value = (AT(vf, g + i) - load(z, i, dtype) * along) * (by * factor);
    store(grad, i, value, dtype, 0);
  }
  for (; i < width; i++) {
    float value = (g[i] - value_at(z, i, dtype) * along) * (by * factor);
    put(grad, i, value, dtype);
  }
}

#endif
