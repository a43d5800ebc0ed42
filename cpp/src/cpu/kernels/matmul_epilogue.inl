// The last step of a product: scales and offsets of W, act(p + bias) * gate + add, stored or
// accumulated.
#pragma once

#include "cpu/kernels/matmul_codes.inl"

namespace wkv::cpu {
namespace {

inline f32v finish(const MatmulArgs& a, const RowSums& sums, f32v p, ptrdiff_t row, int j, int n) {
  const auto operand = [n](const float* at) { return n < W ? load_part(at, n) : load(at); };
  const MatmulScales& s = a.scales;
  const MatmulEpilogue& e = a.epilogue;
  p -= s.zero * sums.scaled;
  if (s.out_scale) p *= operand(s.out_scale + j);
  if (s.out_offset) p += operand(s.out_offset + j) * sums.plain;
  p += sums.offset;
  if (e.bias) p += operand(e.bias + j);
  if (e.act != kActNone) p = apply(e.act, p);
  if (e.gate) p *= operand(e.gate + row * e.gate_stride + j);
  if (e.add) p += operand(e.add + row * e.add_stride + j);
  return p;
}

/// Asks for what the outputs from j on need beside W, two lines of each. Nothing else follows these
/// vectors through memory: without, store_outputs() took 3.6 % of the time of an int8 token on
/// Zen 3. always_inline: GCC 12 drops calls of a function that does nothing else.
inline __attribute__((always_inline)) void ask_operands(const MatmulArgs& a, int j) {
  const float* const vectors[] = {a.scales.out_scale, a.scales.out_offset, a.epilogue.bias};
  for (const float* p : vectors) {
    if (!p) continue;
    __builtin_prefetch(p + j);
    __builtin_prefetch(p + j + 16);
  }
}

/// The end of most products of a prompt: little is left to do.
struct ShortEnd {
  /// Whether that is all.
  static bool of(const MatmulArgs& a) {
    const MatmulEpilogue& e = a.epilogue;
    return !needs_sums(a.scales) && !a.scales.out_offset && !e.bias && !e.gate && !e.add &&
           (e.act == kActNone || e.act == kActReluSquared);
  }
  template <bool kScaled, bool kRelu, bool kAdd>
  static void store_vectors(const float* products, const float* scale, float* y, int n) {
    const auto one = [=](int j) __attribute__((always_inline)) {
      f32v p = load(products + j);
      if constexpr (kScaled) p *= load(scale + j);
      if constexpr (kRelu) p = relu_squared(p);
      if constexpr (kAdd) p += load(y + j);
      store(y + j, p);
    };
    int j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) one(j + i * W);
    }
    for (; j < n; j += W) one(j);
  }
  template <bool kScaled, bool kRelu>
  static void store_vectors(bool add, const float* products, const float* scale, float* y, int n) {
    if (add)
      store_vectors<kScaled, kRelu, true>(products, scale, y, n);
    else
      store_vectors<kScaled, kRelu, false>(products, scale, y, n);
  }
  /// `n` outputs, whole vectors, from output j of a row of y on.
  static void store_vectors(const MatmulArgs& a, const float* products, float* y, int j, int n) {
    const float* scale = a.scales.out_scale ? a.scales.out_scale + j : nullptr;
    const bool add = a.epilogue.accumulate, relu = a.epilogue.act == kActReluSquared;
    if (scale)
      relu ? store_vectors<true, true>(add, products, scale, y + j, n)
           : store_vectors<true, false>(add, products, scale, y + j, n);
    else
      relu ? store_vectors<false, true>(add, products, scale, y + j, n)
           : store_vectors<false, false>(add, products, scale, y + j, n);
  }
};

/// Outputs [begin, end) of one row; products[0] belongs to output `begin`.
inline void store_outputs(const MatmulArgs& a, const RowSums& sums, const float* products,
                          ptrdiff_t row, int begin, int end) {
  const MatmulEpilogue& e = a.epilogue;
  float* y = a.y + row * a.y_stride;
  int j = begin;
  if (ShortEnd::of(a)) {
    const int n = (end - begin) / W * W;
    ShortEnd::store_vectors(a, products, y, begin, n);
    j += n;
  }
  for (; j < end; j += W) {
    const int n = end - j < W ? end - j : W;
    const f32v p = n < W ? load_part(products + j - begin, n) : load(products + j - begin);
    f32v r = finish(a, sums, p, row, j, n);
    if (n < W) {
      if (e.accumulate) r += load_part(y + j, n);
      store_part(y + j, r, n);
    } else {
      if (e.accumulate) r += load(y + j);
      store(y + j, r);
    }
  }
}

}  // namespace
}  // namespace wkv::cpu
