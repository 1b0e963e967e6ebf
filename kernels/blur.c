/* Gaussian blur on a CPU, and the path loss against blurred images: what blur.py's kernel computes.
 *
 * An image becomes float32 once. Work then goes by strips of rows of one (image, step): sums down the
 * columns and then along the rows, in scratch memory that stays in the caches. Sums of errors are
 * written down per strip and added up in order: the same bits with any number of threads.
 */
#include "packed.h"
#include "pixel_loss.h"
#include "separable.h"

typedef struct {
  Image image;
  const float *sigma;     /* [B, K] */
  void *out;              /* [B, K, C, H, W], dense: the blurred images; or NULL */
  const void *pred;       /* what they are compared with, or NULL */
  void *grad;             /* as pred, or NULL */
  float *total;           /* [B, K] */
  int64_t pred_stride[5]; /* of batch, step and: channel, row, column; or: token, 1, 1 */
  int64_t grad_bytes;
  const float *gain, *bias; /* of a channel, after the blur */
  float weight;           /* of the sum, and so of its gradient */
  float most;             /* the largest sigma */
  int32_t batch, steps, reach; /* pixels from the middle of the kernel to its end */
  int32_t dtype, loss, patch, planar, stream, threads;
} Blur;

/* The caches of one thread: the float32 image, a half-blurred strip, a strip's values, a row of all channels,
 * the kernel. */
typedef struct {
  float *planes, *turned, *values, *line, *taps;
  Places places;
} Scratch;

/* Rows begin at cache lines. */
INLINE int64_t pitch_of_plane(const Blur *op) { return whole_lines(op->image.width + SPARE); }

/* Rows first .. last of image b as float32. */
CALLED void read_rows(const Blur *op, int64_t b, int64_t first, int64_t last, float *planes) {
  const Image *image = &op->image;
  for (int64_t c = 0; c < image->channels; c++)
    for (int64_t y = first; y < last; y++)
      read_row(planes + (c * image->height + y) * pitch_of_plane(op), image,
               b * image->stride[0] + c * image->stride[1] + y * image->stride[2], image->stride[3],
               image->width);
}

/* line[x, c] = values[c, x] */
INLINE void interleave(float *line, const float *values, int64_t apart, int64_t channels, int64_t n) {
  int64_t x = 0;
  if (channels == 3)
    for (; x + 4 <= n; x += 4) { /* the fourth value is the next pixel's, which follows */
      Four at = transposed((Four){AT(v4, values + x), AT(v4, values + apart + x),
                                  AT(v4, values + 2 * apart + x), (v4){0}});
      AT(v4, line + 3 * x) = at.a;
      AT(v4, line + 3 * x + 3) = at.b;
      AT(v4, line + 3 * x + 6) = at.c;
      AT(v4, line + 3 * x + 9) = at.d;
    }
  for (; x < n; x++)
    for (int64_t c = 0; c < channels; c++) line[x * channels + c] = values[c * apart + x];
}

/* Sum of the errors of a strip, whose values of all channels are given. */
CALLED double compare_strip(const Blur *op, const Scratch *scratch, int64_t base, int64_t y, int64_t n) {
  Prediction given = {op->pred, op->grad, op->weight, op->dtype, op->loss, op->stream};
  int64_t channels = op->image.channels, width = op->image.width, pitch = pitch_of_plane(op);
  double total = 0;
  for (int64_t r = 0; r < n; r++) {
    const float *values = scratch->values + r * pitch;
    if (!op->patch && op->planar) {
      for (int64_t c = 0; c < channels; c++)
        total += error_run(&given, values + c * ROWS * pitch, NULL, NULL,
                           base + c * op->pred_stride[2] + (y + r) * op->pred_stride[3], width);
      continue;
    }
    interleave(scratch->line, values, ROWS * pitch, channels, width);
    if (!op->patch) {
      total += error_run(&given, scratch->line, NULL, NULL, base + (y + r) * op->pred_stride[3], width * channels);
      continue;
    }
    int64_t side = op->patch, tokens = width / side, part = side * channels;
    for (int64_t token = 0; token < tokens; token++)
      total += error_run(&given, scratch->line + token * part, NULL, NULL,
                         base + ((y + r) / side * tokens + token) * op->pred_stride[2] + (y + r) % side * part,
                         part);
  }
  return total;
}

CALLED double strip_of(const Blur *op, const Scratch *scratch, int64_t b, int64_t k, int64_t strip) {
  int64_t y = strip * ROWS, height = op->image.height, width = op->image.width, channels = op->image.channels;
  int64_t n = height - y < ROWS ? height - y : ROWS, place = b * op->steps + k, pitch = pitch_of_plane(op);
  float sigma = op->sigma[place];
  int fine = sigma >= 0 && sigma <= op->most;
  int64_t reach = fine ? taps_of(sigma, op->reach, scratch->taps) : 0;
  for (int64_t c = 0; c < channels; c++) {
    float *values = scratch->values + c * ROWS * pitch;
    if (fine)
      filter_strip(values, pitch, scratch->turned, scratch->planes + c * height * pitch, scratch->places,
                   scratch->taps, reach, op->gain[c], op->bias[c], y, n, width);
    else for (int64_t i = 0; i < n * pitch; i++) values[i] = NAN;
    if (!op->out) continue;
    for (int64_t r = 0; r < n; r++) {
      int64_t at = ((place * channels + c) * height + y + r) * width;
      put_values(op->out, at, values + r * pitch, width, op->dtype, op->stream);
    }
  }
  if (!op->pred) return 0;
  return compare_strip(op, scratch, b * op->pred_stride[0] + k * op->pred_stride[1], y, n);
}

const int64_t EXPORT(blur_bytes) = sizeof(Blur);

/* Strips of all steps of one image, whose float32 values are given. */
CALLED void strips_of(const Blur *op, const Scratch *scratch, int64_t b, int64_t first, int64_t last, double *parts) {
  int64_t strips = (op->image.height + ROWS - 1) / ROWS;
  for (int64_t strip = first; strip < last; strip++) /* the rows stay in the cache for all steps */
    for (int64_t k = 0; k < op->steps; k++)
      parts[(b * op->steps + k) * strips + strip] = strip_of(op, scratch, b, k, strip);
}

/* 0, or -1 where memory ran out. */
int EXPORT(blur)(const Blur *op) {
  int64_t batch = op->batch, height = op->image.height, strips = (height + ROWS - 1) / ROWS;
  int64_t channels = op->image.channels, reach = op->reach, pitch = pitch_of_plane(op);
  int64_t plane = channels * height * pitch, turned = pitch * ROWS;
  int64_t values = channels * ROWS * pitch, line = channels * pitch;
  int64_t own = turned + values + line + whole_lines(reach + SPARE), all = batch * op->steps * strips;
  /* many images: each thread makes one float32 and does all of its steps; few: the threads share them */
  int shared = batch < 4 * op->threads;
  int64_t image_bytes = ((shared ? batch : op->threads) * plane + SPARE) * sizeof(float);
  int64_t own_bytes = op->threads * own * sizeof(float);
  float *planes = scratch_of(image_bytes);
  float *memory = scratch_of(own_bytes);
  double *parts = malloc((size_t)all * sizeof(double));
  int64_t *places = malloc((size_t)places_of(height, op->image.width, reach) * sizeof(int64_t));
  int failed = planes && memory && parts && places ? 0 : -1;
  if (!failed) {
    Places where = placed(places, height, op->image.width, height, pitch, reach);
    memset(memory, 0, own_bytes);
    if (op->grad) in_huge_pages(op->grad, op->grad_bytes);
    if (op->out)
      in_huge_pages(op->out, batch * op->steps * channels * height * op->image.width *
                                  (op->dtype == FLOAT32 ? 4 : 2));
#pragma omp parallel num_threads(op->threads)
    {
      float *mine = memory + thread_number() * own;
      Scratch scratch = {.turned = mine, .values = mine + turned, .line = mine + turned + values,
                         .taps = mine + turned + values + line, .places = where};
      if (shared) {
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
          for (int64_t strip = 0; strip < strips; strip++)
            read_rows(op, b, strip * ROWS, strip * ROWS + ROWS < height ? strip * ROWS + ROWS : height,
                      planes + b * plane);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
          for (int64_t strip = 0; strip < strips; strip++) {
            scratch.planes = planes + b * plane;
            strips_of(op, &scratch, b, strip, strip + 1, parts);
          }
      } else {
        scratch.planes = planes + thread_number() * plane;
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < batch; b++) {
          read_rows(op, b, 0, height, scratch.planes);
          strips_of(op, &scratch, b, 0, strips, parts);
        }
      }
    }
    for (int64_t i = 0; op->pred && i < batch * op->steps; i++) {
      double sum = 0;
      for (int64_t strip = 0; strip < strips; strip++) sum += parts[i * strips + strip];
      op->total[i] = (float)(op->weight * sum);
    }
  }
  free(planes);
  free(memory);
  free(parts);
  free(places);
  return failed;
}
