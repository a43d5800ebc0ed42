// The element types of W. A codec says how a step of kVectors vectors is read from memory and which
// inputs its lanes are, so that x can be put into the same order once per product.
#pragma once

#include "cpu/kernels_matmul.h"
#include "cpu/simd.h"

namespace wkv::cpu {
namespace {

struct CodecF32 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 2;  // 1/4 input per byte
  static constexpr int input(int v, int lane) { return v * W + lane; }
  static f32v get(const unsigned char* p, int v) { return load((const float*)p + v * W); }
};

struct CodecF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static constexpr int input(int v, int lane) { return v * W + lane; }
  static f32v get(const unsigned char* p, int v) { return load((const f16*)p + v * W); }
};

/// A dword is two elements; shift and mask are cheaper than widening.
struct CodecBF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static constexpr int input(int v, int lane) { return v / 2 * 2 * W + 2 * lane + v % 2; }
  static f32v get(const unsigned char* p, int v) {
    u32v bits;
    __builtin_memcpy(&bits, p + v / 2 * kVectorBytes, sizeof bits);
    return (f32v)(v % 2 == 0 ? bits << 16 : bits & 0xffff0000u);
  }
};

template <class Code>
struct CodecByte {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 8;
  static constexpr int input(int v, int lane) { return v * W + lane; }
  static f32v get(const unsigned char* p, int v) { return load((const Code*)p + v * W); }
};

/// A dword is eight codes of one group. A code is masked where it stands and converted there, worth
/// 16^v times too much, which is taken out of x: three operations, all exact.
struct CodecI4 {
  static constexpr int kVectors = 8, kInputsPerByteX8 = 16;
  static constexpr int input(int v, int lane) { return 8 * lane + v; }
  static f32v get(const unsigned char* p, int v) {
    u32v bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    bits = v < 7 ? bits & (0xfu << 4 * v) : bits >> 28;
    return __builtin_convertvector((i32v)bits, f32v);
  }
  /// What x is multiplied with for vector v.
  static float weight(int v) {
    constexpr float kWeights[8] = {1.0f,     0x1p-4f,  0x1p-8f,  0x1p-12f,
                                   0x1p-16f, 0x1p-20f, 0x1p-24f, 1.0f};
    return kWeights[v];
  }
  static constexpr int kGroups = W / 4;  // groups of a step
  /// The scales of a step, each in the four lanes of its group.
  static f32v scales(const f16* s) {
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m128 four = _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)s));
    return (f32v)_mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(four));
#elif defined(__AVX2__)
    int32_t two;
    __builtin_memcpy(&two, s, sizeof two);
    const __m128 f = _mm_cvtph_ps(_mm_cvtsi32_si128(two));
    return (f32v)_mm256_set_m128(_mm_shuffle_ps(f, f, 0x55), _mm_shuffle_ps(f, f, 0x00));
#else
    return splat(f16_value(s->bits));
#endif
  }
};

template <class C>
constexpr int kStep = C::kVectors * W;  // inputs
template <class C>
constexpr int kStepBytes = kStep<C> * 8 / C::kInputsPerByteX8;

/// Inputs whose x, 16 KiB as floats, stays in L1. A multiple of every step.
constexpr int kSegment = 4096;

/// Where rows of W from r on are.
struct WeightRows {
  const unsigned char* codes;
  ptrdiff_t row_bytes;
  const f16* scales;  ///< int4
  ptrdiff_t groups;
  ptrdiff_t stream_ahead;
};

inline WeightRows weight_rows(const MatmulArgs& a, int r) {
  const ptrdiff_t groups = (a.in + kInt4Group - 1) / kInt4Group;
  return {(const unsigned char*)a.w + r * a.row_bytes, a.row_bytes,
          (const f16*)a.scales.group_scale + r * groups, groups, a.stream_ahead};
}

inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/// Sums over a row of x that offsets and the zero point are multiplied with.
struct RowSums {
  float scaled = 0;  ///< sum of x in_scale
  float plain = 0;   ///< sum of x
  float offset = 0;  ///< sum of x in_offset
};

inline bool needs_sums(const MatmulScales& s) {
  return s.zero != 0.0f || s.out_offset || s.in_offset;
}

inline RowSums row_sums(const MatmulScales& s, const float* x, int in) {
  f32v scaled{}, plain{}, offset{};
  for (int i = 0; i < in; i += W) {
    const int n = in - i < W ? in - i : W;
    const auto get = [&](const float* p) { return n < W ? load_part(p + i, n) : load(p + i); };
    const f32v v = get(x);
    plain += v;
    scaled += s.in_scale ? v * get(s.in_scale) : v;
    if (s.in_offset) offset += v * get(s.in_offset);
  }
  return {sum(scaled), sum(plain), sum(offset)};
}

}  // namespace
}  // namespace wkv::cpu
