/* Vectors of the instruction set that a kernel is compiled for.
 *
 * What is loaded or stored goes through AT, for memory of any alignment and type, and never through
 * memcpy: GCC 12 copies 32 bytes as two halves to the stack, and the load of the whole waits for both.
 */
#ifndef FASTEQUI_VECTORS_H
#define FASTEQUI_VECTORS_H

#include <stdint.h>
#ifdef __SSE2__
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(name, type, bytes)                                                                  \
  typedef type name __attribute__((vector_size(bytes)));                                           \
  typedef type name##_at __attribute__((vector_size(bytes), aligned(sizeof(type)), may_alias))
#define AT(name, place) (*(name##_at *)(place))

VECTOR(v4, float, 16); /* a texel */
VECTOR(i4, int32_t, 16);
VECTOR(h4, uint16_t, 8);
VECTOR(b4, uint8_t, 4);
VECTOR(b16, uint8_t, 16);

/* As many values as a register holds: compilers make wider vectors value by value, in memory.
 * STREAM writes past the caches, to a multiple of the vector's size. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#define STREAM(to, v) _mm512_stream_ps((float *)(to), (__m512)(v))
#define STREAM_HALF(to, v) _mm256_stream_si256((__m256i *)(to), (__m256i)(v))
#elif defined(__AVX2__)
enum { LANES = 8 };
#define STREAM(to, v) _mm256_stream_ps((float *)(to), (__m256)(v))
#define STREAM_HALF(to, v) _mm_stream_si128((__m128i *)(to), (__m128i)(v))
#else
enum { LANES = 4 };
#ifdef __SSE2__
#define STREAM(to, v) _mm_stream_ps((float *)(to), (__m128)(v))
#define STREAM_HALF(to, v) _mm_stream_si64((long long *)(to), (long long)(v))
#else
#define STREAM(to, v) (AT(vf, to) = (v))
#define STREAM_HALF(to, v) (AT(vh, to) = (v))
#endif
#endif
VECTOR(vf, float, LANES * 4);
VECTOR(vi, int32_t, LANES * 4);
VECTOR(vu, uint32_t, LANES * 4);
VECTOR(vh, uint16_t, LANES * 2);
VECTOR(vb, uint8_t, LANES);

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE4(INDEX, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE4(INDEX, a, b, ...) __builtin_shuffle(a, b, (INDEX){__VA_ARGS__})
#endif

#ifdef __AVX__
VECTOR(v8, float, 32); /* two texels */
#if defined(__clang__) || __GNUC__ >= 12
INLINE v4 low_half(v8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
INLINE v4 high_half(v8 v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }
#else
INLINE v4 low_half(v8 v) { return ((v4 *)&v)[0]; }
INLINE v4 high_half(v8 v) { return ((v4 *)&v)[1]; }
#endif
#endif

/* Four sums of a vector's values: of the 0th, 4th, 8th, ...; and the largest of these, as `larger` says. */
#if defined(__AVX512F__)
INLINE v4 folded(vf v) {
  v8 half = (v8)_mm512_castps512_ps256((__m512)v) + (v8)_mm512_extractf32x8_ps((__m512)v, 1);
  return low_half(half) + high_half(half);
}
INLINE v4 folded_most(vf v) {
  __m512 x = (__m512)v;
  __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  return (v4)_mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#elif defined(__AVX2__)
INLINE v4 folded(vf v) { return low_half(v) + high_half(v); }
INLINE v4 folded_most(vf v) { return (v4)_mm_max_ps((__m128)low_half(v), (__m128)high_half(v)); }
#else
INLINE v4 folded(vf v) { return v; }
INLINE v4 folded_most(vf v) { return v; }
#endif

INLINE vf splat(float value) { return value - (vf){0}; } /* 0 + value would have to make 0 of -0 */
/* The larger and the smaller of both, b where one is NaN. */
#if defined(__AVX512F__)
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
INLINE vf larger(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
#else
INLINE vf larger(vf a, vf b) { return (vf)(((vi)(a > b) & (vi)a) | (~(vi)(a > b) & (vi)b)); }
INLINE vf smaller(vf a, vf b) { return (vf)(((vi)(a < b) & (vi)a) | (~(vi)(a < b) & (vi)b)); }
#endif
#if defined(__AVX512F__)
INLINE vf floored(vf v) { return (vf)_mm512_roundscale_ps((__m512)v, _MM_FROUND_FLOOR); }
#elif defined(__AVX2__)
INLINE vf floored(vf v) { return (vf)_mm256_floor_ps((__m256)v); }
#elif defined(__SSE4_1__)
INLINE vf floored(vf v) { return (vf)_mm_floor_ps((__m128)v); }
#elif defined(__aarch64__)
INLINE vf floored(vf v) { return (vf)vrndmq_f32((float32x4_t)v); }
#else
INLINE vf floored(vf v) { return (vf){floorf(v[0]), floorf(v[1]), floorf(v[2]), floorf(v[3])}; }
#endif
INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* In a register: of a vector from memory GCC would read each value again, by a load of its own. */
INLINE v4 kept(v4 v) {
#ifdef __SSE2__
  __asm__("" : "+x"(v));
#endif
  return v;
}

INLINE vf magnitude(vf v) { return (vf)((vi)v & 0x7fffffff); }

/* Whole numbers of 8 and 16 bits as those of 32, and as floats: GCC 12 widens them value by value, or by halves. */
#ifdef __ARM_NEON
INLINE vu widened(vh halves) { return (vu)vmovl_u16((uint16x4_t)halves); }
INLINE vu widened_bytes(vb bytes) { return widened((vh)vget_low_u16(vmovl_u8(vcreate_u8((uint32_t)bytes)))); }
INLINE v4 from_bytes(b4 bytes) { return (v4)vcvtq_f32_u32((uint32x4_t)widened_bytes((vb)bytes)); }
#else
#if defined(__AVX512F__)
INLINE vu widened(vh halves) { return (vu)_mm512_cvtepu16_epi32((__m256i)halves); }
INLINE vu widened_bytes(vb bytes) { return (vu)_mm512_cvtepu8_epi32((__m128i)bytes); }
#elif defined(__AVX2__)
INLINE vu widened(vh halves) { return (vu)_mm256_cvtepu16_epi32((__m128i)halves); }
INLINE vu widened_bytes(vb bytes) { return (vu)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)); }
#elif defined(__SSE4_1__)
INLINE vu widened(vh halves) { return (vu)_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)halves)); }
INLINE vu widened_bytes(vb bytes) { return (vu)_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)bytes)); }
#else
INLINE vu widened(vh halves) { return __builtin_convertvector(halves, vu); }
INLINE vu widened_bytes(vb bytes) { return __builtin_convertvector(bytes, vu); }
#endif
INLINE v4 from_bytes(b4 bytes) {
#ifdef __SSE4_1__
  return (v4)_mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)bytes)));
#else
  return __builtin_convertvector(__builtin_convertvector(bytes, i4), v4);
#endif
}
#endif

/* The upper 16 bits of every value. */
#if defined(__AVX2__) && !defined(__AVX512F__)
INLINE vh upper_halves(vf v) {
  __m256i high = _mm256_srli_epi32((__m256i)v, 16), packed = _mm256_packus_epi32(high, high);
  return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8));
}
#else
INLINE vh upper_halves(vf v) { return __builtin_convertvector((vu)v >> 16, vh); }
#endif

/* The same of two vectors, at once to memory at `to`, past the caches if `stream`. */
#if defined(__AVX2__)
INLINE void put_upper_halves(void *to, vf a, vf b, int stream) {
#if defined(__AVX512F__)
  const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33,
                                       31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  __m512i both = _mm512_permutex2var_epi16((__m512i)a, odd, (__m512i)b);
  if (stream) _mm512_stream_si512(to, both);
  else _mm512_storeu_si512(to, both);
#else
  __m256i mixed = _mm256_packus_epi32(_mm256_srli_epi32((__m256i)a, 16), _mm256_srli_epi32((__m256i)b, 16));
  __m256i both = _mm256_permute4x64_epi64(mixed, 0xd8);
  if (stream) _mm256_stream_si256(to, both);
  else _mm256_storeu_si256(to, both);
#endif
}
#else
INLINE void put_upper_halves(void *to, vf a, vf b, int stream) {
  vh halves[2] = {upper_halves(a), upper_halves(b)};
  for (int v = 0; v < 2; v++)
    if (stream) STREAM_HALF((uint16_t *)to + v * LANES, halves[v]);
    else AT(vh, (uint16_t *)to + v * LANES) = halves[v];
}
#endif

/* The first three of every four bytes to the 12 at `to`; anything to the four behind. */
INLINE void put_low_three(uint8_t *to, b16 bytes) {
  AT(b16, to) = SHUFFLE4(b16, bytes, bytes, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
}

/* Four vectors of four, and their rows made columns. */
#define FOUR(Four, transposed, V, INDEX)                                                           \
  typedef struct {                                                                                 \
    V a, b, c, d;                                                                                  \
  } Four;                                                                                          \
  INLINE Four transposed(Four m) {                                                                 \
    V low = SHUFFLE4(INDEX, m.a, m.b, 0, 4, 1, 5), high = SHUFFLE4(INDEX, m.a, m.b, 2, 6, 3, 7);   \
    V low2 = SHUFFLE4(INDEX, m.c, m.d, 0, 4, 1, 5), high2 = SHUFFLE4(INDEX, m.c, m.d, 2, 6, 3, 7); \
    return (Four){SHUFFLE4(INDEX, low, low2, 0, 1, 4, 5), SHUFFLE4(INDEX, low, low2, 2, 3, 6, 7),  \
                  SHUFFLE4(INDEX, high, high2, 0, 1, 4, 5),                                        \
                  SHUFFLE4(INDEX, high, high2, 2, 3, 6, 7)};                                       \
  }
FOUR(Four, transposed, v4, i4)
FOUR(FourHalves, transposed_halves, h4, h4)

/* The values of as many places as a vector has, four at each. */
typedef struct {
  vf a, b, c, d;
} Quads;

#if defined(__AVX2__)
#if defined(__AVX512F__)
#define WIDE(name) _mm512_##name
typedef __m512 Wide;
#else
#define WIDE(name) _mm256_##name
typedef __m256 Wide;
#endif
/* Of each quarter of four vectors, its rows made columns. */
INLINE Quads quarters(Wide a, Wide b, Wide c, Wide d) {
  Wide low = WIDE(unpacklo_ps)(a, b), low2 = WIDE(unpacklo_ps)(c, d); /* a0 b0 a1 b1, c0 d0 c1 d1 */
  Wide high = WIDE(unpackhi_ps)(a, b), high2 = WIDE(unpackhi_ps)(c, d);
  return (Quads){(vf)WIDE(shuffle_ps)(low, low2, 0x44), (vf)WIDE(shuffle_ps)(low, low2, 0xee),
                 (vf)WIDE(shuffle_ps)(high, high2, 0x44), (vf)WIDE(shuffle_ps)(high, high2, 0xee)};
}
#undef WIDE
#endif

/* As many vectors as each has values, their rows made columns. */
INLINE void transpose(vf *m) {
#if defined(__AVX2__)
  Wide x[LANES];
  for (int i = 0; i < LANES; i += 4) {
    Quads four = quarters((Wide)m[i], (Wide)m[i + 1], (Wide)m[i + 2], (Wide)m[i + 3]);
    x[i] = (Wide)four.a, x[i + 1] = (Wide)four.b, x[i + 2] = (Wide)four.c, x[i + 3] = (Wide)four.d;
  }
#if defined(__AVX512F__)
  Wide y[LANES];
  for (int i = 0; i < 4; i++) {
    y[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), y[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    m[i] = (vf)_mm512_shuffle_f32x4(y[i], y[i + 8], 0x88);
    m[i + 8] = (vf)_mm512_shuffle_f32x4(y[i], y[i + 8], 0xdd);
  }
#else
  for (int i = 0; i < 4; i++) {
    m[i] = (vf)_mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
    m[i + 4] = (vf)_mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
  }
#endif
#else
  Four t = transposed((Four){m[0], m[1], m[2], m[3]});
  m[0] = t.a, m[1] = t.b, m[2] = t.c, m[3] = t.d;
#endif
}

/* Two vectors to memory at `to`, a value of each in turn. */
INLINE void put_pairs(float *to, vf a, vf b) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  _mm512_storeu_ps(to, _mm512_permutex2var_ps((__m512)a, low, (__m512)b));
  _mm512_storeu_ps(to + LANES, _mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), (__m512)b));
#elif defined(__AVX2__)
  __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(to + LANES, _mm256_permute2f128_ps(low, high, 0x31));
#else
  AT(v4, to) = SHUFFLE4(i4, a, b, 0, 4, 1, 5);
  AT(v4, to + LANES) = SHUFFLE4(i4, a, b, 2, 6, 3, 7);
#endif
}

/* Of the places from + 2 at[i]. */
#if defined(__AVX2__)
/* Two places are read at once: loads are what binds. */
INLINE void two_quads(__m128 *a, __m128 *b, const float *from, const int32_t *at) {
  typedef int64_t pair_at __attribute__((aligned(4), may_alias));
  int64_t pair = *(const pair_at *)at;
  *a = _mm_loadu_ps(from + 2 * (int64_t)(int32_t)pair);
  *b = _mm_loadu_ps(from + 2 * (pair >> 32));
}
INLINE __m256 joined(__m128 low, __m128 high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
INLINE Quads quads(const float *from, const int32_t *at) {
  __m128 four[LANES];
  for (int i = 0; i < LANES; i += 2) two_quads(four + i, four + i + 1, from, at + i);
#if defined(__AVX512F__)
#define EVERY_FOURTH(i)                                                          \
  _mm512_insertf32x8(_mm512_castps256_ps512(joined(four[i], four[(i) + 4])), \
                     joined(four[(i) + 8], four[(i) + 12]), 1)
#else
#define EVERY_FOURTH(i) joined(four[i], four[(i) + 4])
#endif
  Quads found = quarters(EVERY_FOURTH(0), EVERY_FOURTH(1), EVERY_FOURTH(2), EVERY_FOURTH(3));
#undef EVERY_FOURTH
  return found;
}
#else
INLINE Quads quads(const float *from, const int32_t *at) {
  Four m = transposed((Four){AT(v4, from + 2 * (int64_t)at[0]), AT(v4, from + 2 * (int64_t)at[1]),
                             AT(v4, from + 2 * (int64_t)at[2]), AT(v4, from + 2 * (int64_t)at[3])});
  return (Quads){m.a, m.b, m.c, m.d};
}
#endif

#endif
