/* GELU x Φ(x) and its gradient Φ(x) + x φ(x) on a CPU. Both need one power of two: Φ is, on the side
 * of the smaller values, φ times a polynomial of 1 / (1 + p |x|) (Abramowitz and Stegun 7.1.26).
 */
#include "exponentials.h"

typedef struct {
  const float *x;
  const float *grad_out; /* NULL: the forward is asked for, else the gradient */
  float *out;
  int64_t count;         /* values of each, dense */
  int32_t threads;
} Gelu;

enum { RUN = 4096 }; /* values that a thread takes at a time */

/* Φ(x), and exp(-x² / 2) in `bell`. */
INLINE vf normal(vf x, vf *bell) {
  vf size = larger(x, -x), t = 1.0f / (1.0f + size * 0.231641888f); /* p / √2 */
  *bell = exp2_of(x * x * (-0.5f * LOG2E));
  vf p = splat(0.5f * 1.061405429f);
  p = p * t - 0.5f * 1.453152027f;
  p = p * t + 0.5f * 1.421413741f;
  p = p * t - 0.5f * 0.284496736f;
  p = p * t + 0.5f * 0.254829592f;
  vf below = p * t * *bell; /* Φ(-|x|) */
  return pick(x > 0.0f, 1.0f - below, below);
}

INLINE vf of(const Gelu *op, vf x, vf grad) {
  vf bell, below = normal(x, &bell);
  return op->grad_out ? grad * (below + x * bell * 0.398942280f) : x * below;
}

CALLED void run(const Gelu *op, int64_t first, int64_t last) {
  const float *grad = op->grad_out ? op->grad_out : op->x;
  int64_t i = first;
  for (; i + LANES <= last; i += LANES) AT(vf, op->out + i) = of(op, AT(vf, op->x + i), AT(vf, grad + i));
  if (i == last) return;
  float rest[2][LANES] = {{0}};
  int64_t n = last - i;
  memcpy(rest[0], op->x + i, n * sizeof(float));
  memcpy(rest[1], grad + i, n * sizeof(float));
  vf found = of(op, AT(vf, rest[0]), AT(vf, rest[1]));
  for (int64_t j = 0; j < n; j++) op->out[i + j] = found[j];
}

const int64_t EXPORT(gelu_bytes) = sizeof(Gelu);

int EXPORT(gelu)(const Gelu *op) {
  in_huge_pages(op->out, bytes_of(op->count, FLOAT32));
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t i = 0; i < op->count; i += RUN) run(op, i, i + RUN < op->count ? i + RUN : op->count);
  return 0;
}
