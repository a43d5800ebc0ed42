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

/// Outputs [begin, end) of one row; products[0] belongs to output `begin`.
inline void store_outputs(const MatmulArgs& a, const RowSums& sums, const float* products,
                          ptrdiff_t row, int begin, int end) {
  float* y = a.y + row * a.y_stride;
  for (int j = begin; j < end; j += W) {
    const int n = end - j < W ? end - j : W;
    const f32v p = n < W ? load_part(products + j - begin, n) : load(products + j - begin);
    f32v r = finish(a, sums, p, row, j, n);
    if (n < W) {
      if (a.epilogue.accumulate) r += load_part(y + j, n);
      store_part(y + j, r, n);
    } else {
      if (a.epilogue.accumulate) r += load(y + j);
      store(y + j, r);
    }
  }
}

/// The same for a vector of outputs, all of which exist, of many rows: what belongs to the outputs
/// is read once. Not by way of finish(): shared, its operands cost 3 to 7 % of the instructions of
/// a prompt in fp16 with AVX2.
class OutputsEnd {
 public:
  OutputsEnd(const MatmulArgs& a, int j) : a_(a), j_(j), sums_(needs_sums(a.scales)) {
    if (a.scales.out_scale) scale_ = load(a.scales.out_scale + j);
    if (a.scales.out_offset) offset_ = load(a.scales.out_offset + j);
    if (a.epilogue.bias) bias_ = load(a.epilogue.bias + j);
  }

  /// Whether store_row<false>() knows the activation; the others are too long to repeat per row.
  bool plain() const { return a_.epilogue.act == kActNone || a_.epilogue.act == kActReluSquared; }

  /// Called, it takes 4 % of a bf16 product of 256 rows on AMX more.
  template <bool AnyAct>
  __attribute__((always_inline)) void store_row(const RowSums& sums, f32v p, ptrdiff_t row) const {
    const MatmulScales& s = a_.scales;
    const MatmulEpilogue& e = a_.epilogue;
    if (sums_) p -= s.zero * sums.scaled;
    if (s.out_scale) p *= scale_;
    if (s.out_offset) p += offset_ * sums.plain;
    if (sums_) p += sums.offset;
    if (e.bias) p += bias_;
    if constexpr (AnyAct)
      p = apply(e.act, p);
    else if (e.act == kActReluSquared)
      p = relu_squared(p);
    if (e.gate) p *= load(e.gate + row * e.gate_stride + j_);
    if (e.add) p += load(e.add + row * e.add_stride + j_);
    float* y = a_.y + row * a_.y_stride + j_;
    if (e.accumulate) p += load(y);
    store(y, p);
  }

 private:
  const MatmulArgs& a_;
  const int j_;
  const bool sums_;
  f32v scale_{}, offset_{}, bias_{};
};

}  // namespace
}  // namespace wkv::cpu
