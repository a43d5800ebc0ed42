// Products of many rows on the tile registers of AMX: 8-bit codes in integers (matmul_int8.inl),
// the other types in bf16 (matmul_bf16.inl).
#pragma once

#include "cpu/kernels/amx.inl"
#include "cpu/kernels/matmul_bf16.inl"
#include "cpu/kernels/matmul_int8.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

struct DotBF16 {
  template <int C, int A, int B>
  static void run() {
    tile_dot_bf16<C, A, B>();
  }
};
struct DotInt8 {
  template <int C, int A, int B>
  static void run() {
    tile_dot_int8<C, A, B>();
  }
};

/// Tiles 0 to 3 are sums [x tile][half of the panel], 4 and 5 x, 6 and 7 W. A step loads four tiles
/// for four products of 16 cycles each; two loads of a line per cycle leave half of them free.
template <class Dot>
struct AmxUnit {
  static void begin() { tile_configure(kTileConfig); }
  static void end() { tile_release(); }

  static void run(const Sweep* sweeps, int count, int steps, ptrdiff_t next, int row_tiles,
                  char* sums, bool add) {
    if (row_tiles == 1)
      tiles<1>(sweeps, count, steps, next, sums, add);
    else
      tiles<2>(sweeps, count, steps, next, sums, add);
  }

  // Inlined, its pointers take the registers that the loops around it need.
  template <int RowTiles>
  __attribute__((noinline)) static void tiles(const Sweep* sweeps, int count, int steps,
                                              ptrdiff_t next, char* sums, bool add) {
    char* second = sums + kRows * kPanelRowBytes;
    if (add) {
      tile_load<0>(sums, kPanelRowBytes);
      tile_load<1>(sums + kRowBytes, kPanelRowBytes);
      if constexpr (RowTiles > 1) {
        tile_load<2>(second, kPanelRowBytes);
        tile_load<3>(second + kRowBytes, kPanelRowBytes);
      }
    } else {
      tile_zero<0>();
      tile_zero<1>();
      if constexpr (RowTiles > 1) {
        tile_zero<2>();
        tile_zero<3>();
      }
    }
    for (int s = 0; s < count; ++s) {
      const char* x = sweeps[s].x;
      const char* w = sweeps[s].w;
      for (int step = 0; step < steps; ++step, x += kTileBytes, w += kRows * kPanelRowBytes) {
        tile_load<6>(w, kPanelRowBytes);
        tile_load<4>(x, kRowBytes);
        Dot::template run<0, 4, 6>();
        tile_load<7>(w + kRowBytes, kPanelRowBytes);
        Dot::template run<1, 4, 7>();
        if constexpr (RowTiles > 1) {
          tile_load<5>(x + next, kRowBytes);
          Dot::template run<2, 5, 6>();
          Dot::template run<3, 5, 7>();
        }
      }
    }
    tile_store<0>(sums, kPanelRowBytes);
    tile_store<1>(sums + kRowBytes, kPanelRowBytes);
    if constexpr (RowTiles > 1) {
      tile_store<2>(second, kPanelRowBytes);
      tile_store<3>(second + kRowBytes, kPanelRowBytes);
    }
  }
};

/// fp32 weights stay in fp32 unless less is asked for: read in a prompt or one by one, a token has
/// the same logits.
inline const GemmKernels* amx_gemm(const MatmulArgs& a) {
  if (a.rows < kMinRows) return nullptr;
  if (a.type == kWeightI8 || a.type == kWeightU8)
    return takes_codes(a) ? &kKernels<Codes<AmxUnit<DotInt8>>> : nullptr;
  const bool fp32 = a.precision == kPrecisionAuto || a.precision == kPrecisionW8A8;
  return a.type == kWeightF32 && fp32 ? nullptr : &kKernels<Floats<AmxUnit<DotBF16>>>;
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
