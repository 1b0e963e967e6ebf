/* The losses of DINO and iBOT on a CPU: what dino.py's kernel computes, its gradient in the same pass.
 *
 * A row of the student is read from memory once: its log-sum-exp first, then its loss and gradient
 * while it is in the second-level cache. Rows that meet the same teachers follow one another, and the
 * sum of these teachers' distributions is kept, a row of float32 per thread. Numbers of rows and columns
 * are in the logits' unit, powers those of two. A row's sums do not depend on the thread that makes them.
 */
#include <stdlib.h>

#include "exponentials.h"

typedef struct {
  const void *student, *teacher;
  void *grad;            /* as student, or NULL */
  const int32_t *pairs;  /* [rows, teachers] rows of the teacher, -1 for none */
  const int32_t *order;  /* [rows]: those with the same teachers side by side; or NULL */
  const float *weight;   /* [rows] */
  const double *row;     /* of the teacher, such that its distribution is exp((x - column - row) / temp),
                            or NULL: its softmax */
  const float *column;   /* [columns], or NULL */
  const double *lse;     /* [rows] log-sum-exp of all columns, where these are some; or NULL */
  float *loss;           /* [rows] */
  int64_t student_stride, teacher_stride, grad_stride, rows, columns;
  float student_scale, teacher_scale; /* 1 / temperature */
  int32_t teachers, student_dtype, teacher_dtype, stream, threads; /* `stream`: gradients past the caches */
} Dino;

enum { AT_ONCE = 8 }; /* rows that a thread takes */

INLINE Sum split(double lse) {
  float high = (float)lse;
  return (Sum){high, isfinite(high) ? lse - high : 0};
}

/* Powers over their sum are 2^(scale (x - high)) times this. */
INLINE float factor_of(Sum sum, float scale) { return exp2f((float)(-sum.rest * scale)); }

/* A row of a teacher's distribution, added to `wanted` or put there; its sum. */
INLINE double add_teacher(
    const Dino *op, const void *teacher, int32_t dtype, const float *column, Sum sum, int first, float *wanted) {
  float scale = op->teacher_scale * LOG2E, factor = factor_of(sum, scale);
  double total = 0;
  for (int64_t at = 0; at < op->columns; at += PART) {
    int64_t end = op->columns - at < PART ? op->columns : at + PART, i = at;
    vf added = splat(0.0f);
    for (; i + LANES <= end; i += LANES) {
      vf value = share_of(logits(teacher, dtype, column, i, LANES, sum.high), scale) * factor;
      AT(vf, wanted + i) = first ? value : value + AT(vf, wanted + i);
      added += value;
    }
    if (i < end) {
      vf value = share_of(logits(teacher, dtype, column, i, end - i, sum.high), scale) * factor;
      AT(vf, wanted + i) = first ? value : value + AT(vf, wanted + i);
      added += value;
    }
    total += sum_of(added);
  }
  return total;
}

/* Σ_t exp((teacher_t - column - row_t) / temperature), to `wanted`, 0 behind, and their sum to `total`; how
 * many there are. */
CALLED int add_teachers(const Dino *op, const int32_t *pairs, float *wanted, double *total) {
  int found = 0, dtype = op->teacher_dtype;
  *total = 0;
  for (int32_t p = 0; p < op->teachers; p++) {
    if (pairs[p] < 0) continue;
    const void *teacher = row_of(op->teacher, pairs[p], op->teacher_stride, dtype);
    float scale = op->teacher_scale * LOG2E;
    Sum sum = op->row ? split(op->row[pairs[p]]) : lse_of_row(teacher, dtype, op->column, op->columns, scale);
#define ADD(dtype, column) add_teacher(op, teacher, dtype, column, sum, !found, wanted)
    if (dtype == FLOAT32) *total += op->column ? ADD(FLOAT32, op->column) : ADD(FLOAT32, NULL);
    else *total += op->column ? ADD(BFLOAT16, op->column) : ADD(BFLOAT16, NULL);
    found++;
  }
  return found;
}

/* Q (x - lse) of some columns, the cross-entropy times -temperature; and the gradient count P - Q. Adds
 * nothing where Q is 0, as for logits that are masked out. */
INLINE vf crossed(const void *student, int32_t dtype, int64_t at, int64_t n, float scale, float lse, vf q,
                  float count, vf *slope) {
  vf x = logits(student, dtype, NULL, at, n, lse);
  if (slope) *slope = count * exp2_below_128(x, scale) - q;
  return (vf)((vi)(q * x) & (q != 0.0f));
}

INLINE double loss_row(const void *student, int32_t dtype, void *grad, int stream, const float *wanted,
                       int64_t columns, float scale, float lse, float count, float factor) {
  double dot = 0;
  for (int64_t at = 0; at < columns; at += PART) {
    int64_t end = columns - at < PART ? columns : at + PART, i = at;
    vf sum = splat(0.0f), slope;
    for (; i + LANES <= end; i += LANES) {
      sum -= crossed(student, dtype, i, LANES, scale, lse, AT(vf, wanted + i), count, grad ? &slope : NULL);
      if (grad) store(grad, i, slope * factor, dtype, stream);
    }
    if (i < end) {
      sum -= crossed(student, dtype, i, end - i, scale, lse, AT(vf, wanted + i), count, grad ? &slope : NULL);
      for (int64_t j = 0; grad && i + j < end; j++) put(grad, i + j, slope[j] * factor, dtype);
    }
    dot += sum_of(sum);
  }
  return dot;
}

/* weight Σ Q (LSE(x) - x), x = student / temperature, and its gradient. */
CALLED float loss_of(const Dino *op, int64_t r, float count, const float *wanted, double total) {
  int32_t dtype = op->student_dtype;
  const void *student = row_of(op->student, r, op->student_stride, dtype);
  float scale = op->student_scale * LOG2E, factor = op->student_scale * op->weight[r];
  Sum lse = op->lse ? split(op->lse[r]) : lse_of_row(student, dtype, NULL, op->columns, scale);
  void *grad = op->grad ? (void *)row_of(op->grad, r, op->grad_stride, dtype) : NULL;
  int stream = op->stream && (uintptr_t)grad % (LANES * 4) == 0;
#define ROW(dtype, grad, stream) \
  loss_row(student, dtype, grad, stream, wanted, op->columns, scale, lse.high, count * factor_of(lse, scale), factor)
  double dot;
  if (dtype == FLOAT32) dot = !grad ? ROW(FLOAT32, NULL, 0) : stream ? ROW(FLOAT32, grad, 1) : ROW(FLOAT32, grad, 0);
  else dot = !grad ? ROW(BFLOAT16, NULL, 0) : stream ? ROW(BFLOAT16, grad, 1) : ROW(BFLOAT16, grad, 0);
  return (float)(factor * (dot + total * lse.rest));
}

INLINE int same(const int32_t *a, const int32_t *b, int32_t n) {
  for (int32_t i = 0; i < n; i++)
    if (a[i] != b[i]) return 0;
  return 1;
}

INLINE int any(const int32_t *pairs, int32_t n) {
  for (int32_t i = 0; i < n; i++)
    if (pairs[i] >= 0) return 1;
  return 0;
}

const int64_t EXPORT(dino_bytes) = sizeof(Dino);

int EXPORT(dino)(const Dino *op) {
  int64_t width = (op->columns + PART) / LANES * LANES + LANES;
  float *scratch = malloc((size_t)op->threads * width * sizeof(float));
  if (!scratch) return -1;
#pragma omp parallel num_threads(op->threads)
  {
    float *wanted = scratch + thread_number() * width;
    const int32_t *known = NULL;
    int count = 0;
    double total = 0;
#pragma omp for schedule(dynamic, AT_ONCE)
    for (int64_t i = 0; i < op->rows; i++) {
      int64_t r = op->order ? op->order[i] : i;
      const int32_t *pairs = op->pairs + r * op->teachers;
      if (op->weight[r] == 0.0f || !any(pairs, op->teachers)) { /* is not read */
        op->loss[r] = 0;
        if (op->grad)
          memset((void *)row_of(op->grad, r, op->grad_stride, op->student_dtype), 0,
                 op->columns * (op->student_dtype == FLOAT32 ? 4 : 2));
        continue;
      }
      if (!known || !same(known, pairs, op->teachers)) count = add_teachers(op, known = pairs, wanted, &total);
      op->loss[r] = loss_of(op, r, (float)count, wanted, total);
    }
  }
  free(scratch);
  return 0;
}
