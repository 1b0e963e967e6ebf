/* Views of decoded images on a CPU, in one pass from their values: cut off at the ends of their range, a window
 * resampled with antialiasing, mirrored or not, colours or each channel's gain, blur, solarization,
 * normalisation. What fused_views.py's reference computes.
 *
 * A view is made by one thread in planes of float32 that stay in its caches, up to CHUNK channels at a
 * time. A row of the view is first the weighted sum of the image's rows, then of their pixels; blur is
 * separable as well. Nothing is rounded between the operations.
 */

#include "resample.h"
#include "separable.h"

enum { CHUNK = 16 }; /* channels at once */

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
    for (int c = 0; c < 3; c++) {
      vf value = last_of(AT(vf, row + c * plane + x), solarize, op->top, op->gain[c], op->bias[c]);
      packed |= whole_of(value, 255.0f) << (8 * c);
    }
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
#define WRITE(dtype, stream, number)              \
  for (; x + 2 * LANES <= width; x += 2 * LANES) \
  store_two(out, at + x, LAST(x), LAST(x + LANES), dtype, stream, number)
  int whole = op->type != FLOAT32; /* then NaN comes of arithmetic alone, and rounding leaves it one */
  int floats = op->dtype == FLOAT32, halves = op->dtype == BFLOAT16;
  const char *start = (const char *)out + bytes_of(at, op->dtype);
  int stream = op->stream && (uintptr_t)start % (LANES * 4) == 0;
  if (stream && (floats || halves)) ask_for_pages(start, bytes_of(width, op->dtype));
  if (floats && stream) WRITE(FLOAT32, 1, 0);
  else if (floats) WRITE(FLOAT32, 0, 0);
  else if (halves && stream && whole) WRITE(BFLOAT16, 1, 1);
  else if (halves && whole) WRITE(BFLOAT16, 0, 1);
  else if (halves && stream) WRITE(BFLOAT16, 1, 0);
  else if (halves) WRITE(BFLOAT16, 0, 0);
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
CALLED void write_channels(
    const Views *op, const float *row, int64_t plane, Chunk chunk, int solarize, int64_t v, int64_t y) {
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
    Line line = {.line = r == y ? own->line : own->next, .rows = op->photos[photo], .pitch = op->pitch[photo],
                 .count = down->count[r], .weight = down->weight + r * down->most, .channels = n,
                 .taken = op->taken + of->chunk.first, .stored = op->stored, .type = op->type};
    line.at = down->first[r] * line.pitch + op->stored * of->left;
    if (r + 1 < op->height) ask_for_rows(op, photo, down, r, of->left, of->right);
    sum_rows(&line, of->right - of->left, of->ends);
  }
  float *to = own->planes + y % of->kept * of->pitch;
  Across across = {to, of->plane, of->pitch, own->line - n * of->left, own->next - own->line, op->width, n};
  sum_lines(&across, &own->across, rows, op->type == FLOAT32);
  for (int64_t r = 0; r < rows; r++) colour(op, of->view, of->chunk, to + r * of->pitch, of->plane);
  return to;
}

/* A chunk of a view, two rows at a time: what is needed next is still in the caches. */
CALLED void make_view(
    const Views *op, int64_t v, Chunk chunk, const Own *own, Places places, int64_t kept, int64_t pitch,
    int64_t reach) {
  const Axis *across = &own->across;
  int64_t height = op->height, width = op->width, plane = kept * pitch, n = chunk.count;
  int solarize = op->solarize && op->solarize[v];
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
      for (int64_t r = 0; r < some && !reach; r++)
        write_channels(op, row + r * pitch, plane, chunk, solarize, v, made + r);
      made += some;
    }
    if (!reach) continue;
    for (int64_t c = 0; c < n; c++)
      filter_strip(own->blurred + c * strip, pitch, own->turned, own->planes + c * plane, places, own->taps, reach,
                   1, 0, y, rows, width);
    for (int64_t r = 0; r < rows; r++) write_channels(op, own->blurred + r * pitch, strip, chunk, solarize, v, y + r);
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
  int64_t pitch = whole_lines(width + SPARE);
  int64_t kept = op->sigma ? ROWS + 2 * op->reach + 2 : 2; /* rows */
  kept = kept < height ? kept : height;
  int64_t planes = most * kept * pitch + SPARE;
  int64_t line = whole_lines(most * (wide + TAPS) + SPARE), strip = op->sigma ? ROWS * pitch : 0;
  int64_t weights_down = height * (op->down + 3), weights_across = width * (op->across + 3);
  int64_t lines = (op->ends ? 4 : 2) * line, weights = weights_down + weights_across;
  int64_t floats = planes + (most + 1) * strip + lines + op->reach + 1 + weights;
  int64_t bytes = floats * sizeof(float) + 2 * (height + width) * sizeof(int32_t);
  bytes = whole_lines(bytes / sizeof(float)) * sizeof(float);
  char *scratch = scratch_of(op->threads * bytes);
  int64_t *places = malloc((size_t)places_of(height, width, op->reach) * sizeof(int64_t));
  if (!scratch || !places) {
    free(scratch);
    free(places);
    return -1;
  }
  memset(scratch, 0, op->threads * bytes); /* what vectors read behind a row is a number */
  in_huge_pages(op->out, bytes_of(height * width * op->views * op->channels, op->dtype));
  const Places where = placed(places, height, width, kept, pitch, op->reach);
#pragma omp parallel for num_threads(op->threads) schedule(dynamic)
  for (int64_t v = 0; v < op->views; v++) {
    Own own = {.planes = (float *)(scratch + thread_number() * bytes)};
    own.turned = own.planes + planes, own.blurred = own.turned + strip, own.line = own.blurred + most * strip;
    own.next = own.line + line, own.ends = own.next + line, own.taps = own.ends + (op->ends ? 2 * line : 0);
    float *weight = own.taps + op->reach + 1;
    int32_t *spans = (int32_t *)(weight + weights);
    own.down = (Axis){spans, spans + height, weight};
    own.across = (Axis){spans + 2 * height, spans + 2 * height + width, weight + weights_down};
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
