// Products of many rows with 8-bit codes in integers. A row of x becomes integers of 8, 16 or 24
// bits, cut into signed bytes that are multiplied one after another; the sums of bytes are exact.
//
//   x[k] in_scale[k] = scale (X[k] - zero),  X = ((digit 0) 256 + digit 1) 256 + digit 2
//   sum of (code - 128) (X - zero) = sum of code X - 128 sum of X - zero (sum of code - 128 in)
//
// With one digit `zero` moves the range of the row, which holds 0, onto all 254 codes: behind
// relu^2 that is half the error. It is the offset of the general form, (Q (v a + aa)) b + bb with
// bb = -(Q aa) b. 128 takes the middle out of the codes of W, or their mean would multiply the
// rounding of x; what it stands for is added in fp32 with the zero point of W (finish).
#pragma once

#include "cpu/kernels/matmul_tiles.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

constexpr int kMaxDigits = 3;
/// Bytes of x that a product is computed with.
inline int digits_of(const MatmulArgs& a) {
  if (a.rows < kMinRows) return kMaxDigits;
  switch (a.precision) {
    case kPrecisionW8A8:
      return 1;
    case kPrecisionFast:
      return 2;
    case kPrecisionExact:
      return kMaxDigits;
    default:  // mm8 promises the logits of its fp32 arithmetic to 1e-5
      return a.type == kWeightU8 ? kMaxDigits : 2;
  }
}

/// The largest |X| of so many digits; a little under what they hold, since the product that gives X
/// is rounded.
constexpr float kLargest[kMaxDigits + 1] = {0, 127, 127 * 256, 127 * 65536};
/// Sums of 128 * 254 for every input stay in 32 bits.
constexpr int kMaxCodeInputs = 65536;
/// Rows of smaller inputs are zero: the inverse of their scale would be infinite.
constexpr float kLeastInput = 0x1p-100f;

struct CodeRow {
  float scale, inverse;
  int zero;
  int sums[kMaxDigits];  ///< of each digit
  RowSums fp32;
};

/// The X of sixteen inputs of a row, 0 beyond its end.
inline __m512i integers(const MatmulArgs& a, const CodeRow& row, const float* x, int k) {
  __m512i v = _mm512_cvtps_epi32((__m512)(input(a, x, k) * row.inverse));
  if (row.zero == 0) return v;
  v = _mm512_add_epi32(v, _mm512_set1_epi32(row.zero));
  v = _mm512_max_epi32(_mm512_min_epi32(v, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
  const int n = a.in - k;
  return n < W ? _mm512_maskz_mov_epi32(n > 0 ? (__mmask16)((1u << n) - 1u) : (__mmask16)0, v) : v;
}

/// The scale and the zero point of a row, from its range.
inline CodeRow describe_codes(const MatmulArgs& a, const float* x) {
  CodeRow row{};
  constexpr int kChains = 4;  // of operations of 4 cycles
  __m512 most[kChains] = {}, least[kChains] = {};
  f32v poison[kChains] = {};
  for (int k = 0; k < a.in; k += kChains * W) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      const f32v v = input(a, x, k + i * W);
      most[i] = _mm512_max_ps((__m512)v, most[i]);
      least[i] = _mm512_min_ps((__m512)v, least[i]);
      poison[i] += v * 0.0f;
    }
  }
  const __m512 upper =
      _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  const __m512 lower =
      _mm512_min_ps(_mm512_min_ps(least[0], least[1]), _mm512_min_ps(least[2], least[3]));
  const float high = _mm512_reduce_max_ps(upper), low = _mm512_reduce_min_ps(lower);
  const float size = high > -low ? high : -low;
  const int digits = digits_of(a);
  if (size >= kLeastInput) {
    row.scale = digits == 1 ? high / 254.0f - low / 254.0f : size / kLargest[digits];
    row.inverse = 1.0f / row.scale;
    if (digits == 1) row.zero = -127 - (int)__builtin_rintf(low * row.inverse);
  }
  row.scale +=
      sum(poison[0] + poison[1] + poison[2] + poison[3]);  // infinities and NaN reach every output
  return row;
}

/// Four rows of 32 codes, W input-major, as dwords of four inputs.
inline void interleave(const unsigned char* const (&rows)[4], char* panel) {
  __m256i r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) r[i] = _mm256_loadu_si256((const __m256i*)rows[i]);
  const __m256i low01 = _mm256_unpacklo_epi8(r[0], r[1]);
  const __m256i low23 = _mm256_unpacklo_epi8(r[2], r[3]);
  const __m256i high01 = _mm256_unpackhi_epi8(r[0], r[1]);
  const __m256i high23 = _mm256_unpackhi_epi8(r[2], r[3]);
  // Outputs 4 i to 4 i + 3 in the low half of part i, those 16 further in the high half.
  const __m256i parts[4] = {
      _mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23),
      _mm256_unpacklo_epi16(high01, high23), _mm256_unpackhi_epi16(high01, high23)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128((__m128i*)(panel + 16 * i), _mm256_castsi256_si128(parts[i]));
    _mm_storeu_si128((__m128i*)(panel + 64 + 16 * i), _mm256_extracti128_si256(parts[i], 1));
  }
}

/// The codes of a stage, made unsigned by `flip` in every byte.
inline void expand_input_major(const MatmulArgs& a, const Stage& s, int flip, char* panel) {
  unsigned char part[4][kPanelCols];
  for (int k = 0; k < s.steps * kRowBytes; k += 4, panel += kPanelRowBytes) {
    const unsigned char* rows[4];
    for (int i = 0; i < 4; ++i) {
      rows[i] = (const unsigned char*)a.w + (s.k0 + k + i) * a.row_bytes + s.j;
      if (s.columns == kPanelCols && k + i < s.depth) continue;
      __builtin_memset(part[i], flip, kPanelCols);
      if (k + i < s.depth) __builtin_memcpy(part[i], rows[i], (size_t)s.columns);
      rows[i] = part[i];
    }
    interleave(rows, panel);
    if (flip != 0)
      for (int half = 0; half < kPanelCols * 4; half += 64) {
        const __m512i v = _mm512_loadu_si512(panel + half);
        _mm512_storeu_si512(panel + half, _mm512_xor_si512(v, _mm512_set1_epi8((char)flip)));
      }
  }
}

/// The family of 8-bit codes. U: what multiplies signed tiles of x with tiles of W, which hold
/// kWeightI8 + 128 unless the unit is `signed`.
template <class U>
struct Codes {
  using Unit = U;
  using Row = CodeRow;
  static constexpr int kInputs = 64;  // of a tile
  static constexpr bool kSumsPerPart = true;
  static constexpr int kMiddle = Unit::kSigned ? 0 : 128;  // of the codes in the panel
  static constexpr size_t kSpareBytes =
      Unit::kMaxGroup * sizeof(int);  // sums of the codes of each output

  static int x_parts(const MatmulArgs& a) { return digits_of(a); }
  static int w_parts(const MatmulArgs&) { return 1; }

  static MatmulArgs at_the_end(const MatmulArgs& a) { return without_middle(a); }

  static void pack_tile(const MatmulArgs& a, const Layout& l, const TileOfX& to, Row* rows) {
    const MatmulScales scales = without_middle(a).scales;
    for (int i = 0; i < to.rows; ++i) {
      const float* x = to.x + i * a.x_stride;
      rows[i] = describe_codes(a, x);
      if (needs_sums(scales)) rows[i].fp32 = row_sums(scales, x, a.in);
    }
    switch (l.parts) {
      case 1:
        return pack_digits<1>(a, l, to, rows);
      case 2:
        return pack_digits<2>(a, l, to, rows);
      default:
        return pack_digits<3>(a, l, to, rows);
    }
  }

  /// The signed bytes of X from the last to the first: a byte, then what is left, rounded, / 256.
  template <int D>
  static void pack_digits(const MatmulArgs& a, const Layout& l, const TileOfX& to, Row* rows) {
    alignas(64) char bytes[D][kTileBytes] = {};  // of a step
    __m512i sums[kRows][D] = {};                 // of X, of X / 256, ..., modulo 2^32
    for (int block = 0, k = 0; block < l.blocks(); ++block) {
      const int steps = l.block_steps(block);
      char* at = to.packed + l.at(to.chunk, block, to.tile);
      for (int step = 0; step < steps; ++step, k += kInputs, at += kTileBytes) {
        for (int r = 0; r < to.rows; ++r) {
#pragma GCC unroll 4
          for (int i = 0; i < kInputs; i += W) {
            __m512i v = integers(a, rows[r], to.x + r * a.x_stride, k + i);
#pragma GCC unroll 3
            for (int d = D - 1; d >= 0; --d) {
              sums[r][d] = _mm512_add_epi32(sums[r][d], v);
              _mm_storeu_si128((__m128i*)(bytes[d] + r * kRowBytes + i), _mm512_cvtepi32_epi8(v));
              v = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
            }
          }
        }
        for (int d = 0; d < D; ++d) {
          f32v v[W];
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) v[i] = load((const float*)(bytes[d] + i * kRowBytes));
          store_tile<Unit::kTurned>(v, at + d * steps * kTileBytes);
        }
      }
    }
    for (int r = 0; r < to.rows; ++r)
      for (int d = D - 1; d >= 0; --d) {
        __m512i sum = sums[r][d];
        if (d > 0) sum = _mm512_sub_epi32(sum, _mm512_slli_epi32(sums[r][d - 1], 8));
        rows[r].sums[d] = _mm512_reduce_add_epi32(sum);
      }
  }

  /// As in Floats. Not with one digit: sums of codes are made in the panel.
  static bool in_place(const MatmulArgs& a) {
    const bool as_they_are = a.type == (Unit::kSigned ? kWeightI8 : kWeightU8);
    return Unit::kTurned && as_they_are && !a.input_major && digits_of(a) > 1;
  }

  static void expand(const MatmulArgs& a, const Stage& s, const PanelTo& to, void* spare) {
    const int flip = a.type == kWeightI8 && !Unit::kSigned ? 0x80 : 0;
    const auto expand_rows = Unit::kTurned ? copy_panel : turn_panel;
    if (a.input_major)
      expand_input_major(a, s, flip, to.at);
    else
      expand_rows(a, s, 1, flip, to.at);
    if (digits_of(a) > 1) return;
    int* sums = (int*)spare + s.panel * kPanelCols;
    if (s.k0 == 0) __builtin_memset(sums, 0, kPanelCols * sizeof(int));
    add_codes(to.at, s.steps, sums);
  }

  /// To the sums of the codes of each output of a panel those of a block. Lines of the panel are
  /// fours of codes of sixteen outputs, or 64 codes of one if the unit is turned.
  static void add_codes(const char* panel, int steps, int* sums) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int half = 0; half < 2; ++half, panel += kRowBytes, sums += W) {
      __m512i total = _mm512_loadu_si512(sums);
      for (int i = 0; i < kRows; ++i) {
        __m512i fours = _mm512_setzero_si512();
        for (int step = 0; step < steps; ++step) {
          const __m512i v = _mm512_loadu_si512(panel + step * kStepBytes + i * kPanelRowBytes);
          fours = Unit::kSigned ? _mm512_dpbusd_epi32(fours, ones, v)
                                : _mm512_dpbusd_epi32(fours, v, ones);
        }
        if constexpr (Unit::kTurned)
          sums[i] += _mm512_reduce_add_epi32(fours);
        else
          total = _mm512_add_epi32(total, fours);
      }
      if constexpr (!Unit::kTurned) _mm512_storeu_si512(sums, total);
    }
  }

  static void sweeps(int, int, const char* x, ptrdiff_t, char* panel, ptrdiff_t, Sweep (&to)[3]) {
    to[0] = {x, panel};
  }

  static const RowSums& sums_of(const Row& row) { return row.fp32; }

  /// What products() needs of a tile of rows.
  struct TileRows {
    TileRows(const Row* rows, int n, int digits) {
      for (int i = 0; i < n; ++i) {
        for (int d = 0; d < digits; ++d) middle[d][i] = kMiddle * (unsigned)rows[i].sums[d];
        zero[i] = (uint32_t)rows[i].zero;
        scale[i] = rows[i].scale;
      }
    }
    uint32_t middle[kMaxDigits][kRows] = {}, zero[kRows] = {};
    float scale[kRows] = {};
  };

  /// From the sums for every digit. Of one digit: (X - zero) (code - kMiddle), in 32 bits modulo
  /// 2^32.
  static f32v products(const Square& square, const TileRows& rows, int i) {
    constexpr bool kTurned = Unit::kTurned;
    f32v p{};
    for (int d = 0; d < square.parts; ++d) {
      u32v v;
      __builtin_memcpy(&v, square.sums + d * kStepBytes + i * kPanelRowBytes, sizeof v);
      v -= lanes<kTurned, u32v>(rows.middle[d], i);
      if (square.parts == 1) {
        const u32v codes = lanes<!kTurned, u32v>((const uint32_t*)square.spare + square.output, i);
        v -= (codes - (uint32_t)(kMiddle * square.in)) * lanes<kTurned, u32v>(rows.zero, i);
      }
      p = p * 256.0f + __builtin_convertvector((i32v)v, f32v);
    }
    return p * lanes<kTurned, f32v>(rows.scale, i);
  }
};

/// The dot products of AVX-512 VNNI: eight rows of a tile at a time, two vectors of outputs.
struct VnniUnit {
  static constexpr bool kTurned = false, kSigned = false;
  static constexpr int kShift = 3;
  static constexpr int kMaxGroup = 256, kParts = 2;
  static void begin() {}
  static void end() {}

  static void run(const Sweep* sweeps, int, int steps, ptrdiff_t next, int row_tiles, char* sums,
                  const char*, bool add, PanelAhead& ahead, int lines) {
    for (int t = 0; t < row_tiles; ++t)
      for (int r = 0; r < kRows; r += 8) {
        eight_rows(sweeps->x + t * next + r * kRowBytes, sweeps->panel, steps,
                   sums + (t * kRows + r) * kPanelRowBytes, add);
        ahead.ask((lines * steps + 2 * row_tiles - 1) / (2 * row_tiles));
      }
  }

  // Emerald Rapids: 79 % of the peak as a loop, 93 % as 16 steps in a row. Inlined, the pointers of
  // the loops around it take registers.
  __attribute__((noinline)) static void eight_rows(const char* x, const char* w, int steps,
                                                   char* sums, bool add) {
    __m512i acc[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        acc[r][half] = add ? _mm512_loadu_si512(sums + r * kPanelRowBytes + half * 64)
                           : _mm512_setzero_si512();
    for (int step = 0; step < steps; ++step, x += kTileBytes)
#pragma GCC unroll 16
      for (int i = 0; i < kRowBytes; i += 4, w += kPanelRowBytes) {
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
          int32_t four;
          __builtin_memcpy(&four, x + r * kRowBytes + i, sizeof four);
          const __m512i xr = _mm512_set1_epi32(four);
          acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w0, xr);
          acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w1, xr);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        _mm512_storeu_si512(sums + r * kPanelRowBytes + half * 64, acc[r][half]);
  }
};

inline bool takes_codes(const MatmulArgs& a) {
  return (a.type == kWeightI8 || a.type == kWeightU8) && a.in <= kMaxCodeInputs;
}

inline const GemmKernels* vnni_gemm(const MatmulArgs& a) {
  return takes_codes(a) && a.rows >= kMinRows ? &kKernels<Codes<VnniUnit>> : nullptr;
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
