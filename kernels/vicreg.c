/* VICReg's sums by column, both views centred, and the gradient but for the product with G.
 *
 * Columns are split among threads and a column's rows added in order, so that the bits depend on
 * neither their number nor the split. Three passes: the means; what is centred, and the sums of
 * squares; the gradient. */
#include "small_products.h"

enum { COLUMNS = 512 }; /* of a block at most: what is kept of each lies in the first cache */
enum { ADDED = 64 };    /* rows that are added up by themselves, for sums of many rows */

typedef struct {
  const float *z1, *z2; /* views, [rows, width] each */
  float *centred;    /* [2, rows, width] */
  float *grad;       /* the same, or NULL */
  double *sums;      /* [3] of (z1 - z2)², of relu(1 - std) of both views, of the squares of squares */
  int64_t stride[2], rows, width;
  float inv, var, cov; /* slopes: of z1 - z2, of 1 / std, of a column's squares */
  int32_t threads;
} VICReg;

const int64_t EXPORT(vicreg_bytes) = sizeof(VICReg);

/* What is kept of the columns of a block. */
typedef struct {
  float mean[2][COLUMNS], apart[COLUMNS], squares[2][COLUMNS], coef[2][COLUMNS];
  float part[3][COLUMNS];
} Block;

/* total += part, part = 0 */
INLINE void carry(float *restrict total, float *restrict part, int64_t count) {
  for (int64_t i = 0; i < count; i++) total[i] += part[i], part[i] = 0;
}

/* By distances from the first row: far from 0 a sum has few digits for what differs. */
CALLED void mean_of(const float *restrict z, int64_t stride, int64_t rows, int64_t count, float *restrict mean,
                    float *restrict part) {
  memset(mean, 0, count * sizeof(float));
  memset(part, 0, count * sizeof(float));
  for (int64_t r = 0; r < rows; r++) {
    const float *restrict from = z + r * stride;
    for (int64_t i = 0; i < count; i++) part[i] += from[i] - z[i];
    if (r % ADDED == ADDED - 1) carry(mean, part, count);
  }
  carry(mean, part, count);
  for (int64_t i = 0; i < count; i++) mean[i] = z[i] + mean[i] / rows;
}

/* Writes what is centred and adds up squares, of a block whose first column is `at`. */
CALLED void centre(const VICReg *op, int64_t at, int64_t count, Block *b) {
  int64_t all = op->rows * op->width;
  float *restrict part = b->part[0], *restrict part1 = b->part[1], *restrict part2 = b->part[2];
  const float *restrict mean1 = b->mean[0], *restrict mean2 = b->mean[1];
  memset(b->part, 0, sizeof b->part);
  memset(b->apart, 0, sizeof b->apart);
  memset(b->squares, 0, sizeof b->squares);
  for (int64_t r = 0; r < op->rows; r++) {
    const float *restrict z1 = op->z1 + r * op->stride[0] + at;
    const float *restrict z2 = op->z2 + r * op->stride[1] + at;
    float *restrict to1 = op->centred + r * op->width + at, *restrict to2 = to1 + all;
    for (int64_t i = 0; i < count; i++) {
      float gap = z1[i] - z2[i], c1 = z1[i] - mean1[i], c2 = z2[i] - mean2[i];
      to1[i] = c1, to2[i] = c2;
      part[i] += gap * gap, part1[i] += c1 * c1, part2[i] += c2 * c2;
    }
    if (r % ADDED == ADDED - 1 || r == op->rows - 1) {
      carry(b->apart, part, count);
      carry(b->squares[0], part1, count);
      carry(b->squares[1], part2, count);
    }
  }
}

/* grad = inv (z1 - z2) + coef centred, and of the other view less the first. */
CALLED void gradient(const VICReg *op, int64_t at, int64_t count, Block *b) {
  int64_t all = op->rows * op->width;
  float *restrict apart = b->part[0], inv = op->inv; /* of the means */
  const float *restrict by1 = b->coef[0], *restrict by2 = b->coef[1];
  for (int64_t i = 0; i < count; i++) apart[i] = b->mean[0][i] - b->mean[1][i];
  for (int64_t r = 0; r < op->rows; r++) {
    const float *restrict c1 = op->centred + r * op->width + at, *restrict c2 = c1 + all;
    float *restrict to1 = op->grad + r * op->width + at, *restrict to2 = to1 + all;
    for (int64_t i = 0; i < count; i++) {
      float pull = inv * (c1[i] - c2[i] + apart[i]);
      to1[i] = by1[i] * c1[i] + pull;
      to2[i] = by2[i] * c2[i] - pull;
    }
  }
}

/* What is left of a block in `kept` [5, width]: squares apart, 1 - std and squares of both views. */
INLINE void keep(const VICReg *op, int64_t at, int64_t count, Block *b, float *kept) {
  for (int64_t i = 0; i < count; i++) kept[at + i] = b->apart[i];
  for (int v = 0; v < 2; v++)
    for (int64_t i = 0; i < count; i++) {
      float squares = b->squares[v][i], std = sqrtf(squares / (op->rows - 1) + 1e-4f);
      kept[(1 + v) * op->width + at + i] = std < 1 ? 1 - std : std * 0; /* NaN stays, of infinity comes */
      kept[(3 + v) * op->width + at + i] = squares;
      b->coef[v][i] = (std < 1 ? op->var / std : 0) - op->cov * squares;
    }
}

int EXPORT(vicreg)(const VICReg *op) {
  int64_t width = op->width, share = (width + op->threads - 1) / op->threads;
  share = whole_lines(share < COLUMNS ? share : COLUMNS);
  int64_t blocks = (width + share - 1) / share;
  float *kept = scratch_of(5 * width * sizeof(float));
  if (!kept) return -1;
  in_huge_pages(op->centred, bytes_of(2 * op->rows * width, FLOAT32));
  if (op->grad) in_huge_pages(op->grad, bytes_of(2 * op->rows * width, FLOAT32));
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t k = 0; k < blocks; k++) {
    int64_t at = k * share, count = at + share < width ? share : width - at;
    Block b AT_LINE;
    mean_of(op->z1 + at, op->stride[0], op->rows, count, b.mean[0], b.part[0]);
    mean_of(op->z2 + at, op->stride[1], op->rows, count, b.mean[1], b.part[0]);
    centre(op, at, count, &b);
    keep(op, at, count, &b, kept);
    if (op->grad) gradient(op, at, count, &b);
  }
  double apart = 0, flat = 0, squares = 0;
  for (int64_t i = 0; i < width; i++) apart += kept[i];
  for (int64_t i = width; i < 3 * width; i++) flat += kept[i];
  for (int64_t i = 3 * width; i < 5 * width; i++) squares += (double)kept[i] * kept[i];
  op->sums[0] = apart, op->sums[1] = flat, op->sums[2] = squares;
  free(kept);
  return 0;
}

const int64_t EXPORT(vicreg_small_bytes) = sizeof(VICReg);

/* All of it, of few rows: their products, by which the Gram matrices are summed and the gradient is made, too.
 * `centred` is not written, of `sums` the fourth is: all squares of both Gram matrices. */
int EXPORT(vicreg_small)(const VICReg *given) {
  VICReg op = *given;
  int64_t n = op.rows, all = n * op.width;
  float *gram = scratch_of((whole_lines(n * n) + 2 * all) * sizeof(float));
  if (!gram) return -1;
  op.centred = gram + whole_lines(n * n);
  int failed = EXPORT(vicreg)(&op);
  double squared = 0;
  for (int v = 0; v < 2 && !failed; v++) {
    const float *z = op.centred + v * all;
    dot_products(gram, z, z, n, n, op.width, op.threads);
    for (int64_t i = 0; i < n * n; i++) squared += (double)gram[i] * gram[i], gram[i] *= op.cov;
    if (op.grad) add_weighted_rows(op.grad + v * all, gram, z, n, n, op.width, op.threads);
  }
  op.sums[3] = squared;
  free(gram);
  return failed;
}
