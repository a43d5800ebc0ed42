// LayerNorm: one block per row, the row in registers, two passes over it (mean, then variance), all
// relative to the row's first value: rows with a large common part keep their small differences.
// One row of a decoding step is a matter of latency alone: everything that does not depend on the
// kernel before is loaded before the wait, and what does in one round.
#include "cuda/four.cuh"
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / 32;

/// The sum over the block, in the same order for every thread. `scratch` is used once.
WKV_DEV float block_sum(float v, float (&scratch)[kMaxWarps]) {
  v = warp_sum(v);
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  if (thread % 32 == 0) scratch[thread / 32] = v;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxWarps; ++i)
    if (i < warps) sum += scratch[i];
  return sum;
}

/// Four `i` of this thread is at column 4 thread + 4 i threads.
struct Columns {
  int cols, step;
  WKV_DEV int at(int i) const { return static_cast<int>(threadIdx.x) * 4 + i * step; }
  WKV_DEV int left(int i) const { return cols - at(i); }
};

/// kFours of a thread in registers; what is beyond is read again.
template <int kFours>
struct Row {
  const float* x;
  Columns columns;
  bool vector;
  float origin, mean, scale;
  Four held[kFours];

  WKV_DEV void normalise(const LayerNormParams& p, float (&scratch)[2][kMaxWarps]) {
    origin = x[0];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kFours; ++i) held[i] = load4(x + columns.at(i), columns.left(i), vector);
#pragma unroll
    for (int i = 0; i < kFours; ++i) sum += shifted(held[i], columns.left(i), origin, 1);
    for (int i = kFours; columns.left(i) > 0; ++i) {
      Four four = load4(x + columns.at(i), columns.left(i), vector);
      sum += shifted(four, columns.left(i), origin, 1);
    }
    mean = block_sum(sum, scratch[0]) / static_cast<float>(p.cols);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kFours; ++i) squares += shifted(held[i], columns.left(i), mean, 2);
    for (int i = kFours; columns.left(i) > 0; ++i) {
      Four four = again(i);
      squares += shifted(four, columns.left(i), mean, 2);
    }
    const float variance = block_sum(squares, scratch[1]) / static_cast<float>(p.cols);
    scale = 1.0f / sqrtf(variance + p.eps);
  }
  WKV_DEV Four again(int i) const {
    Four four = load4(x + columns.at(i), columns.left(i), vector);
    shifted(four, columns.left(i), origin, 1);
    return four;
  }
  WKV_DEV Four result(const Four& deviation, const Four& weight, const Four& bias) const {
    Four y;
#pragma unroll
    for (int j = 0; j < 4; ++j) y.v[j] = fmaf(deviation.v[j] * scale, weight.v[j], bias.v[j]);
    return y;
  }

 private:
  /// Takes `by` off each and returns the sum of their first or second powers.
  WKV_DEV static float shifted(Four& four, int n, float by, int power) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      four.v[j] = j < n ? four.v[j] - by : 0.0f;
      sum = power == 2 ? fmaf(four.v[j], four.v[j], sum) : sum + four.v[j];
    }
    return sum;
  }
};

WKV_DEV bool aligned(const LayerNormParams& p) {
  return (ends_of(p.x, p.ldx) | ends_of(p.y, p.ldy) | ends_of(p.weight) | ends_of(p.bias)) == 0;
}

template <int kFours>
__global__ void __launch_bounds__(kMaxThreads) layer_norm_kernel(const LayerNormParams p) {
  __shared__ float scratch[2][kMaxWarps];
  const std::int64_t row = blockIdx.x;
  const bool vector = aligned(p);
  const Columns columns = {p.cols, static_cast<int>(blockDim.x) * 4};
  Four weight[kFours], bias[kFours];
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    weight[i] = load4(p.weight + columns.at(i), columns.left(i), vector);
    bias[i] = load4(p.bias + columns.at(i), columns.left(i), vector);
  }
  wait_for_previous_kernel();
  Row<kFours> x = {p.x + row * p.ldx, columns, vector, 0.0f, 0.0f, 0.0f, {}};
  x.normalise(p, scratch);
  float* y = p.y + row * p.ldy;
#pragma unroll
  for (int i = 0; i < kFours; ++i)
    store4(y + columns.at(i), x.result(x.held[i], weight[i], bias[i]), columns.left(i), vector);
  for (int i = kFours; columns.left(i) > 0; ++i) {
    Four four = x.again(i);
    for (int j = 0; j < 4; ++j) four.v[j] -= x.mean;
    const Four w = load4(p.weight + columns.at(i), columns.left(i), vector);
    const Four b = load4(p.bias + columns.at(i), columns.left(i), vector);
    store4(y + columns.at(i), x.result(four, w, b), columns.left(i), vector);
  }
}

template <int kFours>
__global__ void __launch_bounds__(kMaxThreads)
    norm_mix_kernel(const __grid_constant__ NormMixParams p) {
  __shared__ float scratch[2][kMaxWarps];
  const std::int64_t row = blockIdx.x;
  const MixParams& m = p.mix;
  const Columns columns = {p.norm.cols, static_cast<int>(blockDim.x) * 4};
  // Every row is a sequence of its own. Its slot was last written a step ago: no kernel that is
  // still running touches it, nor the batch's arrays.
  float* slot = m.batch.state[m.batch.first_of[row]] + m.slot;
  const bool vector = aligned(p.norm) && m.vectors != 0 && ends_of(slot) == 0;
  const auto load_mix = [&](int i, Four(&to)[kMaxMix]) {
#pragma unroll
    for (int g = 0; g < kMaxMix; ++g)
      if (m.delta == 0 && g < m.outputs)
        to[g] = load4(m.mu[g] + columns.at(i), columns.left(i), vector);
  };
  Four weight[kFours], bias[kFours], past[kFours], mu[kMaxMix];
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    weight[i] = load4(p.norm.weight + columns.at(i), columns.left(i), vector);
    bias[i] = load4(p.norm.bias + columns.at(i), columns.left(i), vector);
    past[i] = load4(slot + columns.at(i), columns.left(i), vector);
  }
  if constexpr (kFours < 4) load_mix(0, mu);  // or else it spills
  wait_for_previous_kernel();
  Row<kFours> x = {p.norm.x + row * p.norm.ldx, columns, vector, 0.0f, 0.0f, 0.0f, {}};
  x.normalise(p.norm, scratch);
  const auto finish = [&](int i, const Four& normal, const Four& before) {
    const int c = columns.at(i), n = columns.left(i);
    store4(slot + c, normal, n, vector);
    store4(p.norm.y + row * p.norm.ldy + c, normal, n, vector);
    Four dx;
#pragma unroll
    for (int j = 0; j < 4; ++j) dx.v[j] = before.v[j] - normal.v[j];
    if (m.delta != 0) {
      store4(m.y[0] + row * m.ldy + c, dx, n, vector);
      return;
    }
#pragma unroll
    for (int g = 0; g < kMaxMix; ++g) {
      if (g >= m.outputs) break;
      Four y;
#pragma unroll
      for (int j = 0; j < 4; ++j) y.v[j] = fmaf(dx.v[j], mu[g].v[j], normal.v[j]);
      store4(m.y[g] + row * m.ldy + c, y, n, vector);
      if (m.y16[g] != nullptr && n > 0)
        store_halves(m.y16[g], row * p.norm.cols + c, y.v, 1.0f, m.bf16);
    }
  };
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    if (i > 0 || kFours == 4) load_mix(i, mu);
    finish(i, x.result(x.held[i], weight[i], bias[i]), past[i]);
  }
  for (int i = kFours; columns.left(i) > 0; ++i) {
    load_mix(i, mu);
    Four four = x.again(i);
    for (int j = 0; j < 4; ++j) four.v[j] -= x.mean;
    const Four w = load4(p.norm.weight + columns.at(i), columns.left(i), vector);
    const Four b = load4(p.norm.bias + columns.at(i), columns.left(i), vector);
    finish(i, x.result(four, w, b), load4(slot + columns.at(i), columns.left(i), vector));
  }
}

/// use(threads, kFours of a thread) for rows of `cols`: the same for both kernels, whose sums must
/// be equal bits.
template <class F>
void with_shape(int cols, F&& use) {
  const int fours = (cols + 3) / 4;
  const int threads = fours < kMaxThreads ? (fours + 31) / 32 * 32 : kMaxThreads;
  const auto each = (fours + threads - 1) / threads;
  if (each <= 1)
    use(threads, std::integral_constant<int, 1>{});
  else if (each <= 2)
    use(threads, std::integral_constant<int, 2>{});
  else
    use(threads, std::integral_constant<int, 4>{});
}

}  // namespace

void layer_norm(Launch& out, const LayerNormParams& p) {
  with_shape(p.cols, [&](int threads, auto fours) {
    make_launch(out, layer_norm_kernel<fours()>, static_cast<unsigned>(p.rows), 1, 1,
                static_cast<unsigned>(threads), 0, p);
  });
}

void norm_mix(Launch& out, const NormMixParams& p) {
  with_shape(p.norm.cols, [&](int threads, auto fours) {
    make_launch(out, norm_mix_kernel<fours()>, static_cast<unsigned>(p.norm.rows), 1, 1,
                static_cast<unsigned>(threads), 0, p);
  });
}

}  // namespace wkv::cuda
