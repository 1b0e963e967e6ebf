/* The losses of DINO and iBOT on a CPU: what dino.py's kernel computes, its gradient in the same pass.
 *
 * A row of the student is read from memory once: its log-sum-exp first, then its loss and gradient
 * while it is in the second-level cache. Rows that meet the same teachers follow one another, and the
 * sum of these teachers' distributions is kept, a row of float32 per thread; a row that meets one teacher
 * more adds that one. Numbers of rows and columns are in the logits' unit, powers those of two. A row's sums
 * do not depend on the thread that makes them.
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
  int64_t student_stride, teacher_stride, grad_stride, rows, columns, teacher_rows;
  float student_scale, teacher_scale; /* 1 / temperature */
  int32_t teachers, student_dtype, teacher_dtype, stream, threads; /* `stream`: gradients past the caches */
} Dino;

enum { AT_ONCE = 16 }; /* rows that a thread takes, or fewer */

INLINE Sum split(double lse) {
  float high = (float)lse;
  return (Sum){high, isfinite(high) ? lse - high : 0, -INFINITY};
}

/* Powers over their sum are 2^(scale (x - high)) times this. */
INLINE float factor_of(Sum sum, float scale) { return exp2f((float)(-sum.rest * scale)); }

/* A row of a teacher's distribution, added to `wanted` or put there; its sum. `least` is the smallest of
 * what is there then. */
INLINE double add_teacher(const Dino *op, const void *teacher, int32_t dtype, const float *column, Sum sum,
                          int first, float *wanted, vf *least) {
  float scale = op->teacher_scale * LOG2E, factor = factor_of(sum, scale);
  double total = 0;
  *least = splat(INFINITY);
  for (int64_t at = 0; at < op->columns; at += PART) {
    int64_t end = op->columns - at < PART ? op->columns : at + PART, i = at;
    vf added = splat(0.0f), each[SIDE];
    for (; i + SIDE * LANES <= end; i += SIDE * LANES) {
      logits_each(each, teacher, dtype, column, i, sum.high);
      EACH(SIDE) each[v] = smaller(splat(1.0f / scale), each[v]);
      exp2_each(each, SIDE, scale, factor);
      added += sum_of_each(each);
      if (!first) EACH(SIDE) each[v] += AT(vf, wanted + i + v * LANES);
      EACH(SIDE) AT(vf, wanted + i + v * LANES) = each[v];
      EACH(SIDE) *least = smaller(each[v], *least);
    }
    for (; i + LANES <= end; i += LANES) {
      vf value = share_of(logits(teacher, dtype, column, i, LANES, sum.high), scale, factor);
      vf sums = first ? value : value + AT(vf, wanted + i);
      AT(vf, wanted + i) = sums;
      *least = smaller(sums, *least);
      added += value;
    }
    if (i < end) {
      vf value = share_of(logits(teacher, dtype, column, i, end - i, sum.high), scale, factor);
      AT(vf, wanted + i) = first ? value : value + AT(vf, wanted + i);
      for (int64_t j = 0; i + j < end; j++) (*least)[0] = wanted[i + j] < (*least)[0] ? wanted[i + j] : (*least)[0];
      added += value;
    }
    total += sum_of(added);
  }
  return total;
}

/* What students are compared with. */
typedef struct {
  float *wanted; /* [columns] sum of the teachers' distributions, 0 behind */
  double total;  /* of `wanted` */
  int count;     /* of teachers */
  int positive;  /* all of `wanted` */
} Wanted;

/* Σ_t exp((teacher_t - column - row_t) / temperature): of all teachers of `pairs` behind those that `sums`
 * has already. `lse`: the log-sum-exps of all teachers, or NULL. */
CALLED void add_teachers(const Dino *op, const Sum *lse, const int32_t *pairs, Wanted *sums) {
  int found = 0, dtype = op->teacher_dtype;
  vf least;
  if (!sums->count) sums->total = 0;
  for (int32_t p = 0; p < op->teachers; p++) {
    if (pairs[p] < 0 || found++ < sums->count) continue;
    const void *teacher = row_of(op->teacher, pairs[p], op->teacher_stride, dtype);
    float scale = op->teacher_scale * LOG2E;
    Sum sum = lse       ? lse[pairs[p]]
              : op->row ? split(op->row[pairs[p]])
                        : lse_of_row(teacher, dtype, op->column, op->columns, scale);
#define ADD(dtype, column) add_teacher(op, teacher, dtype, column, sum, found == 1, sums->wanted, &least)
    if (dtype == FLOAT32) sums->total += op->column ? ADD(FLOAT32, op->column) : ADD(FLOAT32, NULL);
    else sums->total += op->column ? ADD(BFLOAT16, op->column) : ADD(BFLOAT16, NULL);
  }
  sums->count = found;
  sums->positive = 1;
  for (int i = 0; i < LANES; i++) sums->positive &= least[i] > 0;
}

/* What a row's loss is made of. */
typedef struct {
  const void *student;
  void *grad; /* or NULL */
  const float *wanted;
  float scale, lse, count, factor;
} Row;

/* Q (x - lse) of some columns, the cross-entropy times -temperature; and the gradient, factor (count P - Q).
 * Adds nothing where Q is 0, as for logits that are masked out; `plain`: all are finite, and so are slopes. */
INLINE vf crossed(const Row *row, int32_t dtype, int64_t at, int64_t n, int plain, vf *slope) {
  vf x = logits(row->student, dtype, NULL, at, n, row->lse), q = AT(vf, row->wanted + at);
  if (row->grad) *slope = exp2_times(x, row->scale, row->count * row->factor) - q * row->factor;
  return plain && n >= LANES ? q * x : (vf)((vi)(q * x) & (q != 0.0f));
}

/* The same of SIDE vectors, whose gradient is written. */
INLINE vf crossed_each(const Row *row, int32_t dtype, int64_t at, int plain, int stream) {
  vf x[SIDE], q[SIDE], slope[SIDE];
  logits_each(x, row->student, dtype, NULL, at, row->lse);
  EACH(SIDE) slope[v] = x[v];
  exp2_each(slope, SIDE, row->scale, row->count * row->factor);
  EACH(SIDE) q[v] = AT(vf, row->wanted + at + v * LANES);
  EACH(SIDE) slope[v] -= q[v] * row->factor;
  EACH(SIDE) x[v] = plain ? q[v] * x[v] : (vf)((vi)(q[v] * x[v]) & (q[v] != 0.0f));
  EACH(SIDE) store_some(row->grad, at + v * LANES, slope[v], dtype, stream, plain);
  return sum_of_each(x);
}

INLINE double loss_row(Row row, int64_t columns, int32_t dtype, int stream, int plain) {
  double dot = 0;
  for (int64_t at = 0; at < columns; at += PART) {
    int64_t end = columns - at < PART ? columns : at + PART, i = at;
    vf sum = splat(0.0f), slope;
    for (; row.grad && i + SIDE * LANES <= end; i += SIDE * LANES) sum -= crossed_each(&row, dtype, i, plain, stream);
    for (; i + LANES <= end; i += LANES) {
      sum -= crossed(&row, dtype, i, LANES, plain, &slope);
      if (row.grad) store_some(row.grad, i, slope, dtype, stream, plain);
    }
    if (i < end) {
      vf last = crossed(&row, dtype, i, end - i, plain, &slope);
      for (int64_t j = 0; i + j < end; j++) {
        sum[0] -= last[j]; /* behind them 0 times infinity */
        if (row.grad) put(row.grad, i + j, slope[j], dtype);
      }
    }
    dot += sum_of(sum);
  }
  return dot;
}

/* weight Σ Q (LSE(x) - x), x = student / temperature, and its gradient. */
CALLED float loss_of(const Dino *op, int64_t r, const Wanted *sums) {
  int32_t dtype = op->student_dtype;
  const void *student = row_of(op->student, r, op->student_stride, dtype);
  float scale = op->student_scale * LOG2E, factor = op->student_scale * op->weight[r];
  Sum lse = op->lse ? split(op->lse[r]) : lse_of_row(student, dtype, NULL, op->columns, scale);
  void *grad = op->grad ? (void *)row_of(op->grad, r, op->grad_stride, dtype) : NULL;
  int stream = op->stream && (uintptr_t)grad % (LANES * 4) == 0;
  float count = sums->count * factor_of(lse, scale);
  int finite = isfinite(lse.high) && isfinite(lse.rest) && isfinite(factor) && isfinite(sums->total);
  int plain = finite && (sums->positive || isfinite(lse.least - lse.high)); /* no 0 times infinity */
  const Row row = {student, grad, sums->wanted, scale, lse.high, count, factor};
#define ROW(dtype, stream, plain) loss_row(row, op->columns, dtype, stream, plain)
#define ROWS(dtype)                     \
  (!stream ? ROW(dtype, 0, 0)           \
   : plain ? ROW(dtype, 1, 1)           \
           : ROW(dtype, 1, 0))
  double dot = dtype == FLOAT32 ? ROWS(FLOAT32) : ROWS(BFLOAT16);
  return (float)(factor * (dot + sums->total * lse.rest));
}

/* How many of the teachers that `next` has are those of `before`, with nothing between or before them; 0 if
 * not all of `before` are. */
INLINE int shared(const int32_t *before, const int32_t *next, int32_t n) {
  int found = 0, more = 0;
  for (int32_t i = 0; i < n; i++) {
    if (before[i] >= 0 && (more || before[i] != next[i])) return 0;
    if (before[i] >= 0) found++;
    else if (next[i] >= 0) more = 1;
  }
  return found;
}

INLINE int number_of(const int32_t *pairs, int32_t n) {
  int found = 0;
  for (int32_t i = 0; i < n; i++) found += pairs[i] >= 0;
  return found;
}

INLINE const int32_t *pairs_of(const Dino *op, int64_t i) {
  return op->pairs + (op->order ? op->order[i] : i) * op->teachers;
}

/* The first row of a part, at its place or up to AT_ONCE behind it, where others' teachers begin. */
INLINE int64_t beginning(const Dino *op, int64_t part, int64_t size) {
  int64_t at = part * size;
  if (at >= op->rows) return op->rows;
  for (int64_t i = at; at && i < at + size && i < op->rows; i++)
    if (!shared(pairs_of(op, i - 1), pairs_of(op, i), op->teachers)) return i;
  return at;
}

/* The loss of a row and its gradient; `sums` of the teachers before become those of its own. */
INLINE void take_row(const Dino *op, const Sum *lse, int64_t i, const int32_t **known, Wanted *sums) {
  int64_t r = op->order ? op->order[i] : i;
  const int32_t *pairs = pairs_of(op, i);
  int teachers = number_of(pairs, op->teachers);
  if (op->weight[r] == 0.0f || !teachers) { /* is not read */
    op->loss[r] = 0;
    if (op->grad)
      memset((void *)row_of(op->grad, r, op->grad_stride, op->student_dtype), 0,
             op->columns * (op->student_dtype == FLOAT32 ? 4 : 2));
    return;
  }
  sums->count = *known ? shared(*known, pairs, op->teachers) : 0;
  if (sums->count < teachers) add_teachers(op, lse, pairs, sums);
  *known = pairs;
  op->loss[r] = loss_of(op, r, sums);
}

/* The log-sum-exps of teachers that several sums take, made once. */
static Sum *lse_of_teachers(const Dino *op) {
  Sum *found = malloc((size_t)op->teacher_rows * sizeof(Sum));
  if (!found) return NULL;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t t = 0; t < op->teacher_rows; t++) {
    const void *teacher = row_of(op->teacher, t, op->teacher_stride, op->teacher_dtype);
    uint32_t before = without_subnormals();
    found[t] = lse_of_row(teacher, op->teacher_dtype, op->column, op->columns, op->teacher_scale * LOG2E);
    restored(before);
  }
  return found;
}

const int64_t EXPORT(dino_bytes) = sizeof(Dino);

int EXPORT(dino)(const Dino *op) {
  int64_t width = (op->columns + PART) / LANES * LANES + LANES;
  int64_t fair = op->rows / (4 * op->threads), size = fair < 1 ? 1 : fair < AT_ONCE ? fair : AT_ONCE;
  int64_t parts = (op->rows + size - 1) / size;
  int several = op->order && !op->row; /* sums may take the same teacher */
  float *scratch = malloc((size_t)op->threads * width * sizeof(float));
  Sum *lse = several ? lse_of_teachers(op) : NULL;
  int failed = !scratch || (several && !lse);
  if (!failed) {
#pragma omp parallel num_threads(op->threads)
    {
      Wanted sums = {scratch + thread_number() * width};
      const int32_t *known = NULL;
      uint32_t before = without_subnormals();
#pragma omp for schedule(dynamic, 1)
      for (int64_t part = 0; part < parts; part++) {
        int64_t end = beginning(op, part + 1, size);
        for (int64_t i = beginning(op, part, size); i < end; i++) take_row(op, lse, i, &known, &sums);
      }
      restored(before);
    }
  }
  free(scratch);
  free(lse);
  return failed ? -1 : 0;
}
