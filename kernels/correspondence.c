/* Gradient of GTSA's correspondence by the student's rows: what the rows that they matched add. A few
 * rows each, so no matrix of weights is made. One thread an image of a view, in the order of its pairs.
 */

#include "values.h"

typedef struct {
  const void *teacher;                       /* [views of it, batch, n, width] */
  const int32_t *pairs;                      /* [count, 2] view of the student, of the teacher */
  const int32_t *forth, *back;               /* [count, batch, m] of n, [count, batch, n] of m */
  const float *forth_weight, *back_weight;   /* 0 for what does not count */
  void *grad;                                /* [views, batch, m, width], dense */
  int64_t view_stride, image_stride, stride; /* the teacher's */
  int64_t count, views, batch, m, n, width;
  int32_t dtype, threads;
} Matched;

INLINE void add_row(float *to, const void *row, float weight, int64_t width, int32_t dtype) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) AT(vf, to + i) += load(row, i, dtype) * weight;
  for (; i < width; i++) to[i] += value_at(row, i, dtype) * weight;
}

CALLED void add_matches(const Matched *op, int64_t view, int64_t image, float *total) {
  memset(total, 0, (size_t)op->m * op->width * sizeof(float));
  for (int64_t p = 0; p < op->count; p++) {
    if (op->pairs[2 * p] != view) continue;
    int64_t at = p * op->batch + image;
    int64_t first = op->pairs[2 * p + 1] * op->view_stride + image * op->image_stride;
    const void *teacher = row_of(op->teacher, 1, first, op->dtype);
    const int32_t *forth = op->forth + at * op->m, *back = op->back + at * op->n;
    for (int64_t m = 0; m < op->m; m++) {
      float weight = op->forth_weight[at * op->m + m];
      if (weight != 0)
        add_row(total + m * op->width, row_of(teacher, forth[m], op->stride, op->dtype), weight,
                op->width, op->dtype);
    }
    for (int64_t n = 0; n < op->n; n++) {
      float weight = op->back_weight[at * op->n + n];
      if (weight != 0)
        add_row(total + back[n] * op->width, row_of(teacher, n, op->stride, op->dtype), weight,
                op->width, op->dtype);
    }
  }
}

const int64_t EXPORT(matched_bytes) = sizeof(Matched);

int EXPORT(matched)(const Matched *op) {
  int64_t size = op->m * op->width;
  int wide = op->dtype == FLOAT32;
  float *scratch = scratch_of(wide ? 0 : op->threads * size * sizeof(float));
  if (!scratch) return -1;
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t i = 0; i < op->views * op->batch; i++) {
    float *total = wide ? (float *)op->grad + i * size : scratch + thread_number() * size;
    add_matches(op, i / op->batch, i % op->batch, total);
    for (int64_t j = 0; !wide && j < size; j++) ((uint16_t *)op->grad)[i * size + j] = to_bf16(total[j]);
  }
  free(scratch);
  return 0;
}
