/* Windows of images resampled with antialiasing: first along columns, rows of any type becoming a line of floats,
 * then along the line, whose pixels become rows of planes. */
#ifndef FASTEQUI_RESAMPLE_H
#define FASTEQUI_RESAMPLE_H

#include "exponentials.h"

enum { TAPS = 8 }; /* neighbours of a pixel at most, of a number that the compiler knows */

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

/* Where values are cut off, and that they are then less the low end, so that sums of a narrow range far
 * from 0 keep their digits: of as many as a line has, [pixels, channels] each; or NULL. */
typedef struct {
  const float *low, *high;
} Ends;

/* A line of pixels of some of the image's channels: the weighted sum of rows of it, from value `at` on. Passed as a
 * copy where lines are written: no store can change it, so that it stays in registers. */
typedef struct {
  float *line;
  const void *rows;         /* of `type` */
  int64_t at, pitch, count; /* pitch: values from a row to the next; rows that are summed */
  const float *weight;
  const int32_t *taken;     /* [channels] of those stored */
  int64_t channels, stored;
  int32_t type;
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
        if (ends.low) {
          float low = ends.low[i], high = ends.high[i];
          value = (value < low ? low : value > high ? high : value) - low;
        }
        sum += value * of.weight[t];
      }
      of.line[i] = sum;
    }
}

/* The same of the channels of pixels, pixel after pixel. */
INLINE void sum_rows_of(Line of, int64_t pixels, int32_t type, Ends ends) {
  const int32_t *taken = of.taken;
  int64_t n = of.channels, stored = of.stored;
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

CALLED void sum_rows(const Line *of, int64_t pixels, Ends ends) {
#define SUM(type)                                     \
  if (ends.low) sum_rows_of(*of, pixels, type, ends); \
  else sum_rows_of(*of, pixels, type, (Ends){0})
  if (of->type == UINT8) {
    SUM(UINT8);
  } else if (of->type == UINT16) {
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

#endif
