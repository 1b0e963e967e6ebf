/* Powers of two and their sums over rows of logits, in float32. */
#ifndef FASTEQUI_EXPONENTIALS_H
#define FASTEQUI_EXPONENTIALS_H

#include <math.h>

#include "values.h"

enum { PART = 512 }; /* values of a row that are worked on at a time, in the first-level cache */

static const float LOG2E = 1.44269504088896341f;

/* Vectors that go side by side, a step of all before the next: what one waits for, the others do. */
enum { SIDE = 4 };
#define EACH(n) for (int v = 0; v < (n); v++)

/* Vectors x become 2^(x scale) by, of x scale < 128, at most 2 units in the last place off; below -125 from 0 to that, 0
 * below -126, NaN of NaN. The product x scale is not rounded: it is added to at once, or made of parts.
 *
 * x scale = k / LANES + f, and 2^(k / LANES) is looked up in a register by k's last bits; its exponent is
 * added. 2^f is a minimax polynomial then, the shorter the larger the table. */
#ifdef __AVX2__
#if defined(__AVX512F__)
enum { TABLE_BITS = 4 };
#define POWERS 0x3f000000, 0x3efdaac3, 0x3efb95c2, 0x3ef9c3d3, 0x3ef837f0, 0x3ef6f532, 0x3ef5fed7, 0x3ef5583f, \
  0x3ef504f3, 0x3ef508a4, 0x3ef5672a, 0x3ef6248c, 0x3ef744fd, 0x3ef8ccdf, 0x3efac0c7, 0x3efd257d
#define LOOKED_UP(at) (vu)_mm512_permutexvar_epi32((__m512i)(at), (__m512i)(vi){POWERS})
#define TERMS {0x1.c6ac6ap-4f, 0x1.ebfff4p-2f, 0x1.62e430p+0f}
#else
enum { TABLE_BITS = 3 };
#define POWERS 0x3f000000, 0x3efb95c2, 0x3ef837f0, 0x3ef5fed7, 0x3ef504f3, 0x3ef5672a, 0x3ef744fd, 0x3efac0c7
#define LOOKED_UP(at) (vu)_mm256_permutevar8x32_epi32((__m256i)(vi){POWERS}, (__m256i)(at))
#define TERMS {0x1.c6a002p-4f, 0x1.ec0c32p-2f, 0x1.62e432p+0f}
#endif
INLINE void exp2_each(vf *x, int n, float scale, float by) {
  const float round = 0x1.8p23f / LANES; /* added, it leaves k in the last bits */
  const float terms[] = TERMS;
  vf shifted[SIDE], power[SIDE], p[SIDE];
  EACH(n) x[v] = larger(splat(-126.0f / scale), x[v]);
  EACH(n) shifted[v] = x[v] * scale + round;
  EACH(n) x[v] = x[v] * scale - (shifted[v] - round); /* f, -0.5 .. 0.5, by LANES */
  EACH(n) power[v] = (vf)(LOOKED_UP((vi)shifted[v]) + ((vu)shifted[v] << (23 - TABLE_BITS))); /* half of it */
  EACH(n) p[v] = x[v] * (terms[0] * by) + terms[1] * by;
  EACH(n) p[v] = p[v] * x[v] + terms[2] * by;
  EACH(n) p[v] = p[v] * x[v] + 2.0f * by;
  EACH(n) x[v] = p[v] * power[v];
}
#else
/* x scale - whole, which is its nearest integer. */
INLINE vf fraction(vf x, float scale, vf whole) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return x * scale - whole;
#else /* halves of 12 bits, whose product is exact */
  const vf high = (vf)((vi)x & ~0xfff), scale_high = (vf)((vi)splat(scale) & ~0xfff);
  return (high * scale_high - whole) + (high * (scale - scale_high) + (x - high) * scale);
#endif
}

INLINE void exp2_each(vf *x, int n, float scale, float by) {
  const float round = 12582912.0f + 126; /* 1.5 2^23: added, it leaves the nearest integer in the last bits */
  for (int v = 0; v < n; v++) {
    vf bounded = larger(splat(-126.0f / scale), x[v]), shifted = bounded * scale + round;
    vf f = fraction(bounded, scale, shifted - round); /* -0.5 .. 0.5 */
    vf half = (vf)((vi)shifted << 23);       /* 2^(n - 1), or 0 where n is -126 */
    vf p = splat(0x1.41d334p-12f * by);      /* 2 · 2^f: a minimax polynomial */
    p = p * f + 0x1.5f456ap-9f * by;
    p = p * f + 0x1.3b2dbcp-6f * by;
    p = p * f + 0x1.c6aed4p-4f * by;
    p = p * f + 0x1.ebfbdap-2f * by;
    p = p * f + 0x1.62e430p+0f * by;
    p = p * f + 0x1.000000p+1f * by;
    x[v] = p * half;
  }
}
#endif

INLINE vf exp2_times(vf x, float scale, float by) {
  exp2_each(&x, 1, scale, by);
  return x;
}

INLINE vf exp2_below_128(vf x, float scale) { return exp2_times(x, scale, 1.0f); }

/* 2^x of any x, infinity from 128 on. */
INLINE vf exp2_of(vf x) { return exp2_below_128(smaller(splat(128.0f), x), 1.0f); }

/* 2^(x scale) of the logarithm of a share, which is above 0 by rounding alone: of logits of 1e6 by less
 * than 1, of 1e9 by thousands, of which neither infinity nor many times a whole should come. */
INLINE vf share_of(vf x, float scale, float by) { return exp2_times(smaller(splat(1.0f / scale), x), scale, by); }

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
  v4 four = folded_most(v);
  float most = four[0];
  for (int i = 1; i < 4; i++) most = four[i] > most ? four[i] : most;
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

/* What is kept of a row's values besides. */
typedef struct {
  float *powers;     /* 2^(scale (x - base)), [columns] and what a vector takes more */
  const float *with; /* [columns], 0 behind; or NULL */
  void (*leave)(const void *whom, int64_t at, int64_t end); /* before a part of `powers` is written over */
  const void *whom;
  float base;
  double dot; /* Σ with (x - base), NaN where `base` was another at first or values are infinite */
} Kept;

enum { AHEAD = 1024, FAR_ABOVE = 64 }; /* values; powers of two */

/* SIDE vectors of logits. */
INLINE void logits_each(vf *x, const void *row, int32_t dtype, const float *column, int64_t at, float less) {
  EACH(SIDE) x[v] = logits(row, dtype, column, at + v * LANES, LANES, less);
}

INLINE vf sum_of_each(const vf *x) { return (x[0] + x[1]) + (x[2] + x[3]); }

CALLED void multiply(float *values, int64_t n, float by) {
  for (int64_t i = 0; i < n; i++) values[i] *= by;
}

/* The largest value of a row's beginning. */
INLINE float most_of_first(const void *row, int32_t dtype, const float *column, int64_t n) {
  vf top = splat(-INFINITY);
  for (int64_t i = 0; i < n && i < PART; i += LANES) top = larger(logits(row, dtype, column, i, n - i, 0), top);
  return most_of(top);
}

/* Sums powers less `base`, and begins a part again, less a larger one, where that is too small to be: to know
 * the largest of all beforehand takes a pass. */
INLINE Sum lse_of(
    const void *row, int32_t dtype, const float *column, int64_t n, float scale, float base, Kept *kept) {
  const int64_t line = 64 / (dtype == FLOAT32 ? 4 : 2); /* values of a cache line */
  vf top = splat(-INFINITY);
  float most = base;
  double total = 0, dot = 0;
  for (int64_t at = 0; at < n; at += PART) {
    int64_t end = n - at < PART ? n : at + PART, i;
    float less;
    vf sums[SIDE], x[SIDE], dots;
    if (kept) kept->leave(kept->whom, at, end);
    for (;;) {
      less = base == -INFINITY ? 0 : base; /* nothing finite yet */
      EACH(SIDE) sums[v] = splat(0.0f);
      dots = splat(0.0f);
      for (i = at; i + SIDE * LANES <= end; i += SIDE * LANES) {
        for (int64_t next = 0; next < SIDE * LANES; next += line) ask_for(row, i + next + AHEAD, dtype);
        logits_each(x, row, dtype, column, i, 0);
        EACH(SIDE) top = larger(x[v], top);
        EACH(SIDE) x[v] -= less;
        if (kept && kept->with) EACH(SIDE) dots += AT(vf, kept->with + i + v * LANES) * x[v];
        exp2_each(x, SIDE, scale, 1.0f);
        if (kept) EACH(SIDE) AT(vf, kept->powers + i + v * LANES) = x[v];
        EACH(SIDE) sums[v] += x[v];
      }
      for (; i < end; i += LANES) {
        vf last = logits(row, dtype, column, i, end - i, 0);
        top = larger(last, top);
        last -= less;
        if (kept && kept->with) {
          vf with = AT(vf, kept->with + i);
          dots += end - i < LANES ? (vf)((vi)(with * last) & (with != 0.0f)) : with * last;
        }
        last = exp2_below_128(last, scale);
        if (kept) AT(vf, kept->powers + i) = last;
        sums[0] += last;
      }
      most = most_of(top);
      if (!((most - less) * scale > FAR_ABOVE || (base == -INFINITY && most > base))) break;
      float by = base == -INFINITY ? 0 : (float)exp2((base - most) * (double)scale); /* NaN stays */
      total *= by;
      if (kept) multiply(kept->powers, at, by);
      dot = at ? NAN : 0;
      base = most;
    }
    total += sum_of(sum_of_each(sums));
    if (kept && kept->with) dot += sum_of(dots);
  }
  if (kept) kept->base = base == -INFINITY ? 0 : base, kept->dot = dot;
  return (Sum){most, (base == most ? 0 : (double)base - most) + log2(total) / scale};
}

/* log2 Σ_j 2^(scale (x_j - column_j)) / scale of a row of n values, each read from memory once: the
 * log-sum-exp in the unit of the values. */
CALLED Sum lse_of_row(const void *row, int32_t dtype, const float *column, int64_t n, float scale) {
#define LSE(dtype, column) lse_of(row, dtype, column, n, scale, most_of_first(row, dtype, column, n), NULL)
  if (dtype == FLOAT32) return column ? LSE(FLOAT32, column) : LSE(FLOAT32, NULL);
  return column ? LSE(BFLOAT16, column) : LSE(BFLOAT16, NULL);
#undef LSE
}

#endif
