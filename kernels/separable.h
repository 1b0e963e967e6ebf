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

/* Sums of taps[|d|] times what lies at place[j + d], for j = 0 .. 3, d = -reach .. reach: of four places side
 * by side, since each value is loaded for the first and handed on. */
INLINE void filter_four(vf *out, const float *from, const int64_t *place, const float *taps, int64_t reach) {
#define VALUE(j) AT(vf, from + place[j])
  vf a = VALUE(0), b = VALUE(1), c = VALUE(2), e = VALUE(3);
  vf p = a, q = b, r = c, s = e, sums[4] = {a * taps[0], b * taps[0], c * taps[0], e * taps[0]};
/* `l0`, `h3` come in: what lies `d` before the first and behind the last. */
#define STEP(l0, l1, l2, l3, h0, h1, h2, h3)  \
  if (++d > reach) break;                    \
  l0 = VALUE(-d), h3 = VALUE(3 + d);         \
  sums[0] += (l0 + h0) * taps[d];            \
  sums[1] += (l1 + h1) * taps[d];            \
  sums[2] += (l2 + h2) * taps[d];            \
  sums[3] += (l3 + h3) * taps[d];
  for (int64_t d = 0;;) {
    STEP(e, a, b, c, q, r, s, p)
    STEP(c, e, a, b, r, s, p, q)
    STEP(b, c, e, a, s, p, q, r)
    STEP(a, b, c, e, p, q, r, s)
  }
#undef STEP
#undef VALUE
  for (int v = 0; v < 4; v++) out[v] = sums[v];
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
