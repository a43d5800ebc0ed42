// Fixed-point products with AVX2: vpmaddwd adds two products of 16 bits to a lane of 32,
// vpmaddubsw two of bytes to a lane of 16, which codes up to 15 cannot overflow (full bytes would).
// See matmul_fixed.inl.
#pragma once

namespace wkv::cpu {
namespace {

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store_bytes(void* p, __m256i v) { _mm256_storeu_si256((__m256i*)p, v); }

/// One code a byte. x is two digits of base 2^15 in -2^14..2^14 (29 bits): a step is the two halves
/// of a line, each [high even, high odd, low even, low odd][16 inputs] of 16 bits.
template <bool kSigned>
struct FixedByte {
  static constexpr int kBits = 29;
  static constexpr int kInputs = 64;
  static constexpr int kMostStreams = 4;     // of eight Ice Lake reads 0.98 times as much
  static constexpr int kHalfBytes = 4 * 32;  // x of half a line
  static constexpr int kXBytes = 2 * kHalfBytes, kHeadBytes = 0;

  static void prepare(unsigned char* to, const float* x, const float* scale, int in,
                      float inverse) {
    const __m256i half = _mm256_set1_epi32(1 << 14);
    const int end = (int)round_up((size_t)in, kInputs);
    for (int k = 0; k < end; k += 32, to += kHalfBytes) {
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

  struct Sums {
    // 4 products of at most 255 * 2^14 for every 32 inputs go to a lane: 2^31 after 4112 inputs.
    static_assert(kSegment <= 4096);
    __m256i high{}, low{};

    static void start(const unsigned char*) {}
    inline __attribute__((always_inline)) void step(const unsigned char* row,
                                                    const unsigned char* x) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, row += 32, x += kHalfBytes) {
        const __m256i codes = load_bytes(row);
        __m256i even, odd;
        if constexpr (kSigned) {
          // 1 * even + 0 * odd: one operation for the two of a shift to and fro.
          even = _mm256_maddubs_epi16(_mm256_set1_epi16(1), codes);
          odd = _mm256_srai_epi16(codes, 8);
        } else {
          even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
          odd = _mm256_srli_epi16(codes, 8);
        }
        const auto both = [&](const unsigned char* digit) {
          return _mm256_add_epi32(_mm256_madd_epi16(even, load_bytes(digit)),
                                  _mm256_madd_epi16(odd, load_bytes(digit + 32)));
        };
        high = _mm256_add_epi32(high, both(x));
        low = _mm256_add_epi32(low, both(x + 64));
      }
    }
    f32v lanes() const {
      return (f32v)_mm256_cvtepi32_ps(high) * 32768.0f + (f32v)_mm256_cvtepi32_ps(low);
    }
  };
};

}  // namespace
}  // namespace wkv::cpu
