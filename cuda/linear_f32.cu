// y = x W^T with fp32 weights, in plain fused multiply-adds: a warp computes 4 outputs of 8 rows,
// its lanes share the inputs. The sum of an output does not depend on how many rows there are.
#include "cuda/epilogue.cuh"
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerWarp = 4;

__global__ void __launch_bounds__(kThreads)
    linear_f32_kernel(const __grid_constant__ LinearParams p) {
  int block = static_cast<int>(blockIdx.x);
  const LinearJobParams& job = p.job[find_job(p, block)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int output0 = block * kF32Outputs + warp * kPerWarp;
  const int row0 = static_cast<int>(blockIdx.y) * kF32Rows;
  const auto* weights = static_cast<const unsigned char*>(job.w);

  wait_for_previous_kernel();
  float acc[kPerWarp][kF32Rows] = {};
  for (int i = lane; i < job.in; i += 32) {
    float x[kF32Rows];
#pragma unroll
    for (int r = 0; r < kF32Rows; ++r)
      x[r] = row0 + r < p.rows ? job.x[static_cast<std::int64_t>(row0 + r) * job.ldx + i] : 0.0f;
#pragma unroll
    for (int o = 0; o < kPerWarp; ++o) {
      const std::int64_t output = output0 + o < job.out ? output0 + o : job.out - 1;
      const float w = reinterpret_cast<const float*>(weights + output * job.row_bytes)[i];
#pragma unroll
      for (int r = 0; r < kF32Rows; ++r) acc[o][r] = fmaf(w, x[r], acc[o][r]);
    }
  }
  static_assert(kPerWarp * kF32Rows == 32, "one sum per lane");
  float mine = 0.0f;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float sum = warp_sum(acc[i / kF32Rows][i % kF32Rows]);
    if (lane == i) mine = sum;
  }
  const int row = row0 + lane % kF32Rows, output = output0 + lane / kF32Rows;
  if (row < p.rows && output < job.out)
    store_output(job, row, output, mine, load_terms(job, row, output));
}

}  // namespace

void linear_f32(Launch& out, const LinearParams& p, int blocks) {
  make_launch(out, linear_f32_kernel, static_cast<unsigned>(blocks),
              static_cast<unsigned>((p.rows + kF32Rows - 1) / kF32Rows), 1, kThreads, 0, p,
              used_bytes(p));
}

}  // namespace wkv::cuda
