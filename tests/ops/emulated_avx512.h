// The AVX-512 instructions that the kernels use, in software, for processors with AVX2: lanes as
// Intel's manual defines them. Included before everything else (-include) by the files that are
// compiled with it. No header of the standard library, as for every file of an ISA of its own.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace wkv::test {
namespace {

typedef int32_t i16x __attribute__((vector_size(64)));
typedef uint32_t u16x __attribute__((vector_size(64)));
typedef float f16x __attribute__((vector_size(64)));
typedef uint16_t u32x __attribute__((vector_size(64)));
typedef int8_t i64x __attribute__((vector_size(64)));
typedef int8_t i8q16 __attribute__((vector_size(16)));
typedef uint8_t u8q16 __attribute__((vector_size(16)));
typedef uint16_t u16h16 __attribute__((vector_size(32)));
typedef int16_t i16h16 __attribute__((vector_size(32)));

#define WKV_LANES inline __attribute__((always_inline))

template <class V>
WKV_LANES V get(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class Half, class V>
WKV_LANES Half half_of(const V& v, int half) {
  return get<Half>((const char*)&v + half * (int)sizeof(Half));
}
template <class V, class Half>
WKV_LANES V join(const Half& low, const Half& high) {
  V v;
  __builtin_memcpy(&v, &low, sizeof low);
  __builtin_memcpy((char*)&v + sizeof low, &high, sizeof high);
  return v;
}

WKV_LANES __m512i set1_epi32(int x) { return (__m512i)(i16x{} + x); }
WKV_LANES __m512i set1_epi8(char x) { return (__m512i)(i64x{} + (int8_t)x); }
WKV_LANES __m512i set_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j,
                            int k, int l, int m, int n, int o, int p) {
  return (__m512i)i16x{p, o, n, m, l, k, j, i, h, g, f, e, d, c, b, a};
}
WKV_LANES __m512i loadu_si512(const void* p) { return get<__m512i>(p); }
WKV_LANES void storeu_si512(void* p, __m512i v) { __builtin_memcpy(p, &v, sizeof v); }

WKV_LANES __m512i add_epi32(__m512i a, __m512i b) { return (__m512i)((u16x)a + (u16x)b); }
WKV_LANES __m512i sub_epi32(__m512i a, __m512i b) { return (__m512i)((u16x)a - (u16x)b); }
WKV_LANES __m512i mullo_epi32(__m512i a, __m512i b) { return (__m512i)((u16x)a * (u16x)b); }
WKV_LANES __m512i and_si512(__m512i a, __m512i b) { return a & b; }
WKV_LANES __m512i xor_si512(__m512i a, __m512i b) { return a ^ b; }
WKV_LANES __m512i slli_epi32(__m512i a, int n) { return (__m512i)((u16x)a << n); }
WKV_LANES __m512i srai_epi32(__m512i a, int n) { return (__m512i)((i16x)a >> n); }
WKV_LANES __m512i srli_epi16(__m512i a, int n) { return (__m512i)((u32x)a >> n); }
WKV_LANES __m512i max_epi32(__m512i a, __m512i b) {
  return (__m512i)((i16x)a > (i16x)b ? (i16x)a : (i16x)b);
}
WKV_LANES __m512i min_epi32(__m512i a, __m512i b) {
  return (__m512i)((i16x)a < (i16x)b ? (i16x)a : (i16x)b);
}
WKV_LANES __m512 max_ps(__m512 a, __m512 b) { return a > b ? a : b; }  // b if one is no number
WKV_LANES __m512 min_ps(__m512 a, __m512 b) { return a < b ? a : b; }

WKV_LANES int reduce_add_epi32(__m512i v) {
  unsigned sum = 0;
  for (int i = 0; i < 16; ++i) sum += ((u16x)v)[i];
  return (int)sum;
}
WKV_LANES float reduce_max_ps(__m512 v) {
  float most = v[0];
  for (int i = 1; i < 16; ++i) most = v[i] > most ? v[i] : most;
  return most;
}
WKV_LANES float reduce_min_ps(__m512 v) {
  float least = v[0];
  for (int i = 1; i < 16; ++i) least = v[i] < least ? v[i] : least;
  return least;
}

WKV_LANES __m512 cvtepi32_ps(__m512i v) { return __builtin_convertvector((i16x)v, f16x); }
WKV_LANES __m512i cvtps_epi32(__m512 v) {
  return join<__m512i>(_mm256_cvtps_epi32(half_of<__m256>(v, 0)),
                       _mm256_cvtps_epi32(half_of<__m256>(v, 1)));
}
WKV_LANES __m512 cvtph_ps(__m256i v) {
  return join<__m512>(_mm256_cvtph_ps(half_of<__m128i>(v, 0)),
                      _mm256_cvtph_ps(half_of<__m128i>(v, 1)));
}
WKV_LANES __m512i cvtepi8_epi32(__m128i v) {
  return (__m512i) __builtin_convertvector((i8q16)v, i16x);
}
WKV_LANES __m512i cvtepu8_epi32(__m128i v) {
  return (__m512i) __builtin_convertvector((u8q16)v, i16x);
}
WKV_LANES __m512i cvtepu16_epi32(__m256i v) {
  return (__m512i) __builtin_convertvector((u16h16)v, i16x);
}
WKV_LANES __m256i cvtepi32_epi16(__m512i v) {
  return (__m256i) __builtin_convertvector((i16x)v, i16h16);
}
WKV_LANES __m128i cvtepi32_epi8(__m512i v) {
  return (__m128i) __builtin_convertvector((i16x)v, i8q16);
}

/// VPDPBUSD: four products of an unsigned byte of a and a signed one of b to a lane.
WKV_LANES __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  __m256i r[2];
  for (int h = 0; h < 2; ++h) {
    const __m256i x = half_of<__m256i>(a, h), y = half_of<__m256i>(b, h);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    r[h] = _mm256_add_epi32(half_of<__m256i>(sum, h), _mm256_add_epi32(even, odd));
  }
  return join<__m512i>(r[0], r[1]);
}

/// VPDPWSSD: two products of signed words to a lane.
WKV_LANES __m512i dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
  __m256i r[2];
  for (int h = 0; h < 2; ++h)
    r[h] = _mm256_add_epi32(half_of<__m256i>(sum, h),
                            _mm256_madd_epi16(half_of<__m256i>(a, h), half_of<__m256i>(b, h)));
  return join<__m512i>(r[0], r[1]);
}
WKV_LANES __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return join<__m512>(
      _mm256_fmadd_ps(half_of<__m256>(a, 0), half_of<__m256>(b, 0), half_of<__m256>(c, 0)),
      _mm256_fmadd_ps(half_of<__m256>(a, 1), half_of<__m256>(b, 1), half_of<__m256>(c, 1)));
}

WKV_LANES __m512 permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  f16x r;
  for (int i = 0; i < 16; ++i) {
    const int from = ((i16x)index)[i] & 31;
    r[i] = from < 16 ? a[from] : b[from - 16];
  }
  return r;
}
WKV_LANES __m512 permutexvar_ps(__m512i index, __m512 a) {
  f16x r;
  for (int i = 0; i < 16; ++i) r[i] = a[((i16x)index)[i] & 15];
  return r;
}
WKV_LANES __m512i permutexvar_epi16(__m512i index, __m512i a) {
  u32x r;
  for (int i = 0; i < 32; ++i) r[i] = ((u32x)a)[((u32x)index)[i] & 31];
  return (__m512i)r;
}
/// Within each 16 bytes, lanes of `W` dwords: those `first` of a and b in turn.
template <int W>
WKV_LANES f16x unpack(f16x a, f16x b, int first) {
  f16x r;
  for (int part = 0; part < 16; part += 4)
    for (int i = 0; i < 4; ++i) {
      const f16x& from = i / W % 2 == 0 ? a : b;
      r[part + i] = from[part + first + i / (2 * W) * W + i % W];
    }
  return r;
}
WKV_LANES __m512 unpacklo_ps(__m512 a, __m512 b) { return unpack<1>(a, b, 0); }
WKV_LANES __m512 unpackhi_ps(__m512 a, __m512 b) { return unpack<1>(a, b, 2); }
WKV_LANES __m512d unpacklo_pd(__m512d a, __m512d b) {
  return (__m512d)unpack<2>((f16x)a, (f16x)b, 0);
}
WKV_LANES __m512d unpackhi_pd(__m512d a, __m512d b) {
  return (__m512d)unpack<2>((f16x)a, (f16x)b, 2);
}
WKV_LANES __m512 shuffle_f32x4(__m512 a, __m512 b, int control) {
  f16x r;
  for (int part = 0; part < 4; ++part)
    for (int i = 0; i < 4; ++i)
      r[4 * part + i] = (part < 2 ? a : b)[4 * (control >> 2 * part & 3) + i];
  return r;
}

/// A bit for each lane, which are all ones or zero.
WKV_LANES __mmask16 mask_of(i16x lanes) {
  return (__mmask16)(_mm256_movemask_ps(half_of<__m256>(lanes, 0)) |
                     _mm256_movemask_ps(half_of<__m256>(lanes, 1)) << 8);
}
WKV_LANES i16x lanes_of(__mmask16 mask) {
  const i16x bits = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return (bits & (int)mask) != 0;
}
WKV_LANES __mmask16 cmp_ps_mask(__m512 a, __m512 b, int how) {
  const __mmask16 equal = mask_of(a == b);
  return how == _CMP_EQ_OQ ? equal : (__mmask16)~equal;
}
WKV_LANES __m512i mask_mov_epi32(__m512i otherwise, __mmask16 mask, __m512i v) {
  return (__m512i)(lanes_of(mask) ? (i16x)v : (i16x)otherwise);
}
WKV_LANES __m512i maskz_mov_epi32(__mmask16 mask, __m512i v) {
  return mask_mov_epi32(__m512i{}, mask, v);
}
WKV_LANES __m512 maskz_sub_ps(__mmask16 mask, __m512 a, __m512 b) {
  return (__m512)maskz_mov_epi32(mask, (__m512i)(a - b));
}
WKV_LANES __m512 maskz_loadu_ps(__mmask16 mask, const void* p) {
  f16x r{};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) r[i] = get<float>((const char*)p + 4 * i);
  return r;
}
WKV_LANES void mask_storeu_ps(void* p, __mmask16 mask, __m512 v) {
  if (mask == 0xffff) return storeu_si512(p, (__m512i)v);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) {
      const float x = v[i];
      __builtin_memcpy((char*)p + 4 * i, &x, sizeof x);
    }
}
/// VSCALEFPS: a 2^floor(b), rounded once.
WKV_LANES __m512 maskz_scalef_ps(__mmask16 mask, __m512 a, __m512 b) {
  f16x r{};
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const float n = __builtin_floorf(b[i]);
    r[i] = n != n ? n : __builtin_scalbnf(a[i], n > 512 ? 512 : n < -512 ? -512 : (int)n);
  }
  return r;
}

}  // namespace
}  // namespace wkv::test

#define _mm512_add_epi32 wkv::test::add_epi32
#define _mm512_and_si512 wkv::test::and_si512
#define _mm512_castps512_ps256(v) (wkv::test::half_of<__m256>(v, 0))
#define _mm512_castsi512_si256(v) (wkv::test::half_of<__m256i>(v, 0))
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask wkv::test::cmp_ps_mask
#define _mm512_cvtepi32_epi16 wkv::test::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 wkv::test::cvtepi32_epi8
#define _mm512_cvtepi32_ps wkv::test::cvtepi32_ps
#define _mm512_cvtepi8_epi32 wkv::test::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 wkv::test::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 wkv::test::cvtepu8_epi32
#define _mm512_cvtph_ps wkv::test::cvtph_ps
#define _mm512_cvtps_epi32 wkv::test::cvtps_epi32
#define _mm512_dpbusd_epi32 wkv::test::dpbusd_epi32
#define _mm512_dpwssd_epi32 wkv::test::dpwssd_epi32
#undef _mm512_extractf64x4_pd
#define _mm512_extractf64x4_pd(v, at) (wkv::test::half_of<__m256d>(v, at))
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64(v, at) (wkv::test::half_of<__m256i>(v, at))
#define _mm512_fmadd_ps wkv::test::fmadd_ps
#define _mm512_load_si512 wkv::test::loadu_si512
#define _mm512_loadu_si512 wkv::test::loadu_si512
#define _mm512_mask_storeu_ps wkv::test::mask_storeu_ps
#define _mm512_maskz_loadu_ps wkv::test::maskz_loadu_ps
#define _mm512_maskz_mov_epi32 wkv::test::maskz_mov_epi32
#undef _mm512_maskz_scalef_ps
#define _mm512_maskz_scalef_ps wkv::test::maskz_scalef_ps
#define _mm512_maskz_sub_ps wkv::test::maskz_sub_ps
#define _mm512_max_epi32 wkv::test::max_epi32
#define _mm512_max_ps wkv::test::max_ps
#define _mm512_min_epi32 wkv::test::min_epi32
#define _mm512_min_ps wkv::test::min_ps
#define _mm512_mullo_epi32 wkv::test::mullo_epi32
#define _mm512_permutex2var_ps wkv::test::permutex2var_ps
#define _mm512_permutexvar_epi16 wkv::test::permutexvar_epi16
#define _mm512_permutexvar_ps wkv::test::permutexvar_ps
#define _mm512_reduce_add_epi32 wkv::test::reduce_add_epi32
#define _mm512_reduce_max_ps wkv::test::reduce_max_ps
#define _mm512_reduce_min_ps wkv::test::reduce_min_ps
#define _mm512_set1_epi32 wkv::test::set1_epi32
#define _mm512_set1_epi8 wkv::test::set1_epi8
#define _mm512_set_epi32 wkv::test::set_epi32
#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_si512() (__m512i{})
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 wkv::test::shuffle_f32x4
#define _mm512_slli_epi32 wkv::test::slli_epi32
#define _mm512_srai_epi32 wkv::test::srai_epi32
#define _mm512_srli_epi16 wkv::test::srli_epi16
#define _mm512_storeu_si512 wkv::test::storeu_si512
#define _mm512_sub_epi32 wkv::test::sub_epi32
#define _mm512_unpackhi_pd wkv::test::unpackhi_pd
#define _mm512_unpackhi_ps wkv::test::unpackhi_ps
#define _mm512_unpacklo_pd wkv::test::unpacklo_pd
#define _mm512_unpacklo_ps wkv::test::unpacklo_ps
#define _mm512_xor_si512 wkv::test::xor_si512

#define __AVX512F__ 1
#define __AVX512VNNI__ 1
