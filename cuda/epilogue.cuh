// What the matrix kernels share: which job a block works for, and what happens to a sum.
#pragma once

#include "cuda/kernels.h"
#include "cuda/math.cuh"

namespace wkv::cuda {

/// The job of this block; `block` becomes its index within the job. The last blocks of the jobs
/// ascend, and a group has at most 16.
WKV_DEV int find_job(const LinearParams& p, int& block) {
  int job = 0;
  while (block >= p.job[job].last_block) ++job;
  if (job > 0) block -= p.job[job - 1].last_block;
  return job;
}

/// What a product with offset weights needs of a row besides the product of the codes:
///   y = out_scale (D + zero sum(x in_scale)) + out_offset sum(x) + sum(x in_offset).
/// The sums are those of the unrounded x: with rounded ones the error is four times larger.
struct InputSums {
  float scaled, plain, offset;
};
/// By a whole warp, of inputs [first, last) of one row.
WKV_DEV InputSums input_sums(const float* x, const float* in_scale, const float* in_offset,
                             int first, int last, int lane) {
  InputSums sums = {0.0f, 0.0f, 0.0f};
  for (int i = first + lane; i < last; i += 32) {
    sums.scaled = fmaf(x[i], in_scale != nullptr ? in_scale[i] : 1.0f, sums.scaled);
    sums.plain += x[i];
    if (in_offset != nullptr) sums.offset = fmaf(x[i], in_offset[i], sums.offset);
  }
  return {warp_sum(sums.scaled), warp_sum(sums.plain), warp_sum(sums.offset)};
}
/// The product of quantised weights from that of their codes.
WKV_DEV float dequantise(const LinearJobParams& job, int output, float product,
                         const InputSums& sums) {
  float y = job.zero != 0.0f ? fmaf(job.zero, sums.scaled, product) : product;
  if (job.out_scale != nullptr) y *= job.out_scale[output];
  if (job.out_offset != nullptr) y = fmaf(job.out_offset[output], sums.plain, y);
  if (job.in_offset != nullptr) y += sums.offset;
  return y;
}

/// What an output needs besides its sum. Fetched early or for several outputs at once: a load from
/// L2 takes longer than the rest of the epilogue.
struct OutputTerms {
  float bias, gate, add;  ///< add: of the epilogue and of what `into` finds
};
WKV_DEV OutputTerms load_terms(const LinearJobParams& job, int row, int output) {
  OutputTerms terms = {0.0f, 1.0f, 0.0f};
  if (job.bias != nullptr) terms.bias = job.bias[output];
  if (job.gate != nullptr)
    terms.gate = job.gate[static_cast<std::int64_t>(row) * job.ldgate + output];
  if (job.add != nullptr) terms.add = job.add[static_cast<std::int64_t>(row) * job.ldadd + output];
  if (job.into != 0) terms.add += job.y[static_cast<std::int64_t>(row) * job.ldy + output];
  return terms;
}
/// y as the next product reads it; whoever has a row's last output also pads it.
WKV_DEV void store_rounded(const LinearJobParams& job, int row, int output, float y) {
  const int padded = (job.out + kPadTo - 1) / kPadTo * kPadTo;
  auto* to = static_cast<std::uint16_t*>(job.y16) + static_cast<std::int64_t>(row) * padded;
  to[output] = round_half(y * job.y16_scale, job.bf16);
  if (output == job.out - 1)
    for (int c = job.out; c < padded; ++c) to[c] = 0;
}
/// act(sum + bias) * gate + add, stored or added to what is there.
WKV_DEV void store_output(const LinearJobParams& job, int row, int output, float sum,
                          const OutputTerms& terms) {
  const float y = fmaf(activate(sum + terms.bias, job.act), terms.gate, terms.add);
  job.y[static_cast<std::int64_t>(row) * job.ldy + output] = y;
  if (job.y16 != nullptr) store_rounded(job, row, output, y);
}

/// The same for four neighbouring outputs of which the job has `n`.
struct OutputTerms4 {
  OutputTerms of[4];
};
/// Rows of what the epilogue reads and writes start 16-byte aligned.
WKV_DEV bool aligned_epilogue(const LinearJobParams& job) {
  const auto ends = [](const void* p, std::int32_t ld) {
    return p == nullptr ? std::uintptr_t{0}
                        : (reinterpret_cast<std::uintptr_t>(p) | static_cast<unsigned>(ld) * 4u);
  };
  return ((ends(job.y, job.ldy) | ends(job.gate, job.ldgate) | ends(job.add, job.ldadd) |
           ends(job.bias, 0)) &
          15u) == 0;
}
WKV_DEV OutputTerms4 load_terms4(const LinearJobParams& job, int row, int output, int n,
                                 bool vector) {
  OutputTerms4 t = {};
  if (!vector || n < 4) {
    for (int i = 0; i < 4; ++i)
      if (i < n) t.of[i] = load_terms(job, row, output + i);
    return t;
  }
  const auto load = [](const float* from) { return *reinterpret_cast<const float4*>(from); };
  const std::int64_t r = row;
  const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const float4 bias = job.bias != nullptr ? load(job.bias + output) : zero;
  const float4 gate = job.gate != nullptr ? load(job.gate + r * job.ldgate + output)
                                          : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
  const float4 add = job.add != nullptr ? load(job.add + r * job.ldadd + output) : zero;
  const float4 old = job.into != 0 ? load(job.y + r * job.ldy + output) : zero;
  t.of[0] = {bias.x, gate.x, add.x + old.x};
  t.of[1] = {bias.y, gate.y, add.y + old.y};
  t.of[2] = {bias.z, gate.z, add.z + old.z};
  t.of[3] = {bias.w, gate.w, add.w + old.w};
  return t;
}
WKV_DEV void store_outputs4(const LinearJobParams& job, int row, int output, int n, bool vector,
                            const float (&sum)[4], const OutputTerms4& t) {
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    y[i] = fmaf(activate(sum[i] + t.of[i].bias, job.act), t.of[i].gate, t.of[i].add);
  if (job.y16 != nullptr) {
    if (job.out % kPadTo == 0)
      store_halves(job.y16, static_cast<std::int64_t>(row) * job.out + output, y, job.y16_scale,
                   job.bf16);
    else
      for (int i = 0; i < 4; ++i)
        if (i < n) store_rounded(job, row, output + i, y[i]);
  }
  float* to = job.y + static_cast<std::int64_t>(row) * job.ldy + output;
  if (vector && n >= 4) {
    *reinterpret_cast<float4*>(to) = make_float4(y[0], y[1], y[2], y[3]);
    return;
  }
  for (int i = 0; i < 4; ++i)
    if (i < n) to[i] = y[i];
}

}  // namespace wkv::cuda
