/* GTSA's correspondence on either side of its products: unit rows before them, and after them which
 * matches count and the gradient by the student's rows: a few of the teacher's rows each, so no matrix of
 * weights is made. One thread an image of a view, in the order of its pairs.
 */

#include "small_products.h"
#include "unit_rows.h"

typedef struct {
  const void *x;             /* [views, batch, rows, width] */
  float *unit;               /* [batch, views, rows, width] */
  int64_t stride[3];         /* x's, of views, images and rows */
  int64_t views, rows;
  int32_t dtype;
} Features;

typedef struct {
  Features student, teacher;
  float *inverse;            /* [batch, views, rows] 1 / length of the student's rows; NULL: all are unit rows */
  const int32_t *pairs;      /* [count, 2] view of the student, of the teacher */
  float *forth, *back;       /* [batch, count, rows] of the student, of the teacher: the highest similarities, */
  int32_t *forth_at, *back_at; /* and where they are; what does not count becomes -1 */
  float *total;
  void *grad;                /* [views, batch, rows, width], dense, in the student's type; or NULL */
  int64_t batch, width, count, top;
  float eps;
  int32_t rounds;            /* unit rows to bfloat16 */
  int32_t threads;
} Correspondence;

INLINE const void *features_row(const Features *of, int64_t view, int64_t image, int64_t row) {
  int64_t at = view * of->stride[0] + image * of->stride[1] + row * of->stride[2];
  return row_of(of->x, 1, at, of->dtype);
}

/* Unit rows of one image of a view; to `inverse`, if there is one, 1 / their lengths. */
CALLED void unit_image(const Correspondence *op, const Features *of, int64_t place, float *inverse) {
  int64_t image = place / of->views, view = place % of->views, width = op->width;
  for (int64_t r = 0; r < of->rows; r++) {
    const void *x = features_row(of, view, image, r);
    float *unit = of->unit + (place * of->rows + r) * width;
    if (!op->inverse) {
      for (int64_t i = 0; i < width; i++) unit[i] = value_at(x, i, of->dtype);
      continue;
    }
    float found = unit_row(x, width, op->eps, of->dtype, unit);
    if (inverse) inverse[place * of->rows + r] = found;
    if (op->rounds) round_row(unit, width);
  }
}

const int64_t EXPORT(correspondence_rows_bytes) = sizeof(Correspondence);

/* Before the products: unit rows, and nothing found yet. */
int EXPORT(correspondence_rows)(const Correspondence *op) {
  const Features *student = &op->student, *teacher = &op->teacher;
  const int64_t ours = op->batch * student->views, all = ours + op->batch * teacher->views;
  in_huge_pages(student->unit, bytes_of(ours * student->rows * op->width, FLOAT32));
  in_huge_pages(teacher->unit, bytes_of((all - ours) * teacher->rows * op->width, FLOAT32));
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t i = 0; i < all; i++) {
    if (i < ours) unit_image(op, student, i, op->inverse);
    else unit_image(op, teacher, i - ours, NULL);
  }
  const int64_t m = op->batch * op->count * student->rows, n = op->batch * op->count * teacher->rows;
  for (int64_t i = 0; i < m; i++) op->forth[i] = -INFINITY, op->forth_at[i] = 0;
  for (int64_t i = 0; i < n; i++) op->back[i] = -INFINITY, op->back_at[i] = 0;
  return 0;
}

/* A number that is larger where the value is, NaN the largest. */
INLINE int32_t rank_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return INT32_MAX;
  return bits < 0 ? INT32_MIN - bits : bits; /* of both zeros 0 */
}

/* The k-th largest of n numbers, k from 1 on, whose order is lost. */
INLINE int32_t kth_largest(int32_t *x, int64_t n, int64_t k) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    int32_t pivot = x[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) i++;
      while (x[j] < pivot) j--;
      if (i > j) break;
      int32_t other = x[i];
      x[i++] = x[j], x[j--] = other;
    }
    if (k - 1 <= j) high = j;
    else if (k - 1 >= i) low = i;
    else break;
  }
  return x[k - 1];
}

/* The sum of the `top` largest, the first of equals; `at` of the others becomes -1. */
CALLED double sum_of_top(const float *values, int32_t *at, int64_t n, int64_t top, int32_t *ranks) {
  for (int64_t i = 0; i < n; i++) ranks[i] = rank_of(values[i]);
  int32_t least = kth_largest(ranks, n, top);
  int64_t equals = top; /* of them, as many as there is room for */
  double sum = 0;
  for (int64_t i = 0; i < n; i++) equals -= rank_of(values[i]) > least;
  for (int64_t i = 0; i < n; i++) {
    int32_t rank = rank_of(values[i]);
    int counts = rank > least || (rank == least && equals-- > 0);
    if (counts) sum += values[i];
    else at[i] = -1;
  }
  return sum;
}

INLINE void add_row(float *to, const float *row, int64_t width) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) AT(vf, to + i) += AT(vf, row + i);
  for (; i < width; i++) to[i] += row[i];
}

/* The gradient of one image of a view; `by_unit` [rows, width] is room for that by its unit rows. */
CALLED void grad_of_image(const Correspondence *op, int64_t place, float weight, float *by_unit) {
  const Features *student = &op->student, *teacher = &op->teacher;
  const int64_t image = place / student->views, view = place % student->views, width = op->width;
  const int64_t m = student->rows, n = teacher->rows;
  memset(by_unit, 0, (size_t)m * width * sizeof(float));
  for (int64_t p = 0; p < op->count; p++) {
    if (op->pairs[2 * p] != view) continue;
    const int64_t at = image * op->count + p;
    const float *rows = teacher->unit + (image * teacher->views + op->pairs[2 * p + 1]) * n * width;
    const int32_t *forth = op->forth_at + at * m, *back = op->back_at + at * n;
    for (int64_t i = 0; i < m; i++)
      if (forth[i] >= 0) add_row(by_unit + i * width, rows + forth[i] * width, width);
    for (int64_t j = 0; j < n; j++)
      if (back[j] >= 0) add_row(by_unit + back[j] * width, rows + j * width, width);
  }
  void *grad = (void *)row_of(op->grad, (view * op->batch + image) * m, width, student->dtype);
  for (int64_t i = 0; i < m; i++) {
    float *g = by_unit + i * width;
    if (op->inverse)
      unit_row_grad(features_row(student, view, image, i), g, op->inverse[place * m + i], weight, width,
                    student->dtype, (void *)row_of(grad, i, width, student->dtype));
    else {
      for (int64_t c = 0; c < width; c++) g[c] *= weight;
      put_values(grad, i * width, g, width, student->dtype, 0);
    }
  }
}

const int64_t EXPORT(correspondence_bytes) = sizeof(Correspondence);

/* After the products: the loss of the matches that count, and its gradient. */
int EXPORT(correspondence)(const Correspondence *op) {
  const int64_t m = op->student.rows, n = op->teacher.rows, pairs = op->batch * op->count, most = m > n ? m : n;
  const double weight = -0.5 / ((double)pairs * op->top);
  const int64_t room = whole_lines(m * op->width);
  double *sums = malloc((size_t)pairs * sizeof(double));
  int32_t *ranks = malloc((size_t)op->threads * most * sizeof(int32_t));
  float *by_unit = op->grad ? scratch_of(op->threads * room * sizeof(float)) : NULL;
  int failed = sums && ranks && (by_unit || !op->grad) ? 0 : -1;
  if (!failed) {
    if (op->grad) in_huge_pages(op->grad, bytes_of(op->batch * op->student.views * m * op->width, op->student.dtype));
#pragma omp parallel num_threads(op->threads)
    {
      int32_t *own = ranks + thread_number() * most;
#pragma omp for schedule(static)
      for (int64_t p = 0; p < pairs; p++)
        sums[p] = sum_of_top(op->forth + p * m, op->forth_at + p * m, m, op->top, own) +
                  sum_of_top(op->back + p * n, op->back_at + p * n, n, op->top, own);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < (op->grad ? op->batch * op->student.views : 0); i++)
        grad_of_image(op, i, (float)weight, by_unit + thread_number() * room);
    }
    double total = 0;
    for (int64_t p = 0; p < pairs; p++) total += sums[p];
    *op->total = (float)(weight * total);
  }
  free(sums);
  free(ranks);
  free(by_unit);
  return failed;
}

/* The highest of similarities [m, n] by row and by column, the first of equals, NaN if there is one. */
INLINE void best_of_few(
    const float *s, int64_t m, int64_t n, float *forth, int32_t *forth_at, float *back, int32_t *back_at) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float value = s[i * n + j];
      if (!(value <= forth[i]) && forth[i] == forth[i]) forth[i] = value, forth_at[i] = (int32_t)j;
      if (!(value <= back[j]) && back[j] == back[j]) back[j] = value, back_at[j] = (int32_t)i;
    }
}

const int64_t EXPORT(correspondence_small_bytes) = sizeof(Correspondence);

/* All of it, of few products, which are made here. Pointers to what lies between are not read, but that to
 * `inverse` says by not being NULL that rows are to be made unit rows. */
int EXPORT(correspondence_small)(const Correspondence *given) {
  Correspondence op = *given;
  const int64_t m = op.student.rows, n = op.teacher.rows, pairs = op.batch * op.count, width = op.width;
  const int64_t ours = op.batch * op.student.views * m, theirs = op.batch * op.teacher.views * n;
  const int64_t each = whole_lines(m * n);
  const int64_t values = op.threads * each + ours * (width + 1) + theirs * width + 2 * pairs * (m + n);
  float *s = scratch_of(values * sizeof(float));
  if (!s) return -1;
  op.student.unit = s + op.threads * each;
  op.teacher.unit = op.student.unit + ours * width;
  op.forth = op.teacher.unit + theirs * width, op.back = op.forth + pairs * m;
  op.forth_at = (int32_t *)(op.back + pairs * n), op.back_at = op.forth_at + pairs * m;
  if (op.inverse) op.inverse = (float *)(op.back_at + pairs * n);
  EXPORT(correspondence_rows)(&op);
#pragma omp parallel for num_threads(op.threads) schedule(static)
  for (int64_t p = 0; p < pairs; p++) {
    const int32_t *views = op.pairs + p % op.count * 2;
    const int64_t image = p / op.count;
    const float *x = op.student.unit + (image * op.student.views + views[0]) * m * width;
    const float *y = op.teacher.unit + (image * op.teacher.views + views[1]) * n * width;
    float *own = s + thread_number() * each;
    dot_products(own, x, y, m, n, width, 1);
    best_of_few(own, m, n, op.forth + p * m, op.forth_at + p * m, op.back + p * n, op.back_at + p * n);
  }
  int failed = EXPORT(correspondence)(&op);
  free(s);
  return failed;
}
