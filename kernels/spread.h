/* How the CPU kernels share their work among threads: images are packed, blocks of samples made of
 * them. Compiled once per instruction set, as packed.h. */
#ifndef FASTEQUI_SPREAD_H
#define FASTEQUI_SPREAD_H

#include "packed.h"

enum { BLOCK = 4096, STRIP = 32 }; /* pixels of a block, about; rows that a thread packs at a time */

/* Makes block `block` of step k of image b, whose packed texels are given; `thread` tells whose
 * scratch is free. */
typedef void Work(
    const void *job, int64_t b, int64_t k, int64_t block, const float *texels, int thread);

/* Calls `work` for every block of every step of every image. 0, or -1 where memory ran out. */
CALLED int spread(
    const Image *image, const Grid *grid, int64_t blocks, int32_t threads, Work *work,
    const void *job) {
  int64_t batch = grid->batch, steps = grid->steps, rows = image->height + 2 * RING;
  size_t bytes = packed_bytes(image);
  /* many images: each thread packs one and does all of its steps; few: the threads share them */
  int shared = batch < 4 * threads;
  char *texels = scratch_of((shared ? batch : threads) * bytes);
  if (!texels) return -1;
#pragma omp parallel num_threads(threads)
  {
    int thread = thread_number();
    if (shared) {
#pragma omp for collapse(2) schedule(static)
      for (int64_t b = 0; b < batch; b++)
        for (int64_t row = 0; row < rows; row += STRIP)
          pack_rows(image, grid, b, row, row + STRIP < rows ? row + STRIP : rows,
                    (float *)(texels + b * bytes));
#pragma omp for collapse(3) schedule(static)
      for (int64_t b = 0; b < batch; b++)
        for (int64_t block = 0; block < blocks; block++)
          for (int64_t k = 0; k < steps; k++)
            work(job, b, k, block, (const float *)(texels + b * bytes), thread);
    } else {
      float *own = (float *)(texels + thread * bytes);
#pragma omp for schedule(dynamic, 1)
      for (int64_t b = 0; b < batch; b++) {
        pack_rows(image, grid, b, 0, rows, own);
        for (int64_t k = 0; k < steps; k++)
          for (int64_t block = 0; block < blocks; block++) work(job, b, k, block, own, thread);
      }
    }
  }
  free(texels);
  return 0;
}

#endif
