/* The losses of DINO and iBOT on a CPU: what dino.py's kernel computes, its gradient in the same pass.
 *
 * A row of the student is read from memory once: its log-sum-exp first, then its loss and gradient
 * while it is in the second-level cache. Rows that meet the same teachers follow one another, and the
 * sum of these teachers' distributions is kept, a row of float32 per thread. Powers of two throughout.
 * A row's sums do not depend on the thread that makes them.
 */
#include <stdlib.h>

#include "exponentials.h"

typedef struct {
  const void *student, *teacher;
  void *grad;            /* as student, or NULL */
  const int32_t *pairs;  /* [rows, teachers] rows of the teacher, -1 for none */
  const int32_t *order;  /* [rows]: those with the same teachers side by side; or NULL */
  const float *weight;   /* [rows] */
  const double *row;     /* of the teacher, a power of two each; or NULL: its softmax */
  const float *column;   /* [columns], or NULL */
  const double *lse;     /* [rows] log2 of the sum of all columns, where these are some; or NULL */
  float *loss;           /* [rows] */
  int64_t student_stride, teacher_stride, grad_stride, rows, columns;
  float student_scale, teacher_scale; /* 1 / temperature */
  int32_t teachers, student_dtype, teacher_dtype, threads;
} Dino;

enum { AT_ONCE = 8 }; /* rows that a thread takes */

/* Powers of two over their sum are 2^(x - high) factor: the sum's logarithm is rounded, and what that
 * takes from it would be missing in all of them. */
typedef struct {
  float high, factor;
} Split;

INLINE Split split(double log2) {
  float high = (float)log2;
  return (Split){high, exp2f((float)(high - log2))};
}

/* Σ_t exp(teacher_t / temperature - column - row_t), to `wanted`; how many there are. */
CALLED int add_teachers(const Dino *op, const int32_t *pairs, float *wanted) {
  int found = 0;
  float part[PART + LANES];
  for (int32_t p = 0; p < op->teachers; p++) {
    if (pairs[p] < 0) continue;
    const void *teacher = row_of(op->teacher, pairs[p], op->teacher_stride, op->teacher_dtype);
    float scale = op->teacher_scale * LOG2E;
    Split sum = split(op->row ? op->row[pairs[p]]
                              : log2_sum(teacher, op->teacher_dtype, op->column, op->columns, scale));
    for (int64_t at = 0; at < op->columns; at += PART) {
      int64_t size = op->columns - at < PART ? op->columns - at : PART;
      size = read_part(part, teacher, op->teacher_dtype, op->column, at, size, scale);
      for (int64_t i = 0; i < size; i += LANES) {
        vf value = exp2_or_0(AT(vf, part + i) - sum.high) * sum.factor;
        if (found) value += AT(vf, wanted + at + i);
        AT(vf, wanted + at + i) = value;
      }
    }
    found++;
  }
  return found;
}

/* Q (lse - x), the cross-entropy of some columns; 0 where Q is, as for logits that are masked out. */
INLINE vf crossed(vf q, vf x, float lse) { return pick(q == 0.0f, q, q * (lse - x)); }

/* weight Σ Q (LSE(x) - x), x = student / temperature, and its gradient; in powers of two. */
CALLED float loss_of(const Dino *op, int64_t r, float count, const float *wanted) {
  const void *student = row_of(op->student, r, op->student_stride, op->student_dtype);
  float scale = op->student_scale * LOG2E, factor = op->student_scale * op->weight[r];
  Split lse = split(op->lse ? op->lse[r] : log2_sum(student, op->student_dtype, NULL, op->columns, scale));
  count *= lse.factor;
  float part[PART + LANES];
  void *grad = op->grad ? (void *)row_of(op->grad, r, op->grad_stride, op->student_dtype) : NULL;
  double dot = 0;
  for (int64_t at = 0; at < op->columns; at += PART) {
    int64_t n = op->columns - at < PART ? op->columns - at : PART;
    int64_t i = 0;
    read_part(part, student, op->student_dtype, NULL, at, n, scale);
    vf sum = splat(0.0f);
    for (; i + LANES <= n; i += LANES) {
      vf x = AT(vf, part + i), q = AT(vf, wanted + at + i);
      sum += crossed(q, x, lse.high);
      if (grad) store(grad, at + i, (count * exp2_of(x - lse.high) - q) * factor, op->student_dtype, 0);
    }
    if (i < n) {
      vf x = AT(vf, part + i), q = AT(vf, wanted + at + i);
      vf slope = (count * exp2_of(x - lse.high) - q) * factor, each = crossed(q, x, lse.high);
      for (int64_t j = 0; i + j < n; j++) {
        dot += each[j];
        if (!grad) continue;
        put(grad, at + i + j, slope[j], op->student_dtype);
      }
    }
    dot += sum_of(sum);
  }
  return (float)(op->weight[r] * dot / 1.44269504088896341);
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
      if (!known || !same(known, pairs, op->teachers)) count = add_teachers(op, known = pairs, wanted);
      op->loss[r] = loss_of(op, r, (float)count, wanted);
    }
  }
  free(scratch);
  return 0;
}
