// Memory-bound passes: gathers, token shift, mixes, conversions. Four neighbouring columns per
// thread, one row per blockIdx.y.
#include "cuda/epilogue.cuh"
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerThread = 4;

struct Four {
  float v[4];
};

WKV_DEV Four load4(const float* p, int n, bool vector) {
  Four f = {{0.0f, 0.0f, 0.0f, 0.0f}};
  if (vector) {
    const float4 q = *reinterpret_cast<const float4*>(p);
    f.v[0] = q.x;
    f.v[1] = q.y;
    f.v[2] = q.z;
    f.v[3] = q.w;
  } else {
    for (int i = 0; i < n; ++i) f.v[i] = p[i];
  }
  return f;
}

WKV_DEV void store4(float* p, const Four& f, int n, bool vector) {
  if (vector) {
    *reinterpret_cast<float4*>(p) = make_float4(f.v[0], f.v[1], f.v[2], f.v[3]);
  } else {
    for (int i = 0; i < n; ++i) p[i] = f.v[i];
  }
}

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
  const int row = static_cast<int>(blockIdx.y);
  const std::int64_t from = static_cast<std::int64_t>(p.tokens[row]) * p.cols;
  const int c0 = first_column();
  for (int c = c0; c < c0 + kPerThread && c < p.cols; ++c)
    p.y[row * p.ldy + c] = element(p.table, from + c, p.element);
}

__global__ void __launch_bounds__(kThreads) mix_kernel(const __grid_constant__ MixParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y);
  const int c = first_column();
  if (c >= p.cols) return;
  const bool vector = p.vectors != 0;
  const int n = p.cols - c < kPerThread ? p.cols - c : kPerThread;
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
    const Four mu = load4(p.mu[g] + c, n, vector);
    Four y;
    for (int i = 0; i < kPerThread; ++i) y.v[i] = fmaf(dx.v[i], mu.v[i], x.v[i]);
    store4(p.y[g] + row * p.ldy + c, y, n, vector);
  }
}

__global__ void __launch_bounds__(kThreads) binary_kernel(const BinaryParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y);
  const int c0 = first_column();
  for (int c = c0; c < c0 + kPerThread && c < p.cols; ++c) {
    const float a = p.a[row * p.lda + c], b = p.b[row * p.ldb + c];
    p.y[row * p.ldy + c] = p.product != 0 ? a * b : a + b;
  }
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherParams p) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y);
  const std::int64_t from = p.index[row];
  const int c0 = first_column();
  for (int c = c0; c < c0 + kPerThread && c < p.cols; ++c)
    p.y[row * p.ldy + c] = p.x[from * p.ldx + c];
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
  if (c >= job.padded) return;
  const float* x = job.x + row * job.ldx + c;
  std::uint16_t bits[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    float v = c + i < job.cols ? x[i] * job.scale : 0.0f;
    if (job.in_scale != nullptr && c + i < job.cols) v *= job.in_scale[c + i];
    bits[i] = job.bf16 != 0 ? to_bf16(v) : to_f16(v);
  }
  auto* to = reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(job.x16) + row * job.padded + c);
  *to = make_uint2(pack(bits[0], bits[1]), pack(bits[2], bits[3]));
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
  const int c0 = first_column();
  for (int c = c0; c < c0 + kPerThread && c < p.cols; ++c) {
    float y = p.y[row * p.ldy + c];
    if (p.bias != nullptr) y += p.bias[c];
    y = activate(y, p.act);
    if (p.gate != nullptr) y *= p.gate[row * p.ldgate + c];
    if (p.add != nullptr) y += p.add[row * p.ldadd + c];
    p.y[row * p.ldy + c] = y;
  }
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
