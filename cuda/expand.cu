// Quantised weights as fp16, for products of so many rows that NVIDIA's library is worth it.
#include "cuda/codec.cuh"
#include "cuda/kernels.h"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread expands one 16-byte load, lane t of a quad: see codec.cuh for the inputs it covers.
template <class Codec>
__global__ void __launch_bounds__(kThreads) expand_kernel(const ExpandParams p) {
  constexpr int kInputs = 8;  // of a step
  const int loads = p.row_bytes / 16;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int output = index / loads, load = index % loads, run = load / 4, t = load % 4;
  if (output >= p.out) return;
  const Vec16 codes =
      load_stream(static_cast<const unsigned char*>(p.w) + std::int64_t{index} * 16);
  const float out_scale = p.out_scale != nullptr ? p.out_scale[output] : 1.0f;
  const float out_offset = p.out_offset != nullptr ? p.out_offset[output] : 0.0f;
  uint2 scales = {};
  if constexpr (Codec::kGroups)
    scales = reinterpret_cast<const uint2*>(p.group_scale + std::int64_t{output} * p.groups)[run];
  const std::uint32_t of_steps[2] = {scales.x, scales.y};
  wait_for_previous_kernel();  // which may still read what was expanded before
  const int padded = (p.in + kPadTo - 1) / kPadTo * kPadTo;
  auto* to = static_cast<std::uint16_t*>(p.to) + std::int64_t{output} * padded;
#pragma unroll
  for (int s = 0; s < Codec::kSteps; ++s) {
    const Pairs pairs = Codec::pairs(codes, s);
    const int first = (run * Codec::kSteps + s) * 32 + t * kInputs;
    const float step_scale = Codec::kGroups ? group_scale(of_steps, s) : out_scale;
    float w[kInputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      const std::uint32_t pair = pairs.p[i / 2];
      const float q = from_f16(static_cast<std::uint16_t>(i % 2 == 0 ? pair : pair >> 16));
      w[i] = (q + p.zero) * step_scale;
      if (first + i >= p.in) {
        w[i] = 0.0f;
        continue;
      }
      if (p.in_scale != nullptr) w[i] *= p.in_scale[first + i];
      if (p.in_offset != nullptr) w[i] += p.in_offset[first + i];
      w[i] += out_offset;
    }
    const auto half = [&](int i) { return to_f16(w[i] * p.scale); };
    *reinterpret_cast<Vec16*>(to + first) = {pack(half(0), half(1)), pack(half(2), half(3)),
                                             pack(half(4), half(5)), pack(half(6), half(7))};
  }
}

template <class Codec>
void make(Launch& out, const ExpandParams& p) {
  const int loads = p.out * (p.row_bytes / 16);
  make_launch(out, expand_kernel<Codec>, static_cast<unsigned>((loads + kThreads - 1) / kThreads),
              1, 1, kThreads, 0, p);
}

}  // namespace

void expand(Launch& out, Codec codec, const ExpandParams& p) {
  if (codec == Codec::u4)
    make<U4Codec>(out, p);
  else
    make<U8Codec>(out, p);
}

}  // namespace wkv::cuda
