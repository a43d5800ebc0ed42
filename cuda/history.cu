// v1 to v3 and the research variants: recurrences and heads that look back at a history in the
// state. Small models; plain kernels, one thread per output.
#include "cuda/kernels.h"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kScoreThreads = 256;

/// Row of the batch that row `i` of a tensor stands for: tensors after select_rows hold the wanted
/// ones alone.
WKV_DEV int batch_row(const HistoryParams& p, int i) {
  return p.selected != 0 ? p.batch.wanted[i] : i;
}
WKV_DEV int column() { return static_cast<int>(blockIdx.x * kThreads + threadIdx.x); }

__global__ void __launch_bounds__(kThreads) wkv1_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), seq = static_cast<int>(blockIdx.y);
  if (c >= p.cols) return;
  const int head = c / p.width, rows = p.batch.seq_rows[seq];
  const std::int64_t row0 = p.batch.seq_row[seq];
  const float* w = p.curve[0] + static_cast<std::int64_t>(head) * p.context;
  const float* alpha = p.curve[1] + static_cast<std::int64_t>(head) * p.context;
  const float* beta = p.curve[2] + static_cast<std::int64_t>(head) * p.context;
  float* sum_k = p.batch.state[seq] + p.slot + c;
  float* history = p.batch.state[seq] + p.slot2 + c;
  for (int i = 0; i < rows; ++i) {
    const std::int64_t row = row0 + i;
    const int t = p.batch.position[row];
    const float k = expf(fmaxf(-60.0f, fminf(30.0f, p.k[row * p.ldk + c])));
    *sum_k += k;
    history[static_cast<std::int64_t>(t) * p.cols] = k * p.v[row * p.ldv + c];
    float sum = 0.0f;
    for (int u = 0; u <= t; ++u)
      sum = fmaf(w[p.context - 1 - t + u] * alpha[u],
                 history[static_cast<std::int64_t>(u) * p.cols], sum);
    p.y[row * p.ldy + c] = p.q[row * p.ldq + c] * sum * beta[t] / *sum_k;
  }
}

__global__ void __launch_bounds__(kThreads) wkv2_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), seq = static_cast<int>(blockIdx.y);
  if (c >= p.cols) return;
  const int rows = p.batch.seq_rows[seq];
  const std::int64_t row0 = p.batch.seq_row[seq];
  float* state = p.batch.state[seq] + p.slot + c;
  float aa = state[0], bb = state[p.cols];
  const float decay = p.curve[0][c], bonus = p.curve[1][c];
  for (int i = 0; i < rows; ++i) {
    const std::int64_t row = row0 + i;
    const float k = expf(fminf(60.0f, p.k[row * p.ldk + c])), kv = k * p.v[row * p.ldv + c];
    p.y[row * p.ldy + c] = p.q[row * p.ldq + c] * (aa + bonus * kv) / (bb + bonus * k + p.scale);
    aa = fmaf(decay, aa, kv);
    bb = fmaf(decay, bb, k);
  }
  state[0] = aa;
  state[p.cols] = bb;
}

__global__ void __launch_bounds__(kThreads) linear_attention_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), seq = static_cast<int>(blockIdx.y);
  if (c >= p.cols) return;
  const int rows = p.batch.seq_rows[seq];
  const std::int64_t row0 = p.batch.seq_row[seq];
  float* state = p.batch.state[seq] + p.slot + c;
  for (int i = 0; i < rows; ++i) {
    const std::int64_t row = row0 + i;
    const float v = p.v[row * p.ldv + c];
    float y = 0.0f;
    for (int d = 0; d < p.width; ++d) {
      float& s = state[static_cast<std::int64_t>(d) * p.cols];
      s = fmaf(p.k[row * p.ldk + d], v, s);
      y = fmaf(p.q[row * p.ldq + d], s, y);
    }
    p.y[row * p.ldy + c] = p.scale * y;
  }
}

/// One row per blockIdx.y.
__global__ void __launch_bounds__(kThreads) by_position_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), i = static_cast<int>(blockIdx.y);
  if (c < p.cols) p.y[i * p.ldy + c] = p.curve[0][p.batch.position[batch_row(p, i)]];
}

__global__ void __launch_bounds__(kThreads) remember_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), row = static_cast<int>(blockIdx.y);
  if (c >= p.cols) return;
  float* to = p.batch.state[p.batch.seq_of[row]] + p.slot +
              static_cast<std::int64_t>(p.batch.position[row]) * p.cols + c;
  *to = p.k != nullptr ? p.k[row * p.ldk + c] : static_cast<float>(p.batch.tokens[row]);
}

__global__ void __launch_bounds__(kThreads) row_matvec_kernel(const HistoryParams p) {
  wait_for_previous_kernel();
  const int c = column(), row = static_cast<int>(blockIdx.y);
  if (c >= p.cols) return;
  float y = 0.0f;
  for (int i = 0; i < p.cols; ++i)
    y = fmaf(p.q[row * p.ldq + i], p.k[row * p.ldk + static_cast<std::int64_t>(i) * p.cols + c], y);
  p.y[row * p.ldy + c] = y;
}

/// score[u] = q . keys[u] for u < count, by a whole block.
WKV_DEV void all_scores(float* score, const float* q, const float* keys, int count, int width) {
  for (int u = static_cast<int>(threadIdx.x); u < count; u += kScoreThreads) {
    float sum = 0.0f;
    for (int d = 0; d < width; ++d)
      sum = fmaf(q[d], keys[static_cast<std::int64_t>(u) * width + d], sum);
    score[u] = sum;
  }
}

/// A thread owns the tokens of its residue, so that duplicates add up in order.
__global__ void __launch_bounds__(kScoreThreads) copy_logits_kernel(const HistoryParams p) {
  WKV_SHARED(shared);
  auto* score = reinterpret_cast<float*>(shared);
  wait_for_previous_kernel();
  const int i = static_cast<int>(blockIdx.x), row = batch_row(p, i);
  const float* state = p.batch.state[p.batch.seq_of[row]];
  const int count = p.batch.position[row] + 1;
  all_scores(score, p.q + i * p.ldq, state + p.slot, count, p.width);
  __syncthreads();
  const float* tokens = state + p.slot2;
  for (int u = 0; u < count; ++u) {
    const float id = tokens[u];  // a state can be written by hand
    if (!(id >= 0.0f && id < static_cast<float>(p.cols))) continue;
    const int token = static_cast<int>(id);
    if (token % kScoreThreads == static_cast<int>(threadIdx.x))
      p.y[i * p.ldy + token] += p.scale * score[u];
  }
}

__global__ void __launch_bounds__(kScoreThreads) attention_kernel(const HistoryParams p) {
  WKV_SHARED(shared);
  auto* score = reinterpret_cast<float*>(shared);
  wait_for_previous_kernel();
  const int i = static_cast<int>(blockIdx.x), row = batch_row(p, i);
  const float* state = p.batch.state[p.batch.seq_of[row]];
  const int count = p.batch.position[row] + 1;
  all_scores(score, p.q + i * p.ldq, state + p.slot, count, p.width);
  __syncthreads();
  // Every thread finds the maximum and the sum by itself: histories are short.
  float largest = score[0];
  for (int u = 1; u < count; ++u) largest = fmaxf(largest, score[u]);
  float sum = 0.0f;
  for (int u = 0; u < count; ++u) sum += expf((score[u] - largest) * p.scale);
  for (int c = static_cast<int>(threadIdx.x); c < p.cols; c += kScoreThreads) {
    float y = 0.0f;
    for (int u = 0; u < count; ++u)
      y = fmaf(expf((score[u] - largest) * p.scale),
               state[p.slot2 + static_cast<std::int64_t>(u) * p.cols + c], y);
    p.y[i * p.ldy + c] = y / sum;
  }
}

unsigned blocks(int cols) { return static_cast<unsigned>((cols + kThreads - 1) / kThreads); }

}  // namespace

void history(Launch& out, HistoryOp op, const HistoryParams& p) {
  const auto rows = static_cast<unsigned>(p.rows), sequences = static_cast<unsigned>(p.sequences);
  const auto scores = static_cast<unsigned>(p.context) * static_cast<unsigned>(sizeof(float));
  switch (op) {
    case HistoryOp::wkv1:
      return make_launch(out, wkv1_kernel, blocks(p.cols), sequences, 1, kThreads, 0, p);
    case HistoryOp::wkv2:
      return make_launch(out, wkv2_kernel, blocks(p.cols), sequences, 1, kThreads, 0, p);
    case HistoryOp::linear_attention:
      return make_launch(out, linear_attention_kernel, blocks(p.cols), sequences, 1, kThreads, 0,
                         p);
    case HistoryOp::by_position:
      return make_launch(out, by_position_kernel, blocks(p.cols), rows, 1, kThreads, 0, p);
    case HistoryOp::remember:
      return make_launch(out, remember_kernel, blocks(p.cols), rows, 1, kThreads, 0, p);
    case HistoryOp::row_matvec:
      return make_launch(out, row_matvec_kernel, blocks(p.cols), rows, 1, kThreads, 0, p);
    case HistoryOp::copy_logits:
      return make_launch(out, copy_logits_kernel, rows, 1, 1, kScoreThreads, scores, p);
    case HistoryOp::attention:
      return make_launch(out, attention_kernel, rows, 1, 1, kScoreThreads, scores, p);
  }
}

}  // namespace wkv::cuda
