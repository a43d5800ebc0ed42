// Products of few rows with int4 weights, strip by strip (matmul_strips.inl). Nothing has to be
// added up across lanes: a core of Zen 4 reads 34 GB/s out of L2 with AVX-512 and 20 with AVX2,
// where rows of W made 26 and 17.
//
// x becomes fixed point, three digits of base 256, so that products are those of bytes and sums are
// exact integers. It is rounded to 2^-22 of the largest of its row, about what sums in fp32 lose.
// Several rows with AVX2 stay floats, whose products take less time (docs/design/0012).
#pragma once

#include "cpu/kernels/matmul_fixed.inl"
#include "cpu/kernels/matmul_strips.inl"

namespace wkv::cpu {
namespace {

constexpr int kDigits4 = 3;
constexpr int kGroupFloats = kInt4Group + 4;  // x of a group, -8 times its sum, padding

/// x of a group: the digits, highest first, in every line the even inputs, then the odd ones; and
/// -8 times the sum of x, since codes stand for code - 8.
struct FixedGroup {
  alignas(32) int8_t digits[kDigits4][kInt4Group];
  int32_t excess;
};

/// Rows of x that a strip is taken with, and up to which x is in fixed point.
#if defined(__AVX512F__)
constexpr int kMaxX4 = 4, kMaxFixed4 = 1 << 30;
#elif defined(__AVX2__)
constexpr int kMaxX4 = 6, kMaxFixed4 = 1;
#else
constexpr int kMaxX4 = 1, kMaxFixed4 = 0;
#endif

/// What input i of a line is multiplied with, see strip_floats().
constexpr float kWeights[8] = {1.0f,     0x1p-4f,  0x1p-8f,  0x1p-12f,
                               0x1p-16f, 0x1p-20f, 0x1p-24f, 1.0f};

/// products [RX][kOutBlock] of one strip with RX rows of x as floats, [group][kGroupFloats][RX]. A
/// code is masked where it stands and converted there, 16^i times its worth, which is taken out of
/// x: three operations, all exact. `ask` is called at every group.
template <int RX, class Asking>
__attribute__((noinline)) void strip_floats(const Strip& strip, int groups, const float* x,
                                            Asking& ask, float* products) {
  constexpr int kVectors = kStrip / W;
  constexpr int kChains = RX * kVectors < 8 ? 2 : 1;  // by turns: one waits for its last product
  f32v sums[RX][kVectors] = {};
  const unsigned char* codes = strip.codes;
  const f16* scales = strip.scales;
  for (int g = 0; g < groups; ++g, scales += kStrip) {
    ask();
    f32v part[kChains][RX][kVectors] = {};
    for (int line = 0; line < kLines4; ++line, codes += kLineBytes4, x += 8 * RX) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        // GCC would keep codes in registers and sums in memory.
        if constexpr (kChains * RX * kVectors > 10) asm volatile("" ::: "memory");
        f32v w[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const u32v dwords = (u32v)load_dwords(codes + 4 * v * W);
          const u32v bits = i < 7 ? dwords & (15u << 4 * i) : dwords >> 28;
          w[v] = __builtin_convertvector((i32v)bits, f32v);
        }
#pragma GCC unroll 8
        for (int m = 0; m < RX; ++m) {
          const f32v xm = splat(x[i * RX + m]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) add_product(part[i % kChains][m][v], w[v], xm);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < RX; ++m) {
      const f32v excess = splat(x[m]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        f32v p = part[0][m][v] + excess;
        if constexpr (kChains > 1) p += part[1][m][v];
        sums[m][v] += p * load(scales + v * W);
      }
    }
    x += (kGroupFloats - kInt4Group) * RX;
  }
  for (int m = 0; m < RX; ++m)
    for (int v = 0; v < kVectors; ++v) store(products + m * kOutBlock + v * W, sums[m][v]);
}

#if defined(__AVX512F__)

inline void store_digits(FixedGroup* to, f32v v0, f32v v1) {
  const __m512i half = _mm512_set1_epi32(128);
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  __m512i n[2] = {_mm512_cvtps_epi32((__m512)v0), _mm512_cvtps_epi32((__m512)v1)};
  to->excess = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(n[0], n[1]));
  for (int d = kDigits4 - 1; d >= 0; --d)
    for (int h = 0; h < 2; ++h) {
      const __m128i bytes = _mm512_cvtepi32_epi8(n[h]);
      _mm_store_si128((__m128i*)(to->digits[d] + 16 * h), _mm_shuffle_epi8(bytes, order));
      n[h] = _mm512_srai_epi32(_mm512_add_epi32(n[h], half), 8);
    }
}

inline __m512i four_digits(const int8_t* p) {
  int32_t dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm512_set1_epi32(dword);
}

/// Sums of products with each digit as sums of products with x.
inline __m512i join_digits(__m512i high, __m512i middle, __m512i low) {
  high = _mm512_add_epi32(_mm512_slli_epi32(high, 8), middle);
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

/// What the next group of a strip, of which x is that group, adds to its products with one row.
template <class Asking>
inline __attribute__((always_inline)) void add_group(Strip& strip, const FixedGroup& x, Asking ask,
                                                     f32v& sum) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const unsigned char* codes = strip.codes;
  const f16* scales = strip.scales;
  strip.codes += kGroupBytes4;
  strip.scales += kStrip;
  ask.eighth(scales);
  __m512i even[kLines4], odd[kLines4];
#pragma GCC unroll 4
  for (int line = 0; line < kLines4; ++line) {
    const unsigned char* at = codes + line * kLineBytes4;
    ask(at);
    const __m512i pairs = _mm512_loadu_si512(at);
    even[line] = _mm512_and_si512(pairs, nibble);
    odd[line] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
  }
  const f32v scale = load(scales);
  __m512i t[kDigits4] = {};
  t[kDigits4 - 1] = _mm512_set1_epi32(x.excess);
#pragma GCC unroll 4
  for (int line = 0; line < kLines4; ++line)
#pragma GCC unroll 4
    for (int d = 0; d < kDigits4; ++d) {
      const int8_t* four = x.digits[d] + 8 * line;
      t[d] = _mm512_dpbusd_epi32(t[d], even[line], four_digits(four));
      t[d] = _mm512_dpbusd_epi32(t[d], odd[line], four_digits(four + 4));
    }
  sum += (f32v)_mm512_cvtepi32_ps(join_digits(t[0], t[1], t[2])) * scale;
}

/// products [kOutBlock] of one strip with one row of x.
template <class Asking>
void strip_fixed(Strip strip, int groups, const FixedGroup* x, float step, Asking ask,
                 float* products) {
  f32v sum{};
  for (int g = 0; g < groups; ++g) add_group(strip, x[g], ask, sum);
  store(products, sum * step);
}

/// products [strip][kStrip] of strips that are read by turns, a group of each, with one row of x.
template <int S, class Asking>
inline void turns_fixed(Strip (&strips)[S], int groups, const FixedGroup* x, float step, Asking ask,
                        float (*products)[kStrip]) {
  f32v sums[S] = {};
  for (int g = 0; g < groups; ++g)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) add_group(strips[s], x[g], ask, sums[s]);
  for (int s = 0; s < S; ++s) store(products[s], sums[s] * step);
}

/// products [RX][kOutBlock] of S strips next to each other. `steps`: of the rows of x. A core of
/// Ice Lake multiplies two vectors a cycle and loads little more than one (5.5 G and 3.2 G a
/// second), so digits of x serve two strips: times as fast as one strip at a time, 4 rows 1.2, 8 to
/// 15 rows 1.3 to 1.36.
template <int RX, int S, class Asking>
void strips_fixed(Strip (&strips)[S], int groups, const FixedGroup* x, ptrdiff_t xs,
                  const float* steps, Asking ask, float* products) {
  const __m512i nibble = _mm512_set1_epi8(15);
  f32v sums[RX][S] = {};
  for (int g = 0; g < groups; ++g, ++x) {
    __m512i t[RX][kDigits4][S] = {};
#pragma GCC unroll 4
    for (int m = 0; m < RX; ++m)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) t[m][kDigits4 - 1][s] = _mm512_set1_epi32(x[m * xs].excess);
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) ask.eighth(strips[s].scales);
#pragma GCC unroll 4
    for (int line = 0; line < kLines4; ++line) {
      __m512i pairs[S];
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) {
        const unsigned char* at = strips[s].codes + line * kLineBytes4;
        ask(at);
        pairs[s] = _mm512_loadu_si512(at);
      }
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        __m512i codes[S];
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s)
          codes[s] = _mm512_and_si512(odd ? _mm512_srli_epi16(pairs[s], 4) : pairs[s], nibble);
#pragma GCC unroll 4
        for (int m = 0; m < RX; ++m)
#pragma GCC unroll 4
          for (int d = 0; d < kDigits4; ++d) {
            const __m512i four = four_digits(x[m * xs].digits[d] + 8 * line + 4 * odd);
#pragma GCC unroll 2
            for (int s = 0; s < S; ++s)
              t[m][d][s] = _mm512_dpbusd_epi32(t[m][d][s], codes[s], four);
          }
      }
    }
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) {
      const f32v scale = load(strips[s].scales);
      strips[s].codes += kGroupBytes4;
      strips[s].scales += kStrip;
#pragma GCC unroll 4
      for (int m = 0; m < RX; ++m) {
        const __m512i all = join_digits(t[m][0][s], t[m][1][s], t[m][2][s]);
        sums[m][s] += (f32v)_mm512_cvtepi32_ps(all) * scale;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < RX; ++m)
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) store(products + m * kOutBlock + s * kStrip, sums[m][s] * steps[m]);
}

#elif defined(__AVX2__)

inline void store_digits(FixedGroup* to, const f32v (&v)[4]) {
  const __m256i half = _mm256_set1_epi32(128);
  const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                         0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  __m256i n[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) n[i] = _mm256_cvtps_epi32((__m256)v[i]);
  const i32v all =
      (i32v)_mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
  int32_t total = 0;
  for (int i = 0; i < W; ++i) total += all[i];
  to->excess = -8 * total;
#pragma GCC unroll 4
  for (int d = kDigits4 - 1; d >= 0; --d) {
    __m256i low[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i rest = _mm256_srai_epi32(_mm256_add_epi32(n[i], half), 8);
      low[i] = _mm256_sub_epi32(n[i], _mm256_slli_epi32(rest, 8));
      n[i] = rest;
    }
    // Packs keep to halves of 16 bytes, so dwords of bytes come as 0, 2, 4, 6 and 1, 3, 5, 7.
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(low[0], low[1]), _mm256_packs_epi32(low[2], low[3]));
    const __m256i in_order =
        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    store_bytes(to->digits[d], _mm256_shuffle_epi8(in_order, order));
  }
}

inline __m256i four_digits(const int8_t* p) {
  int32_t dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm256_set1_epi32(dword);
}

/// Of one row alone: more find no registers.
template <class Asking>
void strip_fixed(const Strip& strip, int groups, const FixedGroup* x, const float* steps,
                 Asking ask, float* products) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i one = _mm256_set1_epi16(1), base = _mm256_set1_epi16(256);
  f32v sums[2] = {};
  const unsigned char* codes = strip.codes;
  const f16* scales = strip.scales;
  for (int g = 0; g < groups; ++g, ++x, codes += kGroupBytes4, scales += kStrip) {
    ask.eighth(scales);
    // Eight times two products of at most 15 * 128 stay below 2^15.
    __m256i t[2][kDigits4];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int d = 0; d < kDigits4; ++d) t[half][d] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int line = 0; line < kLines4; ++line) {
      const unsigned char* at = codes + line * kLineBytes4;
      ask(at);
      __m256i x_even[kDigits4], x_odd[kDigits4];
#pragma GCC unroll 4
      for (int d = 0; d < kDigits4; ++d) {
        x_even[d] = four_digits(x->digits[d] + 8 * line);
        x_odd[d] = four_digits(x->digits[d] + 8 * line + 4);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i pairs = load_bytes(at + 32 * half);
        const __m256i even = _mm256_and_si256(pairs, nibble);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
#pragma GCC unroll 4
        for (int d = 0; d < kDigits4; ++d) {
          const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(even, x_even[d]),
                                                _mm256_maddubs_epi16(odd, x_odd[d]));
          t[half][d] = _mm256_add_epi16(t[half][d], both);
          // Line by line: GCC would else add up all products at last, from the stack.
          asm volatile("" : "+x"(t[half][d]));
        }
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i high =
          _mm256_add_epi32(_mm256_madd_epi16(t[half][0], base), _mm256_madd_epi16(t[half][1], one));
      const __m256i low =
          _mm256_add_epi32(_mm256_madd_epi16(t[half][2], one), _mm256_set1_epi32(x->excess));
      sums[half] += (f32v)_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low)) *
                    load(scales + half * W);
    }
  }
  store(products, sums[0] * *steps);
  store(products + W, sums[1] * *steps);
}

#endif

/// Rows of x that strips are taken with at once.
struct PartOfRows {
  int first, n;

  static int count(int rows) { return (rows + kMaxX4 - 1) / kMaxX4; }
  static PartOfRows of(int rows, int part) {
    const int parts = count(rows), first = rows * part / parts;
    return {first, rows * (part + 1) / parts - first};
  }
  /// That row m is in.
  static PartOfRows with(int rows, int m) {
    int part = 0;
    while (of(rows, part).first + of(rows, part).n <= m) ++part;
    return of(rows, part);
  }
};

/// Rows of x of a product, as fixed point or, where that does not hold one, as floats.
struct PreparedX4 {
  float* floats;      ///< [part of rows][group][kGroupFloats][row]
  FixedGroup* fixed;  ///< [rows][groups]
  float* steps;       ///< [rows]
  float* products;    ///< [rows][kOutBlock]
  RowSums* sums;      ///< [rows]

  static size_t bytes(const MatmulArgs& a) {
    const size_t groups = (size_t)groups_of(a);
    return (size_t)a.rows * (groups * kGroupFloats * sizeof(float) +
                             (1 + kOutBlock) * sizeof(float) + sizeof(RowSums));
  }

  PreparedX4(const MatmulArgs& a, void* scratch) {
    const ptrdiff_t groups = groups_of(a), rows = a.rows;
    static_assert(sizeof(FixedGroup) <= kGroupFloats * sizeof(float));
    fixed = (FixedGroup*)scratch;
    floats = (float*)scratch;
    steps = floats + rows * groups * kGroupFloats;
    products = steps + rows;
    sums = (RowSums*)(products + rows * kOutBlock);
  }

  /// Whether x is in fixed point; it is floats otherwise.
  bool prepare(const MatmulArgs& a) {
    const ptrdiff_t groups = groups_of(a);
    for (int m = 0; m < a.rows; ++m) {
      const float* row = a.x + m * a.x_stride;
      sums[m] = needs_sums(a.scales) ? row_sums(a.scales, row, a.in) : RowSums{};
    }
#if defined(__AVX2__)
    bool is_fixed = a.in <= 1 << 16 && a.rows <= kMaxFixed4;
    for (int m = 0; m < a.rows && is_fixed; ++m) {
      const float* row = a.x + m * a.x_stride;
      int32_t most;
      is_fixed = row_range(row, a.scales.in_scale, a.in, &most);
      if (!is_fixed) break;
      const RowStep s(most, 8 * kDigits4 - 2);
      steps[m] = s.step;
      for (int g = 0; g < groups; ++g) {
        f32v v[kInt4Group / W];
        for (int i = 0; i < kInt4Group / W; ++i)
          v[i] = scaled_inputs(row, a.scales.in_scale, g * kInt4Group + i * W, a.in) * s.inverse;
#if defined(__AVX512F__)
        store_digits(fixed + m * groups + g, v[0], v[1]);
#else
        store_digits(fixed + m * groups + g, v);
#endif
      }
    }
    if (is_fixed) return true;
#endif
    for (int m = 0; m < a.rows; ++m) {
      const PartOfRows part = PartOfRows::with(a.rows, m);
      for (int g = 0; g < groups; ++g) {
        float* to = floats + (part.first * groups + g * part.n) * kGroupFloats + m - part.first;
        f32v sum_of_8{};
        for (int k = 0; k < kInt4Group; k += W) {
          const f32v v =
              scaled_inputs(a.x + m * a.x_stride, a.scales.in_scale, g * kInt4Group + k, a.in);
          sum_of_8 -= 8.0f * v;
          f32v weights;
          for (int i = 0; i < W; ++i) weights[i] = kWeights[(k + i) % 8];
          const f32v weighted = v * weights;
          for (int i = 0; i < W; ++i) to[(k + i) * part.n] = weighted[i];
        }
        to[kInt4Group * part.n] = sum(sum_of_8);
      }
    }
    return false;
  }

  /// products[first + m][at + output] of RX rows from `first` on and of S strips from `strip` on; S
  /// is one where x is floats.
  template <int RX, int S, class Asking>
  void multiply(const MatmulArgs& a, [[maybe_unused]] bool is_fixed, int strip, int first, int at,
                Asking& ask) {
    const int groups = groups_of(a);
    [[maybe_unused]] const Strip s = strip_at(a, strip);
    float* to = products + first * kOutBlock + at;
#if defined(__AVX512F__)
    if (is_fixed) {
      const FixedGroup* x = fixed + (ptrdiff_t)first * groups;
      with_ask(a.ahead, [&](auto asking) {
        if constexpr (RX == 1) {
          for (int i = 0; i < S; ++i)
            strip_fixed(strip_at(a, strip + i), groups, x, steps[first], asking, to + i * kStrip);
        } else {
          Strip strips[S];
          for (int i = 0; i < S; ++i) strips[i] = strip_at(a, strip + i);
          strips_fixed<RX>(strips, groups, x, groups, steps + first, asking, to);
        }
      });
      return;
    }
#elif defined(__AVX2__)
    if constexpr (RX == 1)
      if (is_fixed) {
        with_ask(a.ahead, [&](auto asking) { strip_fixed(s, groups, fixed, steps, asking, to); });
        return;
      }
#endif
    if constexpr (S == 1)
      strip_floats<RX>(s, groups, floats + (ptrdiff_t)first * groups * kGroupFloats, ask, to);
  }
};

#if defined(__AVX512F__)

/// How many outputs of [begin, end) each of S streams reads, the first from begin on, the others
/// right behind it; what is left over is read as one stream. 0: all of it is.
template <int S>
inline int strips_apart(const MatmulArgs& a, int begin, int end) {
  // Two streams near each other are slower than one (Granite Rapids, two threads, GB/s of a loop
  // written to compare them: one stream 31, two that are 4 KiB apart 28, 64 KiB to 1 MiB 36).
  constexpr ptrdiff_t kLeastBytes = S == 2 ? 64 << 10 : 4 << 10;
  const int apart = (end - begin) / S / kStrip * kStrip;
  return apart * a.row_bytes >= kLeastBytes ? apart : 0;
}

/// Outputs of [begin, end) of one row of x in fixed point; bit for bit as strip by strip. Returns
/// the first that is left.
template <int S>
inline int strips_by_turns(const MatmulArgs& a, const PreparedX4& x, int begin, int end) {
  const int apart = strips_apart<S>(a, begin, end);
  for (int j = begin; j < begin + apart; j += kStrip) {
    float products[S][kStrip];
    Strip strips[S];
    for (int s = 0; s < S; ++s) {
      ask_operands(a, j + s * apart);
      strips[s] = strip_at(a, (j + s * apart) / kStrip);
    }
    with_ask(a.streams.ahead, [&](auto ask) {
      turns_fixed(strips, groups_of(a), x.fixed, x.steps[0], ask, products);
    });
    for (int s = 0; s < S; ++s)
      store_outputs(a, x.sums[0], products[s], 0, j + s * apart, j + s * apart + kStrip);
  }
  return begin + S * apart;
}

#endif

/// The strip that follows, asked for while one is computed `parts` times: a share at every group,
/// see AskInParts.
template <bool kOnePart>
struct AskStrip {
  const unsigned char* codes;
  const f16* scales;
  ptrdiff_t step;

  AskStrip(const MatmulArgs& a, int strip, int parts)
      : codes(strip_at(a, strip + 1).codes),
        scales(strip_at(a, strip + 1).scales),
        step(kGroupBytes4 / parts) {}
  void operator()() {
    __builtin_prefetch(scales, 0, 2);
#pragma GCC unroll 4
    for (int line = 0; line < kGroupBytes4 / (kOnePart ? 1 : 2); line += 64)
      __builtin_prefetch(codes + line, 0, 2);
    codes += step;
    scales += step * kStrip / kGroupBytes4;
  }
};

/// S strips and all rows of x.
template <int S, class Asking>
void multiply_strips(const MatmulArgs& a, PreparedX4& x, bool is_fixed, int strip, int at,
                     Asking ask) {
  for (int part = 0; part < PartOfRows::count(a.rows); ++part) {
    const PartOfRows rows = PartOfRows::of(a.rows, part);
    const auto multiply = [&](auto size) {
      if constexpr (size.n <= kMaxX4)
        x.template multiply<size.n, S>(a, is_fixed, strip, rows.first, at, ask);
    };
    switch (rows.n) {
      case 1:
        multiply(Rows<1>{});
        break;
      case 2:
        multiply(Rows<2>{});
        break;
      case 3:
        multiply(Rows<3>{});
        break;
      case 4:
        multiply(Rows<4>{});
        break;
      case 5:
        multiply(Rows<5>{});
        break;
      default:
        multiply(Rows<6>{});
    }
  }
}

void gemv_int4(const MatmulArgs& a, int begin, int end, void* scratch, bool is_fixed) {
  PreparedX4 x(a, scratch);
#if defined(__AVX512F__)
  if (is_fixed && a.rows == 1 && a.streams.count >= 2)
    begin = a.streams.count == 2 ? strips_by_turns<2>(a, x, begin, end)
                                 : strips_by_turns<8>(a, x, begin, end);
#endif
  const int parts = PartOfRows::count(a.rows);
  for (int j = begin; j < end; j += kOutBlock) {
    ask_operands(a, j);
    int at = 0;
#if defined(__AVX512F__)
    if (is_fixed && a.rows > 1 && end - j > kStrip) {
      multiply_strips<2>(a, x, true, j / kStrip, 0, AskNothing{});
      at = kOutBlock;
    }
#endif
    for (; at < kOutBlock && j + at < end; at += kStrip) {
      const int strip = (j + at) / kStrip;
      if (parts > 1)
        multiply_strips<1>(a, x, is_fixed, strip, at, AskStrip<false>(a, strip, parts));
      else
        multiply_strips<1>(a, x, is_fixed, strip, at, AskStrip<true>(a, strip, 1));
    }
    const int stop = end - j < kOutBlock ? end : j + kOutBlock;
    for (int m = 0; m < a.rows; ++m)
      store_outputs(a, x.sums[m], x.products + m * kOutBlock, m, j, stop);
  }
}

}  // namespace
}  // namespace wkv::cpu
