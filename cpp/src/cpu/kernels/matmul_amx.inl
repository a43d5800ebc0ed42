// Products of many rows on the tile registers of AMX: 8-bit codes in integers (matmul_int8.inl),
// the other types in bf16 (matmul_bf16.inl).
#pragma once

#include "cpu/kernels/amx.inl"
#include "cpu/kernels/matmul_bf16.inl"
#include "cpu/kernels/matmul_few_int4.inl"
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
  static constexpr bool kSigned = true;
  template <int C, int X, int W>
  static void run() {
    if constexpr (Turned)
      tile_dot_int8<C, W, X>();
    else
      tile_dot_int8<C, X, W>();
  }
};
/// The same of W unsigned.
template <bool Turned>
struct DotUint8 {
  static constexpr bool kSigned = false;
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
  static constexpr bool kSigned = Dot<Turned>::kSigned;
  static constexpr int kShift = 4;
  // 256 rows of 2048 inputs are 1.04 to 1.08 times as fast as with 256, of 8192 1.09 to 1.16.
  static constexpr int kMaxGroup = 1024;
  // Every piece of a product reads x again: with 2048 inputs and more up to 1.06 times as fast as
  // with 2, int4 1.00.
  static constexpr int kParts = 4;
  static void begin() { tile_configure(kTileConfig); }
  static void end() { tile_release(); }

  static void run(const Sweep* sweeps, int count, int steps, ptrdiff_t next, int row_tiles,
                  char* sums, const char* next_sums, bool add, PanelAhead& ahead, int lines) {
    constexpr decltype(&tiles<1, 0>) kOf[2][3] = {
        {tiles<1, 0>, tiles<1, kInRows>, tiles<1, kAsks>},
        {tiles<2, 0>, tiles<2, kInRows>, tiles<2, kAsks>}};
    const bool asks = lines > 0 && ahead.rows > 0;
    const int kind = sweeps->rows != nullptr ? kInRows : asks ? kAsks : 0;
    kOf[row_tiles - 1][kind](sweeps, count, steps, next, sums, next_sums, add, ahead, lines);
  }

  /// Sums of 32 outputs with one tile of x, of its parts together or each.
  template <bool PerPart>
  static void run_once(const RowsOfW& of, char* sums, bool add, PanelAhead& ahead, int lines) {
    if (of.parts == 1)
      once<1, PerPart>(of, sums, add, ahead, lines);
    else
      once<2, PerPart>(of, sums, add, ahead, lines);
  }

 private:
  /// f.operator()<C>(where the sums of tile C are) for tiles 0 to Tiles - 1: halves, then parts.
  template <int Tiles, class F>
  __attribute__((always_inline)) static void for_sums(char* sums, F f) {
    f.template operator()<0>(sums);
    f.template operator()<1>(sums + kRowBytes);
    if constexpr (Tiles > 2) {
      f.template operator()<2>(sums + kStepBytes);
      f.template operator()<3>(sums + kStepBytes + kRowBytes);
    }
  }

  template <int Parts, bool PerPart>
  __attribute__((noinline)) static void once(const RowsOfW& of, char* sums, bool add,
                                             PanelAhead& ahead, int lines) {
    using D = Dot<Turned>;
    constexpr int kSums = PerPart ? 2 * Parts : 2, kNext = PerPart ? 2 : 0;
    for_sums<kSums>(sums, [=]<int C>(char* at) {
      if (add)
        tile_load<C>(at, kPanelRowBytes);
      else
        tile_zero<C>();
    });
    const char *x = of.x, *rows = of.rows;
    for (int step = 0; step < of.steps; ++step, x += kTileBytes, rows += kRowBytes) {
      tile_stream<6>(rows, of.row_bytes);
      tile_load<4>(x, kRowBytes);
      if constexpr (Parts > 1) {
        tile_load<5>(x + of.part_bytes, kRowBytes);
        D::template run<kNext, 5, 6>();
      }
      D::template run<0, 4, 6>();
      ahead.ask(lines >> 1);
      tile_stream<7>(rows + kRows * of.row_bytes, of.row_bytes);
      if constexpr (Parts > 1) D::template run<kNext + 1, 5, 7>();
      D::template run<1, 4, 7>();
      ahead.ask((lines + 1) >> 1);
    }
    for_sums<kSums>(sums, []<int C>(char* at) { tile_store<C>(at, kPanelRowBytes); });
  }

  // Kinds of run. kInRows: the first sweep takes W from where it lies, and asks for nothing. kAsks:
  // a line of W is asked for after each product; more at once hold up the loads of tiles behind
  // them.
  static constexpr int kInRows = 1, kAsks = 2;

  // Inlined, its pointers take the registers that the loops around it need.
  template <int RowTiles, int Kind>
  __attribute__((noinline)) static void tiles(const Sweep* sweeps, int count, int steps,
                                              ptrdiff_t next, char* sums, const char* next_sums,
                                              bool add, PanelAhead& ahead, int lines) {
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
    if constexpr (Kind == kInRows) {
      sweep<RowTiles, kInRows>(*sweeps, steps, next, next_sums, ahead, lines);
      ++sweeps, --count;
    }
    for (; count > 0; ++sweeps, --count)
      sweep<RowTiles, Kind == kAsks ? kAsks : 0>(*sweeps, steps, next, next_sums, ahead, lines);
    tile_store<0>(sums, kPanelRowBytes);
    tile_store<1>(sums + kRowBytes, kPanelRowBytes);
    if constexpr (RowTiles > 1) {
      tile_store<2>(second, kPanelRowBytes);
      tile_store<3>(second + kRowBytes, kPanelRowBytes);
    }
  }

  template <int RowTiles, int Kind>
  __attribute__((always_inline)) static void sweep(const Sweep& of, int steps, ptrdiff_t next,
                                                   const char* next_sums, PanelAhead& ahead,
                                                   int lines) {
    using D = Dot<Turned>;
    const char* x = of.x;
    char* w = of.panel;
    const char* rows = of.rows;
    const ptrdiff_t row_bytes = of.row_bytes;
    // For the sums of the next two tiles of x too, which lie in L2: 2 to 3 % of 256 rows.
    const auto ask = [&](int product) {
      __builtin_prefetch(next_sums + product * kRowBytes);
      if constexpr (Kind == kAsks) ahead.ask((lines + product) >> 2);
    };
    for (int step = 0; step < steps;
         ++step, x += kTileBytes, w += kStepBytes, next_sums += 4 * kRowBytes) {
      half_of_w<6, Kind>(w, rows, row_bytes);
      tile_stream<4>(x, kRowBytes);
      D::template run<0, 4, 6>();
      ask(0);
      half_of_w<7, Kind>(w + kRowBytes, Kind == kInRows ? rows + kRows * row_bytes : nullptr,
                         row_bytes);
      D::template run<1, 4, 7>();
      ask(1);
      if constexpr (RowTiles > 1) {
        tile_stream<5>(x + next, kRowBytes);
        D::template run<2, 5, 6>();
      }
      ask(2);
      if constexpr (RowTiles > 1) D::template run<3, 5, 7>();
      ask(3);
      if constexpr (Kind == kInRows) rows += kRowBytes;
    }
  }

  template <int T, int Kind>
  __attribute__((always_inline)) static void half_of_w(char* panel, const char* rows,
                                                       ptrdiff_t row_bytes) {
    if constexpr (Kind == kInRows) {
      tile_stream<T>(rows, row_bytes);
      tile_store<T>(panel, kPanelRowBytes);
    } else {
      tile_load<T>(panel, kPanelRowBytes);
    }
  }
};

/// From so many rows on weights that bf16, a byte or four bits hold are multiplied as `exact` says,
/// which two or three products of tiles do sooner than gemv. What wants both operands in parts
/// takes longer so: 16 rows of 2048 x 2048 in fp16 821 us, gemv 692 (Granite Rapids, two threads).
inline int least_rows(const MatmulArgs& a) {
  switch (a.type) {
    case kWeightBF16:
      return 7;
    case kWeightI8:
    case kWeightU8:
      return a.input_major ? 9 : 7;
    case kWeightI4:
      return a.input_major ? 9 : 5;
    default:
      return kMinRows;
  }
}
/// How many rows with int4 weights are multiplied by codes alone, and scaled then.
inline int most_few_rows(const MatmulArgs& a) { return a.input_major ? kRows : 2 * kRows; }

/// W in rows is turned: it need not be transposed, x is, once for all of W.
inline const GemmKernels* amx_gemm(const MatmulArgs& a) {
  if (a.rows < least_rows(a)) return nullptr;
  if (a.type == kWeightI4 && a.rows <= most_few_rows(a)) {
    using Family = Floats<AmxUnit<DotBF16, false>>;
    return a.input_major ? &FewInt4<Family, InRows4>::kKernels
                         : &FewInt4<Family, InStrips>::kKernels;
  }
  if (a.type == kWeightI8 || a.type == kWeightU8) {
    if (!takes_codes(a)) return nullptr;
    if (a.type == kWeightI8)
      return a.input_major ? &kKernels<Codes<AmxUnit<DotInt8, false>>>
                           : &kKernels<Codes<AmxUnit<DotInt8, true>>>;
    return a.input_major ? &kKernels<Codes<AmxUnit<DotUint8, false>>>
                         : &kKernels<Codes<AmxUnit<DotUint8, true>>>;
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
