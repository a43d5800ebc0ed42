// LayerNorm: one block per row, the row in registers, two passes over it (mean, then variance), all
// relative to the row's first value: rows with a large common part keep their small differences.
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKept = 32;  // values per thread in registers: rows up to 8192; longer are read again

/// The sum over the block, in the same order for every thread.
WKV_DEV float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

/// store(column, value) for every column of this block's row.
template <class Store>
WKV_DEV void normalise_row(const LayerNormParams& p, float* scratch, Store&& store) {
  const float* x = p.x + static_cast<std::int64_t>(blockIdx.x) * p.ldx;
  const int thread = static_cast<int>(threadIdx.x);
  const int kept = p.cols < kKept * kThreads ? p.cols : kKept * kThreads;

  const float origin = x[0];
  float held[kKept];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int c = thread + i * kThreads;
    held[i] = c < kept ? x[c] - origin : 0.0f;
    sum += held[i];
  }
  for (int c = thread + kept; c < p.cols; c += kThreads) sum += x[c] - origin;
  const float mean = block_sum(sum, scratch) / static_cast<float>(p.cols);

  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const float d = thread + i * kThreads < kept ? held[i] - mean : 0.0f;
    squares = fmaf(d, d, squares);
  }
  for (int c = thread + kept; c < p.cols; c += kThreads)
    squares = fmaf(x[c] - origin - mean, x[c] - origin - mean, squares);
  const float variance = block_sum(squares, scratch) / static_cast<float>(p.cols);
  const float scale = 1.0f / sqrtf(variance + p.eps);

#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int c = thread + i * kThreads;
    if (c < kept) store(c, fmaf((held[i] - mean) * scale, p.weight[c], p.bias[c]));
  }
  for (int c = thread + kept; c < p.cols; c += kThreads)
    store(c, fmaf((x[c] - origin - mean) * scale, p.weight[c], p.bias[c]));
}

// Two blocks per processor: without the bound ptxas aims at three and spills.
__global__ void __launch_bounds__(kThreads, 2) layer_norm_kernel(const LayerNormParams p) {
  __shared__ float scratch[kWarps];
  wait_for_previous_kernel();
  float* y = p.y + static_cast<std::int64_t>(blockIdx.x) * p.ldy;
  normalise_row(p, scratch, [&](int c, float v) { y[c] = v; });
}

__global__ void __launch_bounds__(kThreads, 2)
    norm_mix_kernel(const __grid_constant__ NormMixParams p) {
  __shared__ float scratch[kWarps];
  wait_for_previous_kernel();
  const std::int64_t row = blockIdx.x;
  const MixParams& m = p.mix;
  float* normal = p.norm.y + row * p.norm.ldy;
  float* slot =
      m.batch.state[m.batch.first_of[row]] + m.slot;  // every row is a sequence of its own
  normalise_row(p.norm, scratch, [&](int c, float v) {
    const float dx = slot[c] - v;
    slot[c] = v;
    normal[c] = v;
    if (m.delta != 0) {
      m.y[0][row * m.ldy + c] = dx;
      return;
    }
#pragma unroll
    for (int g = 0; g < kMaxMix; ++g)
      if (g < m.outputs) m.y[g][row * m.ldy + c] = fmaf(dx, m.mu[g][c], v);
  });
}

}  // namespace

void layer_norm(Launch& out, const LayerNormParams& p) {
  make_launch(out, layer_norm_kernel, static_cast<unsigned>(p.rows), 1, 1, kThreads, 0, p);
}

void norm_mix(Launch& out, const NormMixParams& p) {
  make_launch(out, norm_mix_kernel, static_cast<unsigned>(p.norm.rows), 1, 1, kThreads, 0, p);
}

}  // namespace wkv::cuda
