/* Log-sum-exps of logits along rows and columns on a CPU: what sinkhorn.py's kernels compute. Each
 * logit is read from memory once, and its power of two computed once. All numbers of rows and columns
 * are in the logits' unit, as they are before they are divided by the temperature. */
#include "exponentials.h"

typedef struct {
  const void *x;       /* [rows, columns] */
  const float *other;  /* subtracted first: [columns] for sums of rows, or NULL; [rows] for those of columns */
  float *out;          /* [rows] or [columns] */
  double *wide;        /* [rows] sums of rows, in place of `out`; or NULL */
  int64_t stride, rows, columns;
  float scale;         /* 1 / temperature */
  int32_t dtype, threads;
} Lse;

const int64_t EXPORT(row_lse_bytes) = sizeof(Lse);

/* out[r] = temperature log Σ_n exp((x[r, n] - other[n]) / temperature) */
int EXPORT(row_lse)(const Lse *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->rows; r++) {
    const void *row = row_of(op->x, r, op->stride, op->dtype);
    uint32_t before = without_subnormals();
    Sum lse = lse_of_row(row, op->dtype, op->other, op->columns, op->scale * LOG2E);
    restored(before);
    if (op->wide) op->wide[r] = lse.high + lse.rest;
    else op->out[r] = lse.high + lse.rest;
  }
  return 0;
}

INLINE void differences_of(
    float *to, const void *row, const void *next, int32_t dtype, int64_t at, int64_t n, float less) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    ask_for(next, at + i, dtype);
    AT(vf, to + i) = logits(row, dtype, NULL, at + i, LANES, less);
  }
  if (i < n) AT(vf, to + i) = logits(row, dtype, NULL, at + i, n - i, less);
}

/* A row's at .. at + n, less `less`, to `to`; the same of row `next` into the caches. */
CALLED void differences(
    float *to, const void *row, const void *next, int32_t dtype, int64_t at, int64_t n, float less) {
  if (dtype == FLOAT32) differences_of(to, row, next, FLOAT32, at, n, less);
  else differences_of(to, row, next, BFLOAT16, at, n, less);
}

/* The first n values, of which there are LANES or fewer. */
INLINE void put_some(float *to, vf value, int64_t n) {
  if (n >= LANES) AT(vf, to) = value;
  else for (int64_t j = 0; j < n; j++) to[j] = value[j];
}

/* The sums of at most PART columns from `first` on. A row whose number is infinite adds nothing. */
CALLED void sum_columns(const Lse *op, int64_t first, int64_t n, float (*values)[PART + LANES]) {
  float AT_LINE most[PART + LANES], AT_LINE total[PART + LANES];
  float scale = op->scale * LOG2E;
  for (int64_t i = 0; i < n; i += LANES) {
    AT(vf, most + i) = splat(-INFINITY);
    AT(vf, total + i) = splat(0.0f);
  }
  for (int64_t start = 0; start < op->rows; start += GROUP) {
    int64_t found = 0;
    for (int64_t r = start; r < start + GROUP && r < op->rows; r++) {
      if (op->other[r] == INFINITY) continue;
      const void *row = row_of(op->x, r, op->stride, op->dtype);
      const void *next = row_of(op->x, r + 1 < op->rows ? r + 1 : r, op->stride, op->dtype);
      differences(values[found++], row, next, op->dtype, first, n, op->other[r]);
    }
    for (int64_t i = 0; found && i < n; i += LANES) {
      vf before = AT(vf, most + i), top = before, sum = AT(vf, total + i);
      for (int64_t j = 0; j < found; j++) top = larger(AT(vf, values[j] + i), top);
      vf base = pick(top == -INFINITY, splat(0.0f), top); /* nothing finite yet: 2^(-infinity) */
      sum *= exp2_below_128(before - base, scale);
      int64_t j = 0;
      for (; j + SIDE <= found; j += SIDE) {
        vf each[SIDE];
        EACH(SIDE) each[v] = AT(vf, values[j + v] + i) - base;
        exp2_each(each, SIDE, scale, 1.0f);
        EACH(SIDE) sum += each[v];
      }
      for (; j < found; j++) sum += exp2_below_128(AT(vf, values[j] + i) - base, scale);
      AT(vf, most + i) = top;
      AT(vf, total + i) = sum;
    }
  }
  for (int64_t i = 0; i < n; i += LANES)
    put_some(op->out + first + i, AT(vf, most + i) + log2_of(AT(vf, total + i)) * (1 / scale), n - i);
}

const int64_t EXPORT(column_lse_bytes) = sizeof(Lse);

/* out[n] = temperature log Σ_r exp((x[r, n] - other[r]) / temperature) */
int EXPORT(column_lse)(const Lse *op) {
  float(*values)[PART + LANES] = scratch_of(op->threads * GROUP * sizeof(*values)); /* not on small stacks */
  if (!values) return -1;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t first = 0; first < op->columns; first += PART) {
    int64_t n = op->columns - first < PART ? op->columns - first : PART;
    uint32_t before = without_subnormals();
    sum_columns(op, first, n, values + thread_number() * GROUP);
    restored(before);
  }
  free(values);
  return 0;
}

typedef struct {
  const void *x;        /* [rows, columns] */
  const float *row;     /* [rows], such that exp((x - before - row) / temperature) sums to one in each */
  const float *before;  /* [columns] */
  const float *weight;  /* [rows], or NULL; those of 0 add nothing to a column */
  float *column, *next; /* [columns], [rows]; or NULL */
  int64_t stride, rows, columns;
  float scale;          /* 1 / temperature */
  int32_t dtype, threads;
} Balance;

INLINE int counts(const Balance *op, int64_t r) { return !op->weight || op->weight[r] != 0.0f; }

INLINE void powers_of(
    float *to, float *sum, const Balance *op, int64_t r, int32_t dtype, int64_t at, int64_t n) {
  const void *row = row_of(op->x, r, op->stride, dtype);
  const void *next = row_of(op->x, r + 1 < op->rows ? r + 1 : r, op->stride, dtype);
  float scale = op->scale * LOG2E, less = op->row[r];
  int64_t i = 0;
  for (; i + SIDE * LANES <= n; i += SIDE * LANES) {
    vf each[SIDE];
    EACH(SIDE) ask_for(next, at + i + v * LANES, dtype);
    logits_each(each, row, dtype, op->before, at + i, less);
    EACH(SIDE) each[v] = smaller(splat(1.0f / scale), each[v]);
    exp2_each(each, SIDE, scale, 1.0f);
    EACH(SIDE) AT(vf, to + i + v * LANES) = each[v];
    EACH(SIDE) AT(vf, sum + i + v * LANES) += each[v];
  }
  for (; i + LANES <= n; i += LANES) {
    ask_for(next, at + i, dtype);
    vf power = share_of(logits(row, dtype, op->before, at + i, LANES, less), scale, 1.0f);
    AT(vf, to + i) = power;
    AT(vf, sum + i) += power;
  }
  if (i == n) return;
  vf power = share_of(logits(row, dtype, op->before, at + i, n - i, less), scale, 1.0f);
  AT(vf, to + i) = power;
  AT(vf, sum + i) += power;
}

/* exp((x - before - row) / temperature) of columns at .. at + n of row r to `to`; added to `sum`. */
CALLED void powers(float *to, float *sum, const Balance *op, int64_t r, int64_t at, int64_t n) {
  if (op->dtype == FLOAT32) powers_of(to, sum, op, r, FLOAT32, at, n);
  else powers_of(to, sum, op, r, BFLOAT16, at, n);
}

/* The first iteration's, row by row less the columns' largest, which are put to `base`. */
CALLED void first_powers(
    float *values, int64_t width, float *base, float *sums, const Balance *op, int64_t at, int64_t n) {
  float scale = op->scale * LOG2E;
  for (int64_t i = 0; i < n; i += LANES) AT(vf, base + i) = splat(-INFINITY);
  for (int64_t r = 0; r < op->rows; r++) {
    if (!counts(op, r)) continue;
    const void *row = row_of(op->x, r, op->stride, op->dtype);
    const void *next = row_of(op->x, r + 1 < op->rows ? r + 1 : r, op->stride, op->dtype);
    differences(values + r * width, row, next, op->dtype, at, n, 0);
    for (int64_t i = 0; i < n; i += LANES)
      AT(vf, base + i) = larger(AT(vf, values + r * width + i), AT(vf, base + i));
  }
  for (int64_t i = 0; i < n; i += LANES)
    AT(vf, base + i) = pick(AT(vf, base + i) == -INFINITY, splat(0.0f), AT(vf, base + i));
  for (int64_t r = 0; r < op->rows; r++) {
    float *to = values + r * width;
    if (!counts(op, r)) continue;
    int64_t i = 0;
    for (; i + SIDE * LANES <= n; i += SIDE * LANES) {
      vf each[SIDE];
      EACH(SIDE) each[v] = AT(vf, to + i + v * LANES) - AT(vf, base + i + v * LANES);
      exp2_each(each, SIDE, scale, 1.0f);
      EACH(SIDE) AT(vf, to + i + v * LANES) = each[v];
      EACH(SIDE) AT(vf, sums + i + v * LANES) += each[v];
    }
    for (; i < n; i += LANES) {
      vf power = exp2_below_128(AT(vf, to + i) - AT(vf, base + i), scale);
      AT(vf, to + i) = power;
      AT(vf, sums + i) += power;
    }
  }
}

enum {
  FAR = -60,  /* a column that adds less than a power of two to all rows together */
  STEEP = 64, /* powers of two by which a column's number is rounded down at most, for sums in float32 */
};

/* The powers of LANES or fewer columns again, of those that are far from `before`: their sums less `base`,
 * the largest logits, and less `top`. Apart, since that is how rows are summed afterwards: the two as one
 * number would be rounded by more than the rows differ where a column is masked, by -1e9 say. */
CALLED vf far_powers(float *to, int64_t width, vf *base, vf *top, const Balance *op, int64_t at, int64_t n) {
  float scale = op->scale * LOG2E;
  vf most = splat(-INFINITY), sum = splat(0.0f);
  for (int64_t r = 0; r < op->rows; r++) {
    if (!counts(op, r)) continue;
    vf value = logits(row_of(op->x, r, op->stride, op->dtype), op->dtype, NULL, at, n, 0);
    AT(vf, to + r * width) = value;
    most = larger(value, most);
  }
  *base = pick(most == -INFINITY, splat(0.0f), most);
  most = splat(-INFINITY);
  for (int64_t r = 0; r < op->rows; r++) {
    if (!counts(op, r)) continue;
    vf value = AT(vf, to + r * width) - *base - op->row[r];
    AT(vf, to + r * width) = value;
    most = larger(value, most);
  }
  *top = pick(most == -INFINITY, splat(0.0f), most);
  for (int64_t r = 0; r < op->rows; r++) {
    if (!counts(op, r)) continue;
    vf power = exp2_below_128(AT(vf, to + r * width) - *top, scale);
    AT(vf, to + r * width) = power;
    sum += power;
  }
  return sum;
}

/* Columns first .. first + n: column[n] = log Σ_r exp(x - row) over rows that count; to `share` of every row, if
 * they are asked for, what these columns add to Σ_n exp(x - row - column), at temperature 1. Returns whether a
 * column is rounded too far down for that. */
CALLED int balance_columns(
    const Balance *op, int64_t first, int64_t n, int64_t width, float *values, float *share) {
  float AT_LINE sums[PART + LANES], AT_LINE bases[PART + LANES], scale = op->scale * LOG2E, per_power = 1 / scale;
  vf most = splat(0.0f);
  for (int64_t i = 0; i < n; i += LANES) AT(vf, sums + i) = splat(0.0f);
  if (!op->before) first_powers(values, width, bases, sums, op, first, n);
  else
    for (int64_t r = 0; r < op->rows; r++)
      if (counts(op, r)) powers(values + r * width, sums, op, r, first, n);
  for (int64_t i = 0; i < n; i += LANES) {
    vf sum = AT(vf, sums + i), top = splat(0.0f);
    vf base = AT(vf, bases + i);
    if (op->before) base = some(op->before + first + i, n - i);
    int far = 0;
    for (int64_t j = i; op->before && j < i + LANES && j < n; j++) far |= sums[j] < 1.0f / (1ull << -FAR);
    if (far) sum = far_powers(values + i, width, &base, &top, op, first + i, n - i);
    vf column = base + (top + log2_of(sum) * per_power);
    put_some(op->column + first + i, column, n - i);
    /* 1 / sum, for the column as it was rounded: what comes after has that alone */
    vf left = pick(sum == 0.0f, splat(0.0f), base - column + top);
    most = larger(left, most);
    vf inverse = exp2_below_128(smaller(splat(STEEP * per_power), left), scale);
    AT(vf, sums + i) = pick(sum == 0.0f, splat(0.0f), inverse);
  }
  for (int64_t r = 0; r < op->rows && op->next; r++) {
    const float *row = values + r * width;
    vf sum = splat(0.0f), second = sum;
    int64_t i = 0;
    if (!counts(op, r)) continue;
    for (; i + LANES < n; i += 2 * LANES) {
      sum += AT(vf, row + i) * AT(vf, sums + i);
      second += AT(vf, row + i + LANES) * AT(vf, sums + i + LANES);
    }
    if (i < n) sum += AT(vf, row + i) * AT(vf, sums + i);
    share[r] = sum_of(sum + second);
  }
  return most_of(most) > STEEP * per_power;
}

/* A row's number by itself, where sums in float32 do not have it. */
CALLED float row_again(const Balance *op, int64_t r) {
  const void *row = row_of(op->x, r, op->stride, op->dtype);
  uint32_t before = without_subnormals();
  Sum lse = lse_of_row(row, op->dtype, op->column, op->columns, op->scale * LOG2E);
  restored(before);
  return lse.high + lse.rest;
}

const int64_t EXPORT(balance_bytes) = sizeof(Balance);

/* A column's and then a row's half of an iteration of Sinkhorn-Knopp, one power of two per logit. */
int EXPORT(balance)(const Balance *op) {
  int64_t most = (1 << 16) / (op->rows ? op->rows : 1) / LANES * LANES; /* a quarter of a megabyte */
  int64_t width = most < 32 ? 32 : most > PART ? PART : most;
  int64_t blocks = (op->columns + width - 1) / width, pitch = width + LANES;
  float *values = scratch_of(op->threads * op->rows * pitch * sizeof(float));
  float *shares = malloc((size_t)blocks * op->rows * sizeof(float));
  int failed = values && shares ? 0 : -1, steep = 0;
  if (!failed) {
#pragma omp parallel for num_threads(op->threads) schedule(static) reduction(| : steep)
    for (int64_t b = 0; b < blocks; b++) {
      int64_t first = b * width, n = op->columns - first < width ? op->columns - first : width;
      float *own = values + thread_number() * op->rows * pitch;
      uint32_t before = without_subnormals();
      steep |= balance_columns(op, first, n, pitch, own, shares + b * op->rows);
      restored(before);
    }
#pragma omp parallel for num_threads(op->threads) schedule(static)
    for (int64_t r = 0; r < (op->next ? op->rows : 0); r++) {
      double sum = 0, before = op->before ? op->row[r] : 0;
      for (int64_t b = 0; b < blocks && counts(op, r); b++) sum += shares[b * op->rows + r];
      op->next[r] = !counts(op, r)             ? INFINITY
                    : steep || sum < exp2(FAR) ? row_again(op, r)
                                               : (float)(before + log(sum) / op->scale);
    }
  }
  free(values);
  free(shares);
  return failed;
}

typedef struct {
  const void *x;       /* [rows, columns] */
  const float *weight; /* [rows], or NULL; rows of 0 add nothing to a column */
  float *row, *column; /* [rows] or NULL, [columns]: what is found */
  int64_t stride, rows, columns;
  float scale;         /* 1 / temperature */
  int32_t iterations, dtype, threads;
} Sinkhorn;

const int64_t EXPORT(sinkhorn_bytes) = sizeof(Sinkhorn);

/* All iterations; before the first nothing is known of rows and columns. */
int EXPORT(sinkhorn)(const Sinkhorn *op) {
  float *spare = scratch_of((whole_lines(op->columns) + 2 * op->rows) * sizeof(float));
  if (!spare) return -1;
  float *after = spare, *row = spare + whole_lines(op->columns), *next = row + op->rows, *column = op->column;
  int failed = 0;
  for (int32_t i = 0; i < op->iterations && !failed; i++) {
    float *found = i + 1 < op->iterations ? next : op->row;
    Balance step = {op->x, row, i ? column : NULL, op->weight, after, found, op->stride, op->rows, op->columns,
                    op->scale, op->dtype, op->threads};
    failed = EXPORT(balance)(&step);
    next = row, row = found;
    float *last = column;
    column = after, after = last;
  }
  if (column != op->column) memcpy(op->column, column, (size_t)op->columns * sizeof(float));
  free(spare);
  return failed;
}
