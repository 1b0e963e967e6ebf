/* Attention of images of few tokens, forward and backward, from and to the rows of a qkv projection.
 * One thread takes a head of an image: all that it works on stays in the first caches. Probabilities
 * are kept for the backward: of few tokens they are smaller than queries.
 */

#include "exponentials.h"

typedef struct {
  const float *qkv;       /* [batch, tokens, 3, heads, width] */
  float *out;             /* [batch, tokens, heads, width] */
  float *weights;         /* [batch, heads, tokens, tokens] probabilities; or NULL */
  const float *grad_out;  /* as out; NULL: the forward is asked for, else the backward */
  float *grad;            /* as qkv */
  int64_t batch, tokens, heads, width;
  float scale;            /* of the products of queries and keys */
  int32_t threads;
} ShortAttention;

enum { TILE = 4 }; /* rows of a product that are made together */

/* A matrix [rows, depth] whose value (r, k) lies at data[r row + k column]. */
typedef struct {
  const float *data;
  int64_t row, column;
} Factor;

/* R rows and V vectors of `out`: `a` from its row on, times the rows of b, `apart` values apart. */
INLINE void tile(
    float *out, int64_t out_row, Factor a, const float *b, int64_t apart, int64_t depth, float scale,
    const int R, const int V) {
  vf sum[TILE][2];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = splat(0.0f);
  for (int64_t k = 0; k < depth; k++) {
    const float *row = b + k * apart;
    vf first = AT(vf, row), second = first;
    if (V == 2) second = AT(vf, row + LANES);
    for (int r = 0; r < R; r++) {
      float by = a.data[r * a.row + k * a.column];
      sum[r][0] += first * by;
      if (V == 2) sum[r][1] += second * by;
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) AT(vf, out + r * out_row + v * LANES) = sum[r][v] * scale;
}

/* out [rows, columns] = scale · a [rows, depth] b [depth, columns], of whole vectors. */
CALLED void product(
    float *out, int64_t out_row, const Factor *a, const float *b, int64_t apart, int64_t rows,
    int64_t depth, int64_t columns, float scale) {
  for (int64_t c = 0; c < columns; c += 2 * LANES) {
    int two = c + 2 * LANES <= columns;
    int64_t r = 0;
    Factor at = *a;
    for (; r + TILE <= rows; r += TILE, at.data += TILE * at.row) {
      float *to = out + r * out_row + c;
      if (two) tile(to, out_row, at, b + c, apart, depth, scale, TILE, 2);
      else tile(to, out_row, at, b + c, apart, depth, scale, TILE, 1);
    }
    for (; r < rows; r++, at.data += at.row) {
      float *to = out + r * out_row + c;
      if (two) tile(to, out_row, at, b + c, apart, depth, scale, 1, 2);
      else tile(to, out_row, at, b + c, apart, depth, scale, 1, 1);
    }
  }
}

/* Rows [tokens, width], `apart` values apart, as columns [width, padded], with zeros behind. */
CALLED void turn(
    float *columns, const float *rows, int64_t apart, int64_t tokens, int64_t width, int64_t padded) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    for (int64_t d = 0; d < width; d += 4) {
      const float *from = rows + t * apart + d;
      Four m = transposed((Four){AT(v4, from), AT(v4, from + apart), AT(v4, from + 2 * apart),
                                 AT(v4, from + 3 * apart)});
      float *to = columns + d * padded + t;
      AT(v4, to) = m.a, AT(v4, to + padded) = m.b;
      AT(v4, to + 2 * padded) = m.c, AT(v4, to + 3 * padded) = m.d;
    }
  for (; t < padded; t++)
    for (int64_t d = 0; d < width; d++)
      columns[d * padded + t] = t < tokens ? rows[t * apart + d] : 0;
}

/* The scratch of one thread: keys or values turned, probabilities, their gradients. */
typedef struct {
  float *turned, *p, *g;
  int64_t padded;
} Scratch;

CALLED void forward(const ShortAttention *op, int64_t b, int64_t h, const Scratch *s) {
  int64_t n = op->tokens, width = op->width, heads = op->heads, next = heads * width, apart = 3 * next;
  int64_t padded = s->padded;
  const float *q = op->qkv + b * n * apart + h * width;
  turn(s->turned, q + next, apart, n, width, padded);
  product(s->p, padded, &(Factor){q, apart, 1}, s->turned, padded, n, width, padded, op->scale * LOG2E);
  for (int64_t i = 0; i < n; i++) {
    float *row = s->p + i * padded;
    for (int64_t j = n; j < padded; j++) row[j] = -INFINITY;
    vf top = AT(vf, row), total = splat(0.0f);
    for (int64_t j = LANES; j < padded; j += LANES) top = larger(AT(vf, row + j), top);
    float most = most_of(top);
    for (int64_t j = 0; j < padded; j += LANES) {
      vf power = exp2_of(AT(vf, row + j) - most);
      AT(vf, row + j) = power;
      total += power;
    }
    float part = 1 / sum_of(total);
    for (int64_t j = 0; j < padded; j += LANES) AT(vf, row + j) *= part;
    if (op->weights) memcpy(op->weights + ((b * heads + h) * n + i) * n, row, n * sizeof(float));
  }
  product(op->out + b * n * next + h * width, next, &(Factor){s->p, padded, 1}, q + 2 * next, apart, n, n,
          width, 1);
}

CALLED void backward(const ShortAttention *op, int64_t b, int64_t h, const Scratch *s) {
  int64_t n = op->tokens, width = op->width, heads = op->heads, next = heads * width, apart = 3 * next;
  int64_t start = b * n * apart + h * width, padded = s->padded;
  const float *q = op->qkv + start, *k = q + next, *v = k + next;
  const float *grad_out = op->grad_out + b * n * next + h * width;
  const float *weights = op->weights + (b * heads + h) * n * n;
  float *grad = op->grad + start;
  product(grad + 2 * next, apart, &(Factor){weights, 1, n}, grad_out, next, n, n, width, 1);
  turn(s->turned, v, apart, n, width, padded);
  product(s->g, padded, &(Factor){grad_out, next, 1}, s->turned, padded, n, width, padded, 1);
  for (int64_t i = 0; i < n; i++) { /* of the logits: p (g - Σ p g) */
    float *p = s->p, *g = s->g + i * padded;
    memcpy(p, weights + i * n, n * sizeof(float));
    for (int64_t j = n; j < padded; j++) p[j] = 0;
    vf total = splat(0.0f);
    for (int64_t j = 0; j < padded; j += LANES) total += AT(vf, p + j) * AT(vf, g + j);
    float mean = sum_of(total);
    for (int64_t j = 0; j < padded; j += LANES) AT(vf, g + j) = AT(vf, p + j) * (AT(vf, g + j) - mean);
  }
  product(grad, apart, &(Factor){s->g, padded, 1}, k, apart, n, n, width, op->scale);
  product(grad + next, apart, &(Factor){s->g, 1, padded}, q, apart, n, n, width, op->scale);
}

const int64_t EXPORT(short_attention_bytes) = sizeof(ShortAttention);

/* 0, or -1 where memory ran out. */
int EXPORT(short_attention)(const ShortAttention *op) {
  int64_t padded = (op->tokens + LANES - 1) / LANES * LANES;
  int64_t own = whole_lines((op->width + 2 * op->tokens) * padded);
  float *memory = scratch_of(op->threads * own * sizeof(float));
  if (!memory) return -1;
  int64_t values = op->batch * op->tokens * op->heads * op->width;
  if (op->grad_out) in_huge_pages(op->grad, bytes_of(3 * values, FLOAT32));
  else in_huge_pages(op->out, bytes_of(values, FLOAT32));
  if (op->weights && !op->grad_out)
    in_huge_pages(op->weights, bytes_of(op->batch * op->heads * op->tokens * op->tokens, FLOAT32));
#pragma omp parallel for num_threads(op->threads) schedule(static)
  for (int64_t i = 0; i < op->batch * op->heads; i++) {
    float *mine = memory + thread_number() * own;
    Scratch s = {mine, mine + op->width * padded, mine + (op->width + op->tokens) * padded, padded};
    if (op->grad_out) backward(op, i / op->heads, i % op->heads, &s);
    else forward(op, i / op->heads, i % op->heads, &s);
  }
  free(memory);
  return 0;
}
