/* The path loss on a CPU: the sums of warp_recon.py's kernel, with the gradient in the same pass.
 *
 * Work goes by blocks of about BLOCK pixels of one (image, step). A block's samples are made in runs
 * that stay in the first-level cache: coordinates, samples, then error and gradient, each a loop of
 * its own. Sums of a block are written down and added up in order at the end: the same bits with any
 * number of threads.
 */
#include "pixel_loss.h"
#include "spread.h"

typedef struct {
  Image image;
  Grid grid;
  const void *pred;
  void *grad;             /* as pred, or NULL */
  float *total;           /* [B, K], or one */
  float *count;           /* the same, or NULL: then every pixel counts */
  float *dtheta;          /* [B, K, 2, 3], or NULL */
  int64_t pred_stride[5]; /* of batch, step and: channel, row, column; or: token, 1, 1 */
  int64_t grad_bytes;
  float weight;           /* of the sum, and so of its gradients */
  int32_t dtype;          /* of pred: FLOAT32 or BFLOAT16 */
  int32_t loss, patch;    /* patch 0: images, whose rows are */
  int32_t planar;         /* planar, or have their channels side by side */
  int32_t stream;         /* write the gradient past the caches */
  int32_t whole;          /* one total and count, of all images and steps */
  int32_t threads;
} WarpRecon;

typedef struct {
  double total, count, dtheta[6];
} Sums;

/* The caches of one thread. */
typedef struct {
  Taps taps;
  float AT_LINE target[4 * RUN + 16], by_x[4 * RUN + 16], by_y[4 * RUN + 16], slope[4 * RUN + 16];
  int32_t keep[4 * RUN + 16];
  Mixer mixers[GROUPS];
} Scratch;

/* Errors of n pixels of one channel, whole vectors, whose target is in registers alone. */
CALLED double error_of_ones(
    const Prediction *op, const Taps *taps, const float *texels, int64_t at, int64_t n) {
  const Values of = {NULL, op->pred, op->grad, op->weight, NULL, NULL};
  vf by_x, by_y, gradient, sum = splat(0.0f);
#define TARGET(i) one_at(taps, i, texels, &by_x, &by_y)
#define ERRORS(dtype, loss, stream)                                                                   \
  ({                                                                                                  \
    int64_t i = 0;                                                                                    \
    for (; i + 2 * LANES <= n; i += 2 * LANES)                                                        \
      sum += errors_of_two(&of, TARGET(i), TARGET(i + LANES), i, at, dtype, loss, stream);            \
    if (i < n) sum += error_from(&of, TARGET(i), i, at, dtype, loss, &gradient);                      \
    if (i < n && op->grad) store(op->grad, at + i, gradient, dtype, stream);                          \
    wide_sum_of(sum);                                                                                 \
  })
  return streams(op, at, n) ? BY_TYPE(ERRORS, 1) : BY_TYPE(ERRORS, 0);
#undef ERRORS
#undef TARGET
}

/* What n pixels of some channels add to the gradient by the matrix; from a pixel and a channel to the next. */
INLINE void add_by_theta(
    Sums *sums, const Scratch *scratch, const Affine *affine, const Rectangle *of, int32_t channels, int64_t pixel,
    int64_t channel) {
  for (int64_t i = 0; i < of->width * of->rows; i++) {
    double by_x = 0, by_y = 0;
    for (int32_t c = 0; c < channels; c++) {
      int64_t j = i * pixel + c * channel;
      by_x -= scratch->slope[j] * scratch->by_x[j];
      by_y -= scratch->slope[j] * scratch->by_y[j];
    }
    by_x *= scratch->taps.dx[i];
    by_y *= scratch->taps.dy[i];
    double xn = affine->step[0] * (of->x + i % of->width) + affine->start[0];
    double yn = affine->step[1] * (of->y + i / of->width) + affine->start[1];
    double parts[6] = {by_x * xn, by_x * yn, by_x, by_y * xn, by_y * yn, by_y};
    for (int j = 0; j < 6; j++) sums->dtheta[j] += parts[j];
  }
}

/* One rectangle, whose channel 0 starts at `at` in the prediction and whose rows follow one another there: of planes
 * at most RUN pixels, else at most longest_run. */
CALLED void run(
    const WarpRecon *op, const Affine *affine, const Mixer *mixers, const float *texels, Scratch *scratch,
    const Rectangle *of, int64_t at, int planar, Sums *sums) {
  const Image *image = &op->image;
  int32_t channels = image->channels;
  int64_t n = of->width * of->rows;
  int derivatives = op->dtheta != NULL, mask = op->count != NULL;
  const int64_t value = op->dtype == FLOAT32 ? 4 : 2, each = planar ? value : value * channels;
  /* a patch's rows are asked for a patch ahead, one after the other; of planes, as there are few rows in a run, their
   * own, of the first group */
  const int64_t place = at * value + (planar ? 0 : n * each);
  const Ahead next = {(uintptr_t)op->pred + (uintptr_t)place, each, op->pred_stride[2] * value,
                      planar ? channels_of(image, 0) : 1};
  Prediction given = {op->pred, op->grad, op->weight, op->dtype, op->loss, op->stream};
  locate_all(&scratch->taps, of, next, affine, &op->grid, image, derivatives, mask);
  if (channels == 1 && !mixers && !derivatives && !mask && n % LANES == 0) {
    texels += texel_floats(image) * origin_of(image);
    sums->total += error_of_ones(&given, &scratch->taps, texels, at, n);
    return;
  }
  const int32_t *keep = mask ? scratch->taps.keep : NULL;
  float *slopes = derivatives ? scratch->slope : NULL;
  for (int64_t i = 0; mask && i < n; i++) sums->count -= keep[i] * channels;
  if (planar) {
    for (int32_t group = 0; group < groups_of(image); group++) {
      const int32_t some = channels_of(image, group);
      sample_planes(scratch->target, scratch->by_x, scratch->by_y, &scratch->taps, n, image, group, texels, mixers,
                    derivatives);
      for (int32_t c = 0; c < some; c++)
        sums->total += error_run(&given, scratch->target + c * RUN, slopes ? slopes + c * RUN : NULL, keep,
                                 at + (4 * group + c) * op->pred_stride[2], n);
      if (derivatives) add_by_theta(sums, scratch, affine, of, some, 1, RUN);
    }
    return;
  }
  sample_pixels(scratch->target, scratch->by_x, scratch->by_y, &scratch->taps, n, image, texels, mixers, derivatives);
  if (mask) {
    for (int64_t i = 0; i < n; i++)
      for (int32_t c = 0; c < channels; c++) scratch->keep[i * channels + c] = keep[i];
    keep = scratch->keep;
  }
  sums->total += error_run(&given, scratch->target, slopes, keep, at, n * channels);
  if (derivatives) add_by_theta(sums, scratch, affine, of, channels, channels, 1);
}

/* A unit is what blocks are counted in: a row of tokens, or a row of pixels. */
INLINE int64_t units_of(const WarpRecon *op) {
  return op->patch ? op->grid.height / op->patch : op->grid.height;
}

INLINE int64_t units_per_block(const WarpRecon *op) {
  int64_t pixels = (int64_t)op->grid.width * (op->patch ? op->patch : 1);
  return pixels >= BLOCK ? 1 : BLOCK / pixels;
}

INLINE int64_t blocks_of(const WarpRecon *op) {
  int64_t per = units_per_block(op);
  return (units_of(op) + per - 1) / per;
}

typedef struct {
  const WarpRecon *op;
  Sums *parts; /* [B, K, blocks] */
  Scratch *scratch;
} Job;

CALLED void block_of(
    const void *given, int64_t b, int64_t k, int64_t block, const float *texels, int thread) {
  const Job *job = given;
  const WarpRecon *op = job->op;
  Scratch *scratch = job->scratch + thread;
  Sums *sums = job->parts + (b * op->grid.steps + k) * blocks_of(op) + block;
  const float *theta = op->grid.theta + (b * op->grid.steps + k) * 6;
  Affine affine = affine_of(theta, &op->grid, &op->image);
  const Mixer *mixers = mixers_of(scratch->mixers, &op->image, &op->grid, b * op->grid.steps + k);
  const int64_t most = longest_run(&op->image);
  int64_t per = units_per_block(op), last = (block + 1) * per, width = op->grid.width;
  if (last > units_of(op)) last = units_of(op);
  int64_t base = b * op->pred_stride[0] + k * op->pred_stride[1];
  const int dense = op->planar && op->pred_stride[3] == width;
  const int64_t longest = op->planar ? RUN : most, together = op->patch || !dense ? 1 : rows_together(&op->image, width);
  for (int64_t unit = block * per; unit < last; unit += together) {
    if (!op->patch) {
      for (int64_t x = 0; x < width; x += longest) {
        const Rectangle of = {x, unit, width - x < longest ? width - x : longest,
                        last - unit < together ? last - unit : together};
        int64_t at = base + unit * op->pred_stride[3] + x * op->pred_stride[4];
        run(op, &affine, mixers, texels, scratch, &of, at, op->planar, sums);
      }
      continue;
    }
    int64_t side = op->patch, wide = side < most ? side : most;
    int64_t rows = wide < side ? 1 : most / side < side ? most / side : side;
    for (int64_t token = 0; token < width / side; token++) {
      int64_t start = base + (unit * (width / side) + token) * op->pred_stride[2];
      for (int64_t row = 0; row < side; row += rows)
        for (int64_t x = 0; x < side; x += wide) {
          int64_t high = side - row < rows ? side - row : rows;
          int64_t n = side - x < wide ? side - x : wide;
          int64_t at = start + (row * side + x) * op->image.channels;
          const Rectangle of = {token * side + x, unit * side + row, n, high};
          run(op, &affine, mixers, texels, scratch, &of, at, 0, sums);
        }
    }
  }
}

/* A matrix that is not finite: NaN in the sum, and in the gradients of all its pixels. */
CALLED void poison(const WarpRecon *op, int64_t b, int64_t k) {
  int64_t place = b * op->grid.steps + k, base = b * op->pred_stride[0] + k * op->pred_stride[1];
  if (op->dtheta)
    for (int j = 0; j < 6; j++) op->dtheta[place * 6 + j] = NAN;
  if (!op->grad) return;
  int64_t tokens = op->patch ? units_of(op) * (op->grid.width / op->patch) : 1;
  int64_t inner = op->patch ? (int64_t)op->patch * op->patch * op->image.channels : 1;
  int64_t axes[3] = {tokens, 1, inner}, images[3] = {op->image.channels, op->grid.height, op->grid.width};
  const int64_t *size = op->patch ? axes : images, *stride = op->pred_stride + 2;
  for (int64_t i = 0; i < size[0]; i++)
    for (int64_t j = 0; j < size[1]; j++)
      for (int64_t l = 0; l < size[2]; l++) {
        int64_t at = base + i * stride[0] + j * stride[1] + l * stride[2];
        if (op->dtype == FLOAT32) ((float *)op->grad)[at] = NAN;
        else ((uint16_t *)op->grad)[at] = 0x7fc0;
      }
}

/* Adds up the blocks of a step of an image. */
CALLED Sums finish(const WarpRecon *op, const Sums *parts, int64_t b, int64_t k) {
  int64_t place = b * op->grid.steps + k, blocks = blocks_of(op);
  Sums sum = {0};
  for (int64_t block = 0; block < blocks; block++) {
    const Sums *part = parts + place * blocks + block;
    sum.total += part->total;
    sum.count += part->count;
    for (int j = 0; j < 6; j++) sum.dtheta[j] += part->dtheta[j];
  }
  if (op->dtheta)
    for (int j = 0; j < 6; j++) op->dtheta[place * 6 + j] = (float)(op->weight * sum.dtheta[j]);
  if (!finite6(op->grid.theta + place * 6)) {
    sum.total = NAN;
    poison(op, b, k);
  }
  return sum;
}

CALLED void put_sums(const WarpRecon *op, int64_t place, Sums sum) {
  op->total[place] = (float)(op->weight * sum.total);
  if (op->count) op->count[place] = (float)sum.count;
}

const int64_t EXPORT(warp_recon_bytes) = sizeof(WarpRecon);

/* 0, or -1 where memory ran out. */
int EXPORT(warp_recon)(const WarpRecon *op) {
  int64_t batch = op->grid.batch, steps = op->grid.steps, blocks = blocks_of(op);
  Job job = {op, calloc((size_t)(batch * steps * blocks), sizeof(Sums)),
             scratch_of(op->threads * sizeof(Scratch))};
  int failed = !job.parts || !job.scratch ? -1 : 0;
  if (!failed) {
    if (op->grad) in_huge_pages(op->grad, op->grad_bytes);
    failed = spread(&op->image, &op->grid, blocks, op->threads, block_of, &job);
  }
  if (!failed) {
    Sums all = {0};
    for (int64_t place = 0; place < batch * steps; place++) {
      Sums sum = finish(op, job.parts, place / steps, place % steps);
      if (!op->whole) put_sums(op, place, sum);
      all.total += sum.total, all.count += sum.count;
    }
    if (op->whole) put_sums(op, 0, all);
  }
  free(job.parts);
  free(job.scratch);
  return failed;
}
