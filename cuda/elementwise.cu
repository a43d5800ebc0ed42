// Memory-bound passes: gathers, token shift, mixes, conversions. Four neighbouring columns per
// thread, one row per blockIdx.y.
#include "cuda/epilogue.cuh"
#include "cuda/four.cuh"
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerThread = 4;

WKV_DEV float element(const void* p, std::int64_t i, Element type) {
  switch (type) {
    case Element::f16:
      return from_f16(static_cast<const std::uint16_t*>(p)[i]);
    case Element::bf16:
      return from_bf16(static_cast<const std::uint16_t*>(p)[i]);
    default:
      return static_cast<const float*>(p)[i];
  }
}

WKV_DEV int first_column() {
  return static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * kPerThread;
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const EmbedParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y), c = first_column();
  if (c >= p.cols) return;
  const std::int64_t from = static_cast<std::int64_t>(p.tokens[row]) * p.cols + c;
  float* y = p.y + row * p.ldy + c;
  const int n = p.cols - c;
  const bool vector = ends_of(y, p.ldy) == 0;
  Four four = {};
  if (p.element != Element::f32 && p.cols % 4 == 0 && ends_of(p.table) == 0) {
    const uint2 bits =
        *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(p.table) + from);
    const std::uint32_t pair[2] = {bits.x, bits.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto half = static_cast<std::uint16_t>(i % 2 == 0 ? pair[i / 2] : pair[i / 2] >> 16);
      four.v[i] = p.element == Element::f16 ? from_f16(half) : from_bf16(half);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < n) four.v[i] = element(p.table, from + i, p.element);
  }
  store4(y, four, n, vector);
}

__global__ void __launch_bounds__(kThreads) mix_kernel(const __grid_constant__ MixParams p) {
  const int row = static_cast<int>(blockIdx.y);
  const int c = first_column(), n = p.cols - c;
  const bool vector = p.vectors != 0;
  Four mu[kMaxMix];
#pragma unroll
  for (int g = 0; g < kMaxMix; ++g)
    if (p.delta == 0 && g < p.outputs && n > 0) mu[g] = load4(p.mu[g] + c, n, vector);
  wait_for_previous_kernel();
  if (n <= 0) return;
  const float* x_row = p.x + row * p.ldx + c;
  const Four x = load4(x_row, n, vector);
  Four dx;
  if (p.shift != 0) {
    const int seq = p.batch.first_of[row];
    if (seq >= 0) {
      // The thread that reads the slot is also the one that writes it: no other block may.
      float* slot = p.batch.state[seq] + p.slot + c;
      dx = load4(slot, n, vector);
      const std::int64_t last = row + p.batch.seq_rows[seq] - 1;
      store4(slot, load4(p.x + last * p.ldx + c, n, vector), n, vector);
    } else {
      dx = load4(x_row - p.ldx, n, vector);
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) dx.v[i] -= x.v[i];
  } else {
    dx = load4(p.dx + row * p.lddx + c, n, vector);
  }
  if (p.delta != 0) {
    store4(p.y[0] + row * p.ldy + c, dx, n, vector);
    return;
  }
#pragma unroll
  for (int g = 0; g < kMaxMix; ++g) {
    if (g >= p.outputs) break;
    Four y;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) y.v[i] = fmaf(dx.v[i], mu[g].v[i], x.v[i]);
    store4(p.y[g] + row * p.ldy + c, y, n, vector);
    if (p.y16[g] != nullptr)
      store_halves(p.y16[g], static_cast<std::int64_t>(row) * p.cols + c, y.v, 1.0f, p.bf16);
  }
}

__global__ void __launch_bounds__(kThreads) binary_kernel(const BinaryParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y), c = first_column(), n = p.cols - c;
  if (n <= 0) return;
  const bool vector = (ends_of(p.a, p.lda) | ends_of(p.b, p.ldb) | ends_of(p.y, p.ldy)) == 0;
  const Four a = load4(p.a + row * p.lda + c, n, vector);
  const Four b = load4(p.b + row * p.ldb + c, n, vector);
  Four y;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) y.v[i] = p.product != 0 ? a.v[i] * b.v[i] : a.v[i] + b.v[i];
  store4(p.y + row * p.ldy + c, y, n, vector);
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y), c = first_column(), n = p.cols - c;
  if (n <= 0) return;
  const bool vector = (ends_of(p.x, p.ldx) | ends_of(p.y, p.ldy)) == 0;
  const std::int64_t from = p.index[row];
  store4(p.y + row * p.ldy + c, load4(p.x + from * p.ldx + c, n, vector), n, vector);
}

__global__ void __launch_bounds__(kThreads) convert_kernel(const ConvertParams p) {
  wait_for_previous_kernel();
  // Weights have more rows than a grid has in y (65535), hence the loop.
  for (std::int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int c0 = first_column();
    for (int c = c0; c < c0 + kPerThread && c < p.to_cols; ++c) {
      const float v = c < p.cols ? element(p.from, row * p.ld_from + c, p.from_element) : 0.0f;
      const std::int64_t to = row * p.ld_to + c;
      switch (p.to_element) {
        case Element::f16:
          static_cast<std::uint16_t*>(p.to)[to] = to_f16(v);
          break;
        case Element::bf16:
          static_cast<std::uint16_t*>(p.to)[to] = to_bf16(v);
          break;
        default:
          static_cast<float*>(p.to)[to] = v;
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) round_kernel(const __grid_constant__ RoundParams p) {
  wait_for_previous_kernel();
  const RoundJob& job = p.job[blockIdx.z];
  const std::int64_t row = blockIdx.y;
  const int c = first_column();
  if (c >= job.padded || job.x16 == nullptr) return;
  const Four x = load4(job.x + row * job.ldx + c, job.cols - c, ends_of(job.x, job.ldx) == 0);
  float v[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    v[i] = x.v[i] * job.scale;
    if (job.in_scale != nullptr && c + i < job.cols) v[i] *= job.in_scale[c + i];
  }
  store_halves(job.x16, row * job.padded + c, v, 1.0f, job.bf16);
}

/// One warp per row.
__global__ void __launch_bounds__(32) sums_kernel(const __grid_constant__ RoundParams p) {
  wait_for_previous_kernel();
  const RoundJob& job = p.job[blockIdx.z];
  if (job.sums == nullptr) return;
  const std::int64_t row = blockIdx.x;
  const InputSums sums = input_sums(job.x + row * job.ldx, job.in_scale, job.in_offset, 0, job.cols,
                                    static_cast<int>(threadIdx.x));
  if (threadIdx.x == 0) {
    job.sums[row * 3] = sums.scaled;
    job.sums[row * 3 + 1] = sums.plain;
    job.sums[row * 3 + 2] = sums.offset;
  }
}

__global__ void __launch_bounds__(kThreads) finish_kernel(const FinishParams p) {
  wait_for_previous_kernel();
  const std::int64_t row = blockIdx.y;
  const int c = first_column(), n = p.cols - c;
  if (n <= 0) return;
  const bool vector = (ends_of(p.y, p.ldy) | ends_of(p.bias) | ends_of(p.gate, p.ldgate) |
                       ends_of(p.add, p.ldadd)) == 0;
  float* to = p.y + row * p.ldy + c;
  Four y = load4(to, n, vector), bias = {}, gate = {{1.0f, 1.0f, 1.0f, 1.0f}}, add = {};
  if (p.bias != nullptr) bias = load4(p.bias + c, n, vector);
  if (p.gate != nullptr) gate = load4(p.gate + row * p.ldgate + c, n, vector);
  if (p.add != nullptr) add = load4(p.add + row * p.ldadd + c, n, vector);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    y.v[i] = fmaf(activate(y.v[i] + bias.v[i], p.act), gate.v[i], add.v[i]);
  store4(to, y, n, vector);
  if (p.y16 != nullptr) store_halves(p.y16, row * p.cols + c, y.v, p.y16_scale, p.bf16);
}

unsigned blocks_for(int cols) {
  constexpr int kColumns = kThreads * kPerThread;
  return static_cast<unsigned>((cols + kColumns - 1) / kColumns);
}

}  // namespace

void embed(Launch& out, const EmbedParams& p) {
  make_launch(out, embed_kernel, blocks_for(p.cols), static_cast<unsigned>(p.rows), 1, kThreads, 0,
              p);
}
void mix(Launch& out, const MixParams& p) {
  make_launch(out, mix_kernel, blocks_for(p.cols), static_cast<unsigned>(p.rows), 1, kThreads, 0,
              p);
}
void binary(Launch& out, const BinaryParams& p) {
  make_launch(out, binary_kernel, blocks_for(p.cols), static_cast<unsigned>(p.rows), 1, kThreads, 0,
              p);
}
void gather(Launch& out, const GatherParams& p) {
  make_launch(out, gather_kernel, blocks_for(p.cols), static_cast<unsigned>(p.rows), 1, kThreads, 0,
              p);
}
void round_rows(Launch& out, const RoundParams& p) {
  int widest = 0;
  for (int j = 0; j < p.jobs; ++j) widest = p.job[j].padded > widest ? p.job[j].padded : widest;
  make_launch(out, round_kernel, blocks_for(widest), static_cast<unsigned>(p.rows),
              static_cast<unsigned>(p.jobs), kThreads, 0, p);
}
void sum_rows(Launch& out, const RoundParams& p) {
  make_launch(out, sums_kernel, static_cast<unsigned>(p.rows), 1, static_cast<unsigned>(p.jobs), 32,
              0, p);
}
void finish(Launch& out, const FinishParams& p) {
  make_launch(out, finish_kernel, blocks_for(p.cols), static_cast<unsigned>(p.rows), 1, kThreads, 0,
              p);
}
void convert(Launch& out, const ConvertParams& p) {
  constexpr int kMaxGridY = 65535;
  make_launch(out, convert_kernel, blocks_for(p.to_cols),
              static_cast<unsigned>(p.rows < kMaxGridY ? p.rows : kMaxGridY), 1, kThreads, 0, p);
}

}  // namespace wkv::cuda
