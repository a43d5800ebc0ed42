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
  if (a.precision == kPrecisionExact || a.rows < kMinRows) return 2;
  if (a.precision == kPrecisionFast) return 1;
  return a.in < kSmallSide || a.out < kSmallSide ? 2 : 1;
}

inline int parts_of_w(const MatmulArgs& a) { return a.type == kWeightBF16 ? 1 : parts_of_x(a); }

using Expand = void (*)(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel);

inline Expand expand_of(const MatmulArgs& a) {
  switch (a.type) {
    case kWeightF32:
      return a.input_major ? InputMajor<float, kPanelCols>::expand
                           : OutputMajor<UnpackF32, kPanelCols>::expand;
    case kWeightF16:
      return a.input_major ? InputMajor<f16, kPanelCols>::expand
                           : OutputMajor<UnpackF16, kPanelCols>::expand;
    case kWeightBF16:
      return InputMajor<bf16, kPanelCols>::expand;  // output-major needs no conversion
    default:
      return InputMajorI4<kPanelCols>::expand;  // strips_to_pairs takes the others
  }
}

/// 32 values in parts, their bits as `arranged` puts them.
template <class Arranged>
inline void store_parts(f32v first, f32v second, int parts, char* at, ptrdiff_t part_bytes,
                        Arranged arranged) {
  for (int part = 0;; at += part_bytes) {
    const __m512i bits = to_bf16(first, second);
    _mm512_storeu_si512(at, arranged(bits));
    if (++part == parts) return;
    first = remainder(first, _mm512_castsi512_si256(bits));
    second = remainder(second, _mm512_extracti64x4_epi64(bits, 1));
  }
}
inline __m512i in_order(__m512i bits) { return bits; }

/// Stores two inputs of sixteen outputs as pairs of bf16, every part.
class Pairs {
 public:
  Pairs(int parts, ptrdiff_t part_bytes) : parts_(parts), part_bytes_(part_bytes) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    interleaved_ =
        _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  }
  void put(f32v even, f32v odd, char* at) const {
    store_parts(even, odd, parts_, at, part_bytes_,
                [this](__m512i bits) { return _mm512_permutexvar_epi16(interleaved_, bits); });
  }

 private:
  const int parts_;
  const ptrdiff_t part_bytes_;
  __m512i interleaved_;
};

/// A step of an fp32 panel, [32][kPanelCols], as pairs of bf16.
inline void to_pairs(const float* from, const Pairs& pairs, char* to) {
  for (int pair = 0; pair < kRows; ++pair, from += 2 * kPanelCols, to += kPanelRowBytes)
    for (int half = 0; half < 2; ++half)
      pairs.put(load(from + half * W), load(from + kPanelCols + half * W), to + half * kRowBytes);
}

/// What codes of four bits stand for.
inline __m512 level_of_code() {
  return _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
}

/// The step of int4 weights that begins with input k. Absent outputs are zero.
inline void strips_to_pairs(const MatmulArgs& a, const Stage& s, int k, const Pairs& pairs,
                            char* to) {
  static_assert(kStrip == W && kInt4Group == 2 * kRows);
  const __m512 values = level_of_code();
  for (int half = 0; half < 2; ++half, to += kRowBytes) {
    const ptrdiff_t group = k / kInt4Group;
    const bool exists = half * W < s.columns;
    const Strip strip = strip_at(a, (exists ? s.j + half * W : s.j) / kStrip);
    const f32v scale = exists ? load(strip.scales + group * kStrip) : f32v{};
    // The scales of the next panel: PanelAhead asks for its codes alone.
    __builtin_prefetch(strip.scales + (2 * (ptrdiff_t)groups_of(a) + group) * kStrip);
    const unsigned char* codes = strip.codes + group * kGroupBytes4;
    char* at = to;
    for (int line = 0; line < kLines4; ++line, codes += kLineBytes4) {
      u32v dwords = (u32v)load_dwords(codes);
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair, at += kPanelRowBytes, dwords >>= 8) {
        const __m512 even = _mm512_permutexvar_ps((__m512i)dwords, values);
        const __m512 odd = _mm512_permutexvar_ps((__m512i)(dwords >> 4), values);
        pairs.put((f32v)even * scale, (f32v)odd * scale, at);
      }
    }
  }
}

/// The same of int4 input-major, all of its inputs and outputs.
inline void nibbles_to_pairs(const MatmulArgs& a, int j, int k, const Pairs& pairs, char* to) {
  const f16* scales = (const f16*)a.scales.group_scale + (ptrdiff_t)(k / kInt4Group) * a.out + j;
  // Of the panels after those that are expanded with this one: PanelAhead asks for codes alone.
  __builtin_prefetch(scales + 4 * kPanelCols);
  const f32v scale[2] = {load(scales), load(scales + W)};
  const __m512 values = level_of_code();
  const __m512i odd = _mm512_set_epi32(4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0);
  const unsigned char* row = (const unsigned char*)a.w + k * a.row_bytes + j / 2;
  for (int pair = 0; pair < kRows; ++pair, to += kPanelRowBytes) {
    f32v v[2][2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i, row += a.row_bytes) {
      const __m128i codes = _mm_loadu_si128((const __m128i*)row);
      const __m128i twice[2] = {_mm_unpacklo_epi8(codes, codes), _mm_unpackhi_epi8(codes, codes)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i index = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(twice[half]), odd);
        v[half][i] = (f32v)_mm512_permutexvar_ps(index, values) * scale[half];
      }
    }
    pairs.put(v[0][0], v[0][1], to);
    pairs.put(v[1][0], v[1][1], to + kRowBytes);
  }
}

/// A step of weights in rows of outputs, all of its inputs and outputs.
template <class T>
void inputs_to_pairs(const MatmulArgs& a, int j, int k, const Pairs& pairs, char* to) {
  const auto row = [&](int i) {
    return (const T*)((const unsigned char*)a.w + (k + i) * a.row_bytes) + j;
  };
  for (int i = 0; i < 2 * kRows; i += 2, to += kPanelRowBytes) {
    pairs.put(load(row(i)), load(row(i + 1)), to);
    pairs.put(load(row(i) + W), load(row(i + 1) + W), to + kRowBytes);
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
  static constexpr size_t kSpareBytes = sizeof(float) * kInputs * kPanelCols;

  static int x_parts(const MatmulArgs& a) { return parts_of_x(a); }
  static int w_parts(const MatmulArgs& a) { return parts_of_w(a); }

  static const MatmulArgs& at_the_end(const MatmulArgs& a) { return a; }

  static void pack_tile(const MatmulArgs& a, const Layout& l, const TileOfX& to, Row* rows) {
    pack_sums(a, to.x, to.rows, rows);
    for (int block = 0; block < l.blocks(); ++block) pack_block(a, l, to, block, in_order);
  }
  static void pack_sums(const MatmulArgs& a, const float* x, int n, Row* rows) {
    for (int i = 0; i < n; ++i)
      rows[i] = {needs_sums(a.scales) ? row_sums(a.scales, x + i * a.x_stride, a.in) : RowSums{}};
  }
  template <class Arranged>
  static void pack_block(const MatmulArgs& a, const Layout& l, const TileOfX& to, int block,
                         Arranged arranged) {
    const int steps = l.block_steps(block);
    int k = (block << l.shift) * kInputs;
    char* at = to.packed + l.at(to.chunk, block, to.tile);
    for (int step = 0; step < steps; ++step, k += kInputs, at += kTileBytes)
      for (int part = 0; part < l.parts; ++part)
        pack_step(a, to, k, part, at + part * steps * kTileBytes, arranged);
  }
  template <class Arranged>
  static void pack_step(const MatmulArgs& a, const TileOfX& x, int k, int part, char* to,
                        Arranged arranged) {
    f32v v[W];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      if (i >= x.rows) {
        v[i] = f32v{};
        continue;
      }
      const float* row = x.x + i * a.x_stride;
      f32v first = input(a, row, k), second = input(a, row, k + W);
      if (part > 0) {
        const __m512i high = to_bf16(first, second);
        first = remainder(first, _mm512_castsi512_si256(high));
        second = remainder(second, _mm512_extracti64x4_epi64(high, 1));
      }
      v[i] = (f32v)arranged(to_bf16(first, second));
    }
    store_tile<Unit::kTurned>(v, to);
  }

  /// Whether tiles of W can be loaded from where it lies. The processor's own prefetcher sees what
  /// comes then, all but where a run of W begins, if it begins in the page of the run before.
  static bool in_place(const MatmulArgs& a) {
    return Unit::kTurned && a.type == kWeightBF16 && !a.input_major;
  }

  static void expand(const MatmulArgs& a, const Stage& s, const PanelTo& to, void* spare) {
    if (a.type == kWeightBF16 && !a.input_major) {
      const auto expand = Unit::kTurned ? copy_panel : turn_panel;
      return expand(a, s, sizeof(bf16), 0, to.at);
    }
    if constexpr (Unit::kTurned) {
      return a.type == kWeightF16 ? round_rows<f16>(a, s, to) : round_rows<float>(a, s, to);
    } else {
      const Pairs pairs(parts_of_w(a), to.part_bytes);
      for (int step = 0; step < s.steps; ++step) {
        const int k = step * kInputs, depth = s.depth - k < kInputs ? s.depth - k : kInputs;
        expand_step(a, s, s.k0 + k, depth, pairs, to.at + step * kStepBytes, (float*)spare);
      }
    }
  }

  static void expand_step(const MatmulArgs& a, const Stage& s, int k, int depth, const Pairs& pairs,
                          char* to, float* values) {
    if (a.type == kWeightI4 && !a.input_major) return strips_to_pairs(a, s, k, pairs, to);
    if (a.input_major && s.columns == kPanelCols && depth == kInputs) {
      if (a.type == kWeightBF16) return inputs_to_pairs<bf16>(a, s.j, k, pairs, to);
      if (a.type == kWeightF16) return inputs_to_pairs<f16>(a, s.j, k, pairs, to);
      if (a.type == kWeightF32) return inputs_to_pairs<float>(a, s.j, k, pairs, to);
      return nibbles_to_pairs(a, s.j, k, pairs, to);
    }
    expand_of(a)(a, s.j, s.columns, k, depth, values);
    const auto absent = (size_t)((kInputs - depth) * kPanelCols);
    __builtin_memset(values + depth * kPanelCols, 0, absent * sizeof(float));
    to_pairs(values, pairs, to);
  }

  /// Rows of W in parts.
  template <class T>
  static void round_rows(const MatmulArgs& a, const Stage& s, const PanelTo& to) {
    const int parts = parts_of_w(a);
    for (int i = 0; i < kPanelCols; ++i) {
      const T* w = (const T*)((const char*)a.w + (s.j + i) * a.row_bytes) + s.k0;
      char* at = to.at + i % W * kPanelRowBytes + i / W * kRowBytes;
      for (int step = 0; step < s.steps; ++step, w += kInputs, at += kStepBytes) {
        const int n = i < s.columns ? s.depth - step * kInputs : 0;
        f32v first{}, second{};
        if (n >= kInputs) {
          first = load(w), second = load(w + W);
        } else if (n > 0) {
          T part[kInputs] = {};
          __builtin_memcpy(part, w, (size_t)n * sizeof(T));
          first = load(part), second = load(part + W);
        }
        store_parts(first, second, parts, at, to.part_bytes, in_order);
      }
    }
  }

  /// The smallest products first.
  static void sweeps(int x_parts, int w_parts, const char* x, ptrdiff_t part_bytes, char* panel,
                     ptrdiff_t panel_part, Sweep (&to)[3]) {
    int n = 0;
    if (x_parts > 1) to[n++] = {x + part_bytes, panel};
    if (w_parts > 1) to[n++] = {x, panel + panel_part};
    to[n] = {x, panel};
  }

  static const RowSums& sums_of(const Row& row) { return row.sums; }

  struct TileRows {
    TileRows(const Row*, int, int) {}
  };
  static f32v products(const Square& square, const TileRows&, int i) {
    return load((const float*)(square.sums + i * kPanelRowBytes));
  }
};

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
