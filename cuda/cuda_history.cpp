// CudaBackend: the ops of v1 to v3 and of the research variants, which look back at a history.
#include <cmath>

#include "core/check.h"
#include "cuda/cuda_backend.h"

namespace wkv::cuda {

HistoryParams CudaBackend::history_params(Tensor y, Slot slot) const {
  auto p = zeroed<HistoryParams>();
  p.batch = view_;
  p.y = static_cast<float*>(y.data);
  p.ldy = y.stride;
  p.slot = slot.offset;
  p.rows = y.rows;
  p.cols = y.cols;
  p.sequences = static_cast<std::int32_t>(batch_.sequences.size());
  p.selected = y.rows == batch_.rows ? 0 : 1;
  return p;
}

void CudaBackend::push_history(HistoryOp op, const HistoryParams& p) {
  // Scores of a row lie in shared memory.
  const int max_context = device_->shared_bytes() / static_cast<int>(sizeof(float));
  WKV_CHECK(
      p.context <= max_context || (op != HistoryOp::copy_logits && op != HistoryOp::attention),
      unsupported, "[history] a context of ", p.context, " tokens; ", device_->name(),
      " takes up to ", max_context);
  const std::lock_guard lock(mutex_);
  history(launch_, op, p);
  push();
}

void CudaBackend::wkv1(Tensor y, const Wkv1& in, int heads, Slot sum_k, Slot past) {
  HistoryParams p = history_params(y, sum_k);
  p.q = in.r.f32();
  p.k = in.k.f32();
  p.v = in.v.f32();
  p.ldq = in.r.stride;
  p.ldk = in.k.stride;
  p.ldv = in.v.stride;
  p.curve[0] = in.time_w->data;
  p.curve[1] = in.time_alpha->data;
  p.curve[2] = in.time_beta->data;
  p.slot2 = past.offset;
  p.width = y.cols / heads;
  p.context = static_cast<std::int32_t>(past.size / y.cols);
  push_history(HistoryOp::wkv1, p);
}

void CudaBackend::wkv2(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                       const Vector& bonus, float eps, Slot aa_bb) {
  HistoryParams p = history_params(y, aa_bb);
  p.q = r.f32();
  p.k = k.f32();
  p.v = v.f32();
  p.ldq = r.stride;
  p.ldk = k.stride;
  p.ldv = v.stride;
  p.curve[0] = decay.data;
  p.curve[1] = bonus.data;
  p.scale = eps;
  push_history(HistoryOp::wkv2, p);
}

void CudaBackend::by_position(Tensor y, const Vector& values) {
  HistoryParams p = history_params(y, {0, 0});
  p.curve[0] = values.data;
  push_history(HistoryOp::by_position, p);
}

void CudaBackend::remember(Tensor x, Slot past) {
  HistoryParams p = history_params(x, past);
  p.k = x.f32();
  p.ldk = x.stride;
  push_history(HistoryOp::remember, p);
}

void CudaBackend::remember_tokens(Slot past) {
  HistoryParams p = history_params({}, past);
  p.rows = batch_.rows;
  p.cols = 1;
  push_history(HistoryOp::remember, p);
}

void CudaBackend::copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) {
  HistoryParams p = history_params(logits, keys);
  p.q = q.f32();
  p.ldq = q.stride;
  p.slot2 = tokens.offset;
  p.width = q.cols;
  p.context = static_cast<std::int32_t>(tokens.size);
  p.scale = scale;
  push_history(HistoryOp::copy_logits, p);
}

void CudaBackend::attention(Tensor y, Tensor q, Slot keys, Slot values) {
  HistoryParams p = history_params(y, keys);
  p.q = q.f32();
  p.ldq = q.stride;
  p.slot2 = values.offset;
  p.width = q.cols;
  p.context = static_cast<std::int32_t>(keys.size / q.cols);
  p.scale = 1.0f / std::sqrt(static_cast<float>(q.cols));
  push_history(HistoryOp::attention, p);
}

void CudaBackend::linear_attention(Tensor y, Tensor q, Tensor k, Tensor v, float scale,
                                   Slot state) {
  HistoryParams p = history_params(y, state);
  p.q = q.f32();
  p.k = k.f32();
  p.v = v.f32();
  p.ldq = q.stride;
  p.ldk = k.stride;
  p.ldv = v.stride;
  p.width = q.cols;
  p.scale = scale;
  push_history(HistoryOp::linear_attention, p);
}

void CudaBackend::row_matvec(Tensor y, Tensor x, Tensor m) {
  HistoryParams p = history_params(y, {0, 0});
  p.q = x.f32();
  p.k = m.f32();
  p.ldq = x.stride;
  p.ldk = m.stride;
  push_history(HistoryOp::row_matvec, p);
}

}  // namespace wkv::cuda
