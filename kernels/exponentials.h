/* Powers of two and their sums over rows of logits, in float32. */
#ifndef FASTEQUI_EXPONENTIALS_H
#define FASTEQUI_EXPONENTIALS_H

#include <math.h>

#include "values.h"

enum { PART = 512 }; /* values of a row that are worked on at a time, in the first-level cache */

static const float LOG2E = 1.44269504088896341f;

/* 2^x, at most 2 units in the last place off; 2^-125 below -125, infinity from 128 on, NaN of NaN. */
INLINE vf exp2_of(vf x) {
  const float round = 12582912.0f; /* 1.5 2^23: added, it leaves the nearest integer in the last bits */
  vf bounded = smaller(splat(128.0f), larger(splat(-125.0f), x)), shifted = bounded + round;
  vf f = bounded - (shifted - round);                   /* -0.5 .. 0.5 */
  vi exponent = ((vi)shifted - 0x4b400000 + 126) << 23; /* of 2^(n - 1) */
  vf p = splat(0x1.41d334p-12f);                        /* 2 · 2^f: a minimax polynomial */
  p = p * f + 0x1.5f456ap-9f;
  p = p * f + 0x1.3b2dbcp-6f;
  p = p * f + 0x1.c6aed4p-4f;
  p = p * f + 0x1.ebfbdap-2f;
  p = p * f + 0x1.62e430p+0f;
  p = p * f + 0x1.000000p+1f;
  return p * (vf)exponent;
}

INLINE float most_of(vf v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
  return most;
}

/* The same, but 0 below -125. */
INLINE vf exp2_or_0(vf x) { return pick(x < -125.0f, splat(0.0f), exp2_of(x)); }

/* Values at .. at + n of a row, times `scale`, less `column`s times log2 e if there are any; -infinity
 * behind them, to a whole vector. The number of values that makes. */
INLINE int64_t read_part(
    float *part, const void *row, int32_t dtype, const float *column, int64_t at, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    vf value = load(row, at + i, dtype) * scale;
    if (column) value -= AT(vf, column + at + i) * LOG2E;
    AT(vf, part + i) = value;
  }
  if (i == n) return n;
  for (int64_t j = 0; j < LANES; j++) {
    if (i + j < n) {
      part[i + j] = value_at(row, at + i + j, dtype) * scale - (column ? column[at + i + j] * LOG2E : 0.0f);
    } else part[i + j] = -INFINITY;
  }
  return i + LANES;
}

/* log2 Σ_j 2^(scale x_j - column_j log2 e) of a row of n values, each read once. In double: float32
 * would round it by a part of its own size, and all that is divided by the sum by that much. */
CALLED double log2_sum(const void *row, int32_t dtype, const float *column, int64_t n, float scale) {
  float part[PART + LANES], most = -INFINITY;
  double total = 0;
  for (int64_t at = 0; at < n; at += PART) {
    int64_t size = n - at < PART ? n - at : PART;
    size = read_part(part, row, dtype, column, at, size, scale);
    vf top = AT(vf, part);
    for (int64_t i = LANES; i < size; i += LANES) {
      top = larger(AT(vf, part + i), top);
    }
    float highest = most_of(top);
    if (highest > most) {
      total *= most == -INFINITY ? 0 : exp2(most - highest); /* NaN stays */
      most = highest;
    }
    float base = most == -INFINITY ? 0 : most; /* nothing finite yet */
    vf sum = splat(0.0f), second = sum;
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
      sum += exp2_of(AT(vf, part + i) - base);
      second += exp2_of(AT(vf, part + i + LANES) - base);
    }
    if (i < size) sum += exp2_of(AT(vf, part + i) - base);
    total += sum_of(sum + second);
  }
  return most + log2(total);
}

#endif
