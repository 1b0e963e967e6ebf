/* Values of float32 and bfloat16 in memory, as vectors of float32; what all kernels share.
 *
 * A kernel is compiled once per instruction set; ISA names it and ends every exported name.
 */
#ifndef FASTEQUI_VALUES_H
#define FASTEQUI_VALUES_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vectors.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(name, ISA)
#define CALLED static __attribute__((noinline, unused)) /* big, called per run: one copy is enough */

enum { UINT8, FLOAT32, BFLOAT16, UINT16, FLOAT16 }; /* the last two of images alone */
enum { GROUP = 32 }; /* rows that are worked on together, in the caches */
enum { LINE = 16 };  /* values of float32 in a cache line */

/* Scratch begins at cache lines, as PyTorch's tensors do. malloc's begins a quarter into one, and where a half or
 * all of the vectors lie in two lines, DINO's loss takes 1.2 times as long. */
#define AT_LINE __attribute__((aligned(LINE * 4)))
INLINE int64_t whole_lines(int64_t values) { return (values + LINE - 1) / LINE * LINE; }
INLINE void *scratch_of(int64_t bytes) { /* a line at least: NULL says that there is no memory */
  return aligned_alloc(LINE * 4, (size_t)(bytes / (LINE * 4) + 1) * (LINE * 4));
}

/* Fresh memory comes page by page, a fault each: for a large result that costs as much as the rest of
 * the work. Where the system lets us ask, it comes in huge pages instead. */
CALLED void in_huge_pages(void *start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t page = 2 << 20;
  uintptr_t first = ((uintptr_t)start + page - 1) & ~(page - 1);
  uintptr_t last = ((uintptr_t)start + (uintptr_t)bytes) & ~(page - 1);
  if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

INLINE int64_t bytes_of(int64_t values, int32_t dtype) {
  return values * (dtype == FLOAT32 ? 4 : dtype == UINT8 ? 1 : 2);
}

INLINE float from_bf16(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE float from_f16(uint16_t half) {
  uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &bits, 4);
  value *= 0x1p112f; /* the exponent's other offset; right for numbers below the least normal one too */
  memcpy(&bits, &value, 4);
  bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinity, NaN */
  bits |= (uint32_t)(half & 0x8000) << 16;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE vf widened_floats(vh halves) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__) && defined(__AVX2__)
  return (vf)_mm256_cvtph_ps((__m128i)halves);
#else
  vf values;
  for (int i = 0; i < LANES; i++) values[i] = from_f16(halves[i]);
  return values;
#endif
}

INLINE uint16_t to_bf16(float value) { /* to nearest even; NaN stays NaN */
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (uint16_t)(value != value ? 0x7fc0 : rounded);
}

INLINE vf load(const void *from, int64_t at, int32_t dtype) {
  if (dtype == FLOAT32) return AT(vf, (const float *)from + at);
  return (vf)(widened(AT(vh, (const uint16_t *)from + at)) << 16);
}

/* The same of images' values too, whole numbers as they are. */
INLINE vf values_at(const void *from, int64_t at, int32_t type) {
  if (type == UINT8) return __builtin_convertvector((vi)widened_bytes(AT(vb, (const uint8_t *)from + at)), vf);
  if (type == UINT16) return __builtin_convertvector((vi)widened(AT(vh, (const uint16_t *)from + at)), vf);
  if (type == FLOAT16) return widened_floats(AT(vh, (const uint16_t *)from + at));
  return load(from, at, type);
}

INLINE float one_value(const void *from, int64_t at, int32_t type) {
  if (type == FLOAT32) return ((const float *)from)[at];
  if (type == UINT8) return ((const uint8_t *)from)[at];
  uint16_t half = ((const uint16_t *)from)[at];
  return type == UINT16 ? half : type == FLOAT16 ? from_f16(half) : from_bf16(half);
}

/* What the upper halves are bfloat16 of, as to_bf16 rounds. `number`: no value is NaN. */
INLINE vf rounded_to_bf16(vf value, int number) {
  vu bits = (vu)value, rounded = bits + 0x7fff + (bits >> 16 & 1);
  return number ? (vf)rounded : pick(value == value, (vf)rounded, splat(NAN));
}

INLINE void store(void *to, int64_t at, vf value, int32_t dtype, int stream) {
  if (dtype == FLOAT32) {
    float *place = (float *)to + at;
    if (stream) STREAM(place, value);
    else AT(vf, place) = value;
    return;
  }
  uint16_t *place = (uint16_t *)to + at;
  vh halves = upper_halves(rounded_to_bf16(value, 0));
  if (stream) STREAM_HALF(place, halves);
  else AT(vh, place) = halves;
}

/* Two vectors at once; past the caches to a multiple of a float32 vector's size. */
INLINE void store_two(void *to, int64_t at, vf a, vf b, int32_t dtype, int stream, int number) {
  if (dtype == FLOAT32) {
    store(to, at, a, dtype, stream);
    store(to, at + LANES, b, dtype, stream);
  } else put_upper_halves((uint16_t *)to + at, rounded_to_bf16(a, number), rounded_to_bf16(b, number), stream);
}

/* Two vectors of numbers as bfloat16, to nearest; where two are equally near, to the larger in size, which takes one
 * operation where the even one takes four. Of values computed in float32 one in 2^16 lies so. Those of few bits, as
 * pixels have, often do: not for them. */
INLINE void put_nearest_halves(void *to, vf a, vf b, int stream) {
  put_upper_halves(to, (vf)((vu)a + 0x8000), (vf)((vu)b + 0x8000), stream);
}

/* The vector at `from`, with -infinity behind the n values that are there. What is put together in memory
 * is called, so that no loop over whole vectors waits for it. */
CALLED vf last_values(const float *from, int64_t n) {
  vf value = splat(-INFINITY);
  for (int64_t j = 0; j < n; j++) value[j] = from[j];
  return value;
}

INLINE vf some(const float *from, int64_t n) {
  if (n < LANES) return last_values(from, n);
  return AT(vf, from);
}

INLINE float value_at(const void *row, int64_t at, int32_t dtype) {
  return dtype == FLOAT32 ? ((const float *)row)[at] : from_bf16(((const uint16_t *)row)[at]);
}

INLINE void put(void *row, int64_t at, float value, int32_t dtype) {
  if (dtype == FLOAT32) ((float *)row)[at] = value;
  else ((uint16_t *)row)[at] = to_bf16(value);
}

/* For each page that begins in this memory, which is written past the caches, prefetches the start of the next page.
 * Hardware prefetchers do not follow such stores, and translating the address of a new page (a TLB miss) takes as
 * long as fetching a cache line, or longer. */
INLINE void ask_for_pages(const void *to, int64_t bytes) {
  const uintptr_t page = 4096, start = (uintptr_t)to, end = start + (uintptr_t)bytes;
  for (uintptr_t at = (start + page - 1) & ~(page - 1); at < end; at += page)
    __builtin_prefetch((const void *)(at + page));
}

/* n values to `to` from `at` on; past the caches if `stream` and they begin at a multiple of a vector's size. */
CALLED void put_values(void *to, int64_t at, const float *values, int64_t n, int32_t dtype, int stream) {
  int64_t i = 0;
  const char *start = (const char *)to + bytes_of(at, dtype);
  stream = stream && (uintptr_t)start % (LANES * 4) == 0;
  if (stream) ask_for_pages(start, bytes_of(n, dtype));
#define PUT(dtype, stream)                    \
  for (; i + 2 * LANES <= n; i += 2 * LANES) \
  store_two(to, at + i, AT(vf, values + i), AT(vf, values + i + LANES), dtype, stream, 0)
  if (dtype == FLOAT32 && stream) PUT(FLOAT32, 1);
  else if (dtype == FLOAT32) PUT(FLOAT32, 0);
  else if (stream) PUT(BFLOAT16, 1);
  else PUT(BFLOAT16, 0);
#undef PUT
  for (; i < n; i++) put(to, at + i, values[i], dtype);
}

/* Until `restored`, numbers below the least normal one count as 0 in this thread: processors take up to a
 * hundred cycles and more for each, and powers as small as that are everywhere. */
#ifdef __SSE2__
INLINE uint32_t without_subnormals(void) {
  uint32_t before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  return before;
}
INLINE void restored(uint32_t before) { _mm_setcsr(before); }
#else /* processors of ARM take them as they come */
INLINE uint32_t without_subnormals(void) { return 0; }
INLINE void restored(uint32_t before) { (void)before; }
#endif

/* Asks for the vector at `at` of a row, which may lie behind the row's end. */
INLINE void ask_for(const void *row, int64_t at, int32_t dtype) {
  __builtin_prefetch((const char *)((uintptr_t)row + (uintptr_t)at * (dtype == FLOAT32 ? 4 : 2)));
}

INLINE float sum_of(vf v) {
  v4 four = folded(v);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

/* Row `row` of a matrix whose rows are `stride` values apart. */
INLINE const void *row_of(const void *start, int64_t row, int64_t stride, int32_t dtype) {
  return (const char *)start + row * stride * (dtype == FLOAT32 ? 4 : 2);
}

INLINE int thread_number(void) {
#ifdef _OPENMP
  extern int omp_get_thread_num(void);
  return omp_get_thread_num();
#else
  return 0;
#endif
}

#endif
