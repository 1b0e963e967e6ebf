/* Packed texels and bilinear sampling at an affine grid, shared by warp.c, warp_adjoint.c and warp_recon.c.
 *
 * An image is packed once: one texel of four floats (r g b 0, already scaled or normalised) per
 * pixel, and a ring of two texels around it that hold what lies outside; a group of four channels is
 * a plane of such texels. A bilinear sample of a group is then two loads of two neighbouring texels,
 * whatever the channel, the layout or the type of the image. Of one channel a texel is two floats, the
 * pixel and the step to the one below it: two neighbouring texels are all that a sample needs, in one load.
 * Coordinates are bounded before they become integers, NaN included, so no matrix reads elsewhere.
 */
#ifndef FASTEQUI_PACKED_H
#define FASTEQUI_PACKED_H

#include <math.h>

#include "values.h"

/* Normalised coordinate up to which a point lies in the image: sampling.py's. */
#define EDGE (1.0f + 0x1p-20f)

enum { ZEROS, BORDER, REFLECTION, INSIDE }; /* the last one where no rule is needed */

/* Texels around an image; pixels of up to four channels sampled before they are used; most of channels. */
enum { RING = 2, RUN = 1024, GROUPS = 1024 };

typedef struct {
  const void *data;
  int64_t stride[4]; /* of batch, channel, row and column, in elements */
  int32_t dtype, channels, height, width;
} Image;

/* Matrices [B, K, 2, 3] and colours or NULL, all dense: [B, K, C, C + 1] of up to four channels, of
 * more [B, K, C, 2], a gain and an offset each. The sampled value of channel c is
 * gain[c] * x + bias[c], after its colour. */
typedef struct {
  const float *theta, *color, *gain, *bias;
  int32_t batch, steps, height, width; /* of the samples */
  int32_t padding, align;
} Grid;

/* ---- packing ---- */

INLINE int64_t pitch_of(const Image *image) { return image->width + 2 * RING; }

INLINE int32_t groups_of(const Image *image) { return (image->channels + 3) / 4; }

INLINE int32_t channels_of(const Image *image, int32_t group) {
  int32_t left = image->channels - 4 * group;
  return left < 4 ? left : 4;
}

INLINE int64_t texel_floats(const Image *image) { return image->channels > 1 ? 4 : 2; }

INLINE int64_t origin_of(const Image *image) { return RING * (pitch_of(image) + 1); } /* pixel (0, 0) */

INLINE size_t plane_floats(const Image *image) { /* of a group */
  return (size_t)whole_lines(pitch_of(image) * (image->height + 2 * RING) * texel_floats(image));
}

INLINE size_t packed_bytes(const Image *image) {
  return groups_of(image) * plane_floats(image) * sizeof(float);
}

/* n texels of a row from values side by side in memory (r g b r g b ...). */
INLINE void pack_bytes3(v4_at *to, const uint8_t *in, int64_t n, v4 gain, v4 bias) {
  int64_t x = 0;
  for (; x + 1 < n; x++) /* the fourth byte is the next pixel's: its gain is 0 */
    to[x] = gain * from_bytes(AT(b4, in + 3 * x)) + bias;
  for (; x < n; x++) {
    v4 one = {in[3 * x], in[3 * x + 1], in[3 * x + 2], 0};
    to[x] = gain * one + bias;
  }
}

/* In a register: of a few values that lie side by side GCC would make a string instruction, slow to begin. */
INLINE float kept_one(float value) {
#ifdef __SSE2__
  __asm__("" : "+x"(value));
#endif
  return value;
}

/* n values of one channel, `step` elements apart. */
INLINE void read_row(float *out, const Image *image, int64_t at, int64_t step, int64_t n) {
#define READ(type)                                                                                              \
  do {                                                                                                          \
    int64_t x = 0;                                                                                              \
    for (; step == 1 && x + LANES <= n; x += LANES) AT(vf, out + x) = values_at(image->data, at + x, type);     \
    for (; x < n; x++) out[x] = kept_one(one_value(image->data, at + x * step, type));                          \
  } while (0)
  if (image->dtype == UINT8) READ(UINT8);
  else if (image->dtype == FLOAT32) READ(FLOAT32);
  else if (image->dtype == BFLOAT16) READ(BFLOAT16);
  else if (image->dtype == UINT16) READ(UINT16);
  else READ(FLOAT16);
#undef READ
}

/* What packing folds in: the scale of integers, and the normalisation unless a colour precedes; 0 where
 * there is no channel. */
INLINE void packing(const Image *image, const Grid *grid, int32_t group, v4 *gain, v4 *bias) {
  float scale = image->dtype == UINT8 ? 1.0f / 255.0f : image->dtype == UINT16 ? 1.0f / 65535.0f : 1.0f;
  *gain = *bias = (v4){0};
  for (int32_t c = 0; c < channels_of(image, group); c++) {
    (*gain)[c] = scale * (grid->color ? 1.0f : grid->gain[4 * group + c]);
    (*bias)[c] = grid->color ? 0.0f : grid->bias[4 * group + c];
  }
}

/* Rows first..last-1 of a group of the packed image (ring included) of image b, as gain * x + bias. */
CALLED void pack_group(
    const Image *image, const Grid *grid, int64_t b, int32_t group, int64_t first, int64_t last,
    float *texels) {
  enum { PART = 128 };
  int64_t pitch = pitch_of(image), width = image->width, channels = channels_of(image, group);
  int64_t start = b * image->stride[0] + 4 * group * image->stride[1];
  float AT_LINE part[4][PART] = {{0}}; /* a channel each; 0 where there is none */
  v4 gain, bias;
  packing(image, grid, group, &gain, &bias);
  for (int64_t row = first; row < last; row++) {
    v4_at *to = (v4_at *)texels + row * pitch;
    int64_t y = row - RING;
    int inside = y >= 0 && y < image->height;
    for (int64_t x = 0; x < (inside ? RING : pitch); x++) to[x] = to[pitch - 1 - x] = bias;
    if (!inside) continue;
    to += RING;
    int64_t at = start + y * image->stride[2];
    if (image->dtype == UINT8 && image->channels == 3 && image->stride[1] == 1 && image->stride[3] == 3) {
      pack_bytes3(to, (const uint8_t *)image->data + at, width, gain, bias);
      continue;
    }
    for (int64_t x = 0; x < width; x += PART) {
      int64_t n = width - x < PART ? width - x : PART;
      const float *from[4] = {part[0], part[1], part[2], part[3]};
      for (int64_t c = 0; c < channels; c++) {
        int64_t first = at + c * image->stride[1] + x * image->stride[3];
        if (image->dtype == FLOAT32 && image->stride[3] == 1) from[c] = (const float *)image->data + first;
        else read_row(part[c], image, first, image->stride[3], n);
      }
      int64_t i = 0;
      for (; i + 4 <= n; i += 4) {
        Four at = transposed((Four){AT(v4, from[0] + i), AT(v4, from[1] + i), AT(v4, from[2] + i),
                                    AT(v4, from[3] + i)});
        to[x + i] = gain * at.a + bias;
        to[x + i + 1] = gain * at.b + bias;
        to[x + i + 2] = gain * at.c + bias;
        to[x + i + 3] = gain * at.d + bias;
      }
      for (; i < n; i++) {
        v4 value = {from[0][i], from[1][i], from[2][i], from[3][i]};
        to[x + i] = gain * value + bias;
      }
    }
  }
}

/* n values of one channel from column x of row `row` of the packed image; 0 above and below. */
INLINE void padded_row(float *out, const Image *image, int64_t start, int64_t row, int64_t x, int64_t n) {
  int64_t y = row - RING;
  if (y < 0 || y >= image->height) memset(out, 0, n * sizeof(float));
  else read_row(out, image, start + y * image->stride[2] + x * image->stride[3], image->stride[3], n);
}

/* Rows of the packed image of one channel: pixels, gain * x + bias, and how much those below them are
 * more, but for the last row, which is below alone. */
CALLED void pack_one(
    const Image *image, const Grid *grid, int64_t b, int64_t first, int64_t last, float *texels) {
  enum { PART = 256 };
  int64_t pitch = 2 * pitch_of(image), width = image->width, start = b * image->stride[0];
  float AT_LINE pixels[PART], AT_LINE below[PART];
  v4 gain, bias;
  packing(image, grid, 0, &gain, &bias);
  const float by = gain[0], more = bias[0];
  if (last == image->height + 2 * RING) last--;
  for (int64_t row = first; row < last; row++) {
    float *left = texels + row * pitch, *right = left + pitch - 2 * RING;
    for (int64_t x = 0; x < 2 * RING; x++) left[x] = right[x] = x % 2 ? 0.0f : more;
  }
  for (int64_t x = 0; x < width; x += PART) { /* down the image: each value is read once */
    int64_t n = width - x < PART ? width - x : PART;
    padded_row(pixels, image, start, first, x, n);
    for (int64_t i = 0; i < n; i++) pixels[i] = by * pixels[i] + more;
    for (int64_t row = first; row < last; row++) {
      float *to = texels + row * pitch + 2 * (RING + x);
      int64_t i = 0;
      padded_row(below, image, start, row + 1, x, n);
      for (; i + LANES <= n; i += LANES) {
        vf own = AT(vf, pixels + i), next = by * AT(vf, below + i) + more;
        AT(vf, pixels + i) = next;
        put_pairs(to + 2 * i, own, next - own);
      }
      for (; i < n; i++) {
        float own = pixels[i], next = by * below[i] + more;
        to[2 * i] = own, to[2 * i + 1] = next - own;
        pixels[i] = next;
      }
    }
  }
}

/* The same of all groups, plane after plane. */
INLINE void pack_rows(
    const Image *image, const Grid *grid, int64_t b, int64_t first, int64_t last, float *texels) {
  if (image->channels == 1) {
    pack_one(image, grid, b, first, last, texels);
    return;
  }
  for (int32_t group = 0; group < groups_of(image); group++)
    pack_group(image, grid, b, group, first, last, texels + group * plane_floats(image));
}

/* ---- the affine grid ---- */

/* Sample point of output pixel (x, y), in pixels of the source: a x + b y + c in both axes; and the
 * normalised output coordinates sx x + bx, sy y + by. */
typedef struct {
  double a[2], b[2], c[2];
  float scale[2], centre[2]; /* pixel = scale * normalised + centre */
  float step[2], start[2];   /* normalised output coordinate of pixel i: step * i + start */
} Affine;

INLINE Affine affine_of(const float *theta, const Grid *grid, const Image *image) {
  Affine at;
  int32_t out[2] = {grid->width, grid->height}, in[2] = {image->width, image->height};
  double step[2], start[2];
  for (int i = 0; i < 2; i++) {
    if (grid->align) {
      step[i] = out[i] > 1 ? 2.0 / (out[i] - 1) : 0.0;
      start[i] = out[i] > 1 ? -1.0 : 0.0;
    } else {
      step[i] = 2.0 / out[i];
      start[i] = 1.0 / out[i] - 1.0;
    }
    at.scale[i] = (float)(grid->align ? (in[i] - 1) * 0.5 : in[i] * 0.5);
    at.centre[i] = (float)((in[i] - 1) * 0.5);
    at.step[i] = (float)step[i];
    at.start[i] = (float)start[i];
  }
  for (int i = 0; i < 2; i++) {
    const float *row = theta + 3 * i;
    at.a[i] = row[0] * step[0] * at.scale[i];
    at.b[i] = row[1] * step[1] * at.scale[i];
    at.c[i] = (row[0] * start[0] + row[1] * start[1] + row[2]) * at.scale[i] + at.centre[i];
  }
  return at;
}

INLINE int finite6(const float *theta) {
  float sum = 0;
  for (int i = 0; i < 6; i++) sum += 0.0f * theta[i];
  return sum == 0.0f;
}

/* Coordinates after the padding rule; *slope: the rule's derivative. NaN becomes the lower bound. */
INLINE vf padded(vf x, int32_t size, int32_t padding, int32_t align, vf *slope) {
  float low = -1.5f, high = (float)size + 0.5f;
  *slope = splat(1.0f);
  if (padding == REFLECTION) {
    float origin = align ? 0.0f : -0.5f, span = align ? (float)(size - 1) : (float)size;
    vf off = x - origin, away = magnitude(off);
    vf turns = floored(away / (span > 1.0f ? span : 1.0f)), rest = away - turns * span;
    vi odd = turns - 2.0f * floored(turns * 0.5f) != 0.0f;
    *slope = pick(odd ^ (off < 0.0f), splat(-1.0f), splat(1.0f));
    x = pick(odd, span - rest, rest) + origin;
    if (span <= 0.0f) *slope = x = splat(0.0f);
  }
  if (padding != ZEROS) {
    low = 0.0f;
    high = (float)(size - 1);
    *slope = pick((x > low) & (x < high), *slope, splat(0.0f));
  }
  return smaller(larger(x, splat(low)), splat(high));
}

/* What a run of samples needs: the upper left texel, counted from that of pixel (0, 0), the weights; and
 * on request the derivatives of the weights' coordinates by the normalised ones, and whether the point
 * lies inside the image. */
typedef struct {
  int32_t AT_LINE texel[RUN + LANES];
  float wx[RUN + LANES], wy[RUN + LANES];
  float dx[RUN + LANES], dy[RUN + LANES];
  int32_t keep[RUN + LANES]; /* all bits, or none */
} Taps;

/* A rectangle of a grid's samples, the first of which is (x, y). */
typedef struct {
  int64_t x, y, width, rows;
} Rectangle;

/* Memory that is needed next: from `first` on, `each` bytes a sample, in `planes` that lie `apart` bytes. */
typedef struct {
  uintptr_t first;
  int64_t each, apart;
  int32_t planes;
} Ahead;

/* Asks for bytes `from` to `to` of every plane, which may lie behind its end, and says to where it did: for
 * the first-level cache where a run has few bytes, else for the second, so that texels stay. */
INLINE int64_t asked_to(const Ahead *of, int64_t from, int64_t to) {
  int64_t next = from;
  for (int32_t c = 0; c < of->planes; c++)
    for (next = from; next < to; next += 64) {
      const char *place = (const char *)(of->first + (uintptr_t)(c * of->apart + next));
      if (of->each * of->planes <= 4) __builtin_prefetch(place, 0, 3);
      else __builtin_prefetch(place, 0, 2);
    }
  return next;
}

/* No point of the rectangle lies at a border of the image or beyond, so that no padding rule says anything,
 * and its texels can be counted in float32. */
INLINE int all_inside(const Rectangle *of, const Affine *at, const Image *image) {
  const int32_t size[2] = {image->width, image->height};
  int inside = pitch_of(image) * (image->height + 2 * RING) < 1 << 24;
  for (int i = 0; i < 2; i++) {
    double first = at->a[i] * of->x + at->b[i] * of->y + at->c[i];
    double wide = at->a[i] * (of->width - 1), tall = at->b[i] * (of->rows - 1);
    double low = first + (wide < 0 ? wide : 0) + (tall < 0 ? tall : 0);
    double high = first + (wide > 0 ? wide : 0) + (tall > 0 ? tall : 0);
    inside &= (low > 0.01) & (high < size[i] - 1.01); /* more than float32 rounds */
    inside &= (fabs(at->a[i]) < 1e30) & (fabs(at->b[i]) < 1e30); /* a step that is infinite in float32 */
  }
  return inside;
}

/* Taps of a rectangle. A row is written by whole vectors: the next one follows, or nothing. What
 * lies ahead is asked for row by row, so that no load waits for all of it. */
INLINE void locate(
    Taps *taps, const Rectangle *of, Ahead ahead, const Affine *at, const Grid *grid, const Image *image,
    int derivatives, int mask, int32_t padding) {
  static const float first[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float ax = (float)at->a[0], ay = (float)at->a[1];
  const float middle_x = at->centre[0], middle_y = at->centre[1];
  const float scale_x = at->scale[0], scale_y = at->scale[1];
  const float edge_x = EDGE * scale_x, edge_y = EDGE * scale_y;
  const int32_t width = image->width, height = image->height, align = grid->align;
  const int32_t pitch = (int32_t)pitch_of(image), rows = (int32_t)of->rows, count = (int32_t)of->width;
  const float x0 = (float)(at->a[0] * of->x + at->b[0] * of->y + at->c[0]);
  const float y0 = (float)(at->a[1] * of->x + at->b[1] * of->y + at->c[1]);
  const float bx = (float)at->b[0], by = (float)at->b[1];
  int64_t asked = 0;
  int64_t start = 0;
  vf y = splat(0.0f);
  for (int32_t row = 0; row < rows; row++, start += count, y += 1.0f) {
    const vf cx = x0 + bx * y, cy = y0 + by * y;
    asked = asked_to(&ahead, asked, ahead.each * (start + count));
    vf i = AT(vf, first);
    for (int32_t column = 0; column < count; column += LANES, i += LANES) {
      const int64_t to = start + column;
      vf px = cx + ax * i, py = cy + ay * i, sx = splat(1.0f), sy = sx;
      if (mask) {
        vi keep = (magnitude(px - middle_x) <= edge_x) & (magnitude(py - middle_y) <= edge_y);
        AT(vi, taps->keep + to) = keep;
      }
      if (padding != INSIDE) {
        px = padded(px, width, padding, align, &sx);
        py = padded(py, height, padding, align, &sy);
      }
      const vf fx = floored(px), fy = floored(py);
      AT(vf, taps->wx + to) = px - fx;
      AT(vf, taps->wy + to) = py - fy;
      if (padding == INSIDE) AT(vi, taps->texel + to) = __builtin_convertvector(fy * (float)pitch + fx, vi);
      else
        AT(vi, taps->texel + to) =
            __builtin_convertvector(fy, vi) * pitch + __builtin_convertvector(fx, vi);
      if (derivatives) {
        AT(vf, taps->dx + to) = sx * scale_x;
        AT(vf, taps->dy + to) = sy * scale_y;
      }
    }
  }
}

CALLED void locate_all(
    Taps *taps, const Rectangle *of, Ahead ahead, const Affine *at, const Grid *grid, const Image *image,
    int derivatives, int mask) {
  const int32_t rule = all_inside(of, at, image) ? INSIDE : grid->padding;
#define LOCATE(derivatives, mask)                                                      \
  (rule == INSIDE   ? locate(taps, of, ahead, at, grid, image, derivatives, mask, INSIDE) \
   : rule == ZEROS  ? locate(taps, of, ahead, at, grid, image, derivatives, mask, ZEROS)  \
   : rule == BORDER ? locate(taps, of, ahead, at, grid, image, derivatives, mask, BORDER) \
                    : locate(taps, of, ahead, at, grid, image, derivatives, mask, REFLECTION))
  if (derivatives || mask) LOCATE(derivatives, mask);
  else LOCATE(0, 0);
#undef LOCATE
  for (int64_t i = of->width * of->rows; i % LANES; i++) /* samples are made by fours, or by vectors */
    taps->texel[i] = 0, taps->wx[i] = taps->wy[i] = 0.0f;
}

/* ---- sampling ---- */

/* The columns of a group's colour matrix, with the gain and bias of the normalisation folded in; of more than
 * four channels, which are not mixed, the first one is a gain each. */
typedef struct {
  v4 column[4], shift;
} Mixer;

INLINE int mixes(const Image *image) { return image->channels <= 4; }

/* Of the colour at `place`, of image and step. */
INLINE void set_mixer(Mixer *mixer, const Image *image, const Grid *grid, int64_t place, int32_t group) {
  *mixer = (Mixer){{{0}}, {0}};
  int32_t all = image->channels, count = channels_of(image, group), full = mixes(image);
  int64_t row = full ? all + 1 : 2;
  const float *color = grid->color + (place * all + 4 * group) * row;
  for (int32_t c = 0; c < count; c++) {
    float gain = grid->gain[4 * group + c], bias = grid->bias[4 * group + c];
    for (int32_t j = 0; j < count; j++)
      mixer->column[j][c] = gain * (full ? color[c * row + j] : j == 0 ? color[c * row] : 0.0f);
    mixer->shift[c] = gain * color[c * row + row - 1] + bias;
  }
}

INLINE v4 mixed(v4 v, const Mixer *mixer, int32_t channels) {
  v4 r = {v[0], v[0], v[0], v[0]}, g = {v[1], v[1], v[1], v[1]}, b = {v[2], v[2], v[2], v[2]};
  v4 out = r * mixer->column[0] + g * mixer->column[1] + b * mixer->column[2];
  if (channels > 3) out += (v4){v[3], v[3], v[3], v[3]} * mixer->column[3];
  return out;
}

/* The same, or each channel by itself: a value that is not finite stays in its channel. */
INLINE v4 coloured(v4 v, const Mixer *mixer, int32_t channels, int each) {
  return each ? v * mixer->column[0] : mixed(v, mixer, channels);
}

/* The colour of a sample, and on request how it changes with the coordinates. */
typedef struct {
  v4 value, by_x, by_y;
} Sample;

INLINE Sample sample_at(
    const Taps *taps, int64_t i, const float *texels, int64_t pitch, const Mixer *mixer,
    int32_t channels, int each) {
  const float *upper = texels + 4 * (int64_t)taps->texel[i], *lower = upper + 4 * pitch;
  float wx = taps->wx[i], wy = taps->wy[i];
#ifdef __AVX__
  v8 top = AT(v8, upper), down = AT(v8, lower) - top, both = top + wy * down;
  v4 left = low_half(both), across = high_half(both) - left;
  v4 left_down = low_half(down), right_down = high_half(down);
#else
  v4 top = AT(v4, upper), top_right = AT(v4, upper + 4);
  v4 left_down = AT(v4, lower) - top, right_down = AT(v4, lower + 4) - top_right;
  v4 left = top + wy * left_down, across = top_right + wy * right_down - left;
#endif
  Sample at = {left + wx * across, across, left_down + wx * (right_down - left_down)};
  if (mixer) {
    at.value = coloured(at.value, mixer, channels, each) + mixer->shift;
    at.by_x = coloured(at.by_x, mixer, channels, each);
    at.by_y = coloured(at.by_y, mixer, channels, each);
  }
  return at;
}

/* Four pixels of a run to planes, `apart` floats from each other, of a group's channels. */
INLINE void put_planes(float *out, v4 a, v4 b, v4 c, v4 d, int32_t channels, int64_t apart) {
  Four planes = transposed((Four){a, b, c, d});
  AT(v4, out) = planes.a;
  if (channels > 1) AT(v4, out + apart) = planes.b;
  if (channels > 2) AT(v4, out + 2 * apart) = planes.c;
  if (channels > 3) AT(v4, out + 3 * apart) = planes.d;
}

/* A run of a group's samples to floats, planar or interleaved; `apart` lie its planes, or pixels. Four
 * values, or four pixels, are written at a time, so that the buffers need room for some more. */
INLINE void sample(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const float *texels,
    int64_t pitch, const Mixer *mixer, int32_t channels, int each, int64_t apart, int planar, int derivatives) {
#define AT_PIXEL(i) sample_at(taps, i, texels, pitch, mixer, channels, each)
  if (planar)
    for (int64_t i = 0; i < n; i += 4) {
      Sample a = AT_PIXEL(i), b = AT_PIXEL(i + 1), c = AT_PIXEL(i + 2), d = AT_PIXEL(i + 3);
      put_planes(out + i, a.value, b.value, c.value, d.value, channels, apart);
      if (derivatives) {
        put_planes(by_x + i, a.by_x, b.by_x, c.by_x, d.by_x, channels, apart);
        put_planes(by_y + i, a.by_y, b.by_y, c.by_y, d.by_y, channels, apart);
      }
    }
  else
    for (int64_t i = 0; i < n; i++) {
      Sample at = AT_PIXEL(i);
      AT(v4, out + i * apart) = at.value;
      if (derivatives) {
        AT(v4, by_x + i * apart) = at.by_x;
        AT(v4, by_y + i * apart) = at.by_y;
      }
    }
#undef AT_PIXEL
}

/* The same with its choices as constants, so that each gets a loop of its own. */
CALLED void sample_run(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const float *texels,
    int64_t pitch, const Mixer *mixer, int32_t channels, int each, int64_t apart, int planar,
    int derivatives) {
#define SAMPLE(channels, each, planes, pixels, derivatives)                                                 \
  do {                                                                                                      \
    if (planar)                                                                                             \
      sample(out, by_x, by_y, taps, n, texels, pitch, mixer, channels, each, planes, 1, derivatives);       \
    else sample(out, by_x, by_y, taps, n, texels, pitch, mixer, channels, each, pixels, 0, derivatives);    \
  } while (0)
  if (derivatives && each) SAMPLE(channels, 1, apart, apart, 1);
  else if (derivatives) SAMPLE(channels, 0, apart, apart, 1);
  else if (each) SAMPLE(channels, 1, apart, apart, 0);
  else if (channels != 3 || apart != (planar ? RUN : 3)) SAMPLE(channels, 0, apart, apart, 0);
  else if (mixer) SAMPLE(3, 0, RUN, 3, 0);
  else {
    mixer = NULL;
    SAMPLE(3, 0, RUN, 3, 0);
  }
#undef SAMPLE
}

/* A vector of samples of one channel, without a colour: the arithmetic of sample_at. */
INLINE vf one_at(const Taps *taps, int64_t i, const float *texels, vf *by_x, vf *by_y) {
  vf wx = AT(vf, taps->wx + i), wy = AT(vf, taps->wy + i);
  Quads at = quads(texels, taps->texel + i); /* of the left and the right column: pixel, step down */
  vf left = at.a + wy * at.b, across = at.c + wy * at.d - left;
  *by_x = across;
  *by_y = at.b + wx * (at.d - at.b);
  return left + wx * across;
}

INLINE void sample_ones(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const float *texels,
    const Mixer *mixer, int derivatives) {
  const float gain = mixer ? mixer->column[0][0] : 1.0f, shift = mixer ? mixer->shift[0] : 0.0f;
  for (int64_t i = 0; i < n; i += LANES) {
    vf across, down, value = one_at(taps, i, texels, &across, &down);
    AT(vf, out + i) = mixer ? value * gain + shift : value;
    if (derivatives) {
      AT(vf, by_x + i) = mixer ? across * gain : across;
      AT(vf, by_y + i) = mixer ? down * gain : down;
    }
  }
}

/* A run of samples of one channel. */
CALLED void sample_one(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const float *texels,
    const Mixer *mixer, int derivatives) {
  if (derivatives) sample_ones(out, by_x, by_y, taps, n, texels, mixer, 1);
  else if (mixer) sample_ones(out, NULL, NULL, taps, n, texels, mixer, 0);
  else sample_ones(out, NULL, NULL, taps, n, texels, NULL, 0);
}

/* ---- all groups ---- */

/* The mixers of all groups of an image and step; NULL without a colour. */
INLINE const Mixer *mixers_of(Mixer *room, const Image *image, const Grid *grid, int64_t place) {
  if (!grid->color) return NULL;
  for (int32_t group = 0; group < groups_of(image); group++)
    set_mixer(room + group, image, grid, place, group);
  return room;
}

/* n samples of a group's channels, whose taps are known, to planes RUN apart. */
INLINE void sample_planes(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const Image *image, int32_t group,
    const float *texels, const Mixer *mixers, int derivatives) {
  texels += texel_floats(image) * origin_of(image);
  if (image->channels == 1) sample_one(out, by_x, by_y, taps, n, texels, mixers, derivatives);
  else
    sample_run(out, by_x, by_y, taps, n, texels + group * plane_floats(image), pitch_of(image),
               mixers ? mixers + group : NULL, channels_of(image, group), !mixes(image), RUN, 1, derivatives);
}

/* Pixels of a run whose samples of all channels fit where four channels of RUN do: a multiple of 4. */
INLINE int64_t longest_run(const Image *image) { return RUN / groups_of(image) / 4 * 4; }

/* The same of all channels, n of at most longest_run, pixel after pixel. */
INLINE void sample_pixels(
    float *out, float *by_x, float *by_y, const Taps *taps, int64_t n, const Image *image, const float *texels,
    const Mixer *mixers, int derivatives) {
  texels += texel_floats(image) * origin_of(image);
  if (image->channels == 1) {
    sample_one(out, by_x, by_y, taps, n, texels, mixers, derivatives);
    return;
  }
  int32_t groups = groups_of(image);
  for (int32_t group = groups - 1, done = 0; done < groups; done++, group = done - 1) {
    /* the last one first: beyond its channels it writes where the first one does, a pixel on */
    sample_run(out + 4 * group, derivatives ? by_x + 4 * group : NULL, derivatives ? by_y + 4 * group : NULL,
               taps, n, texels + group * plane_floats(image), pitch_of(image), mixers ? mixers + group : NULL,
               channels_of(image, group), !mixes(image), image->channels, 0, derivatives);
  }
}

/* Rows of `width` samples in planes that are sampled together where they follow one another in memory: those of one
 * channel need few caches and little work each, so that starting a run counts. */
INLINE int64_t rows_together(const Image *image, int64_t width) {
  int64_t pixels = image->channels == 1 ? RUN : RUN / 4;
  return width < pixels ? pixels / width : 1;
}

#endif
