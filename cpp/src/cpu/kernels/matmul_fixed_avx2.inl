// Fixed-point products with AVX2: vpmaddwd adds two products of 16 bits to a lane of 32,
// vpmaddubsw two of bytes to a lane of 16, which codes up to 15 cannot overflow (full bytes would).
// See matmul_fixed.inl.
#pragma once

namespace wkv::cpu {
namespace {

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store_bytes(void* p, __m256i v) { _mm256_storeu_si256((__m256i*)p, v); }

/// One code a byte. x is two digits of base 2^15 in -2^14..2^14 (29 bits): a step is [high even,
/// high odd, low even, low odd][16 inputs] of 16 bits. For one row only: with more, converting the
/// codes to floats once for all is faster.
template <bool kSigned>
struct FixedByte {
  static constexpr int kBits = 29;
  static constexpr int kInputs = 32, kBytes = 32, kGroups = 0;
  static constexpr int kXBytes = 4 * 32, kHeadBytes = 0;
  static constexpr int kMaxX = 1, kMaxRows = 1;
  static constexpr int weight_rows(int) { return 2; }

  static void prepare(unsigned char* to, const float* x, const float* scale, int in,
                      float inverse) {
    const __m256i half = _mm256_set1_epi32(1 << 14);
    for (int k = 0; k < in; k += kInputs, to += kXBytes) {
      __m256i high[4], low[4];
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const f32v v = scaled_inputs(x, scale, k + part * W, in) * inverse;
        const __m256i n = _mm256_cvtps_epi32((__m256)v);
        high[part] = _mm256_srai_epi32(_mm256_add_epi32(n, half), 15);
        low[part] = _mm256_sub_epi32(n, _mm256_slli_epi32(high[part], 15));
      }
      store_bytes(to, packed<0x88>(high));
      store_bytes(to + 32, packed<0xdd>(high));
      store_bytes(to + 64, packed<0x88>(low));
      store_bytes(to + 96, packed<0xdd>(low));
    }
  }

  /// The even (0x88) or odd (0xdd) ones of 32 numbers as 16 bits, in order.
  template <int kWhich>
  static __m256i packed(const __m256i (&v)[4]) {
    const auto pick = [](__m256i a, __m256i b) {
      return _mm256_castps_si256(
          _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), kWhich));
    };
    const __m256i both = _mm256_packs_epi32(pick(v[0], v[1]), pick(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }

  template <int RW, int RX>
  struct Sums {
    static_assert(RX == 1);
    // 4 products of at most 255 * 2^14 for every 32 inputs go to a lane: 2^31 after 4112 inputs.
    static_assert(kSegment <= 4096);
    __m256i high[RW] = {}, low[RW] = {};

    Sums(const unsigned char*, ptrdiff_t) {}
    inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW],
                                                    const f16* const (&)[RW],
                                                    const unsigned char* x, ptrdiff_t) {
      const __m256i high_even = load_bytes(x), high_odd = load_bytes(x + 32);
      const __m256i low_even = load_bytes(x + 64), low_odd = load_bytes(x + 96);
#pragma GCC unroll 4
      for (int r = 0; r < RW; ++r) {
        const __m256i codes = load_bytes(rows[r]);
        __m256i even, odd;
        if constexpr (kSigned) {
          even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
          odd = _mm256_srai_epi16(codes, 8);
        } else {
          even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
          odd = _mm256_srli_epi16(codes, 8);
        }
        high[r] = _mm256_add_epi32(high[r], _mm256_add_epi32(_mm256_madd_epi16(even, high_even),
                                                             _mm256_madd_epi16(odd, high_odd)));
        low[r] = _mm256_add_epi32(low[r], _mm256_add_epi32(_mm256_madd_epi16(even, low_even),
                                                           _mm256_madd_epi16(odd, low_odd)));
      }
    }
    float total(int, int r) const {
      return sum((f32v)_mm256_cvtepi32_ps(high[r]) * 32768.0f + (f32v)_mm256_cvtepi32_ps(low[r]));
    }
  };
};

/// Two codes a byte. x is three digits of base 256, even inputs apart from odd ones: a step is four
/// times [digit][even, odd][32 bytes], highest digit first, each followed for every lane, which
/// holds 8 inputs of one group, by -8 times their sum.
struct FixedI4 {
  static constexpr int kDigits = 3, kBits = 22;
  static constexpr int kQuarters = 4;  // one conversion of eight scales instead of four of two
  static constexpr int kInputs = kQuarters * 64, kBytes = kQuarters * 32, kGroups = 8;
  static constexpr int kQuarterBytes = (2 * kDigits + 1) * 32;
  static constexpr int kXBytes = kQuarters * kQuarterBytes, kHeadBytes = 0;
  static constexpr int kMaxX = 4, kMaxRows = 1 << 30;
  static constexpr int weight_rows(int x_rows) { return x_rows <= 2 ? 2 : 1; }

  static void prepare(unsigned char* to, const float* x, const float* scale, int in,
                      float inverse) {
    const __m256i half = _mm256_set1_epi32(128);
    const int end = (int)round_up((size_t)in, kInputs);
    for (int k = 0; k < end; k += 64, to += kQuarterBytes) {
      __m256i digits[kDigits][8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const f32v v = scaled_inputs(x, scale, k + i * W, in) * inverse;
        __m256i rest = _mm256_cvtps_epi32((__m256)v);
#pragma GCC unroll 4
        for (int d = kDigits - 1; d >= 0; --d) {
          const __m256i next = _mm256_srai_epi32(_mm256_add_epi32(rest, half), 8);
          digits[d][i] = _mm256_sub_epi32(rest, _mm256_slli_epi32(next, 8));
          rest = next;
        }
      }
      __m256i sums{};
#pragma GCC unroll 4
      for (int d = 0; d < kDigits; ++d) {
        unsigned char* at = to + 64 * d;
        store_bytes(at, packed<0x88>(digits[d]));
        store_bytes(at + 32, packed<0xdd>(digits[d]));
        sums = _mm256_add_epi32(_mm256_slli_epi32(sums, 8),
                                _mm256_add_epi32(byte_sums(at), byte_sums(at + 32)));
      }
      store_bytes(to + 64 * kDigits, _mm256_sub_epi32(__m256i{}, _mm256_slli_epi32(sums, 3)));
    }
  }

  /// The even (0x88) or odd (0xdd) ones of 64 numbers as bytes, in order.
  template <int kWhich>
  static __m256i packed(const __m256i (&v)[8]) {
    const auto pick = [](__m256i a, __m256i b) {
      return _mm256_castps_si256(
          _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), kWhich));
    };
    // Picks and packs work on halves of 16 bytes: numbers 0 to 3 and 8 to 11 come before 4 to 7.
    const __m256i p0 = _mm256_packs_epi32(pick(v[0], v[1]), pick(v[2], v[3]));
    const __m256i p1 = _mm256_packs_epi32(pick(v[4], v[5]), pick(v[6], v[7]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i q0 = _mm256_permutevar8x32_epi32(p0, order);
    const __m256i q1 = _mm256_permutevar8x32_epi32(p1, order);
    return _mm256_permute4x64_epi64(_mm256_packs_epi16(q0, q1), 0xd8);
  }
  /// Of the four bytes of every lane.
  static __m256i byte_sums(const unsigned char* p) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_bytes(p));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }

  template <int RW, int RX>
  struct Sums {
    f32v sums[RX][RW] = {};

    Sums(const unsigned char*, ptrdiff_t) {}
    inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW],
                                                    const f16* const (&scales)[RW],
                                                    const unsigned char* x, ptrdiff_t xs) {
      const __m256i nibble = _mm256_set1_epi8(15);
      const __m256i one = _mm256_set1_epi16(1), base = _mm256_set1_epi16(256);
      __m256 all[RW];
#pragma GCC unroll 2
      for (int r = 0; r < RW; ++r)
        all[r] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales[r]));
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q, x += kQuarterBytes) {
        const __m256i lanes = _mm256_setr_epi32(2 * q, 2 * q, 2 * q, 2 * q, 2 * q + 1, 2 * q + 1,
                                                2 * q + 1, 2 * q + 1);
#pragma GCC unroll 2
        for (int r = 0; r < RW; ++r) {
          const __m256i codes = load_bytes(rows[r] + 32 * q);
          const __m256i even = _mm256_and_si256(codes, nibble);
          const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
          const f32v scale = (f32v)_mm256_permutevar8x32_ps(all[r], lanes);
          const auto products = [&](const unsigned char* at) {
            return _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(at)),
                                    _mm256_maddubs_epi16(odd, load_bytes(at + 32)));
          };
#pragma GCC unroll 4
          for (int m = 0; m < RX; ++m) {
            const unsigned char* at = x + m * xs;
            const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(products(at), base),
                                                  _mm256_madd_epi16(products(at + 64), one));
            const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(products(at + 128), one),
                                                 load_bytes(at + 64 * kDigits));
            sums[m][r] +=
                (f32v)_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low)) * scale;
          }
        }
      }
    }
    float total(int m, int r) const { return sum(sums[m][r]); }
  };
};

}  // namespace
}  // namespace wkv::cpu
