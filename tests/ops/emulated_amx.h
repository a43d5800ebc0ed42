// The tile registers of AMX in software, as the Software Developer's Manual of Intel defines them:
// in place of the functions of cpp/src/cpu/kernels/amx.inl. Misuse is counted (amx_faults) and done
// nothing for. Compiled with AVX-512, so no header of the standard library.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define WKV_EMULATED_AMX
#include "cpu/kernels/amx.inl"

namespace wkv::test {
/// Instructions that the processor would have refused, and threads whose tiles are configured now.
struct AmxCounters {
  int faults, configured;
  long long products;
};
extern AmxCounters amx_counters;
}  // namespace wkv::test

namespace wkv::cpu {
namespace {

struct TileFile {
  bool configured;
  TileConfig config;
  alignas(64) unsigned char bytes[8][16][64];
};
thread_local TileFile tile_file;

inline bool tile_require(bool right) {
  if (!right) __atomic_fetch_add(&test::amx_counters.faults, 1, __ATOMIC_RELAXED);
  return right;
}

inline bool tile_exists(int t) {
  return tile_file.configured && tile_file.config.rows[t] > 0 && tile_file.config.row_bytes[t] > 0;
}

inline void tile_configure(const TileConfig& config) {
  bool legal = config.palette == 1;
  for (const uint8_t byte : config.reserved) legal = legal && byte == 0;
  for (int t = 0; t < 16; ++t) {
    const int rows = config.rows[t], bytes = config.row_bytes[t];
    legal = legal && rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0);
    legal = legal && (t < 8 || rows == 0);
  }
  if (!tile_require(legal)) return;
  if (!tile_file.configured)
    __atomic_fetch_add(&test::amx_counters.configured, 1, __ATOMIC_RELAXED);
  tile_file.configured = true;
  tile_file.config = config;
  __builtin_memset(tile_file.bytes, 0, sizeof tile_file.bytes);
}

inline void tile_release() {
  if (tile_file.configured) __atomic_fetch_sub(&test::amx_counters.configured, 1, __ATOMIC_RELAXED);
  tile_file.configured = false;
}

template <int T>
inline void tile_zero() {
  if (tile_require(tile_exists(T))) __builtin_memset(tile_file.bytes[T], 0, 1024);
}

template <int T>
inline void tile_load(const void* from, ptrdiff_t row_stride) {
  if (!tile_require(tile_exists(T))) return;
  __builtin_memset(tile_file.bytes[T], 0, 1024);
  for (int r = 0; r < tile_file.config.rows[T]; ++r)
    __builtin_memcpy(tile_file.bytes[T][r], (const char*)from + r * row_stride,
                     tile_file.config.row_bytes[T]);
}

template <int T>
inline void tile_stream(const void* from, ptrdiff_t row_stride) {
  tile_load<T>(from, row_stride);
}

template <int T>
inline void tile_store(void* to, ptrdiff_t row_stride) {
  if (!tile_require(tile_exists(T))) return;
  for (int r = 0; r < tile_file.config.rows[T]; ++r)
    __builtin_memcpy((char*)to + r * row_stride, tile_file.bytes[T][r],
                     tile_file.config.row_bytes[T]);
}

/// The shapes of a product, and three different tiles.
template <int C, int A, int B>
inline bool tile_dot_fits() {
  static_assert(C != A && A != B && B != C && C >= 0 && C < 8 && A >= 0 && A < 8 && B >= 0 &&
                B < 8);
  const TileConfig& t = tile_file.config;
  return tile_require(tile_exists(C) && tile_exists(A) && tile_exists(B) &&
                      t.rows[C] == t.rows[A] && t.row_bytes[A] == 4 * t.rows[B] &&
                      t.row_bytes[C] == t.row_bytes[B]);
}

inline void tile_count() { __atomic_fetch_add(&test::amx_counters.products, 1, __ATOMIC_RELAXED); }

/// Denormals are zero, of operands and of results, whatever MXCSR says.
inline __m512 tile_flush(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __mmask16 normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32((int)0x80000000));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(sign, normal, bits));
}

/// VCVTNE2PS2BF16.
inline __m512i to_bf16(f32v first, f32v second) {
  const auto rounded = [](f32v x) {
    const u32v bits = (u32v)(f32v)tile_flush((__m512)x);
    const u32v nearest = bits + 0x7fffu + (bits >> 16 & 1u);
    return _mm512_cvtepi32_epi16((__m512i)((x == x ? nearest : bits | 0x400000u) >> 16));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(first)), rounded(second), 1);
}

/// TDPBF16PS: even and odd inputs are accumulated apart by fused multiply-adds, from zero, then
/// added to each other and to C.
template <int C, int A, int B>
inline void tile_dot_bf16() {
  if (!tile_dot_fits<C, A, B>()) return;
  tile_count();
  const TileConfig& t = tile_file.config;
  const __m512i high = _mm512_set1_epi32((int)0xffff0000);
  for (int m = 0; m < t.rows[C]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < t.row_bytes[A] / 4; ++k) {
      int32_t pair;
      __builtin_memcpy(&pair, tile_file.bytes[A][m] + 4 * k, sizeof pair);
      const __m512i a = _mm512_set1_epi32(pair), b = _mm512_loadu_si512(tile_file.bytes[B][k]);
      const auto value = [](__m512i bits) { return tile_flush(_mm512_castsi512_ps(bits)); };
      even = tile_flush(
          _mm512_fmadd_ps(value(_mm512_slli_epi32(a, 16)), value(_mm512_slli_epi32(b, 16)), even));
      odd = tile_flush(
          _mm512_fmadd_ps(value(_mm512_and_si512(a, high)), value(_mm512_and_si512(b, high)), odd));
    }
    const __m512 both = tile_flush(_mm512_add_ps(even, odd));
    const __m512 sum = tile_flush(_mm512_loadu_ps(tile_file.bytes[C][m]));
    _mm512_mask_storeu_ps(tile_file.bytes[C][m], (__mmask16)((1u << t.row_bytes[C] / 4) - 1u),
                          tile_flush(_mm512_add_ps(sum, both)));
  }
}

/// Bytes of A by bytes of B, modulo 2^32.
template <class ByteA, class ByteB, int C, int A, int B>
inline void tile_dot_bytes() {
  if (!tile_dot_fits<C, A, B>()) return;
  tile_count();
  const TileConfig& t = tile_file.config;
  for (int m = 0; m < t.rows[C]; ++m)
    for (int n = 0; n < t.row_bytes[C] / 4; ++n) {
      uint32_t sum;
      __builtin_memcpy(&sum, tile_file.bytes[C][m] + 4 * n, sizeof sum);
      for (int k = 0; k < t.row_bytes[A] / 4; ++k)
        for (int i = 0; i < 4; ++i)
          sum += (uint32_t)((int)(ByteA)tile_file.bytes[A][m][4 * k + i] *
                            (int)(ByteB)tile_file.bytes[B][k][4 * n + i]);
      __builtin_memcpy(tile_file.bytes[C][m] + 4 * n, &sum, sizeof sum);
    }
}

/// TDPBSSD.
template <int C, int A, int B>
inline void tile_dot_int8() {
  tile_dot_bytes<int8_t, int8_t, C, A, B>();
}

/// TDPBSUD.
template <int C, int A, int B>
inline void tile_dot_int8_uint8() {
  tile_dot_bytes<int8_t, uint8_t, C, A, B>();
}

/// TDPBUSD.
template <int C, int A, int B>
inline void tile_dot_uint8_int8() {
  tile_dot_bytes<uint8_t, int8_t, C, A, B>();
}

}  // namespace
}  // namespace wkv::cpu
