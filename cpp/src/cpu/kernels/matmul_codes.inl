// The element types of W. A codec says how a step of kVectors vectors is read from memory and puts
// x into the order of its lanes, once per product.
#pragma once

#include "cpu/kernels_matmul.h"
#include "cpu/simd.h"

namespace wkv::cpu {
namespace {

/// Asks for the line at `p` so far ahead of its use. Which of both distances there are is part of
/// the type, so that no line costs a test.
template <bool kL2, bool kL1>
struct Ask {
  static constexpr bool kNothing = !kL2 && !kL1, kTwice = kL2 && kL1;
  StreamAhead ahead;

  inline __attribute__((always_inline)) void operator()(const void* p) const {
    if constexpr (kL2) __builtin_prefetch((const char*)p + ahead.l2, 0, 2);
    if constexpr (kL1) __builtin_prefetch((const char*)p + ahead.l1, 0, 3);
  }
  /// For what is an eighth of the bytes that the other call is for.
  inline __attribute__((always_inline)) void eighth(const void* p) const {
    if constexpr (kL2) __builtin_prefetch((const char*)p + ahead.l2 / 8, 0, 2);
  }
};
using AskNothing = Ask<false, false>;

/// f(Ask) for `ahead`.
template <class F>
inline __attribute__((always_inline)) void with_ask(StreamAhead ahead, F f) {
  if (ahead.l2 != 0 && ahead.l1 != 0)
    f(Ask<true, true>{ahead});
  else if (ahead.l2 != 0)
    f(Ask<true, false>{ahead});
  else if (ahead.l1 != 0)
    f(Ask<false, true>{ahead});
  else
    f(AskNothing{});
}

/// f(Ask) for `ahead` bytes into L1.
template <class F>
inline __attribute__((always_inline)) void with_ask(ptrdiff_t ahead, F f) {
  if (ahead != 0)
    f(Ask<false, true>{StreamAhead{0, ahead}});
  else
    f(AskNothing{});
}

/// kLinesAsked: lines of a stream that are asked for together, where they are asked for twice.
/// Granite Rapids, times as fast as GCC's order of a step: one line bf16 1.02, fp16 1.00, fp32
/// 0.98; two 0.96, 0.91 and 1.01; four lines, fp32, 0.98.
struct CodecF32 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 2;  // 1/4 input per byte
  static constexpr int kLinesAsked = 2;
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const float*)p + v * W); }
};

struct CodecF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static constexpr int kLinesAsked = 1;
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const f16*)p + v * W); }
};

/// A dword is two elements; shift and mask are cheaper than widening.
struct CodecBF16 {
  static constexpr int kVectors = 4, kInputsPerByteX8 = 4;
  static constexpr int kLinesAsked = 1;
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
  static constexpr int kLinesAsked = 1;
  static void order(f32v*) {}
  static f32v get(const unsigned char* p, int v) { return load((const Code*)p + v * W); }
};

template <class C>
constexpr int kStep = C::kVectors * W;  // inputs
template <class C>
constexpr int kStepBytes = kStep<C> * 8 / C::kInputsPerByteX8;

/// Rows of x as a constant.
template <int N>
struct Rows {
  static constexpr int n = N;
};

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
