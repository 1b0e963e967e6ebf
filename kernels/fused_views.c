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
  TAPS = 8,   /* pixels of a row that are summed without counting them */
};


typedef struct {
  const void *const *photos; /* [photos] of `type`, pixels of `stored` channels, rows without gaps inside */
  const int64_t *pitch;      /* [photos] values from a row to the next */
  const int32_t *sides;      /* [photos, 2] height, width */
  const int32_t *photo;      /* [views] which one a view shows */
  const float *window;       /* [views, 4] y0, x0, y1, x1 in pixels; x0 > x1 mirrors, y0 > y1 too */
  const int32_t *taken;      /* [channels] of those stored */
  const float *range;        /* [channels, 2] x becomes range[0] x + range[1]; or NULL */
  const float *ends;         /* [channels, 2] at which values are cut off first; x is then less the lower; or NULL */
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
  int32_t stream;            /* write floats past the caches */
} Views;

/* Channels first .. first + count - 1 of a view, whose planes are in memory. */
typedef struct {
  int64_t first, count;
} Chunk;

/* How an axis is resampled: value i is the sum of `count[i]` neighbours from first[i] on. */
typedef struct {
  int32_t *first, *count;
  float *weight; /* [size, most], 0 behind the last */
  int64_t taps, most; /* the largest count; as a multiple of four */
} Axis;

INLINE v4 magnitude4(v4 v) { return (v4)((i4)v & 0x7fffffff); }

INLINE double larger_of(double a, double b) { return a > b ? a : b; }

/* Triangles as wide as the step between samples, or two pixels where that is wider; pixels beyond the
 * border are the border's. */
CALLED void resample_axis(Axis *axis, double from, double to, int64_t pixels, int64_t size) {
  double step = (to - from) / size, radius = fabs(step) > 1 ? fabs(step) : 1, slope = 1 / radius;
  axis->taps = 0;
#define MIDDLE(i) (from + ((i) + 0.5) * step - 0.5)
  for (int64_t i = 0; i < size; i++) {
    int64_t low = (int64_t)ceil(MIDDLE(i) - radius), high = (int64_t)floor(MIDDLE(i) + radius);
    int64_t start = low < 0 ? 0 : low > pixels - 1 ? pixels - 1 : low;
    int64_t end = high < 0 ? 0 : high > pixels - 1 ? pixels - 1 : high;
    int64_t count = end - start + 1;
    axis->first[i] = (int32_t)start, axis->count[i] = (int32_t)count;
    axis->taps = count > axis->taps ? count : axis->taps;
  }
  int64_t most = axis->most = (axis->taps + 3) / 4 * 4;
  for (int64_t i = 0; i < size; i++) {
    double middle = MIDDLE(i), mass = 0;
    int64_t low = (int64_t)ceil(middle - radius), high = (int64_t)floor(middle + radius);
    int64_t first = axis->first[i], count = axis->count[i];
    float *weight = axis->weight + i * most;
    if (low == first && high == first + count - 1) { /* none beyond the border */
      v4 place = (float)(first - middle) + (v4){0, 1, 2, 3}, sum = {0};
      for (int64_t t = 0; t < most; t += 4, place += 4.0f) {
        v4 share = 1.0f - magnitude4(place) * (float)slope;
        AT(v4, weight + t) = share = (v4)((i4)share & (share > 0.0f));
        sum += share;
      }
      sum = 1.0f / (sum[0] + sum[1] + sum[2] + sum[3]) - (v4){0};
      for (int64_t t = 0; t < most; t += 4) AT(v4, weight + t) *= sum;
      continue;
    }
    for (int64_t j = low; j <= high; j++) mass += 1 - fabs(j - middle) * slope;
    double by = 1 / mass;
#define SHARE(j) (float)(by * larger_of(0.0, 1 - fabs((j)-middle) * slope))
    for (int64_t t = 0; t < most; t++) weight[t] = t < count ? SHARE(first + t) : 0.0f;
    for (int64_t j = low; j <= high && j < first; j++) weight[0] += SHARE(j);
    for (int64_t j = high; j >= low && j >= first + count; j--) weight[count - 1] += SHARE(j);
#undef SHARE
  }
#undef MIDDLE
}

INLINE vf values_at(const void *from, int64_t at, int32_t type) {
  if (type == UINT8) return __builtin_convertvector((vi)widened_bytes(AT(vb, (const uint8_t *)from + at)), vf);
  if (type == UINT16) return __builtin_convertvector((vi)widened(AT(vh, (const uint16_t *)from + at)), vf);
  return AT(vf, (const float *)from + at);
}

INLINE float one_value(const void *from, int64_t at, int32_t type) {
  return type == UINT8 ? ((const uint8_t *)from)[at] : type == UINT16 ? ((const uint16_t *)from)[at] : ((const float *)from)[at];
}

/* Where a chunk's values are cut off, and that they are then less the low end, so that sums of a narrow range far
 * from 0 keep their digits: of as many as a line has, [pixels, channels] each; or NULL. */
typedef struct {
  const float *low, *high;
} Ends;

/* A line: the weighted sum of some of the image's rows, from value `at` on. Passed as a copy where lines are
 * written: no store can change it, so that it stays in registers. */
typedef struct {
  float *line;
  const void *rows;
  int64_t at, pitch, count; /* pitch: values from a row to the next */
  const float *weight;
} Line;

/* line[i] = Σ_t weight[t] rows[t][i] of `vectors` vectors from i on, which are `more` further in the rows. */
INLINE void sum_vectors(Line of, int64_t more, int64_t i, int vectors, int32_t type, Ends ends) {
  vf sums[SIDE];
  const float *weight = of.weight;
  int64_t at = of.at + more + i, count = of.count, pitch = of.pitch;
  EACH(vectors) sums[v] = splat(0.0f);
  for (int64_t t = 0; t < count; t++, at += pitch) {
    vf by = splat(weight[t]);
    EACH(vectors) {
      vf value = values_at(of.rows, at + v * LANES, type);
      if (ends.low) { /* NaN stays */
        int64_t j = i + v * LANES;
        vf low = AT(vf, ends.low + j);
        value = smaller(AT(vf, ends.high + j), larger(low, value)) - low;
      }
      sums[v] += value * by;
    }
  }
  EACH(vectors) AT(vf, of.line + i + v * LANES) = sums[v];
}

/* The same of n values from the line's `first` on. */
INLINE void sum_piece(Line of, int64_t more, int64_t first, int64_t n, int32_t type, Ends ends) {
  int64_t i = first, end = first + n;
  for (; i + SIDE * LANES <= end; i += SIDE * LANES) sum_vectors(of, more, i, SIDE, type, ends);
  for (; i + LANES <= end; i += LANES) sum_vectors(of, more, i, 1, type, ends);
  if (i < end && n >= LANES) sum_vectors(of, more, end - LANES, 1, type, ends); /* some once more */
  else
    for (; i < end; i++) {
      float sum = 0;
      for (int64_t t = 0; t < of.count; t++) {
        float value = one_value(of.rows, of.at + more + i + t * of.pitch, type);
        if (ends.low) value = (value < ends.low[i] ? ends.low[i] : value > ends.high[i] ? ends.high[i] : value) - ends.low[i];
        sum += value * of.weight[t];
      }
      of.line[i] = sum;
    }
}

/* The same of a chunk's channels of pixels, pixel after pixel. */
INLINE void sum_rows_of(Line of, const Views *op, Chunk chunk, int64_t pixels, int32_t type, Ends ends) {
  const int32_t *taken = op->taken + chunk.first;
  int64_t n = chunk.count, stored = op->stored;
  int64_t following = 1;
  while (following < n && taken[following] == taken[0] + following) following++;
  if (n == stored && following == n) {
    sum_piece(of, 0, 0, pixels * n, type, ends);
    return;
  }
  for (int64_t x = 0; x < pixels; x++)
    for (int64_t c = 0, next; c < n; c = next) { /* channels that lie side by side */
      for (next = c + 1; next < n && taken[next] == taken[c] + (next - c);) next++;
      sum_piece(of, x * (stored - n) + taken[c] - c, x * n + c, next - c, type, ends);
    }
}

CALLED void sum_rows(const Line *of, const Views *op, Chunk chunk, int64_t pixels, Ends ends) {
#define SUM(type)                                                  \
  if (ends.low) sum_rows_of(*of, op, chunk, pixels, type, ends);    \
  else sum_rows_of(*of, op, chunk, pixels, type, (Ends){0})
  if (op->type == UINT8) {
    SUM(UINT8);
  } else if (op->type == UINT16) {
    SUM(UINT16);
  } else {
    SUM(FLOAT32);
  }
#undef SUM
}

/* Four channels of a pixel, from a line of pixels of n: the sum of its neighbours. */
INLINE v4 sum_pixels(const float *line, const Axis *across, int64_t x, int64_t n) {
  const float *at = line + n * across->first[x], *weight = across->weight + x * across->most;
  v4 sum = AT(v4, at) * weight[0];
  for (int64_t t = 1; t < across->count[x]; t++) sum += AT(v4, at + n * t) * weight[t];
  return sum;
}

/* The same of pixels of three, of as many neighbours as the compiler knows, 2 to 8, and of so many lines, `apart`.
 * Loads are what binds: weights are read four at once, for both lines. */
INLINE void sum_colours(v4 *sums, const float *line, int64_t apart, Axis across, int64_t x, int count, int lines) {
  const float *at = line + 3 * (int64_t)across.first[x], *weight = across.weight + x * (count > 4 ? 8 : 4);
  v4 by[2] = {kept(AT(v4, weight))};
  if (count > 4) by[1] = kept(AT(v4, weight + 4));
  for (int l = 0; l < lines; l++) sums[4 * l] = (v4){0};
#define TAP(t, i)                                                                     \
  if (t < count) {                                                                    \
    v4 each = SHUFFLE4(i4, by[t / 4], by[t / 4], i, i, i, i);                         \
    for (int l = 0; l < lines; l++) sums[4 * l] += AT(v4, at + l * apart + 3 * t) * each; \
  }
  TAP(0, 0)
  TAP(1, 1)
  TAP(2, 2)
  TAP(3, 3)
  TAP(4, 0)
  TAP(5, 1)
  TAP(6, 2)
  TAP(7, 3)
#undef TAP
}

/* How lines become rows of planes. */
typedef struct {
  float *to;
  int64_t plane, pitch; /* values from a channel to the next, and from a row */
  const float *line;
  int64_t apart, width, channels; /* from a line to the next; pixels, values of each */
} Across;

/* Lines of colours; `taps`: that all pixels have. Both structs are copies, which no store can change. */
INLINE void sum_lines_of(Across of, Axis across, int taps, int lines) {
  int64_t x = 0;
  v4 sums[8];
  for (; x + 4 <= of.width; x += 4) {
    for (int p = 0; p < 4; p++) sum_colours(sums + p, of.line, of.apart, across, x + p, taps, lines);
    for (int l = 0; l < lines; l++) {
      float *to = of.to + l * of.pitch + x;
      Four four = transposed((Four){sums[4 * l], sums[4 * l + 1], sums[4 * l + 2], sums[4 * l + 3]});
      AT(v4, to) = four.a;
      AT(v4, to + of.plane) = four.b;
      AT(v4, to + 2 * of.plane) = four.c;
    }
  }
  for (; x < of.width; x++) {
    sum_colours(sums, of.line, of.apart, across, x, taps, lines);
    for (int l = 0; l < lines; l++)
      for (int c = 0; c < 3; c++) of.to[l * of.pitch + c * of.plane + x] = sums[4 * l][c];
  }
}

/* Channels c .. c + 3 of one line. */
INLINE void sum_line_of(const Across *of, const Axis *across, int64_t c) {
  int64_t x = 0, plane = of->plane, n = of->channels, some = n - c < 4 ? n - c : 4;
  float *to = of->to + c * plane;
#define PIXEL(x) sum_pixels(of->line + c, across, x, n)
  for (; x + 4 <= of->width; x += 4) {
    Four four = transposed((Four){PIXEL(x), PIXEL(x + 1), PIXEL(x + 2), PIXEL(x + 3)});
    AT(v4, to + x) = four.a;
    if (some > 1) AT(v4, to + plane + x) = four.b;
    if (some > 2) AT(v4, to + 2 * plane + x) = four.c;
    if (some > 3) AT(v4, to + 3 * plane + x) = four.d;
  }
  for (; x < of->width; x++) {
    v4 value = PIXEL(x);
    for (int64_t i = 0; i < some; i++) to[i * plane + x] = value[i];
  }
#undef PIXEL
}

/* `exact`: no more than the neighbours that a pixel has is read, since a weight of 0 times NaN is NaN. */
CALLED void sum_lines(const Across *of, const Axis *across, int64_t lines, int exact) {
  switch (of->channels == 3 && !exact ? across->taps : 0) {
#define COLOURS(taps)                                        \
  case taps:                                                 \
    if (lines == 2) sum_lines_of(*of, *across, taps, 2);     \
    else sum_lines_of(*of, *across, taps, 1);                \
    return
    COLOURS(2);
    COLOURS(3);
    COLOURS(4);
    COLOURS(5);
    COLOURS(6);
    COLOURS(7);
    COLOURS(8);
#undef COLOURS
  }
  for (int64_t l = 0; l < lines; l++) {
    Across one = *of;
    one.to += l * of->pitch, one.line += l * of->apart;
    for (int64_t c = 0; c < of->channels; c += 4) sum_line_of(&one, across, c);
  }
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
  vf by[3][4];
  for (int c = 0; c < 3; c++)
    for (int k = 0; k < 4; k++) by[c][k] = splat(k < 3 ? m[4 * c + k] : top * m[4 * c + k]);
  for (int64_t i = 0; i < n; i += LANES) {
    vf red = AT(vf, r + i), green = AT(vf, g + i), blue = AT(vf, b + i), made[3];
    for (int64_t c = 0; c < 3; c++) {
      vf value = red * by[c][0] + green * by[c][1] + blue * by[c][2] + by[c][3];
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
  void *out = op->out;
#define LAST(x) last_of(AT(vf, row + (x)), solarize, top, gain, bias)
#define WRITE(dtype, stream)                      \
  for (; x + 2 * LANES <= width; x += 2 * LANES) \
  store_two(out, at + x, LAST(x), LAST(x + LANES), dtype, stream, 0)
  int floats = op->dtype == FLOAT32, halves = op->dtype == BFLOAT16;
  int stream = op->stream && ((uintptr_t)out + at * (floats ? 4 : 2)) % (LANES * 4) == 0;
  if (floats && stream) WRITE(FLOAT32, 1);
  else if (floats) WRITE(FLOAT32, 0);
  else if (halves && stream) WRITE(BFLOAT16, 1);
  else if (halves) WRITE(BFLOAT16, 0);
#undef WRITE
  for (; (floats || halves) && x + LANES <= width; x += LANES) store(out, at + x, LAST(x), op->dtype, 0);
  for (; x < width; x += LANES) {
    vf values = LAST(x);
    int64_t n = width - x < LANES ? width - x : LANES;
    if (op->dtype == UINT8 || op->dtype == UINT16) {
      vi whole = whole_of(values, op->dtype == UINT8 ? 255.0f : 65535.0f);
      if (op->dtype == UINT8) for (int64_t i = 0; i < n; i++) ((uint8_t *)op->out)[at + x + i] = (uint8_t)whole[i];
      else for (int64_t i = 0; i < n; i++) ((uint16_t *)op->out)[at + x + i] = (uint16_t)whole[i];
    } else for (int64_t i = 0; i < n; i++) put(op->out, at + x + i, values[i], op->dtype);
  }
#undef LAST
}

/* A row of a chunk's channels. */
CALLED void write(const Views *op, const float *row, int64_t plane, Chunk chunk, int solarize, int64_t v, int64_t y) {
  if (op->dtype == UINT8 && op->channels == 3) write_bytes(op, row, plane, solarize, v, y);
  else
    for (int64_t c = 0; c < chunk.count; c++) write_row(op, row + c * plane, solarize, v, chunk.first + c, y);
}

/* Asks for the image's rows that the view's row y + 1 is the first to need. */
INLINE void ask_for_rows(const Views *op, int64_t photo, const Axis *down, int64_t y, int64_t left, int64_t right) {
  int64_t low = down->first[y], high = low + down->count[y];
  int64_t start = down->first[y + 1], end = start + down->count[y + 1];
  int64_t bytes = op->type == UINT8 ? 1 : op->type == UINT16 ? 2 : 4, each = bytes * op->stored;
  for (int64_t row = start; row < end; row++) {
    if (low <= row && row < high) continue;
    const char *at = (const char *)op->photos[photo] + row * op->pitch[photo] * bytes;
    for (int64_t byte = left * each; byte < right * each; byte += 64) __builtin_prefetch(at + byte);
  }
}

/* What a thread works in. */
typedef struct {
  float *planes, *turned, *blurred, *line, *next, *ends, *taps;
  Axis down, across;
} Own;

/* How a chunk of a view is made, and where in memory. */
typedef struct {
  const Views *op;
  const Own *own;
  Chunk chunk;
  int64_t view, left, right; /* pixels of the image's rows that are needed */
  int64_t plane, pitch, kept; /* values from a channel's plane to the next and of a row; rows in memory */
  Ends ends;
} Making;

/* Rows y .. y + rows of it, two at most, resampled and coloured, to their places; their first value. */
CALLED float *make_rows(const Making *of, int64_t y, int64_t rows) {
  const Views *op = of->op;
  const Own *own = of->own;
  const Axis *down = &own->down;
  int64_t photo = op->photo[of->view], n = of->chunk.count;
  for (int64_t r = y; r < y + rows; r++) {
    Line line = {r == y ? own->line : own->next, op->photos[photo], 0, op->pitch[photo], down->count[r]};
    line.at = down->first[r] * line.pitch + op->stored * of->left, line.weight = down->weight + r * down->most;
    if (r + 1 < op->height) ask_for_rows(op, photo, down, r, of->left, of->right);
    sum_rows(&line, op, of->chunk, of->right - of->left, of->ends);
  }
  float *to = own->planes + y % of->kept * of->pitch;
  Across across = {to, of->plane, of->pitch, own->line - n * of->left, own->next - own->line, op->width, n};
  sum_lines(&across, &own->across, rows, op->type == FLOAT32);
  for (int64_t r = 0; r < rows; r++) colour(op, of->view, of->chunk, to + r * of->pitch, of->plane);
  return to;
}

/* A chunk of a view, two rows at a time: what is needed next is still in the caches. */
CALLED void make_view(
    const Views *op, int64_t v, Chunk chunk, const Own *own, Places places, int64_t kept, int64_t pitch, int64_t reach) {
  const Axis *across = &own->across;
  int64_t height = op->height, width = op->width, plane = kept * pitch, n = chunk.count, solarize = op->solarize && op->solarize[v];
  Making of = {op, own, chunk, v, across->first[0], 0, plane, pitch, kept};
  for (int64_t x = 0; x < width; x++) {
    int64_t first = across->first[x], end = first + across->count[x];
    of.left = first < of.left ? first : of.left, of.right = end > of.right ? end : of.right;
  }
  if (op->ends) {
    int64_t values = n * (of.right - of.left);
    of.ends = (Ends){own->ends, own->ends + values};
    for (int64_t i = 0; i < values; i++)
      for (int64_t end = 0; end < 2; end++) own->ends[end * values + i] = op->ends[2 * (chunk.first + i % n) + end];
  }
  int64_t made = 0, strip = ROWS * pitch;
  for (int64_t y = 0, rows; y < height; y += rows) {
    rows = reach ? ROWS : 2;
    rows = y + rows < height ? rows : height - y;
    while (made < height && made < y + rows + reach) {
      int64_t some = made + 1 < height ? 2 : 1;
      const float *row = make_rows(&of, made, some);
      for (int64_t r = 0; r < some && !reach; r++) write(op, row + r * pitch, plane, chunk, solarize, v, made + r);
      made += some;
    }
    if (!reach) continue;
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
  int64_t pitch = (width + SPARE + 15) / 16 * 16; /* 16: a cache line's */
  int64_t kept = op->sigma ? ROWS + 2 * op->reach + 2 : 2; /* rows */
  kept = kept < height ? kept : height;
  int64_t planes = most * kept * pitch + SPARE;
  int64_t line = most * (wide + TAPS) + SPARE, strip = op->sigma ? ROWS * pitch : 0;
  int64_t weights_down = height * (op->down + 3), weights_across = width * (op->across + 3);
  int64_t floats = planes + (most + 1) * strip + 2 * line + (op->ends ? 2 * line : 0) + op->reach + 1 + weights_down + weights_across;
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
  const Places where = placed(places, height, width, kept, pitch, op->reach);
#pragma omp parallel for num_threads(op->threads) schedule(dynamic)
  for (int64_t v = 0; v < op->views; v++) {
    Own own = {.planes = (float *)(scratch + thread_number() * bytes)};
    own.turned = own.planes + planes, own.blurred = own.turned + strip, own.line = own.blurred + most * strip;
    own.next = own.line + line, own.ends = own.next + line, own.taps = own.ends + (op->ends ? 2 * line : 0);
    float *weights = own.taps + op->reach + 1;
    int32_t *spans = (int32_t *)(weights + weights_down + weights_across);
    own.down = (Axis){spans, spans + height, weights};
    own.across = (Axis){spans + 2 * height, spans + 2 * height + width, weights + weights_down};
    const float *window = op->window + 4 * v;
    const int32_t *sides = op->sides + 2 * op->photo[v];
    resample_axis(&own.down, window[0], window[2], sides[0], height);
    resample_axis(&own.across, window[1], window[3], sides[1], width);
    int64_t reach = 0;
    if (op->sigma && op->sigma[v] > 0) reach = taps_of(op->sigma[v], (int64_t)ceil(3.0 * op->sigma[v]), own.taps);
    for (int64_t first = 0; first < op->channels; first += most) {
      Chunk chunk = {first, op->channels - first < most ? op->channels - first : most};
      make_view(op, v, chunk, &own, where, kept, pitch, reach);
    }
  }
  free(scratch);
  free(places);
  return 0;
}
