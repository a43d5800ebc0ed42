// Fixed-point products with AVX-512 VNNI: vpdpbusd adds four products of a code and a signed digit
// of x to a lane of 32 bits. See matmul_fixed.inl.
#pragma once

namespace wkv::cpu {
namespace {

inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }

/// The W lanes of v as bytes.
inline void store_low_bytes(unsigned char* to, __m512i v) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(v));
}

/// One code a byte. x is four digits of base 256 in -128..127: a step is two lines of [digit][64
/// inputs]. Signed codes are read as code + 128; the sums begin with -128 times those of the digits
/// then. For one row only: with more, converting the codes to floats once for all is as fast.
template <bool kSigned>
struct FixedByte {
  static constexpr int kDigits = 4, kBits = 30, kLines = 2;
  static constexpr int kInputs = kLines * 64, kBytes = kInputs, kGroups = 0;
  static constexpr int kXBytes = kLines * kDigits * 64, kHeadBytes = kDigits * 64;
  static constexpr int kMaxX = 1, kMaxRows = 1;
  static constexpr int weight_rows(int) { return 1; }

  static void prepare(unsigned char* to, const float* x, const float* scale, int in,
                      float inverse) {
    __m512i sums[kDigits] = {};
    unsigned char* at = to + kHeadBytes;
    const __m512i half = _mm512_set1_epi32(128), ones = _mm512_set1_epi8(1);
    const int end = (int)round_up((size_t)in, kInputs);
    for (int k = 0; k < end; k += 64, at += kDigits * 64) {
      for (int part = 0; part < 4; ++part) {
        const f32v v = scaled_inputs(x, scale, k + part * W, in) * inverse;
        __m512i rest = _mm512_cvtps_epi32((__m512)v);
#pragma GCC unroll 4
        for (int d = 0; d < kDigits; ++d) {
          store_low_bytes(at + 64 * d + 16 * part, rest);
          rest = _mm512_srai_epi32(_mm512_add_epi32(rest, half), 8);
        }
      }
      if constexpr (kSigned)
#pragma GCC unroll 4
        for (int d = 0; d < kDigits; ++d)
          sums[d] = _mm512_dpbusd_epi32(sums[d], ones, load_bytes(at + 64 * d));
    }
    for (int d = 0; d < kDigits; ++d)
      _mm512_storeu_si512(to + 64 * d, _mm512_sub_epi32(__m512i{}, _mm512_slli_epi32(sums[d], 7)));
  }

  template <int RW, int RX>
  struct Sums {
    static_assert(RW == 1 && RX == 1);
    __m512i digits[kLines][kDigits] = {};  // 4096 inputs of 255 * 128 stay below 2^31

    Sums(const unsigned char* head, ptrdiff_t) {
#pragma GCC unroll 4
      for (int d = 0; d < kDigits; ++d) digits[0][d] = load_bytes(head + 64 * d);
    }
    inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW],
                                                    const f16* const (&)[RW],
                                                    const unsigned char* x, ptrdiff_t) {
#pragma GCC unroll 4
      for (int line = 0; line < kLines; ++line, x += kDigits * 64) {
        __m512i codes = load_bytes(rows[0] + 64 * line);
        if constexpr (kSigned) codes = _mm512_xor_si512(codes, _mm512_set1_epi8((char)0x80));
#pragma GCC unroll 4
        for (int d = 0; d < kDigits; ++d)
          digits[line][d] = _mm512_dpbusd_epi32(digits[line][d], codes, load_bytes(x + 64 * d));
      }
    }
    float total(int, int) const {
      f32v t{};
      for (int d = kDigits - 1; d >= 0; --d)
        t = t * 256.0f + (f32v)_mm512_cvtepi32_ps(_mm512_add_epi32(digits[0][d], digits[1][d]));
      return sum(t);
    }
  };
};

/// Two codes a byte. x is three digits of base 256, even inputs apart from odd ones: a step is
/// [digit][even, odd][64 bytes], highest digit first, then for every lane, which holds 8 inputs of
/// one group, -8 times their sum.
struct FixedI4 {
  static constexpr int kDigits = 3, kBits = 22;
  static constexpr int kInputs = 128, kBytes = 64, kGroups = 4;
  static constexpr int kXBytes = (2 * kDigits + 1) * 64, kHeadBytes = 0;
  static constexpr int kMaxX = 4, kMaxRows = 1 << 30;
  static constexpr int weight_rows(int x_rows) { return x_rows == 1 ? 1 : x_rows == 2 ? 4 : 2; }

  static void prepare(unsigned char* to, const float* x, const float* scale, int in,
                      float inverse) {
    const __m512i half = _mm512_set1_epi32(128), ones = _mm512_set1_epi8(1);
    for (int k = 0; k < in; k += kInputs, to += kXBytes) {
      alignas(64) unsigned char digits[kDigits][kInputs];
      for (int part = 0; part < kInputs / W; ++part) {
        const f32v v = scaled_inputs(x, scale, k + part * W, in) * inverse;
        __m512i rest = _mm512_cvtps_epi32((__m512)v);
#pragma GCC unroll 4
        for (int d = kDigits - 1; d >= 0; --d) {
          store_low_bytes(digits[d] + part * W, rest);
          rest = _mm512_srai_epi32(_mm512_add_epi32(rest, half), 8);
        }
      }
      __m512i sums{};
      for (int d = 0; d < kDigits; ++d) {
        unsigned char* at = to + 128 * d;
        split_pairs(at, digits[d]);
        sums = _mm512_slli_epi32(sums, 8);
        sums = _mm512_dpbusd_epi32(sums, ones, load_bytes(at));
        sums = _mm512_dpbusd_epi32(sums, ones, load_bytes(at + 64));
      }
      _mm512_storeu_si512(to + 128 * kDigits,
                          _mm512_sub_epi32(__m512i{}, _mm512_slli_epi32(sums, 3)));
    }
  }

  /// 128 bytes to the 64 even ones, then the 64 odd ones.
  static void split_pairs(unsigned char* to, const unsigned char* from) {
    for (int half = 0; half < 2; ++half) {
      const __m512i pairs = load_bytes(from + 64 * half);
      _mm256_storeu_si256((__m256i*)(to + 32 * half), _mm512_cvtepi16_epi8(pairs));
      _mm256_storeu_si256((__m256i*)(to + 64 + 32 * half),
                          _mm512_cvtepi16_epi8(_mm512_srli_epi16(pairs, 8)));
    }
  }

  template <int RW, int RX>
  struct Sums {
    f32v sums[RX][RW] = {};

    Sums(const unsigned char*, ptrdiff_t) {}
    inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW],
                                                    const f16* const (&scales)[RW],
                                                    const unsigned char* x, ptrdiff_t xs) {
      const __m512i nibble = _mm512_set1_epi8(15);
      __m512i even[RW], odd[RW];
      f32v scale[RW];
#pragma GCC unroll 4
      for (int r = 0; r < RW; ++r) {
        const __m512i codes = load_bytes(rows[r]);
        even[r] = _mm512_and_si512(codes, nibble);
        odd[r] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
        scale[r] = CodecI4::scales(scales[r]);
      }
#pragma GCC unroll 4
      for (int m = 0; m < RX; ++m, x += xs) {
        __m512i t[RW] = {};
#pragma GCC unroll 4
        for (int d = 0; d < kDigits; ++d) {
          const __m512i x_even = load_bytes(x + 128 * d), x_odd = load_bytes(x + 128 * d + 64);
#pragma GCC unroll 4
          for (int r = 0; r < RW; ++r) {
            if (d > 0) t[r] = _mm512_slli_epi32(t[r], 8);
            t[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(t[r], even[r], x_even), odd[r], x_odd);
          }
        }
        const __m512i excess = load_bytes(x + 128 * kDigits);
#pragma GCC unroll 4
        for (int r = 0; r < RW; ++r)
          sums[m][r] += (f32v)_mm512_cvtepi32_ps(_mm512_add_epi32(t[r], excess)) * scale[r];
      }
    }
    float total(int m, int r) const { return sum(sums[m][r]); }
  };
};

}  // namespace
}  // namespace wkv::cpu
