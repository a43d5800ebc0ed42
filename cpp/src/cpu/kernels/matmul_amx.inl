// Products of many rows on the tile registers of AMX: 8-bit codes in integers (matmul_int8.inl),
// the other types in bf16 (matmul_bf16.inl).
#pragma once

#include "cpu/kernels/amx.inl"
#include "cpu/kernels/matmul_bf16.inl"
#include "cpu/kernels/matmul_int8.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

/// C += X W, or C^T += W X if turned.
template <bool Turned>
struct DotBF16 {
  template <int C, int X, int W>
  static void run() {
    if constexpr (Turned)
      tile_dot_bf16<C, W, X>();
    else
      tile_dot_bf16<C, X, W>();
  }
};
template <bool Turned>
struct DotInt8 {
  template <int C, int X, int W>
  static void run() {
    if constexpr (Turned)
      tile_dot_uint8_int8<C, W, X>();
    else
      tile_dot_int8_uint8<C, X, W>();
  }
};

/// Tiles 0 to 3 are sums [x tile][half of the panel], 4 and 5 x, 6 and 7 W. A step loads four tiles
/// for four products of 16 cycles each; two loads of a line per cycle leave half of them free. x
/// passes, W stays in L1: with the hint of tile_stream x costs it no lines (7 % of a bf16 product
/// of 256 rows).
template <template <bool> class Dot, bool Turned>
struct AmxUnit {
  static constexpr bool kTurned = Turned;
  static constexpr int kShift = 4;
  static void begin() { tile_configure(kTileConfig); }
  static void end() { tile_release(); }

  static void run(const Sweep* sweeps, int count, int steps, ptrdiff_t next, int row_tiles,
                  char* sums, bool add, PanelAhead& ahead, int lines) {
    if (row_tiles == 1)
      tiles<1>(sweeps, count, steps, next, sums, add, ahead, lines);
    else
      tiles<2>(sweeps, count, steps, next, sums, add, ahead, lines);
  }

  // Inlined, its pointers take the registers that the loops around it need. Lines are asked for one
  // after each product: more at once would hold up the loads of tiles behind them.
  template <int RowTiles>
  __attribute__((noinline)) static void tiles(const Sweep* sweeps, int count, int steps,
                                              ptrdiff_t next, char* sums, bool add,
                                              PanelAhead& ahead, int lines) {
    using D = Dot<Turned>;
    char* second = sums + kStepBytes;
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
      for (int step = 0; step < steps; ++step, x += kTileBytes, w += kStepBytes) {
        tile_load<6>(w, kPanelRowBytes);
        tile_stream<4>(x, kRowBytes);
        D::template run<0, 4, 6>();
        ahead.ask(lines >> 2);
        tile_load<7>(w + kRowBytes, kPanelRowBytes);
        D::template run<1, 4, 7>();
        ahead.ask((lines + 1) >> 2);
        if constexpr (RowTiles > 1) {
          tile_stream<5>(x + next, kRowBytes);
          D::template run<2, 5, 6>();
        }
        ahead.ask((lines + 2) >> 2);
        if constexpr (RowTiles > 1) D::template run<3, 5, 7>();
        ahead.ask((lines + 3) >> 2);
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

/// W in rows is turned: it need not be transposed, x is, once for all of W.
inline const GemmKernels* amx_gemm(const MatmulArgs& a) {
  if (a.rows < kMinRows) return nullptr;
  if (a.type == kWeightI8 || a.type == kWeightU8) {
    if (!takes_codes(a)) return nullptr;
    return a.input_major ? &kKernels<Codes<AmxUnit<DotInt8, false>>>
                         : &kKernels<Codes<AmxUnit<DotInt8, true>>>;
  }
  // fp32 weights stay in fp32 unless less is asked for: read in a prompt or one by one, a token has
  // the same logits.
  const bool fp32 = a.precision == kPrecisionAuto || a.precision == kPrecisionW8A8;
  if (a.type == kWeightF32 && fp32) return nullptr;
  return a.input_major || a.type == kWeightI4 ? &kKernels<Floats<AmxUnit<DotBF16, false>>>
                                              : &kKernels<Floats<AmxUnit<DotBF16, true>>>;
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
