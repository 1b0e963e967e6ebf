/* Log-sum-exps of logits along rows and columns on a CPU: what sinkhorn.py's kernels compute. Each
 * logit is read from memory once, and its power of two computed once. */
#include <stdlib.h>

#include "exponentials.h"

typedef struct {
  const void *x;       /* [rows, columns] */
  const float *other;  /* subtracted first: [columns] for sums of rows, or NULL; [rows] for those of columns */
  float *out;          /* [rows] or [columns] */
  double *log2;        /* [rows] sums of rows as powers of two, in place of `out`; or NULL */
  int64_t stride, rows, columns;
  float scale;         /* 1 / temperature */
  int32_t dtype, threads;
} Lse;

const int64_t EXPORT(row_lse_bytes) = sizeof(Lse);

/* out[r] = log Σ_n exp(x[r, n] / temperature - other[n]) */
int EXPORT(row_lse)(const Lse *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->rows; r++) {
    const void *row = row_of(op->x, r, op->stride, op->dtype);
    double sum = log2_sum(row, op->dtype, op->other, op->columns, op->scale * LOG2E);
    if (op->log2) op->log2[r] = sum;
    else op->out[r] = sum / LOG2E;
  }
  return 0;
}

/* The sums of at most PART columns from `first` on. A row whose number is infinite adds nothing. */
CALLED void sum_columns(const Lse *op, int64_t first, int64_t n, float (*values)[PART + LANES]) {
  float most[PART + LANES], total[PART + LANES];
  float scale = op->scale * LOG2E;
  for (int64_t i = 0; i < n; i += LANES) {
    AT(vf, most + i) = splat(-INFINITY);
    AT(vf, total + i) = splat(0.0f);
  }
  for (int64_t start = 0; start < op->rows; start += GROUP) {
    int64_t found = 0, size = 0;
    for (int64_t r = start; r < start + GROUP && r < op->rows; r++) {
      if (op->other[r] == INFINITY) continue;
      const void *row = row_of(op->x, r, op->stride, op->dtype);
      float *part = values[found++], number = op->other[r] * LOG2E;
      size = read_part(part, row, op->dtype, NULL, first, n, scale);
      for (int64_t i = 0; i < size; i += LANES) AT(vf, part + i) -= number;
    }
    for (int64_t i = 0; i < size; i += LANES) {
      vf before = AT(vf, most + i), top = before, sum = AT(vf, total + i);
      for (int64_t j = 0; j < found; j++) {
        top = larger(AT(vf, values[j] + i), top);
      }
      vf base = pick(top == -INFINITY, splat(0.0f), top); /* nothing finite yet: 2^(-infinity) */
      sum *= exp2_of(before - base);
      for (int64_t j = 0; j < found; j++) sum += exp2_of(AT(vf, values[j] + i) - base);
      AT(vf, most + i) = top;
      AT(vf, total + i) = sum;
    }
  }
  for (int64_t i = 0; i < n; i++)
    op->out[first + i] = (most[i] + log2f(total[i])) / LOG2E;
}

const int64_t EXPORT(column_lse_bytes) = sizeof(Lse);

/* out[n] = log Σ_r exp(x[r, n] / temperature - other[r]) */
int EXPORT(column_lse)(const Lse *op) {
  float(*values)[PART + LANES] = malloc((size_t)op->threads * GROUP * sizeof(*values)); /* not on small stacks */
  if (!values) return -1;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t first = 0; first < op->columns; first += PART) {
    int64_t n = op->columns - first < PART ? op->columns - first : PART;
    sum_columns(op, first, n, values + thread_number() * GROUP);
  }
  free(values);
  return 0;
}

typedef struct {
  const void *x;        /* [rows, columns] */
  const float *row;     /* [rows], such that every row of exp(x / temperature - row - any column before)
                           summed to one */
  const float *weight;  /* [rows], or NULL; those of 0 add nothing to a column */
  float *column, *next; /* [columns], [rows] */
  int64_t stride, rows, columns;
  float scale;          /* 1 / temperature */
  int32_t dtype, threads;
} Balance;

/* Columns first .. first + n: column[n] = log Σ_r exp(x - row) over rows that count; to `share` of every
 * row what these columns add to Σ_n exp(x - row - column). */
CALLED void balance_columns(const Balance *op, int64_t first, int64_t n, int64_t width, float *values, float *share) {
  float scale = op->scale * LOG2E, most[PART + LANES], inverse[PART + LANES];
  for (int64_t i = 0; i < n; i += LANES) AT(vf, most + i) = splat(-INFINITY);
  for (int64_t r = 0; r < op->rows; r++) {
    const void *row = row_of(op->x, r, op->stride, op->dtype);
    float *part = values + r * width, number = op->row[r] * LOG2E;
    int64_t size = read_part(part, row, op->dtype, NULL, first, n, scale);
    int counts = !op->weight || op->weight[r] != 0.0f;
    for (int64_t i = 0; i < size; i += LANES) {
      vf value = AT(vf, part + i) - number;
      AT(vf, part + i) = value;
      if (counts) AT(vf, most + i) = larger(value, AT(vf, most + i));
    }
  }
  for (int64_t i = 0; i < n; i += LANES) {
    vf top = AT(vf, most + i), base = pick(top == -INFINITY, splat(0.0f), top), sum = splat(0.0f);
    for (int64_t r = 0; r < op->rows; r++) {
      float *part = values + r * width + i;
      vf power = exp2_of(AT(vf, part) - base);
      AT(vf, part) = power;
      if (!op->weight || op->weight[r] != 0.0f) sum += power;
    }
    AT(vf, inverse + i) = 1.0f / sum;
    for (int64_t j = 0; j < LANES; j++) {
      if (i + j < n) op->column[first + i + j] = (top[j] + log2f(sum[j])) / LOG2E;
      else inverse[i + j] = 0;
    }
  }
  for (int64_t r = 0; r < op->rows; r++) {
    vf sum = splat(0.0f);
    for (int64_t i = 0; i < n; i += LANES) sum += AT(vf, values + r * width + i) * AT(vf, inverse + i);
    share[r] = sum_of(sum);
  }
}

const int64_t EXPORT(balance_bytes) = sizeof(Balance);

/* A column's and then a row's half of an iteration of Sinkhorn-Knopp, one power of two per logit. */
int EXPORT(balance)(const Balance *op) {
  int64_t most = (1 << 16) / (op->rows ? op->rows : 1) / LANES * LANES; /* a quarter of a megabyte */
  int64_t width = most < 32 ? 32 : most > PART ? PART : most;
  int64_t blocks = (op->columns + width - 1) / width, pitch = width + LANES;
  float *values = malloc((size_t)op->threads * op->rows * pitch * sizeof(float));
  float *shares = malloc((size_t)blocks * op->rows * sizeof(float));
  if (values && shares) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      int64_t first = b * width, n = op->columns - first < width ? op->columns - first : width;
      float *own = values + thread_number() * op->rows * pitch;
      balance_columns(op, first, n, pitch, own, shares + b * op->rows);
    }
#pragma omp parallel for num_threads(op->threads) schedule(static)
    for (int64_t r = 0; r < op->rows; r++) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; b++) sum += shares[b * op->rows + r];
      op->next[r] = (float)(op->row[r] + log(sum));
    }
  }
  int failed = values && shares ? 0 : -1;
  free(values);
  free(shares);
  return failed;
}
