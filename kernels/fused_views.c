/* Views of decoded images on a CPU, in one pass from their values: cut off at the ends of their range, a window
 * resampled with antialiasing, mirrored or not, colours or each channel's gain, blur, solarization,
 * normalisation. What fused_views.py's reference computes.
 *
 * A view is made by one thread in planes of float32 that stay in its caches, up to CHUNK channels at a
 * time. A row of the view is first the weighted sum of the image's rows, then of their pixels; blur is
 * separable as well. Nothing is rounded between the operations.
 */
#include <stdlib.h>

#include "exponentials.h"
#include "separable.h"

enum {
  CHUNK = 16, /* channels at once */
  TAPS = 6,   /* pixels of a row that are summed without counting them */
};


typedef struct {
  const void *const *photos; /* [photos] of `type`, pixels of `stored` channels, rows without gaps inside */
  const int64_t *pitch;      /* [photos] values from a row to the next */
  const int32_t *sides;      /* [photos, 2] height, width */
  const int32_t *photo;      /* [views] which one a view shows */
  const float *window;       /* [views, 4] y0, x0, y1, x1 in pixels; x0 > x1 mirrors, y0 > y1 too */
  const int32_t *taken;      /* [channels] of those stored */
  const float *range;        /* [channels, 2] x becomes range[0] x + range[1]; or NULL */
  const float *ends;         /* [channels, 2] of the range, at which values are cut off first; or NULL */
  const float *color;        /* [views, 3, 4] an affine map of three channels in 0..1, or NULL */
  const float *each;         /* [views, channels, 3] gain, offset and exponent of a channel in 0..1, or NULL */
  const float *sigma;        /* [views] of the blur, 0 for none, or NULL */
  const uint8_t *solarize;   /* [views] whether values of the upper half are inverted, or NULL */
  void *out;                 /* [views, channels, height, width]; three bytes: [views, height, width, 3] */
  const float *gain, *bias;  /* [channels] of a value in 0..top, in the end */
  float top;
  int32_t views, channels, stored, type, height, width, dtype, threads;
  int32_t down, across;      /* taps that a resampled value has at most */
  int32_t reach;             /* pixels from the middle of the widest blur to its end */
} Views;

/* Channels first .. first + count - 1 of a view, whose planes are in memory. */
typedef struct {
  int64_t first, count;
} Chunk;

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

INLINE vf values_at(const void *from, int64_t at, int32_t type) {
  if (type == UINT8) return __builtin_convertvector((vi)widened_bytes(AT(vb, (const uint8_t *)from + at)), vf);
  if (type == UINT16) return __builtin_convertvector((vi)widened(AT(vh, (const uint16_t *)from + at)), vf);
  return AT(vf, (const float *)from + at);
}

INLINE float one_value(const void *from, int64_t at, int32_t type) {
  return type == UINT8 ? ((const uint8_t *)from)[at] : type == UINT16 ? ((const uint16_t *)from)[at] : ((const float *)from)[at];
}

/* Where a chunk's values are cut off: of as many as a line has, [pixels, channels] each; or NULL. */
typedef struct {
  const float *low, *high;
} Ends;

/* line[i] = Σ_t weight[t] rows[t][at + i] of `vectors` vectors from i on, rows a pitch apart. */
INLINE void sum_vectors(
    float *line, const void *rows, int64_t at, int64_t pitch, const float *weight, int64_t count, int vectors,
    int32_t type, Ends ends, int64_t i) {
  vf sums[SIDE];
  EACH(vectors) sums[v] = splat(0.0f);
  for (int64_t t = 0; t < count; t++) {
    vf by = splat(weight[t]);
    EACH(vectors) {
      int64_t j = i + v * LANES;
      vf value = values_at(rows, at + t * pitch + j, type);
      if (ends.low) value = smaller(AT(vf, ends.high + j), larger(AT(vf, ends.low + j), value)); /* NaN stays */
      sums[v] += value * by;
    }
  }
  EACH(vectors) AT(vf, line + i + v * LANES) = sums[v];
}

/* The same of n values; the line's and the ends' from `first` on. */
INLINE void sum_piece(
    float *line, const void *rows, int64_t at, int64_t pitch, const float *weight, int64_t count, int64_t n,
    int32_t type, Ends ends, int64_t first) {
  int64_t i = 0;
  line += first;
  if (ends.low) ends.low += first, ends.high += first;
#define SUM(vectors) sum_vectors(line, rows, at, pitch, weight, count, vectors, type, ends, i)
  for (; i + SIDE * LANES <= n; i += SIDE * LANES) SUM(SIDE);
  for (; i + LANES <= n; i += LANES) SUM(1);
  if (i < n && n >= LANES) { /* some once more */
    i = n - LANES;
    SUM(1);
    return;
  }
#undef SUM
  for (; i < n; i++) {
    float sum = 0;
    for (int64_t t = 0; t < count; t++) {
      float value = one_value(rows, at + t * pitch + i, type);
      if (ends.low) value = value < ends.low[i] ? ends.low[i] : value > ends.high[i] ? ends.high[i] : value;
      sum += value * weight[t];
    }
    line[i] = sum;
  }
}

/* The same of a chunk's channels of pixels from `at` on, pixel after pixel. */
INLINE void sum_rows_of(
    float *line, const Views *op, Chunk chunk, const void *rows, int64_t at, int64_t pitch, const float *weight,
    int64_t count, int64_t pixels, int32_t type, Ends ends) {
  const int32_t *taken = op->taken + chunk.first;
  int64_t n = chunk.count, stored = op->stored;
  int64_t following = 1;
  while (following < n && taken[following] == taken[0] + following) following++;
  if (n == stored && following == n) {
    sum_piece(line, rows, at, pitch, weight, count, pixels * n, type, ends, 0);
    return;
  }
  for (int64_t x = 0; x < pixels; x++)
    for (int64_t c = 0, next; c < n; c = next) { /* channels that lie side by side */
      for (next = c + 1; next < n && taken[next] == taken[c] + (next - c);) next++;
      sum_piece(line, rows, at + x * stored + taken[c], pitch, weight, count, next - c, type, ends, x * n + c);
    }
}

CALLED void sum_rows(
    float *line, const Views *op, Chunk chunk, const void *rows, int64_t at, int64_t pitch, const float *weight,
    int64_t count, int64_t pixels, Ends ends) {
#define SUM(type, ends) sum_rows_of(line, op, chunk, rows, at, pitch, weight, count, pixels, type, ends)
#define SUMS(type)                \
  if (ends.low) SUM(type, ends); \
  else SUM(type, (Ends){0})
  if (op->type == UINT8) {
    SUMS(UINT8);
  } else if (op->type == UINT16) {
    SUMS(UINT16);
  } else {
    SUMS(FLOAT32);
  }
#undef SUMS
#undef SUM
}

/* Four channels of a pixel, from a line of pixels of n. */
INLINE v4 sum_pixels(const float *line, const Axis *across, int64_t x, int64_t count, int64_t n) {
  const float *at = line + n * across->first[x], *weight = across->weight + x * across->most;
  v4 sum = AT(v4, at) * weight[0];
  for (int64_t t = 1; t < count; t++) sum += AT(v4, at + n * t) * weight[t];
  return sum;
}

/* Up to four channels of a row, each to its plane. `taps`: of every pixel, or 0 for what each has. */
INLINE void sum_line_of(
    float *to, int64_t plane, const float *line, const Axis *across, int64_t width, int64_t n, int64_t some,
    int64_t taps) {
  int64_t x = 0;
#define PIXEL(x) sum_pixels(line, across, x, taps ? taps : across->count[x], n)
  for (; x + 4 <= width; x += 4) {
    Four four = transposed((Four){PIXEL(x), PIXEL(x + 1), PIXEL(x + 2), PIXEL(x + 3)});
    AT(v4, to + x) = four.a;
    if (some > 1) AT(v4, to + plane + x) = four.b;
    if (some > 2) AT(v4, to + 2 * plane + x) = four.c;
    if (some > 3) AT(v4, to + 3 * plane + x) = four.d;
  }
  for (; x < width; x++) {
    v4 value = PIXEL(x);
    for (int64_t c = 0; c < some; c++) to[c * plane + x] = value[c];
  }
#undef PIXEL
}

CALLED void sum_line(
    float *to, int64_t plane, const float *line, const Axis *across, int64_t width, int64_t n, int64_t some, int64_t taps) {
#define COLOURS(taps) case taps: sum_line_of(to, plane, line, across, width, 3, 3, taps); return
  if (n == 3) switch (taps) {
    COLOURS(2);
    COLOURS(3);
    COLOURS(4);
    COLOURS(5);
    COLOURS(6);
  }
#undef COLOURS
  sum_line_of(to, plane, line, across, width, n, some, 0);
}

INLINE vf cut(vf value, float top) { return smaller(splat(top), larger(splat(0.0f), value)); } /* NaN stays */

/* gain x + bias of every value, cut off at 0 and `top`. */
CALLED void rescale(float *row, int64_t n, float gain, float bias, float top) {
  for (int64_t i = 0; i < n; i += LANES) AT(vf, row + i) = cut(AT(vf, row + i) * gain + bias, top);
}

/* Values of 0..top to the power of `exponent`, as parts of it. */
CALLED void raise(float *row, int64_t n, float exponent, float top) {
  for (int64_t i = 0; i < n; i += LANES) {
    vf x = AT(vf, row + i), power = exp2_times(log2_of(x * (1 / top)), exponent, top);
    AT(vf, row + i) = pick(x > 0.0f, power, x);
  }
}

/* The affine map of every pixel, cut off at 0 and `top`. */
CALLED void recolor(const float *m, float *row, int64_t plane, int64_t n, float top) {
  float *r = row, *g = row + plane, *b = row + 2 * plane;
  for (int64_t i = 0; i < n; i += LANES) {
    vf red = AT(vf, r + i), green = AT(vf, g + i), blue = AT(vf, b + i), made[3];
    for (int64_t c = 0; c < 3; c++) {
      vf value = red * m[4 * c] + green * m[4 * c + 1] + blue * m[4 * c + 2] + top * m[4 * c + 3];
      made[c] = cut(value, top);
    }
    AT(vf, r + i) = made[0];
    AT(vf, g + i) = made[1];
    AT(vf, b + i) = made[2];
  }
}

/* The colours of a row of a chunk's channels, each in its plane. */
CALLED void colour(const Views *op, int64_t v, Chunk chunk, float *row, int64_t plane) {
  int64_t n = op->width;
  for (int64_t c = 0; c < chunk.count && op->range; c++) {
    const float *range = op->range + 2 * (chunk.first + c);
    rescale(row + c * plane, n, range[0], range[1], op->top);
  }
  if (op->color) recolor(op->color + 12 * v, row, plane, n, op->top);
  for (int64_t c = 0; c < chunk.count && op->each; c++) {
    const float *each = op->each + 3 * (v * op->channels + chunk.first + c);
    rescale(row + c * plane, n, each[0], op->top * each[1], op->top);
    if (each[2] != 1.0f) raise(row + c * plane, n, each[2], op->top);
  }
}

/* Values of a row as they leave: solarized, normalised. */
INLINE vf last_of(vf value, int solarize, float top, float gain, float bias) {
  if (solarize) value = pick(value >= 0.5f * top, top - value, value);
  return value * gain + bias;
}

/* Values as whole numbers up to `most`, rounded; NaN as 0. */
INLINE vi whole_of(vf value, float most) {
  return __builtin_convertvector(smaller(splat(most), larger(value, splat(0.0f))) + 0.5f, vi);
}

/* Three channels of a row as bytes side by side. Vectors are written as long as none reaches the row's end,
 * behind which is another view's. */
CALLED void write_bytes(const Views *op, const float *row, int64_t plane, int solarize, int64_t v, int64_t y) {
  int64_t width = op->width;
  uint8_t *out = (uint8_t *)op->out + (v * op->height + y) * width * 3;
  int32_t pixels[LANES] __attribute__((aligned(64)));
  for (int64_t x = 0; x < width; x += LANES) {
    vi packed = {0};
    for (int c = 0; c < 3; c++)
      packed |= whole_of(last_of(AT(vf, row + c * plane + x), solarize, op->top, op->gain[c], op->bias[c]), 255.0f) << (8 * c);
    *(vi *)pixels = packed;
    int64_t n = width - x < LANES ? width - x : LANES, i = 0;
    for (; x + i + 6 <= width && i < LANES; i += 4) put_low_three(out + 3 * (x + i), AT(b16, pixels + i));
    for (; i < n; i++)
      for (int c = 0; c < 3; c++) out[3 * (x + i) + c] = (uint8_t)(pixels[i] >> (8 * c));
  }
}

CALLED void write_row(const Views *op, const float *row, int solarize, int64_t v, int64_t c, int64_t y) {
  int64_t width = op->width, x = 0, at = ((v * op->channels + c) * op->height + y) * width;
  float gain = op->gain[c], bias = op->bias[c], top = op->top;
  if (op->dtype == FLOAT32 || op->dtype == BFLOAT16)
    for (; x + LANES <= width; x += LANES)
      store(op->out, at + x, last_of(AT(vf, row + x), solarize, top, gain, bias), op->dtype, 0);
  for (; x < width; x += LANES) {
    vf values = last_of(AT(vf, row + x), solarize, top, gain, bias);
    int64_t n = width - x < LANES ? width - x : LANES;
    if (op->dtype == UINT8 || op->dtype == UINT16) {
      vi whole = whole_of(values, op->dtype == UINT8 ? 255.0f : 65535.0f);
      if (op->dtype == UINT8) for (int64_t i = 0; i < n; i++) ((uint8_t *)op->out)[at + x + i] = (uint8_t)whole[i];
      else for (int64_t i = 0; i < n; i++) ((uint16_t *)op->out)[at + x + i] = (uint16_t)whole[i];
    } else for (int64_t i = 0; i < n; i++) put(op->out, at + x + i, values[i], op->dtype);
  }
}

/* A row of a chunk's channels. */
CALLED void write(const Views *op, const float *row, int64_t plane, Chunk chunk, int solarize, int64_t v, int64_t y) {
  if (op->dtype == UINT8 && op->channels == 3) write_bytes(op, row, plane, solarize, v, y);
  else
    for (int64_t c = 0; c < chunk.count; c++) write_row(op, row + c * plane, solarize, v, chunk.first + c, y);
}

/* What a thread works in. */
typedef struct {
  float *planes, *turned, *blurred, *line, *ends, *taps;
  Axis down, across;
} Own;

/* A chunk of a view: row by row its window is resampled and coloured, and written, or blurred first. */
CALLED void make_view(const Views *op, int64_t v, Chunk chunk, const Own *own, Places places, int64_t pitch, int64_t reach) {
  const Axis *down = &own->down, *across = &own->across;
  int64_t photo = op->photo[v], height = op->height, width = op->width, plane = height * pitch;
  int64_t left = across->first[0], right = 0, most = 0, n = chunk.count;
  for (int64_t x = 0; x < width; x++) {
    if (across->first[x] < left) left = across->first[x];
    if (across->first[x] + across->count[x] > right) right = across->first[x] + across->count[x];
    if (across->count[x] > most) most = across->count[x];
  }
  if (op->type == FLOAT32 || most > TAPS) most = 0; /* a weight of 0 times NaN */
  float *line = own->line, *low = own->ends, *high = own->ends + n * (right - left);
  for (int64_t i = 0; op->ends && i < n * (right - left); i++) {
    low[i] = op->ends[2 * (chunk.first + i % n)];
    high[i] = op->ends[2 * (chunk.first + i % n) + 1];
  }
  Ends all = {op->ends ? low : NULL, high};
  int solarize = op->solarize && op->solarize[v];
  for (int64_t y = 0; y < height; y++) {
    int64_t at = down->first[y] * op->pitch[photo] + op->stored * left;
    float *row = own->planes + (reach ? y * pitch : 0);
    sum_rows(line, op, chunk, op->photos[photo], at, op->pitch[photo], down->weight + y * down->most, down->count[y],
             right - left, all);
    for (int64_t c = 0; c < n; c += 4)
      sum_line(row + c * plane, plane, line + c - n * left, across, width, n, n - c < 4 ? n - c : 4, most);
    colour(op, v, chunk, row, plane);
    if (!reach) write(op, row, plane, chunk, solarize, v, y);
  }
  for (int64_t y = 0; reach && y < height; y += ROWS) {
    int64_t rows = height - y < ROWS ? height - y : ROWS, strip = ROWS * pitch;
    for (int64_t c = 0; c < n; c++)
      filter_strip(own->blurred + c * strip, pitch, own->turned, own->planes + c * plane, places, own->taps, reach, 1, 0,
                   y, rows, width);
    for (int64_t r = 0; r < rows; r++) write(op, own->blurred + r * pitch, strip, chunk, solarize, v, y + r);
  }
}

const int64_t EXPORT(fused_views_bytes) = sizeof(Views);

int EXPORT(fused_views)(const Views *op) {
  int64_t height = op->height, width = op->width, wide = 0;
  for (int64_t v = 0; v < op->views; v++) {
    int64_t side = op->sides[2 * op->photo[v] + 1];
    wide = side > wide ? side : wide;
  }
  int64_t most = op->channels < CHUNK ? op->channels : CHUNK;
  int64_t pitch = (width + SPARE + 15) / 16 * 16, planes = most * height * pitch + SPARE; /* 16: a cache line's */
  int64_t line = most * (wide + TAPS) + SPARE, strip = op->sigma ? ROWS * pitch : 0;
  int64_t weights_down = height * op->down, weights_across = width * op->across;
  int64_t floats = planes + (most + 1) * strip + line + (op->ends ? 2 * line : 0) + op->reach + 1 + weights_down + weights_across;
  int64_t bytes = floats * sizeof(float) + 2 * (height + width) * sizeof(int32_t);
  bytes = (bytes + 63) / 64 * 64;
  char *scratch = aligned_alloc(64, op->threads * bytes);
  int64_t *places = malloc((size_t)places_of(height, width, op->reach) * sizeof(int64_t));
  if (!scratch || !places) {
    free(scratch);
    free(places);
    return -1;
  }
  memset(scratch, 0, op->threads * bytes); /* what vectors read behind a row is a number */
  const Places where = placed(places, height, width, pitch, op->reach);
#pragma omp parallel for num_threads(op->threads) schedule(dynamic)
  for (int64_t v = 0; v < op->views; v++) {
    Own own = {.planes = (float *)(scratch + thread_number() * bytes)};
    own.turned = own.planes + planes, own.blurred = own.turned + strip, own.line = own.blurred + most * strip;
    own.ends = own.line + line, own.taps = own.ends + (op->ends ? 2 * line : 0);
    float *weights = own.taps + op->reach + 1;
    int32_t *spans = (int32_t *)(weights + weights_down + weights_across);
    own.down = (Axis){spans, spans + height, weights, op->down};
    own.across = (Axis){spans + 2 * height, spans + 2 * height + width, weights + weights_down, op->across};
    const float *window = op->window + 4 * v;
    const int32_t *sides = op->sides + 2 * op->photo[v];
    resample_axis(&own.down, window[0], window[2], sides[0], height);
    resample_axis(&own.across, window[1], window[3], sides[1], width);
    int64_t reach = 0;
    if (op->sigma && op->sigma[v] > 0) reach = taps_of(op->sigma[v], (int64_t)ceil(3.0 * op->sigma[v]), own.taps);
    for (int64_t first = 0; first < op->channels; first += most) {
      Chunk chunk = {first, op->channels - first < most ? op->channels - first : most};
      make_view(op, v, chunk, &own, where, pitch, reach);
    }
  }
  free(scratch);
  free(places);
  return 0;
}
