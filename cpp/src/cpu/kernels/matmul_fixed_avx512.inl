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

/// One code a byte. x is four digits of base 256 in -128..127: a step is a line of [digit][64
/// inputs], since a line is best asked for ahead right before one is read (Granite Rapids: 3 to 5 %
/// faster than two at a time). Signed codes are read as code + 128; the sums begin with -128 times
/// those of the digits then.
template <bool kSigned>
struct FixedByte {
  static constexpr int kDigits = 4, kBits = 30;
  static constexpr int kInputs = 64, kMostStreams = 8;
  static constexpr int kXBytes = kDigits * 64, kHeadBytes = kDigits * 64;

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

  struct Sums {
    // 4096 inputs of 255 * 128 stay below 2^31. Not __m512i, vectors of 64 bits to GCC 12: it
    // copies every sum before and after each instruction that takes it for one of 32, 8 of 20 in
    // the loop.
    i32v digits[kDigits];

    void start(const unsigned char* head) {
#pragma GCC unroll 4
      for (int d = 0; d < kDigits; ++d) digits[d] = (i32v)load_bytes(head + 64 * d);
    }
    inline __attribute__((always_inline)) void step(const unsigned char* row,
                                                    const unsigned char* x) {
      __m512i codes = load_bytes(row);
      if constexpr (kSigned) codes = _mm512_xor_si512(codes, _mm512_set1_epi8((char)0x80));
#pragma GCC unroll 4
      for (int d = 0; d < kDigits; ++d)
        digits[d] = (i32v)_mm512_dpbusd_epi32((__m512i)digits[d], codes, load_bytes(x + 64 * d));
    }
    f32v lanes() const {
      f32v t{};
      for (int d = kDigits - 1; d >= 0; --d)
        t = t * 256.0f + (f32v)_mm512_cvtepi32_ps((__m512i)digits[d]);
      return t;
    }
  };
};

}  // namespace
}  // namespace wkv::cpu
