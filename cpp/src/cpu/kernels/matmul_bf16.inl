// Products of many rows whose weights are no codes of 8 bits, in bf16. A value is cut into one
// part, rounded to bf16, or two, high + low, which err by 2^-17 of it; of the products of parts low
// * low is left out. Which: parts_of_x, parts_of_w.
#pragma once

#include "cpu/kernels/matmul_strips.inl"
#include "cpu/kernels/matmul_tiles.inl"
#include "cpu/kernels/round_bf16.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

/// The value of sixteen bf16.
inline f32v value(__m256i half) { return (f32v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16); }

/// What rounding to bf16 left of x; 0 where that is infinite or no number.
inline f32v remainder(f32v x, __m256i rounded) {
  const f32v high = value(rounded);
  const __mmask16 finite =
      _mm512_cmp_ps_mask((__m512)(high - high), _mm512_setzero_ps(), _CMP_EQ_OQ);
  return (f32v)_mm512_maskz_sub_ps(finite, (__m512)x, (__m512)high);
}

/// Matrices with a side below this are the low-rank factors of v6 and v7 (decays among them, whose
/// errors a state adds up) and models too small to be slow: exact unless "fast" is asked for.
constexpr int kSmallSide = 512;

inline int parts_of_x(const MatmulArgs& a) {
  if (a.precision == kPrecisionExact) return 2;
  if (a.precision == kPrecisionFast) return 1;
  return a.type == kWeightF16 || a.in < kSmallSide || a.out < kSmallSide ? 2 : 1;
}

inline int parts_of_w(const MatmulArgs& a) { return a.type == kWeightBF16 ? 1 : parts_of_x(a); }

using Expand = void (*)(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel);

inline Expand expand_of(const MatmulArgs& a) {
  switch (a.type) {
    case kWeightF32:
      return a.input_major ? InputMajor<float>::expand : OutputMajor<UnpackF32>::expand;
    case kWeightF16:
      return a.input_major ? InputMajor<f16>::expand : OutputMajor<UnpackF16>::expand;
    case kWeightBF16:
      return InputMajor<bf16>::expand;  // output-major needs no conversion
    default:
      return a.input_major ? InputMajorI4::expand : StripsI4::expand;
  }
}

/// An fp32 panel [steps * 32][kPanelCols] as pairs of bf16.
inline void to_pairs(const float* from, int steps, int parts, char* panel) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
  const __m512i interleaved = _mm512_load_si512(order);
  for (int pair = 0; pair < steps * kRows; ++pair, from += 2 * kPanelCols, panel += kPanelRowBytes)
    for (int half = 0; half < 2; ++half) {
      f32v even = load(from + half * W), odd = load(from + kPanelCols + half * W);
      for (int part = 0; part < parts; ++part) {
        const __m512i bits = to_bf16(even, odd);
        _mm512_storeu_si512(panel + part * kPanelBytes + half * kRowBytes,
                            _mm512_permutexvar_epi16(interleaved, bits));
        if (part + 1 == parts) break;
        even = remainder(even, _mm512_castsi512_si256(bits));
        odd = remainder(odd, _mm512_extracti64x4_epi64(bits, 1));
      }
    }
}

struct FloatRow {
  RowSums sums;
};

/// The family of bf16 parts.
template <class U>
struct Floats {
  using Unit = U;
  using Row = FloatRow;
  static constexpr int kInputs = 32;  // of a tile
  static constexpr bool kSumsPerPart = false;
  static constexpr size_t kSpareBytes = sizeof(float) * kSteps * kInputs * kPanelCols;

  static int x_parts(const MatmulArgs& a) { return parts_of_x(a); }
  static int w_parts(const MatmulArgs& a) { return parts_of_w(a); }

  static const MatmulArgs& at_the_end(const MatmulArgs& a) { return a; }

  static Row pack_row(const MatmulArgs& a, const float* x, const PackedRow& to) {
    for (int step = 0; step < to.l.steps; ++step) {
      char* at = to.at(step);
      const ptrdiff_t part_bytes = to.part_bytes(step);
      f32v first = input(a, x, step * kInputs), second = input(a, x, step * kInputs + W);
      for (int part = 0; part < to.l.parts; ++part) {
        const __m512i bits = to_bf16(first, second);
        _mm512_storeu_si512(at + part * part_bytes, bits);
        first = remainder(first, _mm512_castsi512_si256(bits));
        second = remainder(second, _mm512_extracti64x4_epi64(bits, 1));
      }
    }
    return {needs_sums(a.scales) ? row_sums(a.scales, x, a.in) : RowSums{}};
  }

  static void start(const MatmulArgs&, void*) {}

  static void expand(const MatmulArgs& a, int j, int n, int columns, int k0, int depth, int steps,
                     char* panel, void* spare) {
    j += n * kPanelCols;
    if (a.type == kWeightBF16 && !a.input_major) {
      turn_dwords(a, j, columns, 2 * k0, 2 * depth, steps, 0, 0, panel);
      turn_dwords(a, j + W, columns - W, 2 * k0, 2 * depth, steps, 0, 0, panel + kRowBytes);
      return;
    }
    float* values = (float*)spare;
    expand_of(a)(a, j, columns, k0, depth, values);
    const int absent = steps * kInputs - depth;
    __builtin_memset(values + depth * kPanelCols, 0, (size_t)(absent * kPanelCols) * sizeof(float));
    to_pairs(values, steps, parts_of_w(a), panel);
  }

  /// The smallest products first.
  static int sweeps(int x_parts, int w_parts, const char* x, ptrdiff_t part_bytes,
                    const char* panel, Sweep (&to)[3]) {
    int n = 0;
    if (x_parts > 1) to[n++] = {x + part_bytes, panel};
    if (w_parts > 1) to[n++] = {x, panel + kPanelBytes};
    to[n++] = {x, panel};
    return n;
  }

  static void finish(const MatmulArgs& a, const Row& row, const char* sums, int, int m,
                     ptrdiff_t y_row, int j, int stop, int, const void*) {
    store_outputs(a, row.sums, (const float*)(sums + m * kPanelRowBytes), y_row, j, stop);
  }
};

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
