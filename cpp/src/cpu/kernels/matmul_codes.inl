// The element types of W. A codec says how a step of kVectors vectors is read from memory and puts
// x into the order of its lanes, once per product.
#pragma once

#include "cpu/kernels_matmul.h"
#include "cpu/simd.h"

namespace wkv::cpu {
namespace {

/// The line at `p` is asked for so far ahead of its use.
inline __attribute__((always_inline)) void ask_ahead(const void* p, StreamAhead ahead) {
  if (ahead.l2 != 0) __builtin_prefetch((const char*)p + ahead.l2, 0, 2);
  if (ahead.l1 != 0) __builtin_prefetch((const char*)p + ahead.l1, 0, 3);
}

struct CodecF32 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 2;  // 1/4 input per byte
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const float*)p + v * W); }
};

struct CodecF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const f16*)p + v * W); }
};

/// A dword is two elements; shift and mask are cheaper than widening.
struct CodecBF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static void order(f32v* x) {
    split_pairs(x[0], x[1], &x[0], &x[1]);
    split_pairs(x[2], x[3], &x[2], &x[3]);
  }
  static f32v get(const unsigned char* p, int v) {
    u32v bits;
    __builtin_memcpy(&bits, p + v / 2 * kVectorBytes, sizeof bits);
    return (f32v)(v % 2 == 0 ? bits << 16 : bits & 0xffff0000u);
  }
};

template <class Code>
struct CodecByte {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 8;
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const Code*)p + v * W); }
};

template <class C>
constexpr int kStep = C::kVectors * W;  // inputs
template <class C>
constexpr int kStepBytes = kStep<C> * 8 / C::kInputsPerByteX8;

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

/// The scales and the zero point that are left when 128 is taken off unsigned codes.
inline MatmulArgs without_middle(const MatmulArgs& a) {
  MatmulArgs b = a;
  if (a.type == kWeightU8) b.scales.zero -= 128.0f;
  return b;
}

}  // namespace
}  // namespace wkv::cpu
