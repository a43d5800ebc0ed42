// CpuBackend: the ops of v1 to v3 and of the research variants, which look back at a history.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/check.h"
#include "cpu/cpu_backend.h"
#include "cpu/split.h"

namespace wkv::cpu {
namespace {

/// Rows of `cols` floats in a state.
RowsIn rows_of(const float* state, Slot slot, int cols) { return {state + slot.offset, cols}; }

}  // namespace

CpuBackend::Place CpuBackend::place(int rows, int i) const {
  const auto index = static_cast<std::size_t>(i);
  const int row = rows == batch_->rows ? i : batch_->wanted_rows[index];
  const Sequence& s = *sequence_of_row_[static_cast<std::size_t>(row)];
  return {s.state, static_cast<int>(s.position) + row - s.row};
}

float* CpuBackend::scratch(std::size_t n) {
  scratch_.resize(std::max(scratch_.size(), n * static_cast<std::size_t>(pool_.threads())));
  return scratch_.data();
}

void CpuBackend::wkv1(Tensor y, const Wkv1& x, int heads, Slot sum_k, Slot history) {
  const int channels = x.r.cols;
  const int n = channels / heads;
  const int context = static_cast<int>(history.size / channels);
  float* weights = scratch(static_cast<std::size_t>(context));
  std::int64_t work = 0;
  for (const Sequence& s : batch_->sequences) work += s.rows * (s.position + s.rows) * channels;
  for_units(pool_, *batch_, heads, work, [&](int index, const Sequence& s, int from, int to) {
    for (int h = from; h < to; ++h) {
      const int c = h * n;
      const std::int64_t curve = std::int64_t{h} * context;
      Wkv1Args args{};
      args.y = out(y, s.row, c);
      args.r = in(x.r, s.row, c);
      args.k = in(x.k, s.row, c);
      args.v = in(x.v, s.row, c);
      args.time_w = x.time_w->data + curve;
      args.time_alpha = x.time_alpha->data + curve;
      args.time_beta = x.time_beta->data + curve;
      args.sum_k = s.state + sum_k.offset + c;
      args.history = {s.state + history.offset + c, channels};
      args.scratch = weights + std::int64_t{index} * context;
      args.context = context;
      args.position = static_cast<int>(s.position);
      args.rows = s.rows;
      args.head_size = n;
      kernels_.rows.wkv1(args);
    }
  });
}

void CpuBackend::wkv2(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                      const Vector& bonus, float eps, Slot aa_bb) {
  constexpr std::int64_t kWork = 16;  // an exponential and a division
  const int channels = r.cols;
  const int blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  for_units(pool_, *batch_, blocks, kWork * r.rows * channels,
            [&](int, const Sequence& s, int from, int to) {
              const int c = from * kChannelBlock;
              Wkv2Args args{};
              args.y = out(y, s.row, c);
              args.r = in(r, s.row, c);
              args.k = in(k, s.row, c);
              args.v = in(v, s.row, c);
              args.decay = decay.data + c;
              args.bonus = bonus.data + c;
              args.aa = s.state + aa_bb.offset + c;
              args.bb = args.aa + channels;
              args.eps = eps;
              args.rows = s.rows;
              args.channels = std::min(to * kChannelBlock, channels) - c;
              kernels_.rows.wkv2(args);
            });
}

void CpuBackend::by_position(Tensor y, const Vector& values) {
  for_rows(pool_, y.rows, std::int64_t{y.rows} * y.cols,
           [&](int i) { std::fill_n(y.row(i), y.cols, values.data[place(y.rows, i).position]); });
}

void CpuBackend::remember(Tensor x, Slot history) {
  for_rows(pool_, x.rows, std::int64_t{x.rows} * x.cols, [&](int i) {
    const Place at = place(x.rows, i);
    std::memcpy(at.state + history.offset + std::int64_t{at.position} * x.cols, x.row(i),
                floats(x.cols));
  });
}

void CpuBackend::remember_tokens(Slot history) {
  for (int i = 0; i < batch_->rows; ++i) {
    const Place at = place(batch_->rows, i);
    at.state[history.offset + at.position] =
        static_cast<float>(batch_->tokens[static_cast<std::size_t>(i)]);
  }
}

void CpuBackend::copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) {
  const auto context = static_cast<std::size_t>(tokens.size);
  float* scores = scratch(context);
  dispatch(pool_, std::int64_t{q.rows} * keys.size, [&](int index, int threads) {
    float* score = scores + context * static_cast<std::size_t>(index);
    for (int i = index; i < q.rows; i += threads) {
      const Place at = place(q.rows, i);
      kernels_.rows.dots(score, q.row(i), rows_of(at.state, keys, q.cols), at.position + 1, q.cols);
      const float* token = at.state + tokens.offset;
      for (int u = 0; u <= at.position; ++u) {
        const float id = token[u];  // a state can be written by hand
        if (id >= 0.0f && id < static_cast<float>(logits.cols))
          logits.row(i)[static_cast<int>(id)] += scale * score[u];
      }
    }
  });
}

void CpuBackend::attention(Tensor y, Tensor q, Slot keys, Slot values) {
  const auto context = static_cast<std::size_t>(keys.size / q.cols);
  const float scale = 1.0f / std::sqrt(static_cast<float>(q.cols));
  float* scores = scratch(context);
  dispatch(pool_, std::int64_t{q.rows} * (keys.size + values.size), [&](int index, int threads) {
    float* score = scores + context * static_cast<std::size_t>(index);
    for (int i = index; i < q.rows; i += threads) {
      const Place at = place(q.rows, i);
      const int count = at.position + 1;
      kernels_.rows.dots(score, q.row(i), rows_of(at.state, keys, q.cols), count, q.cols);
      kernels_.rows.scale(score, score, scale, count);
      kernels_.rows.softmax(score, count);
      kernels_.rows.weighted_sum(y.row(i), score, rows_of(at.state, values, y.cols), count, y.cols);
    }
  });
}

void CpuBackend::linear_attention(Tensor y, Tensor q, Tensor k, Tensor v, float scale, Slot state) {
  const int channels = v.cols;
  const int blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  for_units(pool_, *batch_, blocks, 2 * std::int64_t{v.rows} * state.size,
            [&](int, const Sequence& s, int from, int to) {
              const int c = from * kChannelBlock;
              LinearAttentionArgs args{};
              args.y = out(y, s.row, c);
              args.q = in(q, s.row, 0);
              args.k = in(k, s.row, 0);
              args.v = in(v, s.row, c);
              args.state = {s.state + state.offset + c, channels};
              args.scale = scale;
              args.rows = s.rows;
              args.width = q.cols;
              args.channels = std::min(to * kChannelBlock, channels) - c;
              kernels_.rows.linear_attention(args);
            });
}

void CpuBackend::row_matvec(Tensor y, Tensor x, Tensor m) {
  for_rows(pool_, x.rows, std::int64_t{m.rows} * m.cols, [&](int t) {
    kernels_.rows.weighted_sum(y.row(t), x.row(t), {m.row(t), x.cols}, x.cols, x.cols);
  });
}

}  // namespace wkv::cpu
