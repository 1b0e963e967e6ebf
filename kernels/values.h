/* Values of float32 and bfloat16 in memory, as vectors of float32; what all kernels share.
 *
 * A kernel is compiled once per instruction set; ISA names it and ends every exported name.
 */
#ifndef FASTEQUI_VALUES_H
#define FASTEQUI_VALUES_H

#include <string.h>

#include "vectors.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(name, ISA)
#define CALLED static __attribute__((noinline, unused)) /* big, called per run: one copy is enough */

enum { UINT8, FLOAT32, BFLOAT16 };

INLINE float from_bf16(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
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

INLINE void store(void *to, int64_t at, vf value, int32_t dtype, int stream) {
  if (dtype == FLOAT32) {
    float *place = (float *)to + at;
    if (stream) STREAM(place, value);
    else AT(vf, place) = value;
    return;
  }
  uint16_t *place = (uint16_t *)to + at;
  vu bits = (vu)value, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* as to_bf16 */
  vu nan = (vu)(value != value);
  vh halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), vh);
  if (stream) STREAM_HALF(place, halves);
  else AT(vh, place) = halves;
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
