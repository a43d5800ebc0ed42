// Products of many rows with the dot products of AVX512-BF16, which add two products of bf16 to a
// lane of fp32: on AMD twice as many a cycle as fp32's multiply-adds. Only what is one product of
// one part: `exact`, three of them, would be slower than fp32.
#pragma once

#include "cpu/kernels/matmul_bf16.inl"
#include "cpu/kernels/matmul_int8.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

/// Eight rows of x and a panel: 16 sums, 2 of W, x as an embedded broadcast. Denormals are zero in
/// these products, as in those of AMX.
struct DotUnit {
  static constexpr bool kTurned = false;
  static constexpr int kShift = 3;
  static constexpr int kMaxGroup = 256, kParts = 2;
  static void begin() {}
  static void end() {}

  static void run(const Sweep* sweeps, int count, int steps, ptrdiff_t next, int row_tiles,
                  char* sums, const char*, bool add, PanelAhead& ahead, int lines) {
    for (int t = 0; t < row_tiles; ++t)
      for (int r = 0; r < kRows; r += 8) {
        for (int s = 0; s < count; ++s)
          eight_rows(sweeps[s].x + t * next + r * kRowBytes, sweeps[s].panel, steps,
                     (float*)(sums + (t * kRows + r) * kPanelRowBytes), add || s > 0);
        ahead.ask((lines * steps + 2 * row_tiles - 1) / (2 * row_tiles));
      }
  }

  __attribute__((noinline)) static void eight_rows(const char* x, const char* w, int steps,
                                                   float* sums, bool add) {
    f32v acc[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        acc[r][half] = add ? load(sums + r * kPanelCols + half * W) : f32v{};
    for (int step = 0; step < steps; ++step, x += kTileBytes)
#pragma GCC unroll 16
      for (int i = 0; i < kRowBytes; i += 4, w += kPanelRowBytes) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w);
        const __m512bh w1 = (__m512bh)_mm512_loadu_si512(w + 64);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
          int32_t pair;
          __builtin_memcpy(&pair, x + r * kRowBytes + i, sizeof pair);
          const __m512bh xr = (__m512bh)_mm512_set1_epi32(pair);
          acc[r][0] = (f32v)_mm512_dpbf16_ps((__m512)acc[r][0], w0, xr);
          acc[r][1] = (f32v)_mm512_dpbf16_ps((__m512)acc[r][1], w1, xr);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) store(sums + r * kPanelCols + half * W, acc[r][half]);
  }
};

inline const GemmKernels* dot_gemm(const MatmulArgs& a) {
  if (a.type == kWeightI8 || a.type == kWeightU8) return vnni_gemm(a);
  const bool wide = a.type == kWeightF32 && a.precision != kPrecisionFast;
  if (wide || a.rows < kMinRows || parts_of_x(a) > 1) return nullptr;
  return &kKernels<Floats<DotUnit>>;
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
