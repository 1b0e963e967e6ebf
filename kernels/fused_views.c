/* Views of decoded photographs on a CPU, in one pass from bytes: a window resampled with antialiasing,
 * mirrored or not, colours, blur, solarization, normalisation. What fused_views.py's reference computes.
 *
 * A view is made by one thread in planes of float32 that stay in its caches. A row of the view is first
 * the weighted sum of the photograph's rows, then of their pixels; blur is separable as well. Nothing is
 * rounded between the operations.
 */
#include <stdlib.h>

#include "separable.h"

enum { SPARE = 64 }; /* values that vectors may read or write behind a row */

VECTOR(vb, uint8_t, LANES);

typedef struct {
  const uint8_t *const *photos; /* [photos] pixels of three bytes, rows without gaps inside */
  const int64_t *pitch;         /* [photos] bytes from a row to the next */
  const int32_t *sides;         /* [photos, 2] height, width */
  const int32_t *photo;         /* [views] which one a view shows */
  const float *window;          /* [views, 4] y0, x0, y1, x1 in pixels; x0 > x1 mirrors, y0 > y1 too */
  const float *color;           /* [views, 3, 4] an affine map of RGB in 0..1, or NULL */
  const float *sigma;           /* [views] of the blur, 0 for none, or NULL */
  const uint8_t *solarize;      /* [views] whether values of the upper half are inverted, or NULL */
  void *out;                    /* [views, 3, height, width], or bytes [views, height, width, 3] */
  float gain[4], bias[4];       /* of a channel in 0..255, in the end */
  int32_t views, height, width, dtype, threads;
  int32_t down, across;         /* taps that a resampled value has at most */
  int32_t reach;                /* pixels from the middle of the widest blur to its end */
} Views;

/* How an axis is resampled: value i is the sum of `count[i]` neighbours from first[i] on. */
typedef struct {
  int32_t *first, *count;
  float *weight; /* [size, most] */
  int64_t most;
} Axis;

/* Triangles as wide as the step between samples, or two pixels where that is wider; pixels beyond the
 * border are the border's. */
CALLED void resample_axis(const Axis *axis, double from, double to, int64_t pixels, int64_t size) {
  int64_t most = axis->most;
  double step = (to - from) / size, radius = fabs(step) > 1 ? fabs(step) : 1;
  for (int64_t i = 0; i < size; i++) {
    double middle = from + (i + 0.5) * step - 0.5, mass = 0;
    int64_t low = (int64_t)ceil(middle - radius), high = (int64_t)floor(middle + radius);
    int64_t start = low < 0 ? 0 : low > pixels - 1 ? pixels - 1 : low;
    float *weight = axis->weight + i * most;
    int64_t end = high < 0 ? 0 : high > pixels - 1 ? pixels - 1 : high;
    memset(weight, 0, most * sizeof(float));
    for (int64_t j = low; j <= high; j++) mass += 1 - fabs(j - middle) / radius;
    for (int64_t j = low; j <= high; j++) {
      int64_t at = j < start ? start : j > end ? end : j;
      weight[at - start] += (float)((1 - fabs(j - middle) / radius) / mass);
    }
    axis->first[i] = (int32_t)start;
    axis->count[i] = (int32_t)(end - start + 1);
  }
}

/* line[i] = Σ_t weight[t] rows[t][i] of n bytes. */
CALLED void sum_rows(float *line, const uint8_t *row, int64_t pitch, const float *weight, int64_t count, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    vf sum = splat(0.0f);
    for (int64_t t = 0; t < count; t++)
      sum += __builtin_convertvector(__builtin_convertvector(AT(vb, row + t * pitch + i), vi), vf) * weight[t];
    AT(vf, line + i) = sum;
  }
  for (; i < n; i++) {
    float sum = 0;
    for (int64_t t = 0; t < count; t++) sum += row[t * pitch + i] * weight[t];
    line[i] = sum;
  }
}

INLINE v4 sum_pixels(const float *line, const Axis *across, int64_t x, int64_t left) {
  const float *at = line + 3 * (across->first[x] - left), *weight = across->weight + x * across->most;
  v4 sum = {0};
  for (int64_t t = 0; t < across->count[x]; t++) sum += AT(v4, at + 3 * t) * weight[t];
  return sum;
}

/* The window as three planes. */
CALLED void resample(const Views *op, int64_t v, const Axis *down, const Axis *across, float *line, float *planes, int64_t pitch) {
  int64_t photo = op->photo[v], row_bytes = op->pitch[photo], height = op->height, width = op->width;
  const float *window = op->window + 4 * v;
  resample_axis(down, window[0], window[2], op->sides[2 * photo], height);
  resample_axis(across, window[1], window[3], op->sides[2 * photo + 1], width);
  int64_t left = across->first[0], right = 0;
  for (int64_t x = 0; x < width; x++) {
    if (across->first[x] < left) left = across->first[x];
    if (across->first[x] + across->count[x] > right) right = across->first[x] + across->count[x];
  }
  for (int64_t y = 0; y < height; y++) {
    const uint8_t *row = op->photos[photo] + down->first[y] * row_bytes + 3 * left;
    sum_rows(line, row, row_bytes, down->weight + y * down->most, down->count[y], 3 * (right - left));
    float *to = planes + y * pitch;
    int64_t plane = height * pitch, x = 0;
    for (; x + 4 <= width; x += 4) {
      Four four = transposed((Four){sum_pixels(line, across, x, left),
                                    sum_pixels(line, across, x + 1, left),
                                    sum_pixels(line, across, x + 2, left),
                                    sum_pixels(line, across, x + 3, left)});
      AT(v4, to + x) = four.a;
      AT(v4, to + plane + x) = four.b;
      AT(v4, to + 2 * plane + x) = four.c;
    }
    for (; x < width; x++) {
      v4 value = sum_pixels(line, across, x, left);
      for (int64_t c = 0; c < 3; c++) to[c * plane + x] = value[c];
    }
  }
}

/* The affine map of every pixel, cut off at 0 and 255. */
CALLED void recolor(const float *m, float *planes, int64_t n) {
  float *r = planes, *g = planes + n, *b = planes + 2 * n;
  for (int64_t i = 0; i < n; i += LANES) {
    vf red = AT(vf, r + i), green = AT(vf, g + i), blue = AT(vf, b + i), made[3];
    for (int64_t c = 0; c < 3; c++) {
      vf value = red * m[4 * c] + green * m[4 * c + 1] + blue * m[4 * c + 2] + 255 * m[4 * c + 3];
      made[c] = smaller(larger(value, splat(0.0f)), splat(255.0f));
    }
    AT(vf, r + i) = made[0];
    AT(vf, g + i) = made[1];
    AT(vf, b + i) = made[2];
  }
}

/* A row of a plane after the blur: `row` itself has room for `reach` pixels on either side. */
INLINE const float *blurred_row(
    const Views *op, const float *plane, int64_t pitch, int64_t y, const float *taps, int64_t reach,
    const float **lows, const float **highs, float *row, float *out) {
  int64_t width = op->width, height = op->height;
  for (int64_t d = 1; d <= reach; d++) {
    lows[d] = plane + reflected(y - d, height) * pitch;
    highs[d] = plane + reflected(y + d, height) * pitch;
  }
  filter(row, plane + y * pitch, lows, highs, taps, reach, 1, 0, width);
  for (int64_t d = 1; d <= reach; d++) {
    row[-d] = row[reflected(-d, width)];
    row[width - 1 + d] = row[reflected(width - 1 + d, width)];
    lows[d] = row - d;
    highs[d] = row + d;
  }
  filter(out, row, lows, highs, taps, reach, 1, 0, width);
  return out;
}

/* Values of a row as they leave: solarized, normalised. */
INLINE vf last_of(vf value, int solarize, float gain, float bias) {
  if (solarize) value = pick(value >= 127.5f, 255.0f - value, value);
  return value * gain + bias;
}

CALLED void write_row(const Views *op, const float *row, int solarize, int64_t v, int64_t c, int64_t y) {
  int64_t width = op->width, x = 0;
  float gain = op->gain[c], bias = op->bias[c];
  if (op->dtype == UINT8) {
    uint8_t *to = (uint8_t *)op->out + ((v * op->height + y) * width) * 3 + c;
    for (; x < width; x++) {
      float value = solarize && row[x] >= 127.5f ? 255 - row[x] : row[x];
      to[3 * x] = (uint8_t)(value + 0.5f);
    }
    return;
  }
  int64_t at = ((v * 3 + c) * op->height + y) * width;
  for (; x + LANES <= width; x += LANES)
    store(op->out, at + x, last_of(AT(vf, row + x), solarize, gain, bias), op->dtype, 0);
  for (; x < width; x++) {
    float value = solarize && row[x] >= 127.5f ? 255 - row[x] : row[x];
    put(op->out, at + x, value * gain + bias, op->dtype);
  }
}

const int64_t EXPORT(fused_views_bytes) = sizeof(Views);

int EXPORT(fused_views)(const Views *op) {
  int64_t height = op->height, width = op->width, wide = 0;
  for (int64_t v = 0; v < op->views; v++) {
    int64_t side = op->sides[2 * op->photo[v] + 1];
    wide = side > wide ? side : wide;
  }
  int64_t pitch = (width + SPARE + LANES - 1) / LANES * LANES, planes = 3 * height * pitch + SPARE;
  int64_t line = 3 * wide + SPARE, row = width + 2 * op->reach + 3 * SPARE;
  int64_t weights_down = height * op->down, weights_across = width * op->across;
  int64_t floats = planes + line + 2 * row + op->reach + 1 + weights_down + weights_across;
  int64_t bytes = floats * sizeof(float) + 2 * (height + width) * sizeof(int32_t) + 2 * (op->reach + 1) * sizeof(float *);
  bytes = (bytes + 63) / 64 * 64;
  char *scratch = calloc(op->threads, bytes); /* what vectors read behind a row is a number */
  if (!scratch) return -1;
#pragma omp parallel for num_threads(op->threads) schedule(dynamic)
  for (int64_t v = 0; v < op->views; v++) {
    const float **lows = (const float **)(scratch + thread_number() * bytes), **highs = lows + op->reach + 1;
    float *own = (float *)(highs + op->reach + 1), *lines = own + planes, *half = lines + line;
    float *done = half + row, *taps = done + row, *weights = taps + op->reach + 1;
    int32_t *places = (int32_t *)(weights + weights_down + weights_across);
    Axis down = {places, places + height, weights, op->down};
    Axis across = {places + 2 * height, places + 2 * height + width, weights + weights_down, op->across};
    resample(op, v, &down, &across, lines, own, pitch);
    if (op->color) recolor(op->color + 12 * v, own, height * pitch);
    int64_t reach = 0;
    if (op->sigma && op->sigma[v] > 0) reach = taps_of(op->sigma[v], (int64_t)ceil(3.0 * op->sigma[v]), taps);
    int solarize = op->solarize && op->solarize[v];
    for (int64_t c = 0; c < 3; c++)
      for (int64_t y = 0; y < height; y++) {
        const float *plane = own + c * height * pitch, *values = plane + y * pitch;
        if (reach)
          values = blurred_row(op, plane, pitch, y, taps, reach, lows, highs, half + SPARE + op->reach, done);
        write_row(op, values, solarize, v, c, y);
      }
  }
  free(scratch);
  return 0;
}
