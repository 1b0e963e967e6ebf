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
 * by side, since each value is loaded for the first and handed on. `even`: places are `step` apart. */
INLINE void four_sums(
    vf *out, const float *from, const int64_t *place, int64_t step, int even, const float *taps, int64_t reach) {
#define VALUE(j) AT(vf, from + (even ? (j)*step : place[j]))
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

/* The same; far from the ends places are `step` apart, and not read one by one. */
INLINE void filter_four(
    vf *out, const float *from, const int64_t *place, int64_t step, const float *taps, int64_t reach) {
  int even = place[3 + reach] - place[-reach] == (3 + 2 * reach) * step;
  if (even) four_sums(out, from + place[0], NULL, step, 1, taps, reach);
  else four_sums(out, from, place, 0, 0, taps, reach);
}

enum { ROWS = 16, SPARE = 64 }; /* rows of a strip; values that vectors may read behind a row */

/* Where rows of a plane and of a half-filtered strip lie, with those beyond their ends. */
typedef struct {
  const int64_t *down, *across;
} Places;

INLINE int64_t beyond(int64_t reach) { return reach + ROWS + LANES; }

/* How many values `places` has. */
INLINE int64_t places_of(int64_t height, int64_t width, int64_t reach) { return height + width + 4 * beyond(reach); }

/* Of planes whose rows are `pitch` apart and of which `kept` are in memory, each in the place of an earlier one; in
 * memory at `places`. */
INLINE Places placed(int64_t *places, int64_t height, int64_t width, int64_t kept, int64_t pitch, int64_t reach) {
  int64_t more = beyond(reach), *down = places + more, *across = down + height + 2 * more;
  for (int64_t i = -more; i < height + more; i++) down[i] = reflected(i, height) % kept * pitch;
  for (int64_t i = -more; i < width + more; i++) across[i] = reflected(i, width) * ROWS;
  return (Places){down, across};
}

/* Rows y .. y + n of a plane, filtered in both directions, times `gain` and plus `bias`, to `values`, whose
 * rows are `pitch` apart. Between the directions, and again behind them, rows are made columns, so that both
 * are sums of whole vectors at multiples of a cache line: `turned` takes ROWS · (width + LANES). */
CALLED void filter_strip(
    float *values, int64_t pitch, float *turned, const float *plane, Places places, const float *taps,
    int64_t reach, float gain, float bias, int64_t y, int64_t n, int64_t width) {
  for (int64_t x = 0; x < width; x += LANES) {
    vf tile[ROWS];
    for (int64_t r = 0; r < ROWS; r += 4)
      filter_four(tile + r, plane + x, places.down + y + (r < n ? r : 0), pitch, taps, reach);
    for (int64_t r = 0; r < ROWS; r += LANES) {
      transpose(tile + r);
      for (int64_t i = 0; i < LANES; i++) AT(vf, turned + (x + i) * ROWS + r) = tile[r + i];
    }
  }
  for (int64_t r = 0; r < n; r += LANES)
    for (int64_t x = 0; x < width; x += LANES) {
      vf tile[LANES];
      for (int64_t i = 0; i < LANES; i += 4)
        filter_four(tile + i, turned + r, places.across + x + i, ROWS, taps, reach);
      for (int64_t i = 0; i < LANES; i++) tile[i] = tile[i] * gain + bias;
      transpose(tile);
      for (int64_t i = 0; i < LANES; i++) AT(vf, values + (r + i) * pitch + x) = tile[i];
    }
}

#endif
