/* Powers of two and their sums over rows of logits, in float32. */
#ifndef FASTEQUI_EXPONENTIALS_H
#define FASTEQUI_EXPONENTIALS_H

#include <math.h>

#include "values.h"

enum { PART = 512 }; /* values of a row that are worked on at a time, in the first-level cache */

static const float LOG2E = 1.44269504088896341f;

/* 2^(x scale) of x scale < 128, at most 2 units in the last place off; 0 below -125.5, NaN of NaN. The
 * product is not rounded: it is added to at once. */
INLINE vf exp2_below_128(vf x, float scale) {
  const float round = 12582912.0f + 126; /* 1.5 2^23: added, it leaves the nearest integer in the last bits */
  vf bounded = larger(splat(-126.0f / scale), x), shifted = bounded * scale + round;
  vf f = bounded * scale - (shifted - round); /* -0.5 .. 0.5 */
  vf half = (vf)((vi)shifted << 23);       /* 2^(n - 1), or 0 where n is -126 */
  vf p = splat(0x1.41d334p-12f);           /* 2 · 2^f: a minimax polynomial */
  p = p * f + 0x1.5f456ap-9f;
  p = p * f + 0x1.3b2dbcp-6f;
  p = p * f + 0x1.c6aed4p-4f;
  p = p * f + 0x1.ebfbdap-2f;
  p = p * f + 0x1.62e430p+0f;
  p = p * f + 0x1.000000p+1f;
  return p * half;
}

/* 2^x of any x, infinity from 128 on. */
INLINE vf exp2_of(vf x) { return exp2_below_128(smaller(splat(128.0f), x), 1.0f); }

/* 2^(x scale) of the logarithm of a share, which is above 0 by rounding alone: of logits of 1e6 by less
 * than 1, of 1e9 by thousands, of which neither infinity nor many times a whole should come. */
INLINE vf share_of(vf x, float scale) { return exp2_below_128(smaller(splat(1.0f / scale), x), scale); }

/* log2 x of x >= 2^-126 or x = 0, to 2^-23 or 2 units in the last place; infinite and NaN as it should. */
INLINE vf log2_of(vf x) {
  vi bits = (vi)x, exponent = (bits - 0x3f3504f3) >> 23; /* so that the rest is in √½ .. √2 */
  vf m = (vf)(bits - (exponent << 23)), s = (m - 1.0f) / (m + 1.0f), square = s * s;
  vf p = splat(2 * LOG2E / 9); /* of 2 atanh(s) log2 e */
  p = p * square + 2 * LOG2E / 7;
  p = p * square + 2 * LOG2E / 5;
  p = p * square + 2 * LOG2E / 3;
  p = p * square + 2 * LOG2E;
  vf found = p * s + __builtin_convertvector(exponent, vf);
  found = pick(x == 0.0f, splat(-INFINITY), found);
  return pick(x < INFINITY, found, x); /* NaN too */
}

INLINE float most_of(vf v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
  return most;
}

/* The end of a row; see `logits`. */
CALLED vf last_logits(const void *row, int32_t dtype, const float *column, int64_t at, int64_t n, float less) {
  vf value = splat(-INFINITY);
  for (int64_t j = 0; j < n; j++)
    value[j] = (column ? value_at(row, at + j, dtype) - column[at + j] : value_at(row, at + j, dtype)) - less;
  return value;
}

/* n values of a row from `at` on, of which there are LANES or fewer, less `column`s, if there are any, and
 * less `less`. Behind the n values -infinity.
 *
 * In the logits' own unit, and before they are multiplied: numbers that are nearly equal cancel without
 * a rounding then, however large they are. Of products they would not: what is rounded in one, and not in
 * the other, is many powers of two where logits are 1e6 or more (masks are). */
INLINE vf logits(const void *row, int32_t dtype, const float *column, int64_t at, int64_t n, float less) {
  if (n < LANES) return last_logits(row, dtype, column, at, n, less);
  vf value = load(row, at, dtype);
  if (column) value -= AT(vf, column + at);
  return value - less;
}

/* A log-sum-exp, high + rest: float32 would round it by a part of its own size, and all that is divided
 * by the sum by that much. */
typedef struct {
  float high;
  double rest;
} Sum;

INLINE Sum lse_of(const void *row, int32_t dtype, const float *column, int64_t n, float scale) {
  float most = -INFINITY;
  double total = 0;
  for (int64_t at = 0; at < n; at += PART) {
    int64_t end = n - at < PART ? n : at + PART, i = at + LANES;
    vf top = logits(row, dtype, column, at, end - at, 0);
    for (; i + LANES <= end; i += LANES) top = larger(logits(row, dtype, column, i, LANES, 0), top);
    if (i < end) top = larger(logits(row, dtype, column, i, end - i, 0), top);
    float highest = most_of(top);
    if (highest > most) {
      total *= most == -INFINITY ? 0 : exp2((most - highest) * scale); /* NaN stays */
      most = highest;
    }
    float base = most == -INFINITY ? 0 : most; /* nothing finite yet */
    vf sum = splat(0.0f), second = sum;
    for (i = at; i + 2 * LANES <= end; i += 2 * LANES) {
      sum += exp2_below_128(logits(row, dtype, column, i, LANES, base), scale);
      second += exp2_below_128(logits(row, dtype, column, i + LANES, LANES, base), scale);
    }
    for (; i < end; i += LANES) sum += exp2_below_128(logits(row, dtype, column, i, end - i, base), scale);
    total += sum_of(sum + second);
  }
  return (Sum){most, log2(total) / scale};
}

/* log2 Σ_j 2^(scale (x_j - column_j)) / scale of a row of n values, each read from memory once: the
 * log-sum-exp in the unit of the values. */
CALLED Sum lse_of_row(const void *row, int32_t dtype, const float *column, int64_t n, float scale) {
  if (dtype == FLOAT32)
    return column ? lse_of(row, FLOAT32, column, n, scale) : lse_of(row, FLOAT32, NULL, n, scale);
  return column ? lse_of(row, BFLOAT16, column, n, scale) : lse_of(row, BFLOAT16, NULL, n, scale);
}

#endif
