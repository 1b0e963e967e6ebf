/* Errors of predictions and their gradients, of values that follow one another in memory. */
#ifndef FASTEQUI_PIXEL_LOSS_H
#define FASTEQUI_PIXEL_LOSS_H

#include "values.h"

enum { MSE, L1, SMOOTH_L1 };

/* Error and slope of as many differences as a vector has. */
INLINE vf error(vf d, int32_t loss, vf *slope) {
  if (loss == MSE) {
    *slope = d + d;
    return d * d;
  }
  vf size = (vf)((vi)d & 0x7fffffff);
  vf sign = (vf)(((vi)d & (int32_t)0x80000000) | (vi)splat(1.0f));
  sign = pick(d != 0.0f, sign, d); /* 0 at 0 */
  sign = pick(d != d, d, sign);    /* NaN at NaN */
  if (loss == L1) {
    *slope = sign;
    return size;
  }
  vi small = size < 1.0f;
  *slope = pick(small, d, sign);
  return pick(small, 0.5f * d * d, size - 0.5f);
}

/* What the error of values is made from; those that `keep` masks out count nothing. */
typedef struct {
  const float *target;
  const void *pred;
  void *grad;
  float weight;
  float *slopes;       /* or NULL */
  const int32_t *keep; /* or NULL */
} Values;

/* Errors of a vector of values from `i` on with the given target, and its weighted slope. */
INLINE vf error_from(
    const Values *of, vf target, int64_t i, int64_t at, int32_t dtype, int32_t loss, vf *gradient) {
  vf slope, d = load(of->pred, at + i, dtype) - target;
  if (of->keep) d = (vf)((vi)d & AT(vi, of->keep + i));
  vf size = error(d, loss, &slope);
  if (of->grad) *gradient = of->weight * slope;
  if (of->slopes) AT(vf, of->slopes + i) = slope;
  return size;
}

/* The same of two vectors, their gradient written. */
INLINE vf errors_of_two(
    const Values *of, vf first, vf second, int64_t i, int64_t at, int32_t dtype, int32_t loss, int stream) {
  vf a, b, size = error_from(of, first, i, at, dtype, loss, &a);
  size += error_from(of, second, i + LANES, at, dtype, loss, &b);
  if (of->grad) store_two(of->grad, at + i, a, b, dtype, stream, 0);
  return size;
}

INLINE double wide_sum_of(vf v) {
  v4 four = folded(v);
  return ((double)four[0] + four[1]) + ((double)four[2] + four[3]);
}

/* Sum of the error of n values, the gradient written. */
INLINE double error_of(
    Values of, int64_t at, int64_t n, int32_t dtype, int32_t loss, int stream) {
  vf a = splat(0.0f), b = a; /* two sums of pairs: none waits for its last addition */
  int64_t i = 0;
#define TARGETS(i) AT(vf, of.target + (i)), AT(vf, of.target + (i) + LANES), i
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    a += errors_of_two(&of, TARGETS(i), at, dtype, loss, stream);
    b += errors_of_two(&of, TARGETS(i + 2 * LANES), at, dtype, loss, stream);
  }
#undef TARGETS
  for (; i + LANES <= n; i += LANES) {
    vf gradient;
    a += error_from(&of, AT(vf, of.target + i), i, at, dtype, loss, &gradient);
    if (of.grad) store(of.grad, at + i, gradient, dtype, stream);
  }
  double total = wide_sum_of(a + b);
  for (; i < n; i++) { /* fewer than a vector left */
    vf slope, d = splat(value_at(of.pred, at + i, dtype) - of.target[i]);
    if (of.keep) d = (vf)((vi)d & of.keep[i]);
    total += error(d, loss, &slope)[0];
    if (of.slopes) of.slopes[i] = slope[0];
    if (of.grad) put(of.grad, at + i, of.weight * slope[0], dtype);
  }
  return total;
}

/* A prediction and what is made of it. */
typedef struct {
  const void *pred;
  void *grad;   /* as pred, or NULL */
  float weight; /* of the gradient */
  int32_t dtype, loss;
  int32_t stream; /* write the gradient past the caches */
} Prediction;

/* Whether the gradient of n values from `at` on is written past the caches; if so, prefetches its next pages. */
INLINE int streams(const Prediction *op, int64_t at, int64_t n) {
  if (!op->stream || !op->grad) return 0;
  const char *start = (const char *)op->grad + bytes_of(at, op->dtype);
  if ((uintptr_t)start % (LANES * 4)) return 0;
  ask_for_pages(start, bytes_of(n, op->dtype));
  return 1;
}

/* make(dtype, loss, ...) with what a prediction says as constants. */
#define BY_LOSS(make, dtype, ...)                           \
  (op->loss == MSE  ? make(dtype, MSE, __VA_ARGS__)         \
   : op->loss == L1 ? make(dtype, L1, __VA_ARGS__)          \
                    : make(dtype, SMOOTH_L1, __VA_ARGS__))
#define BY_TYPE(make, ...)                                                           \
  (op->dtype == FLOAT32 ? BY_LOSS(make, FLOAT32, __VA_ARGS__) : BY_LOSS(make, BFLOAT16, __VA_ARGS__))

/* Sum of the errors of the n values from `at` on, of runs of them; the gradient is written. */
CALLED double error_run(
    const Prediction *op, const float *target, float *slopes, const int32_t *keep, int64_t at,
    int64_t n) {
#define ERROR(dtype, loss, slopes, keep, stream)                                              \
  error_of((Values){target, op->pred, op->grad, op->weight, slopes, keep}, at, n, dtype, loss, \
           stream)
  if (keep || slopes) return BY_TYPE(ERROR, slopes, keep, 0);
  return streams(op, at, n) ? BY_TYPE(ERROR, NULL, NULL, 1) : BY_TYPE(ERROR, NULL, NULL, 0);
#undef ERROR
}

#endif
