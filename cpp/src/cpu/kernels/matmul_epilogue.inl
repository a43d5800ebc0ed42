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
/// Zen 3.
inline void ask_operands(const MatmulArgs& a, int j) {
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

/// The same for two vectors of outputs, [j, j + 2 W) of which all exist, of many rows: what belongs
/// to the outputs is read once. Not by way of finish(): shared, its operands cost 3 to 7 % of the
/// instructions of a prompt in fp16 with AVX2.
class PanelEnd {
 public:
  PanelEnd(const MatmulArgs& a, int j) : a_(a), j_(j), sums_(needs_sums(a.scales)) {
    const auto operand = [](const float* p, f32v(&to)[2]) {
      if (p) to[0] = load(p), to[1] = load(p + W);
    };
    operand(a.scales.out_scale ? a.scales.out_scale + j : nullptr, scale_);
    operand(a.scales.out_offset ? a.scales.out_offset + j : nullptr, offset_);
    operand(a.epilogue.bias ? a.epilogue.bias + j : nullptr, bias_);
  }

  // Called, it takes 4 % of a bf16 product of 256 rows on AMX more.
  __attribute__((always_inline)) void store_row(const RowSums& sums, const f32v (&products)[2],
                                                ptrdiff_t row) const {
    const MatmulScales& s = a_.scales;
    const MatmulEpilogue& e = a_.epilogue;
    float* y = a_.y + row * a_.y_stride + j_;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      f32v p = products[half];
      if (sums_) p -= s.zero * sums.scaled;
      if (s.out_scale) p *= scale_[half];
      if (s.out_offset) p += offset_[half] * sums.plain;
      if (sums_) p += sums.offset;
      if (e.bias) p += bias_[half];
      if (e.act != kActNone) p = apply(e.act, p);
      if (e.gate) p *= load(e.gate + row * e.gate_stride + j_ + half * W);
      if (e.add) p += load(e.add + row * e.add_stride + j_ + half * W);
      if (e.accumulate) p += load(y + half * W);
      store(y + half * W, p);
    }
  }

 private:
  const MatmulArgs& a_;
  const int j_;
  const bool sums_;
  f32v scale_[2] = {}, offset_[2] = {}, bias_[2] = {};
};

}  // namespace
}  // namespace wkv::cpu
