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

/// act(sum + bias) * gate + add, stored or added to what is there.
WKV_DEV void store_output(const LinearJobParams& job, int row, int output, float sum) {
  if (job.bias != nullptr) sum += job.bias[output];
  float y = activate(sum, job.act);
  if (job.gate != nullptr) y *= job.gate[static_cast<std::int64_t>(row) * job.ldgate + output];
  if (job.add != nullptr) y += job.add[static_cast<std::int64_t>(row) * job.ldadd + output];
  float* to = job.y + static_cast<std::int64_t>(row) * job.ldy + output;
  *to = job.into != 0 ? *to + y : y;
}

}  // namespace wkv::cuda
