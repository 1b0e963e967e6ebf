/* NT-Xent from similarities, while a panel of them is in the caches; a library's matrix product makes
 * them, or, of few rows, small_products.h. Sums over groups of rows are in their order: the same bits
 * for any number of threads.
 *
 * Similarities of unit rows are at most 1, so exp((s - 1) / temperature) needs no maximum first where
 * exp(-2 / temperature) is a number of float32, and is the same for both rows that meet.
 */

#include "exponentials.h"
#include "small_products.h"
#include "unit_rows.h"

typedef struct {
  float *s;                       /* [rows, columns] similarities; `weigh` makes them weights */
  const int64_t *own, *positive;  /* [rows] numbers of columns: the row itself, its other view; or NULL
                                     where all rows meet all, the second views `half` rows behind */
  float *alike;                   /* by the number of a row: similarity / temperature to its positive */
  double *sum;                    /* by the number: Σ exp((s - 1) / temperature) over its negatives */
  const float *row, *column;      /* [rows], [columns] factors, or log-sum-exps where there is no sum */
  int64_t rows, columns;
  int64_t first_row, first_column; /* their numbers */
  int64_t mirrored;                /* the first column that is also a row that meets these rows */
  int64_t half;
  float scale;                     /* 1 / temperature */
  int32_t bounded;                 /* the powers of all similarities fit into float32 */
  int32_t threads;
} Contrast;

INLINE int64_t local(const Contrast *op, int64_t number) {
  int64_t at = number - op->first_column;
  return at >= 0 && at < op->columns ? at : -1;
}

/* The column in which a row meets itself, and that of its other view, or -1. */
INLINE int64_t own_of(const Contrast *op, int64_t r) {
  return local(op, op->own ? op->own[r] : op->first_row + r);
}

INLINE int64_t positive_of(const Contrast *op, int64_t r) {
  int64_t number = op->first_row + r, other = number < op->half ? op->half : -op->half;
  return local(op, op->positive ? op->positive[r] : number + other);
}

/* Of rows start .. start + n; what they add to the columns' sums to `columns`. */
CALLED void contrast_group(const Contrast *op, int64_t start, int64_t n, float *columns) {
  float scale = op->scale * LOG2E;
  double sum[GROUP];
  for (int64_t r = 0; r < n; r++) {
    float *s = op->s + (start + r) * op->columns;
    int64_t own = own_of(op, start + r), positive = positive_of(op, start + r);
    if (positive >= 0) {
      op->alike[op->first_row + start + r] = s[positive] * op->scale;
      if (positive >= op->mirrored) op->alike[op->first_column + positive] = s[positive] * op->scale;
      s[positive] = -INFINITY;
    }
    if (own >= 0) s[own] = -INFINITY;
    sum[r] = 0;
    if (op->bounded) continue;
    Sum lse = lse_of_row(s, FLOAT32, NULL, op->columns, scale);
    sum[r] = (lse.high + lse.rest) * op->scale;
  }
  for (int64_t c = 0; op->bounded && c < op->columns; c += PART) {
    int64_t size = op->columns - c < PART ? op->columns - c : PART;
    vf total[PART / LANES];
    for (int64_t i = 0; i * LANES < size; i++) total[i] = splat(0.0f);
    for (int64_t r = 0; r < n; r++) {
      const float *s = op->s + (start + r) * op->columns + c;
      vf mine = splat(0.0f);
      for (int64_t i = 0; i * LANES < size; i++) {
        vf x = some(s + i * LANES, size - i * LANES);
        vf power = exp2_of(x * scale - scale);
        mine += power;
        total[i] += power;
      }
      sum[r] += sum_of(mine);
    }
    for (int64_t i = 0; i < size; i++) columns[c + i] = total[i / LANES][i % LANES];
  }
  for (int64_t r = 0; r < n; r++) op->sum[op->first_row + start + r] += sum[r];
}

const int64_t EXPORT(contrast_bytes) = sizeof(Contrast);

/* Adds to the sums of rows, and of the columns from `mirrored` on. Without a bound `sum` of a row
 * becomes the log-sum-exp of all columns. */
int EXPORT(contrast)(const Contrast *op) {
  int64_t groups = (op->rows + GROUP - 1) / GROUP;
  float *columns = scratch_of(groups * op->columns * sizeof(float));
  if (!columns) return -1;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t g = 0; g < groups; g++) {
    int64_t start = g * GROUP, n = op->rows - start < GROUP ? op->rows - start : GROUP;
    contrast_group(op, start, n, columns + g * op->columns);
  }
  if (op->bounded)
#pragma omp parallel for num_threads(op->threads) schedule(static)
    for (int64_t c = op->mirrored; c < op->columns; c++) {
      double sum = 0;
      for (int64_t g = 0; g < groups; g++) sum += columns[g * op->columns + c];
      op->sum[op->first_column + c] += sum;
    }
  free(columns);
  return 0;
}

/* A power of two that is no more than 1, whatever rounding made of its exponent. */
INLINE vf at_most_1(vf x) { return exp2_of(pick(x > 0.0f, splat(0.0f), x)); }

const int64_t EXPORT(weigh_bytes) = sizeof(Contrast);

/* s_ij becomes exp((s_ij - 1) / temperature) (row_i + column_j), or without a bound
 * exp(s_ij / temperature - row_i) + exp(s_ij / temperature - column_j); 0 for the row itself and its
 * positive. */
int EXPORT(weigh)(const Contrast *op) {
  float scale = op->scale * LOG2E;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->rows; r++) {
    float *s = op->s + r * op->columns, row = op->row[r];
    for (int64_t i = 0; i < op->columns; i += LANES) {
      int64_t n = op->columns - i;
      vf x = some(s + i, n) * scale, column = some(op->column + i, n), weight;
      if (op->bounded) weight = exp2_of(x - scale) * (column + row);
      else weight = at_most_1(x - row * LOG2E) + at_most_1(x - column * LOG2E);
      if (n >= LANES) AT(vf, s + i) = weight;
      else for (int64_t j = 0; j < n; j++) s[i + j] = weight[j];
    }
    int64_t own = own_of(op, r), positive = positive_of(op, r);
    if (own >= 0) s[own] = 0;
    if (positive >= 0) s[positive] = 0;
  }
  return 0;
}

typedef struct {
  double *sum;        /* [2 half] of `contrast`; becomes every row's loss */
  const float *alike; /* [2 half] */
  const float *unit;  /* [2 half, width] */
  float *row;         /* [2 half] factors of `weigh`, or log-sum-exps */
  float *pull;        /* [2 half] what the negatives of a row and of its other view weigh */
  float *grad;        /* [2 half, width]: what the positives add to the gradient, times temperature */
  double *loss;       /* the sum over all rows */
  int64_t half, width;
  float scale;        /* 1 / temperature */
  int32_t bounded, threads;
} Settle;

const int64_t EXPORT(settle_bytes) = sizeof(Settle);

/* Rows' losses log(1 + exp(n - p)) from the log-sum-exp n of negatives and the positive p. */
int EXPORT(settle)(const Settle *op) {
  int64_t rows = 2 * op->half;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    double negative = op->bounded ? log(op->sum[r]) + op->scale : op->sum[r];
    double x = negative - op->alike[r], loss = x > 60 ? x : log1p(exp(x)), lse = op->alike[r] + loss;
    op->sum[r] = loss;
    op->row[r] = op->bounded ? exp(op->scale - lse) : lse;
    op->pull[r] = 1 / (1 + exp(-x));
  }
  double total = 0;
  for (int64_t r = 0; r < rows; r++) total += op->sum[r];
  *op->loss = total;
  for (int64_t r = 0; r < op->half; r++) op->pull[r] = op->pull[r + op->half] += op->pull[r];
  if (!op->grad) return 0;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float *other = op->unit + (r < op->half ? r + op->half : r - op->half) * op->width;
    float *grad = op->grad + r * op->width, pull = op->pull[r];
    for (int64_t i = 0; i < op->width; i++) grad[i] = -pull * other[i];
  }
  return 0;
}

typedef struct {
  const void *z[2];   /* [half, width], the two views */
  void *grad[2];      /* dense, in z's type; or NULL */
  float *loss;        /* the mean over all rows */
  int64_t stride[2], half, width;
  float eps, scale;   /* of a row's length; 1 / temperature */
  int32_t dtype;
  int32_t rounds;     /* unit rows to z's type */
  int32_t bounded, threads;
} Small;

const int64_t EXPORT(nt_xent_small_bytes) = sizeof(Small);

/* The loss of few rows and its gradients: all of the above, with similarities that are kept. */
int EXPORT(nt_xent_small)(const Small *op) {
  int64_t half = op->half, rows = 2 * half, width = op->width, all = rows * width;
  int grads = op->grad[0] || op->grad[1];
  size_t floats = (size_t)(rows * rows + all + (grads ? all : 0) + 4 * rows);
  double *sum = calloc(1, (size_t)rows * sizeof(double) + floats * sizeof(float));
  if (!sum) return -1;
  float *s = (float *)(sum + rows), *unit = s + rows * rows, *by_unit = unit + all;
  float *inverse = by_unit + (grads ? all : 0), *alike = inverse + rows, *row = alike + rows, *pull = row + rows;
  for (int64_t r = 0; r < rows; r++) {
    int64_t view = r / half;
    const void *z = row_of(op->z[view], r % half, op->stride[view], op->dtype);
    inverse[r] = unit_row(z, width, op->eps, op->dtype, unit + r * width);
    if (op->rounds) round_row(unit + r * width, width);
  }
  dot_products(s, unit, unit, rows, rows, width, op->threads);
  Contrast every = {.s = s, .alike = alike, .sum = sum, .row = row, .column = row, .rows = rows, .columns = rows,
                    .mirrored = rows, .half = half, .scale = op->scale, .bounded = op->bounded, .threads = 1};
  double loss;
  Settle found = {sum, alike, unit, row, pull, grads ? by_unit : NULL, &loss, half, width, op->scale,
                  op->bounded, 1};
  int failed = EXPORT(contrast)(&every);
  if (!failed) {
    EXPORT(settle)(&found);
    *op->loss = (float)(loss / rows);
  }
  if (!failed && grads) {
    EXPORT(weigh)(&every);
    add_weighted_rows(by_unit, s, unit, rows, rows, width, op->threads);
    float factor = op->scale / rows;
    for (int64_t r = 0; r < rows; r++) {
      int64_t view = r / half;
      if (!op->grad[view]) continue;
      const void *z = row_of(op->z[view], r % half, op->stride[view], op->dtype);
      void *grad = (void *)row_of(op->grad[view], r % half, width, op->dtype);
      unit_row_grad(z, by_unit + r * width, inverse[r], factor, width, op->dtype, grad);
    }
  }
  free(sum);
  return failed;
}
