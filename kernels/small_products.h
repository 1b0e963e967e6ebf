/* Matrix products of few rows, where a library's call takes longer than the arithmetic. */
#ifndef FASTEQUI_SMALL_PRODUCTS_H
#define FASTEQUI_SMALL_PRODUCTS_H

#include "values.h"

/* out[i, j] = a[i] · b[j] of dense rows. */
CALLED void dot_products(
    float *out, const float *a, const float *b, int64_t rows, int64_t columns, int64_t width,
    int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; i++) {
    const float *x = a + i * width;
    for (int64_t j = 0; j < columns; j += 4) {
      const float *y[4]; /* the last row again, where there are fewer */
      for (int64_t k = 0; k < 4; k++) y[k] = b + (j + k < columns ? j + k : columns - 1) * width;
      vf sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
      float rest[4] = {0, 0, 0, 0};
      int64_t at = 0;
      for (; at + LANES <= width; at += LANES) {
        vf value = AT(vf, x + at);
        for (int64_t k = 0; k < 4; k++) sum[k] += value * AT(vf, y[k] + at);
      }
      for (; at < width; at++)
        for (int64_t k = 0; k < 4; k++) rest[k] += x[at] * y[k][at];
      Four quarters = transposed((Four){folded(sum[0]), folded(sum[1]), folded(sum[2]), folded(sum[3])});
      v4 total = (quarters.a + quarters.b) + (quarters.c + quarters.d) + AT(v4, rest);
      for (int64_t k = 0; k < 4 && j + k < columns; k++) out[i * columns + j + k] = total[k];
    }
  }
}

/* out[i] += Σ_j weight[i, j] rows[j] */
CALLED void add_weighted_rows(
    float *out, const float *weight, const float *rows, int64_t count, int64_t among, int64_t width,
    int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i++) {
    float *to = out + i * width;
    const float *by = weight + i * among;
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) {
      vf sum[4];
      for (int64_t k = 0; k < 4; k++) sum[k] = AT(vf, to + at + k * LANES);
      for (int64_t j = 0; j < among; j++)
        for (int64_t k = 0; k < 4; k++) sum[k] += by[j] * AT(vf, rows + j * width + at + k * LANES);
      for (int64_t k = 0; k < 4; k++) AT(vf, to + at + k * LANES) = sum[k];
    }
    for (; at < width; at++) {
      float sum = to[at];
      for (int64_t j = 0; j < among; j++) sum += by[j] * rows[j * width + at];
      to[at] = sum;
    }
  }
}

#endif
