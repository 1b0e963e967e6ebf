/* The losses of DINO and iBOT on a CPU: what dino.py's kernel computes, its gradient in the same pass.
 *
 * A row is read from memory once, and one power of two made of each value: the powers are kept, a row of
 * float32 per thread in the second-level cache, until their sum is known. The gradient is written while the next
 * row is read, since memory is fastest for both at once. Rows that meet the same teachers follow one another,
 * and the sum of these teachers' distributions is kept likewise; a row that meets one teacher more adds that
 * one, whose own distribution is kept for rows that meet it alone. Numbers of rows and columns are in the
 * logits' unit. A row's sums do not depend on the thread that makes them.
 */
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
  float *loss;           /* [rows], or NULL */
  float *total;          /* of all rows, or NULL */
  int64_t student_stride, teacher_stride, grad_stride, rows, columns;
  float student_scale, teacher_scale; /* 1 / temperature */
  int32_t teachers, student_dtype, teacher_dtype, stream, threads; /* `stream`: gradients past the caches */
} Dino;

enum { AT_ONCE = 16 }; /* rows that a thread takes, or fewer */
static const float FEW = 1e-12f; /* of a row's weight over the temperature */

INLINE Sum split(double lse) {
  float high = (float)lse;
  return (Sum){high, isfinite(high) ? lse - high : 0};
}

/* Powers less `base` over their sum are 2^(scale (x - base)) times this. */
INLINE float share_of_each(Sum sum, float base, float scale) {
  return (float)exp2((((double)base - sum.high) - sum.rest) * scale);
}

/* A thread's memory: what students are compared with, and the last row, whose gradient is written part by
 * part before these are written over. */
typedef struct {
  float *wanted; /* [columns] sum of the teachers' distributions over `unit`, 0 behind */
  float *powers; /* [columns] of the last row */
  float *second; /* [columns] as `wanted`, of the teacher `held` alone, or of none (-1); or NULL */
  float unit, held_unit;
  double total, held_total; /* of the distributions */
  int32_t held;
  int count;     /* of teachers */
  void *grad;    /* of the last row, powers · share - against · factor, or NULL */
  float *against; /* what it was compared with */
  int spoilt;     /* whether `wanted` was rescaled, so that it is made anew for the next row */
  float share, factor;
  int dtype, stream, number; /* `number`: none is NaN */
} Work;

INLINE void slopes_of(const Work *work, int64_t at, int64_t end, int dtype, int stream, int number) {
  const float *powers = work->powers, *wanted = work->against, share = work->share, factor = work->factor;
  void *grad = work->grad;
  for (; at + 2 * LANES <= end; at += 2 * LANES) {
    vf slope[2];
    for (int v = 0; v < 2; v++)
      slope[v] = AT(vf, powers + at + v * LANES) * share - AT(vf, wanted + at + v * LANES) * factor;
    if (dtype == BFLOAT16 && number) put_nearest_halves((uint16_t *)grad + at, slope[0], slope[1], stream);
    else store_two(grad, at, slope[0], slope[1], dtype, stream, number);
  }
  for (; at < end; at++) put(grad, at, powers[at] * share - wanted[at] * factor, dtype);
}

/* Writes a part of the last row's gradient. */
CALLED void slopes(const void *whom, int64_t at, int64_t end) {
  const Work *work = whom;
  if (!work->grad) return;
  if (work->stream) ask_for_pages((const char *)work->grad + bytes_of(at, work->dtype), bytes_of(end - at, work->dtype));
  if (work->dtype == FLOAT32) {
    if (work->stream) slopes_of(work, at, end, FLOAT32, 1, 1);
    else slopes_of(work, at, end, FLOAT32, 0, 1);
  } else if (work->number) {
    if (work->stream) slopes_of(work, at, end, BFLOAT16, 1, 1);
    else slopes_of(work, at, end, BFLOAT16, 0, 1);
  } else slopes_of(work, at, end, BFLOAT16, 0, 0);
}

/* A row of a teacher's distribution, exp((x - column - row) / temp), to `to`; behind it, 0. Returns its sum. */
INLINE double distribution(
    const Dino *op, const void *teacher, int32_t dtype, const float *column, Sum sum, const Work *work, float *to) {
  float scale = op->teacher_scale * LOG2E, factor = share_of_each(sum, sum.high, scale);
  double total = 0;
  for (int64_t at = 0; at < op->columns; at += PART) {
    int64_t end = op->columns - at < PART ? op->columns : at + PART, i = at;
    vf added = splat(0.0f), each[SIDE];
    slopes(work, at, end);
    for (; i + SIDE * LANES <= end; i += SIDE * LANES) {
      logits_each(each, teacher, dtype, column, i, sum.high);
      EACH(SIDE) each[v] = smaller(splat(1.0f / scale), each[v]);
      exp2_each(each, SIDE, scale, factor);
      EACH(SIDE) AT(vf, to + i + v * LANES) = each[v];
      added += sum_of_each(each);
    }
    for (; i < end; i += LANES) {
      vf value = share_of(logits(teacher, dtype, column, i, end - i, sum.high), scale, factor);
      AT(vf, to + i) = value;
      added += value;
    }
    total += sum_of(added);
  }
  return total;
}

/* The same of its softmax, exp((x - column) / temp) over their sum, but for the factor that is returned. */
INLINE float softmax(
    const Dino *op, const void *teacher, int32_t dtype, const float *column, const Work *work, float *to) {
  float scale = op->teacher_scale * LOG2E;
  Kept kept = {to, NULL, slopes, work};
  float first = most_of_first(teacher, dtype, column, op->columns);
  Sum sum = lse_of(teacher, dtype, column, op->columns, scale, first, &kept);
  return share_of_each(sum, kept.base, scale);
}

/* values = values · by + others · times */
CALLED void add(float *values, float by, const float *others, float times, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = values[i] * by + others[i] * times;
}

/* Σ_t exp((teacher_t - column - row_t) / temperature): of all teachers of `pairs` behind those that are
 * added already. */
CALLED void add_teachers(const Dino *op, const int32_t *pairs, Work *work) {
  int found = 0, dtype = op->teacher_dtype;
  if (!work->count) work->total = 0;
  for (int32_t p = 0; p < op->teachers; p++) {
    if (pairs[p] < 0 || found++ < work->count) continue;
    if (found == 1 && pairs[p] == work->held) {
      float *sum = work->wanted;
      work->wanted = work->second;
      work->second = sum;
      work->unit = work->held_unit;
      work->total = work->held_total;
      work->held = -1;
      continue;
    }
    const void *teacher = row_of(op->teacher, pairs[p], op->teacher_stride, dtype);
    float share = 1, *to = found == 1 ? work->wanted : work->second;
    double total = 1;
#define PUT(dtype, column)                                                                        \
  (op->row ? (total = distribution(op, teacher, dtype, column, split(op->row[pairs[p]]), work, to)) \
           : (share = softmax(op, teacher, dtype, column, work, to)))
    if (dtype == FLOAT32) op->column ? PUT(FLOAT32, op->column) : PUT(FLOAT32, NULL);
    else op->column ? PUT(BFLOAT16, op->column) : PUT(BFLOAT16, NULL);
#undef PUT
    work->grad = NULL;
    work->total += total;
    for (int64_t i = op->columns; i < op->columns + 2 * LANES; i++) to[i] = 0;
    if (found > 1) {
      add(work->wanted, work->unit, to, share, op->columns);
      work->held = pairs[p];
      work->held_unit = share;
      work->held_total = total;
      share = 1;
    }
    work->unit = share;
  }
  work->count = found;
}

/* Σ Q (x - less), of which those add nothing where Q is 0, as for logits that are masked out. */
CALLED double dot_of(const void *student, int32_t dtype, const Work *work, int64_t columns, float less) {
  double dot = 0;
  for (int64_t i = 0; i < columns; i += LANES) {
    vf q = AT(vf, work->wanted + i) * work->unit, x = logits(student, dtype, NULL, i, columns - i, less);
    dot += sum_of((vf)((vi)(q * x) & (q != 0.0f)));
  }
  return dot;
}

/* weight Σ Q (LSE(x) - x), x = student / temperature; its gradient is left to be written. */
CALLED float loss_of(const Dino *op, int64_t r, Work *work) {
  int32_t dtype = op->student_dtype;
  const void *student = row_of(op->student, r, op->student_stride, dtype);
  float scale = op->student_scale * LOG2E, factor = op->student_scale * op->weight[r];
  Kept kept = {work->powers, work->wanted, slopes, work};
  Sum lse, known = op->lse ? split(op->lse[r]) : (Sum){0};
#define LSE(dtype)                                                                       \
  lse_of(student, dtype, NULL, op->columns, scale,                                       \
         op->lse ? known.high : most_of_first(student, dtype, NULL, op->columns), &kept)
  if (dtype == FLOAT32) lse = LSE(FLOAT32);
  else lse = LSE(BFLOAT16);
#undef LSE
  if (op->lse) lse = known;
  double dot = kept.dot * work->unit, base = kept.base;
  if (!isfinite(dot)) dot = dot_of(student, dtype, work, op->columns, base = lse.high);
  float each = share_of_each(lse, kept.base, scale);
  if (fabsf(factor) < FEW) { /* whose product with a small share would be 0 */
    multiply(work->powers, op->columns, each);
    multiply(work->wanted, op->columns, work->unit);
    each = work->unit = 1;
    work->spoilt = 1;
  }
  work->grad = op->grad ? (void *)row_of(op->grad, r, op->grad_stride, dtype) : NULL;
  work->against = work->wanted;
  work->share = work->count * factor * each;
  work->factor = factor * work->unit;
  work->number = isfinite(lse.high) && isfinite(lse.rest) && isfinite(factor) && isfinite(work->total * work->unit);
  work->dtype = dtype;
  work->stream = op->stream && (uintptr_t)work->grad % (LANES * 4) == 0;
  return (float)(factor * (work->total * ((lse.high - base) + lse.rest) - dot));
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

/* Whether two rows meet no teacher both. */
INLINE int apart(const int32_t *before, const int32_t *next, int32_t n) {
  for (int32_t i = 0; i < n; i++)
    if (before[i] >= 0 && before[i] == next[i]) return 0;
  return 1;
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
    if (apart(pairs_of(op, i - 1), pairs_of(op, i), op->teachers)) return i;
  return at;
}

/* The loss of a row; the sum of the teachers before becomes that of its own. */
INLINE void take_row(const Dino *op, float *losses, int64_t i, const int32_t **known, Work *work) {
  int64_t r = op->order ? op->order[i] : i;
  const int32_t *pairs = pairs_of(op, i);
  int teachers = number_of(pairs, op->teachers);
  if (op->weight[r] == 0.0f || !teachers) { /* is not read */
    losses[r] = 0;
    if (op->grad)
      memset((void *)row_of(op->grad, r, op->grad_stride, op->student_dtype), 0,
             op->columns * (op->student_dtype == FLOAT32 ? 4 : 2));
    return;
  }
  work->count = *known ? shared(*known, pairs, op->teachers) : 0;
  if (work->count < teachers) add_teachers(op, pairs, work);
  work->spoilt = 0;
  losses[r] = loss_of(op, r, work);
  *known = work->spoilt ? NULL : pairs;
}

const int64_t EXPORT(dino_bytes) = sizeof(Dino);

int EXPORT(dino)(const Dino *op) {
  int64_t width = whole_lines(op->columns + PART + LANES), kept = op->teachers > 1 ? 3 : 2;
  int64_t fair = op->rows / (4 * op->threads), size = fair < 1 ? 1 : fair < AT_ONCE ? fair : AT_ONCE;
  int64_t parts = (op->rows + size - 1) / size;
  float *scratch = scratch_of(op->threads * kept * width * sizeof(float));
  float *losses = op->loss ? op->loss : malloc((size_t)op->rows * sizeof(float));
  int failed = scratch && losses ? 0 : -1;
  if (!failed) {
    if (op->stream) in_huge_pages(op->grad, bytes_of((op->rows - 1) * op->grad_stride + op->columns, op->student_dtype));
#pragma omp parallel num_threads(op->threads)
    {
      float *own = scratch + thread_number() * kept * width;
      Work work = {own, own + width, kept > 2 ? own + 2 * width : NULL, .held = -1};
      const int32_t *known = NULL;
      uint32_t before = without_subnormals();
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t part = 0; part < parts; part++) {
        int64_t end = beginning(op, part + 1, size);
        for (int64_t i = beginning(op, part, size); i < end; i++) take_row(op, losses, i, &known, &work);
      }
      slopes(&work, 0, op->columns);
      restored(before);
    }
  }
  if (op->total && !failed) {
    double total = 0;
    for (int64_t r = 0; r < op->rows; r++) total += losses[r];
    *op->total = (float)total;
  }
  free(scratch);
  if (!op->loss) free(losses);
  return failed;
}
