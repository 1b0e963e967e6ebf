/* Filters along rows and columns of float32 planes, and Gaussian kernels. */
#ifndef FASTEQUI_SEPARABLE_H
#define FASTEQUI_SEPARABLE_H

#include "values.h"

/* Index reflected about the border pixels, any distance away. */
INLINE int64_t reflected(int64_t i, int64_t size) {
  int64_t period = 2 * (size - 1);
  if (!period) return 0;
  i = (i < 0 ? -i : i) % period;
  return i < period - i ? i : period - i;
}

/* Weights of the offsets 0 .. n, normalised; n. Those that no sum in float32 would notice are left out. */
INLINE int64_t taps_of(float sigma, int64_t reach, float *taps) {
  double rate = 0.5 / ((double)sigma * sigma > 1e-12 ? (double)sigma * sigma : 1e-12), mass = 1;
  for (int64_t d = 1; d <= reach; d++) mass += 2 * exp(-(double)(d * d) * rate);
  int64_t n = 0;
  for (int64_t d = 0; d <= reach; d++) {
    taps[d] = (float)(exp(-(double)(d * d) * rate) / mass);
    if (taps[d] > 1e-9f) n = d;
  }
  return n;
}

/* out[i] = gain (taps[0] at[i] + Σ_d taps[d] (lows[d][i] + highs[d][i])) + bias of two vectors at `i`, or
 * of four. */
INLINE void filter_some(
    float *out, const float *at, const float *const *lows, const float *const *highs, const float *taps,
    int64_t reach, float gain, float bias, int64_t i, int four) {
  const float *middle = at + i;
  vf a = AT(vf, middle) * taps[0], b = AT(vf, middle + LANES) * taps[0], c = a, e = b;
  if (four) c = AT(vf, middle + 2 * LANES) * taps[0], e = AT(vf, middle + 3 * LANES) * taps[0];
  for (int64_t d = 1; d <= reach; d++) {
    const float *low = lows[d] + i, *high = highs[d] + i;
    a += (AT(vf, low) + AT(vf, high)) * taps[d];
    b += (AT(vf, low + LANES) + AT(vf, high + LANES)) * taps[d];
    if (four) c += (AT(vf, low + 2 * LANES) + AT(vf, high + 2 * LANES)) * taps[d];
    if (four) e += (AT(vf, low + 3 * LANES) + AT(vf, high + 3 * LANES)) * taps[d];
  }
  AT(vf, out + i) = a * gain + bias;
  AT(vf, out + i + LANES) = b * gain + bias;
  if (four) AT(vf, out + i + 2 * LANES) = c * gain + bias;
  if (four) AT(vf, out + i + 3 * LANES) = e * gain + bias;
}

/* The same for pairs of vectors that hold the first n values. */
INLINE void filter(
    float *out, const float *at, const float *const *lows, const float *const *highs, const float *taps,
    int64_t reach, float gain, float bias, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * LANES < n; i += 4 * LANES) filter_some(out, at, lows, highs, taps, reach, gain, bias, i, 1);
  if (i < n) filter_some(out, at, lows, highs, taps, reach, gain, bias, i, 0);
}

#endif
