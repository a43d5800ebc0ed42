// One SIMD vocabulary for every ISA. GCC/Clang vector extensions give operators and, with
// -ffp-contract=fast, FMA; only converting loads need intrinsics. Included by the per-ISA kernel
// files alone: internal linkage throughout and no STL, so that no weak symbol can carry AVX code
// into a processor without it.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#include <stddef.h>
#include <stdint.h>

namespace wkv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int W = kVectorBytes / 4;  // floats per vector

typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef uint16_t u16h __attribute__((vector_size(kVectorBytes / 2)));
typedef uint8_t u8q __attribute__((vector_size(kVectorBytes / 4)));
typedef int8_t i8q __attribute__((vector_size(kVectorBytes / 4)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline f32v splat(float x) { return x - f32v{}; }
inline f32v load(const float* p) {
  f32v v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, f32v v) { __builtin_memcpy(p, &v, sizeof v); }

/// sum += a b, for loops whose sums fill the registers of AVX2: left the choice of instruction, GCC
/// 12 puts sums into the registers of factors, moves them about and keeps some in memory. Zen 3,
/// twelve sums out of L1: bf16 1.2 times, eight of fp32 1.35 times as fast.
inline __attribute__((always_inline)) void add_product(f32v& sum, f32v a, f32v b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum += a * b;
#endif
}

// GCC 12 splits __builtin_convertvector into halves when it widens, so widening is spelled out.
inline f32v load(const bf16* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (f32v)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  u16h h;
  __builtin_memcpy(&h, p, sizeof h);
  return (f32v)(__builtin_convertvector(h, u32v) << 16);
#endif
}

inline float f16_value(uint16_t h) {  // exact for every half, infinities and NaN included
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  const uint32_t rest = (uint32_t)(h & 0x7fffu) << 13;
  uint32_t bits;
  if (rest >= 0x0f800000u) {
    bits = rest | 0x7f800000u;
  } else {
    float f;
    __builtin_memcpy(&f, &rest, sizeof f);
    f *= 0x1p112f;
    __builtin_memcpy(&bits, &f, sizeof bits);
  }
  bits |= sign;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline f32v load(const f16* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (f32v)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  f32v v;
  for (int i = 0; i < W; ++i) v[i] = f16_value(p[i].bits);
  return v;
#endif
}

inline f32v load(const int8_t* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (f32v)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  i8q q;
  __builtin_memcpy(&q, p, sizeof q);
  return __builtin_convertvector(__builtin_convertvector(q, i32v), f32v);
#endif
}

/// W unsigned bytes.
inline i32v load_codes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (i32v)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (i32v)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  u8q q;
  __builtin_memcpy(&q, p, sizeof q);
  return __builtin_convertvector(q, i32v);
#endif
}

inline f32v load(const uint8_t* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtepi32_ps((__m512i)load_codes(p));
#elif defined(__AVX2__)
  return (f32v)_mm256_cvtepi32_ps((__m256i)load_codes(p));
#else
  return __builtin_convertvector(load_codes(p), f32v);
#endif
}

/// A bit for each lane that is not zero (NaN is not).
inline uint32_t nonzero_lanes(f32v v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= (v[i] != 0.0f ? 1u : 0u) << i;
  return bits;
#endif
}

/// The even and the odd ones of the 2 W values a, b.
inline void split_pairs(f32v a, f32v b, f32v* even, f32v* odd) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(1));
  *even = (f32v)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
  *odd = (f32v)_mm512_permutex2var_ps((__m512)a, second, (__m512)b);
#elif defined(__AVX2__)
  const __m256 e = _mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
  const __m256 o = _mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
  *even = (f32v)_mm256_permute4x64_pd((__m256d)e, 0xd8);
  *odd = (f32v)_mm256_permute4x64_pd((__m256d)o, 0xd8);
#else
  const f32v x = a, y = b;
  for (int i = 0; i < W / 2; ++i) {
    (*even)[i] = x[2 * i];
    (*even)[i + W / 2] = y[2 * i];
    (*odd)[i] = x[2 * i + 1];
    (*odd)[i + W / 2] = y[2 * i + 1];
  }
#endif
}

/// The inverse: a, b are 2 W values again.
inline void join_pairs(f32v even, f32v odd, f32v* a, f32v* b) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  *a = (f32v)_mm512_permutex2var_ps((__m512)even, low, (__m512)odd);
  *b = (f32v)_mm512_permutex2var_ps((__m512)even, high, (__m512)odd);
#elif defined(__AVX2__)
  const __m256 low = _mm256_unpacklo_ps((__m256)even, (__m256)odd);
  const __m256 high = _mm256_unpackhi_ps((__m256)even, (__m256)odd);
  *a = (f32v)_mm256_permute2f128_ps(low, high, 0x20);
  *b = (f32v)_mm256_permute2f128_ps(low, high, 0x31);
#else
  const f32v x = even, y = odd;
  for (int i = 0; i < W / 2; ++i) {
    (*a)[2 * i] = x[i];
    (*a)[2 * i + 1] = y[i];
    (*b)[2 * i] = x[i + W / 2];
    (*b)[2 * i + 1] = y[i + W / 2];
  }
#endif
}

inline float scalar(const float* p) { return *p; }
inline float scalar(const bf16* p) {
  const uint32_t bits = (uint32_t)p->bits << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline float scalar(const f16* p) { return f16_value(p->bits); }

/// Halves onto each other until one lane is left: the same tree at every width's own lane count.
/// Spelled out, because GCC 12 makes a loop over memory of the generic form (30 ns a call).
inline float sum(f32v v) {
#if defined(__AVX512F__)
  const __m256 high = (__m256)_mm512_extractf64x4_pd((__m512d)v, 1);
  const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), high);
#elif defined(__AVX2__)
  const __m256 v8 = (__m256)v;
#endif
#if defined(__AVX2__)
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
#else
  static_assert(W == 4);
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

#if defined(__AVX2__)
/// sums[i] = sum(v[i]) of eight vectors, to the bit, in a third of the instructions.
inline void sum8(const f32v* v, float* sums) {
  __m256 a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
#if defined(__AVX512F__)
    const __m256 high = (__m256)_mm512_extractf64x4_pd((__m512d)v[i], 1);
    a[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), high);
#else
    a[i] = (__m256)v[i];
#endif
  }
  __m256d b[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    b[i] = (__m256d)_mm256_add_ps(_mm256_permute2f128_ps(a[i], a[i + 4], 0x20),
                                  _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  const __m256 c =
      _mm256_add_ps((__m256)_mm256_unpacklo_pd(b[0], b[1]), (__m256)_mm256_unpackhi_pd(b[0], b[1]));
  const __m256 d =
      _mm256_add_ps((__m256)_mm256_unpacklo_pd(b[2], b[3]), (__m256)_mm256_unpackhi_pd(b[2], b[3]));
  _mm256_storeu_ps(sums,
                   _mm256_add_ps(_mm256_shuffle_ps(c, d, 0x88), _mm256_shuffle_ps(c, d, 0xdd)));
}
#endif

/// totals[i] = sum(v[i]).
inline __attribute__((always_inline)) void sum_each(const f32v* v, int n, float* totals) {
  int i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= n; i += 8) sum8(v + i, totals + i);
#endif
  for (; i < n; ++i) totals[i] = sum(v[i]);
}

inline f32v max(f32v a, f32v b) { return a > b ? a : b; }
inline f32v min(f32v a, f32v b) { return a < b ? a : b; }

}  // namespace
}  // namespace wkv::cpu
