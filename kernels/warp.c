/* Warped, recoloured, normalised images on a CPU: what warp.py's kernel writes. */
#include "spread.h"

typedef struct {
  Image image;
  Grid grid;
  void *out;     /* [B, K, C, H, W], dense */
  int32_t dtype; /* of out: UINT8 (0..1 becomes 0..255, rounded), FLOAT32 or BFLOAT16 */
  int32_t stream; /* write floats past the caches */
  int32_t threads;
} Warp;

typedef struct {
  Taps taps;
  float AT_LINE values[4 * RUN + 16];
  Mixer mixers[GROUPS];
} Scratch;

CALLED void write_run(const Warp *op, int64_t at, const float *values, int64_t n) {
  if (op->dtype != UINT8) {
    put_values(op->out, at, values, n, op->dtype, op->stream);
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    float value = values[i] * 255.0f;
    value = value > 0.0f ? value : 0.0f;
    ((uint8_t *)op->out)[at + i] = (uint8_t)((value < 255.0f ? value : 255.0f) + 0.5f);
  }
}

typedef struct {
  const Warp *op;
  int64_t rows; /* of a block */
  Scratch *scratch;
} Job;

CALLED void block_of(
    const void *given, int64_t b, int64_t k, int64_t block, const float *texels, int thread) {
  const Job *job = given;
  const Warp *op = job->op;
  Scratch *scratch = job->scratch + thread;
  int64_t first = block * job->rows, last = first + job->rows;
  if (last > op->grid.height) last = op->grid.height;
  int64_t place = b * op->grid.steps + k, width = op->grid.width, height = op->grid.height;
  int32_t channels = op->image.channels;
  const float *theta = op->grid.theta + place * 6;
  int bad = !finite6(theta);
  Affine affine = affine_of(theta, &op->grid, &op->image);
  const Mixer *mixers = mixers_of(scratch->mixers, &op->image, &op->grid, place);
  const int64_t together = rows_together(&op->image, width);
  for (int64_t y = first; y < last; y += together)
    for (int64_t x = 0; x < width; x += RUN) {
      const Rectangle of = {x, y, width - x < RUN ? width - x : RUN, last - y < together ? last - y : together};
      const int64_t n = of.width * of.rows;
      locate_all(&scratch->taps, &of, (Ahead){0}, &affine, &op->grid, &op->image, 0, 0);
      for (int32_t c = 0; c < channels; c++) {
        float *values = scratch->values + c % 4 * RUN;
        if (c % 4 == 0)
          sample_planes(values, NULL, NULL, &scratch->taps, n, &op->image, c / 4, texels, mixers, 0);
        if (bad)
          for (int64_t i = 0; i < n; i++) values[i] = NAN;
        write_run(op, ((place * channels + c) * height + y) * width + x, values, n);
      }
    }
}

const int64_t EXPORT(warp_bytes) = sizeof(Warp);

/* 0, or -1 where memory ran out. */
int EXPORT(warp)(const Warp *op) {
  const Grid *grid = &op->grid;
  int64_t rows = grid->width >= BLOCK ? 1 : BLOCK / grid->width;
  int64_t width = op->dtype == UINT8 ? 1 : op->dtype == FLOAT32 ? 4 : 2;
  int64_t pixels = (int64_t)grid->height * grid->width;
  Job job = {op, rows, scratch_of(op->threads * sizeof(Scratch))};
  if (!job.scratch) return -1;
  in_huge_pages(op->out, grid->batch * (int64_t)grid->steps * op->image.channels * pixels * width);
  int failed = spread(&op->image, grid, (grid->height + rows - 1) / rows, op->threads, block_of, &job);
  free(job.scratch);
  return failed;
}
