/* Warped, recoloured, normalised images on a CPU: what warp.py's kernel writes. */
#include "texels.h"

enum { BLOCK = 4096, STRIP = 32 }; /* pixels of a block; rows that a thread packs at a time */

typedef struct {
  Image image;
  Grid grid;
  void *out;     /* [B, K, C, H, W], dense */
  int32_t dtype; /* of out: UINT8 (0..1 becomes 0..255, rounded), FLOAT32 or BFLOAT16 */
  int32_t threads;
} Warp;

typedef struct {
  Taps taps;
  float values[4 * RUN + 16];
} Scratch;

CALLED void write_run(void *out, int64_t at, const float *values, int64_t n, int32_t dtype) {
  if (dtype == FLOAT32) memcpy((float *)out + at, values, (size_t)n * sizeof(float));
  else if (dtype == BFLOAT16)
    for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[at + i] = to_bf16(values[i]);
  else
    for (int64_t i = 0; i < n; i++) {
      float value = values[i] * 255.0f;
      value = value > 0.0f ? value : 0.0f;
      ((uint8_t *)out)[at + i] = (uint8_t)((value < 255.0f ? value : 255.0f) + 0.5f);
    }
}

CALLED void rows_of(
    const Warp *op, int64_t b, int64_t k, int64_t first, int64_t last, const float *texels,
    Scratch *scratch) {
  int64_t place = b * op->grid.steps + k, width = op->grid.width, height = op->grid.height;
  int32_t channels = op->image.channels;
  const float *theta = op->grid.theta + place * 6;
  int bad = !finite6(theta);
  Affine affine = affine_of(theta, &op->grid, &op->image);
  Mixer colour;
  const Mixer *mixer = NULL;
  if (op->grid.color) {
    colour = mixer_of(op->grid.color + place * 12, &op->grid);
    mixer = &colour;
  }
  for (int64_t y = first; y < last; y++)
    for (int64_t x = 0; x < width; x += RUN) {
      int64_t n = width - x < RUN ? width - x : RUN;
      locate_run(&scratch->taps, n, 1, x, y, &affine, &op->grid, &op->image, 0, 0);
      sample_run(scratch->values, NULL, NULL, &scratch->taps, n, texels, pitch_of(&op->image),
                 mixer, channels, 1, 0);
      for (int32_t c = 0; c < channels; c++) {
        float *values = scratch->values + c * RUN;
        if (bad)
          for (int64_t i = 0; i < n; i++) values[i] = NAN;
        write_run(op->out, ((place * channels + c) * height + y) * width + x, values, n, op->dtype);
      }
    }
}

const int64_t EXPORT(warp_bytes) = sizeof(Warp);

/* 0, or -1 where memory ran out. */
int EXPORT(warp)(const Warp *op) {
  int64_t batch = op->grid.batch, steps = op->grid.steps, height = op->grid.height;
  int64_t packed = op->image.height + 2 * RING;
  int64_t rows = op->grid.width >= BLOCK ? 1 : BLOCK / op->grid.width;
  size_t bytes = packed_bytes(&op->image);
  /* many images: each thread packs one and makes all of its views; few: the threads share them */
  int shared = batch < 4 * op->threads, failed = 0;
  char *texels = malloc((shared ? (size_t)batch : (size_t)op->threads) * bytes);
  Scratch *scratch = malloc((size_t)op->threads * sizeof *scratch);
  if (!texels || !scratch) failed = -1;
  float gain[4], bias[4];
  packing(&op->image, &op->grid, gain, bias);
  if (!failed) {
    int64_t width = op->dtype == UINT8 ? 1 : op->dtype == FLOAT32 ? 4 : 2;
    in_large_pages(op->out, batch * steps * op->image.channels * height * op->grid.width * width);
#pragma omp parallel num_threads(op->threads)
    {
      int thread = thread_number();
      if (shared) {
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
          for (int64_t row = 0; row < packed; row += STRIP)
            pack_rows(&op->image, b, gain, bias, row, row + STRIP < packed ? row + STRIP : packed,
                      (float *)(texels + b * bytes));
#pragma omp for collapse(3) schedule(static)
        for (int64_t b = 0; b < batch; b++)
          for (int64_t k = 0; k < steps; k++)
            for (int64_t y = 0; y < height; y += rows)
              rows_of(op, b, k, y, y + rows < height ? y + rows : height,
                      (const float *)(texels + b * bytes), scratch + thread);
      } else {
        float *own = (float *)(texels + thread * bytes);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < batch; b++) {
          pack_rows(&op->image, b, gain, bias, 0, packed, own);
          for (int64_t k = 0; k < steps; k++)
            rows_of(op, b, k, 0, height, own, scratch + thread);
        }
      }
    }
  }
  free(texels);
  free(scratch);
  return failed;
}
