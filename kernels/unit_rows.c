/* Embeddings made rows of unit length, and gradients by these made gradients by the embeddings. */
#include "unit_rows.h"

typedef struct {
  const void *z[2];     /* views, [rows, width] each; the second NULL if there is one */
  void *grad[2];        /* dense, in z's type; or NULL */
  float *unit;          /* [views * rows, width] */
  float *inverse;       /* [views * rows] 1 / length, negative where that is eps at the least */
  const float *by_unit; /* [views * rows, width] gradients by unit */
  int64_t stride[2], rows, width;
  float eps, factor;    /* a gradient's */
  int32_t views, dtype;
  int32_t rounds;       /* unit to z's type */
  int32_t threads;
} UnitRows;

const int64_t EXPORT(unit_rows_bytes) = sizeof(UnitRows);

/* unit = z / max(length, eps) */
int EXPORT(unit_rows)(const UnitRows *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->views * op->rows; r++) {
    int64_t view = r / op->rows, width = op->width;
    const void *z = row_of(op->z[view], r % op->rows, op->stride[view], op->dtype);
    float *unit = op->unit + r * width;
    op->inverse[r] = unit_row(z, width, op->eps, op->dtype, unit);
    if (op->rounds) round_row(unit, width);
  }
  return 0;
}

const int64_t EXPORT(unit_rows_grad_bytes) = sizeof(UnitRows);

/* Of rows of which `unit` may be a rounding. */
int EXPORT(unit_rows_grad)(const UnitRows *op) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t r = 0; r < op->views * op->rows; r++) {
    int64_t view = r / op->rows, width = op->width;
    if (!op->grad[view]) continue;
    const void *z = row_of(op->z[view], r % op->rows, op->stride[view], op->dtype);
    void *grad = (void *)row_of(op->grad[view], r % op->rows, width, op->dtype);
    unit_row_grad(z, op->by_unit + r * width, op->inverse[r], op->factor, width, op->dtype, grad);
  }
  return 0;
}
