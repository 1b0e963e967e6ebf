/* The adjoint of warp.c on a CPU: gradients of warped images become the gradient of the images that they were
 * sampled from. A group of four channels of an image is summed by one thread, in the order of steps, rows and
 * columns: the same bits with any number of threads. */
#include "packed.h"

typedef struct {
  Image image;       /* its gradient: dense, float32 */
  Grid grid;         /* `bias` is not read */
  const void *slope; /* [B, K, C, H, W], dense: the gradient of the warped images */
  int32_t dtype;     /* of slope: FLOAT32 or BFLOAT16 */
  int32_t threads;
} WarpAdjoint;

typedef struct {
  Taps taps;
  float AT_LINE values[4][RUN + LANES]; /* a channel each; 0 where there is none */
} Scratch;

INLINE void add_pixel(float *texels, int64_t pitch, v4 value, float wx, float wy) {
  float *upper = texels, *lower = texels + 4 * pitch;
  v4 right = value * wx, left = value - right, right_down = right * wy, left_down = left * wy;
  /* one texel at a time: a wider load would wait for the last pixel's stores, which lie across it */
  AT(v4, upper) += left - left_down;
  AT(v4, upper + 4) += right - right_down;
  AT(v4, lower) += left_down;
  AT(v4, lower + 4) += right_down;
}

/* Adds n pixels' values, times what mixes channels, to their texels. */
INLINE void add_all(
    float *texels, int64_t pitch, const Taps *taps, const float (*values)[RUN + LANES], int64_t n, Mixer mixer,
    int32_t channels, int mixing) {
#define ADD(of, j)                                                                         \
  add_pixel(texels + 4 * (int64_t)taps->texel[i + j], pitch,                               \
            mixing ? mixed(of, &mixer, channels) : of * mixer.shift, taps->wx[i + j], taps->wy[i + j])
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    Four four = transposed((Four){AT(v4, values[0] + i), AT(v4, values[1] + i), AT(v4, values[2] + i),
                                  AT(v4, values[3] + i)});
    ADD(four.a, 0);
    ADD(four.b, 1);
    ADD(four.c, 2);
    ADD(four.d, 3);
  }
  for (; i < n; i++) {
    v4 one = {values[0][i], values[1][i], values[2][i], values[3][i]};
    ADD(one, 0);
  }
#undef ADD
}

CALLED void add_run(
    float *texels, int64_t pitch, const Taps *taps, const float (*values)[RUN + LANES], int64_t n, const Mixer *mixer,
    int32_t channels, int mixing) {
  if (mixing) add_all(texels, pitch, taps, values, n, *mixer, channels, 1);
  else add_all(texels, pitch, taps, values, n, *mixer, channels, 0);
}

/* The colour matrix the other way round, as mixed() reads it; where channels are not mixed the gains alone, in `shift`. */
CALLED void mix_back(Mixer *back, const WarpAdjoint *op, int64_t place, int32_t group) {
  v4 gain = {0};
  for (int32_t c = 0; c < channels_of(&op->image, group); c++) gain[c] = op->grid.gain[4 * group + c];
  back->shift = gain;
  if (!op->grid.color) return;
  Mixer mixer;
  set_mixer(&mixer, &op->image, &op->grid, place, group);
  if (!mixes(&op->image)) back->shift = mixer.column[0];
  Four rows = transposed((Four){mixer.column[0], mixer.column[1], mixer.column[2], mixer.column[3]});
  back->column[0] = rows.a, back->column[1] = rows.b, back->column[2] = rows.c, back->column[3] = rows.d;
}

INLINE void read_values(float *to, const void *from, int64_t at, int64_t n, int32_t dtype) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) AT(vf, to + i) = load(from, at + i, dtype);
  for (; i < n; i++) to[i] = one_value(from, at + i, dtype);
}

/* What step k of image b adds to a group's texels. Returns whether its matrix is not finite and a gradient is not 0:
 * the image has no gradient then. */
CALLED int add_step(const WarpAdjoint *op, int64_t b, int64_t k, int32_t group, float *texels, Scratch *scratch) {
  const Grid *grid = &op->grid;
  const int64_t place = b * grid->steps + k, width = grid->width, height = grid->height;
  const float *theta = grid->theta + place * 6;
  const int32_t channels = channels_of(&op->image, group), all = op->image.channels;
  const int64_t pitch = pitch_of(&op->image);
  const Affine affine = affine_of(theta, grid, &op->image);
  Mixer mixer;
  mix_back(&mixer, op, place, group);
  const int bad = !finite6(theta);
  const int64_t together = rows_together(&op->image, width);
  for (int64_t y = 0; y < height; y += together)
    for (int64_t x = 0; x < width; x += RUN) {
      const Rectangle of = {x, y, width - x < RUN ? width - x : RUN, height - y < together ? height - y : together};
      const int64_t n = of.width * of.rows;
      for (int32_t c = 0; c < channels; c++) {
        int64_t at = ((place * all + 4 * group + c) * height + y) * width + x;
        if (op->dtype == FLOAT32) read_values(scratch->values[c], op->slope, at, n, FLOAT32);
        else read_values(scratch->values[c], op->slope, at, n, BFLOAT16);
        for (int64_t i = 0; bad && i < n; i++)
          if (scratch->values[c][i] != 0.0f) return 1;
      }
      if (bad) continue;
      locate_all(&scratch->taps, &of, (Ahead){0}, &affine, grid, &op->image, 0, 0);
      add_run(texels + 4 * origin_of(&op->image), pitch, &scratch->taps, scratch->values, n, &mixer, channels,
              grid->color && mixes(&op->image));
    }
  return 0;
}

/* Texels without their ring to planes of the image. */
CALLED void unpack(const WarpAdjoint *op, int64_t b, int32_t group, const float *texels, int bad) {
  const int64_t width = op->image.width, height = op->image.height, pitch = pitch_of(&op->image);
  for (int32_t c = 0; c < channels_of(&op->image, group); c++) {
    float *to = (float *)op->image.data + (b * op->image.channels + 4 * group + c) * height * width;
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++)
        to[y * width + x] = bad ? NAN : texels[4 * ((y + RING) * pitch + x + RING) + c];
  }
}

const int64_t EXPORT(warp_adjoint_bytes) = sizeof(WarpAdjoint);

/* 0, or -1 where memory ran out. */
int EXPORT(warp_adjoint)(const WarpAdjoint *op) {
  const int64_t batch = op->grid.batch, groups = groups_of(&op->image);
  const int64_t floats = whole_lines(4 * pitch_of(&op->image) * (op->image.height + 2 * RING));
  float *texels = scratch_of(op->threads * floats * sizeof(float));
  Scratch *scratch = scratch_of(op->threads * sizeof(Scratch));
  const int failed = texels && scratch ? 0 : -1;
  if (!failed) {
    in_huge_pages((void *)op->image.data,
                  batch * op->image.channels * op->image.height * (int64_t)op->image.width * sizeof(float));
#pragma omp parallel for num_threads(op->threads) collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
      for (int64_t group = 0; group < groups; group++) {
        float *own = texels + thread_number() * floats;
        Scratch *spare = scratch + thread_number();
        int bad = 0;
        memset(own, 0, floats * sizeof(float));
        for (int32_t c = channels_of(&op->image, group); c < 4; c++)
          memset(spare->values[c], 0, sizeof(spare->values[c]));
        for (int64_t k = 0; k < op->grid.steps && !bad; k++) bad = add_step(op, b, k, group, own, spare);
        unpack(op, b, group, own, bad);
      }
  }
  free(texels);
  free(scratch);
  return failed;
}
