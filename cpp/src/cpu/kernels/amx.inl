// The tile registers of AMX, eight of 16 rows of 64 bytes. tests/ops/emulated_amx.h has the same
// functions in software. A tile is a template argument.
//
// Not <immintrin.h>: GCC 12 declares 8 of the 64 bytes of a configuration as read, and nothing of
// what a tile is loaded from, and deletes the stores to both.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/simd.h"

namespace wkv::cpu {
namespace {

/// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// A constant, so that no store comes before its use; tools/check_symbols.py reads it in the
/// object.
constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
/// With R rows in all tiles but 4 and 5: what is multiplied with those takes R cycles.
template <int R>
constexpr TileConfig kTileConfigOf = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {R, R, R, R, 16, 16, R, R}};

#if !defined(WKV_EMULATED_AMX)

inline void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }

/// Gives the registers up: their state is saved at every change of thread while they are in use.
inline void tile_release() { asm volatile("tilerelease"); }

template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
inline void tile_load(const void* from, ptrdiff_t row_stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(row_stride) : "memory");
}

/// The same of what L1 need not keep.
template <int T>
inline void tile_stream(const void* from, ptrdiff_t row_stride) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(row_stride) : "memory");
}

template <int T>
inline void tile_store(void* to, ptrdiff_t row_stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(row_stride) : "memory");
}

/// C [16][16] fp32 += A [16][32] bf16 * B, in which rows are pairs of inputs [16][16][2].
template <int C, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

/// C [16][16] int32 += A [16][64] int8 * B int8, in which rows are fours of inputs [16][16][4].
template <int C, int A, int B>
inline void tile_dot_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

/// The same of B uint8.
template <int C, int A, int B>
inline void tile_dot_int8_uint8() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

/// The same of A uint8.
template <int C, int A, int B>
inline void tile_dot_uint8_int8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace wkv::cpu
