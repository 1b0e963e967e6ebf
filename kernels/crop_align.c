/* GTSA's crop loss on a CPU: what crop_align.py's kernels compute, the gradient in the same pass.
 *
 * RoIAlign is a small sparse matrix per axis: rows of the map are mixed first, then their cells. One
 * thread takes a student's view of an image with all of its pairs, in their order: the same bits with
 * any number of threads, and nothing is added to the same memory twice.
 */
#include <math.h>

#include "values.h"

typedef struct {
  const void *data;     /* [views, batch, height, width, channels] */
  const float *boxes;   /* [pairs, batch, 4] x0 y0 x1 y1 */
  int64_t view, image, cell; /* strides of views, images and cells, in values */
  int64_t height, width;
} Maps;

typedef struct {
  Maps student, teacher;
  const int32_t *turns; /* [pairs, batch] quarter turns of the teacher's bins */
  const int32_t *pairs; /* [pairs, 2] view of the student, of the teacher */
  float *cosine;        /* [pairs, batch, bins²] */
  void *grad;           /* as student, dense; or NULL */
  int64_t count, views, batch, channels, bins;
  float scale, weight;  /* cells per unit of the boxes; of a cosine in the loss */
  int32_t dtype, threads;
} CropAlign;

/* Along one axis: bin i is the sum of `size[i]` cells from `first[i]` on, times weights. */
typedef struct {
  int64_t *first, *size;
  float *weights; /* [bins, cells] */
  int64_t cells, low, high; /* the cells of all bins */
} Axis;

/* The caches of one thread. */
typedef struct {
  Axis down, across;
  float *mixed, *ours, *theirs, *total;
} Scratch;

INLINE float within(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* As roi_align.bin_weights: every bin is the mean of ceil(its width) samples, linear between cells. */
CALLED void axis_of(Axis *axis, float low, float high, int64_t bins, int64_t cells) {
  float lo = within(low, 0, (float)cells) - 0.5f, hi = within(high, 0, (float)cells) - 0.5f;
  float width = (hi > lo ? hi - lo : hi == hi && lo == lo ? 0 : NAN) / (float)bins;
  int64_t count = width > 1.001f ? (int64_t)ceilf(width - 1e-3f) : 1;
  axis->cells = cells;
  axis->low = cells, axis->high = 0;
  for (int64_t i = 0; i < bins; i++) {
    float *weights = axis->weights + i * cells;
    float begin = within(lo + width * (i + 0.5f / count), 0, (float)(cells - 1));
    float end = within(lo + width * (i + (count - 0.5f) / count), 0, (float)(cells - 1));
    int64_t first = begin == begin ? (int64_t)begin : 0, last = (end == end ? (int64_t)end : 0) + 1;
    if (last > cells - 1) last = cells - 1;
    axis->first[i] = first, axis->size[i] = last - first + 1;
    if (first < axis->low) axis->low = first;
    if (last + 1 > axis->high) axis->high = last + 1;
    for (int64_t c = first; c <= last; c++) weights[c - first] = 0;
    for (int64_t k = 0; k < count; k++) {
      float at = within(lo + width * (i + (k + 0.5f) / count), 0, (float)(cells - 1));
      if (at != at) { /* a box that is not finite */
        weights[0] = NAN;
        continue;
      }
      int64_t cell = (int64_t)at;
      float part = at - cell;
      weights[cell - first] += (1 - part) / count;
      if (part > 0) weights[cell + 1 - first] += part / count;
    }
  }
}

/* out[c] = Σ_k weights[k] row_k[c], rows `apart` values apart. */
INLINE void mix(
    float *out, const void *rows, int64_t apart, const float *weights, int64_t n, int64_t width, int32_t dtype) {
  int64_t c = 0;
  for (; c + 2 * LANES <= width; c += 2 * LANES) {
    vf a = splat(0.0f), b = a;
    for (int64_t k = 0; k < n; k++) {
      const void *row = row_of(rows, k, apart, dtype);
      a += load(row, c, dtype) * weights[k];
      b += load(row, c + LANES, dtype) * weights[k];
    }
    AT(vf, out + c) = a;
    AT(vf, out + c + LANES) = b;
  }
  for (; c < width; c++) {
    float sum = 0;
    for (int64_t k = 0; k < n; k++) sum += value_at(row_of(rows, k, apart, dtype), c, dtype) * weights[k];
    out[c] = sum;
  }
}

INLINE void add_scaled(float *to, const float *from, float by, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) AT(vf, to + i) += AT(vf, from + i) * by;
  for (; i < n; i++) to[i] += from[i] * by;
}

/* Features [bins², channels] of a box of a map; the weights stay in scratch. */
CALLED void pool(
    const CropAlign *op, const Maps *maps, int64_t view, int64_t pair, int64_t image, Scratch *scratch,
    float *out) {
  const float *box = maps->boxes + (pair * op->batch + image) * 4;
  Axis *down = &scratch->down, *across = &scratch->across;
  int64_t channels = op->channels, bins = op->bins;
  axis_of(down, box[1] * op->scale, box[3] * op->scale, bins, maps->height);
  axis_of(across, box[0] * op->scale, box[2] * op->scale, bins, maps->width);
  const void *map = row_of(maps->data, 1, view * maps->view + image * maps->image, op->dtype);
  for (int64_t i = 0; i < bins; i++) {
    for (int64_t x = across->low; x < across->high; x++)
      mix(scratch->mixed + x * channels, row_of(map, down->first[i] * maps->width + x, maps->cell, op->dtype),
          maps->cell * maps->width, down->weights + i * maps->height, down->size[i], channels, op->dtype);
    for (int64_t j = 0; j < bins; j++)
      mix(out + (i * bins + j) * channels, scratch->mixed + across->first[j] * channels, channels,
          across->weights + j * maps->width, across->size[j], channels, FLOAT32);
  }
}

/* The bin of the unturned grid that ends at bin `o`. */
INLINE int64_t turned(int64_t o, int32_t turn, int64_t bins) {
  int64_t row = o / bins, column = o % bins, last = bins - 1;
  switch (turn & 3) {
    case 1: return column * bins + last - row;
    case 2: return (last - row) * bins + last - column;
    case 3: return (last - column) * bins + row;
    default: return o;
  }
}

/* A bin's cosine; s becomes weight times its derivative by s. */
INLINE float compare(float *s, const float *t, int64_t n, float weight, int grad) {
  vf st = splat(0.0f), ss = st, tt = st;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    vf a = AT(vf, s + i), b = AT(vf, t + i);
    st += a * b;
    ss += a * a;
    tt += b * b;
  }
  float both = sum_of(st), square = sum_of(ss), other = sum_of(tt);
  for (; i < n; i++) both += s[i] * t[i], square += s[i] * s[i], other += t[i] * t[i];
  float length = sqrtf(square), length_t = sqrtf(other);
  if (length < 1e-8f) length = 1e-8f;
  if (length_t < 1e-8f) length_t = 1e-8f;
  float cosine = both / (length * length_t);
  if (!grad) return cosine;
  float of_t = weight / (length * length_t), of_s = square > 1e-16f ? weight * cosine / (length * length) : 0;
  if (square != square) of_s = square;
  for (i = 0; i + LANES <= n; i += LANES) AT(vf, s + i) = AT(vf, t + i) * of_t - AT(vf, s + i) * of_s;
  for (; i < n; i++) s[i] = t[i] * of_t - s[i] * of_s;
  return cosine;
}

/* Adds the gradient by pooled features to that by the map. */
CALLED void spread_back(const CropAlign *op, const Scratch *scratch, const float *pooled) {
  int64_t channels = op->channels, bins = op->bins, width = op->student.width;
  const Axis *down = &scratch->down, *across = &scratch->across;
  for (int64_t i = 0; i < bins; i++) {
    memset(scratch->mixed + across->low * channels, 0, (across->high - across->low) * channels * sizeof(float));
    for (int64_t j = 0; j < bins; j++)
      for (int64_t k = 0; k < across->size[j]; k++)
        add_scaled(scratch->mixed + (across->first[j] + k) * channels, pooled + (i * bins + j) * channels,
                   across->weights[j * width + k], channels);
    for (int64_t k = 0; k < down->size[i]; k++)
      add_scaled(scratch->total + ((down->first[i] + k) * width + across->low) * channels,
                 scratch->mixed + across->low * channels, down->weights[i * op->student.height + k],
                 (across->high - across->low) * channels);
  }
}

CALLED void view_of(const CropAlign *op, int64_t view, int64_t image, Scratch *scratch) {
  int64_t channels = op->channels, places = op->bins * op->bins;
  int64_t size = op->student.height * op->student.width * channels;
  if (op->grad) memset(scratch->total, 0, size * sizeof(float));
  for (int64_t p = 0; p < op->count; p++) {
    if (op->pairs[2 * p] != view) continue;
    int64_t place = p * op->batch + image;
    pool(op, &op->teacher, op->pairs[2 * p + 1], p, image, scratch, scratch->theirs);
    pool(op, &op->student, view, p, image, scratch, scratch->ours);
    for (int64_t o = 0; o < places; o++)
      op->cosine[place * places + o] =
          compare(scratch->ours + o * channels, scratch->theirs + turned(o, op->turns[place], op->bins) * channels,
                  channels, op->weight, op->grad != NULL);
    if (op->grad) spread_back(op, scratch, scratch->ours);
  }
  if (op->grad && op->dtype != FLOAT32)
    for (int64_t i = 0; i < size; i++)
      ((uint16_t *)op->grad)[(view * op->batch + image) * size + i] = to_bf16(scratch->total[i]);
}

const int64_t EXPORT(crop_align_bytes) = sizeof(CropAlign);

/* 0, or -1 where memory ran out. */
int EXPORT(crop_align)(const CropAlign *op) {
  const Maps *s = &op->student, *t = &op->teacher;
  int64_t height = s->height > t->height ? s->height : t->height, width = s->width > t->width ? s->width : t->width;
  int64_t bins = op->bins, size = s->height * s->width * op->channels;
  int wide = op->dtype == FLOAT32;
  int64_t sizes[5] = {whole_lines(bins * height), whole_lines(bins * width), width * op->channels, bins * bins * op->channels,
                      op->grad && !wide ? size : 0};
  int64_t own = sizes[0] + sizes[1] + sizes[2] + 2 * sizes[3] + sizes[4];
  own = whole_lines(own);
  float *memory = scratch_of(op->threads * own * sizeof(float));
  int64_t *places = malloc((size_t)op->threads * 4 * bins * sizeof(int64_t) + 1);
  if (memory && places) {
    if (op->grad) in_huge_pages(op->grad, bytes_of(op->views * op->batch * size, op->dtype));
#pragma omp parallel for num_threads(op->threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < op->views * op->batch; i++) {
      float *mine = memory + thread_number() * own;
      int64_t *at = places + thread_number() * 4 * bins;
      Scratch scratch = {{at, at + bins, mine, 0, 0, 0}, {at + 2 * bins, at + 3 * bins, mine + sizes[0], 0, 0, 0}};
      scratch.mixed = mine + sizes[0] + sizes[1];
      scratch.ours = scratch.mixed + sizes[2];
      scratch.theirs = scratch.ours + sizes[3];
      scratch.total = wide && op->grad ? (float *)op->grad + i * size : scratch.theirs + sizes[3];
      view_of(op, i / op->batch, i % op->batch, &scratch);
    }
  }
  int failed = memory && places ? 0 : -1;
  free(memory);
  free(places);
  return failed;
}
