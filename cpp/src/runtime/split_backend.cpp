#include "runtime/split_backend.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <exception>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv {

SplitBackend::SplitBackend(std::vector<Stage> stages, std::vector<std::shared_ptr<Backend>> devices)
    : stages_(std::move(stages)), devices_(std::move(devices)) {
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const auto same = std::find(devices_.begin(), devices_.end(), devices_[i]);
    if (same == devices_.begin() + static_cast<std::ptrdiff_t>(i)) {
      running_of_.push_back(running_.size());
      running_.push_back({devices_[i], {}, false});
    } else {
      running_of_.push_back(running_of_[static_cast<std::size_t>(same - devices_.begin())]);
    }
    stages_[i].device = devices_[i]->device();
  }
  find_device_ = [this](const std::string& device) -> Backend* {
    for (const Running& r : running_)
      if (r.backend->device() == device) return r.backend.get();
    return nullptr;
  };
}

std::string SplitBackend::name() const {
  std::string text;
  for (std::size_t i = 0; i < stages_.size(); ++i)
    text += str(i > 0 ? " -> " : "", devices_[i]->name(), " *", stages_[i].layers,
                stages_[i].stream ? " stream" : "");
  return text;
}

int SplitBackend::preferred_rows() const noexcept {
  int rows = devices_[0]->preferred_rows();
  for (const auto& d : devices_) rows = std::min(rows, d->preferred_rows());
  return rows;
}

bool SplitBackend::looks_back() const noexcept {
  return std::all_of(devices_.begin(), devices_.end(),
                     [](const auto& d) { return d->looks_back(); });
}

HiddenUnits SplitBackend::hidden_units() const noexcept {
  HiddenUnits sum;
  for (const Running& r : running_) {
    const HiddenUnits units = r.backend->hidden_units();
    sum.seen += units.seen;
    sum.active += units.active;
  }
  return sum;
}

int SplitBackend::place(std::string_view tensor) const {
  // blocks.N.* with layer N, the embedding with the first one, the rest with the output layer.
  constexpr std::string_view kBlocks = "blocks.";
  int layer = 0;
  if (tensor.starts_with(kBlocks))
    std::from_chars(tensor.data() + kBlocks.size(), tensor.data() + tensor.size(), layer);
  else if (tensor.find("emb") == std::string_view::npos)
    return static_cast<int>(stages_.size()) - 1;
  std::size_t stage = 0;
  for (int end = stages_[0].layers; stage + 1 < stages_.size() && layer >= end;)
    end += stages_[++stage].layers;
  return static_cast<int>(stage);
}

Matrix SplitBackend::adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
                           std::vector<std::shared_ptr<const void>>& keep,
                           const std::function<void()>& poll) {
  const int where = place(name);
  const Stage& stage = stages_[static_cast<std::size_t>(where)];
  if (stage.dtype != DType::automatic && use != MatrixUse::embedding) want = stage.dtype;
  Backend& device = at(where);
  device.stream_matrices(stage.stream);
  Matrix m = device.adopt(tensor, want, use, name, keep, poll);
  m.place = where;
  return m;
}

void SplitBackend::write(void* device, const void* host, std::size_t bytes) {
  const auto block = MirroredMemory::find(device);
  std::memcpy(block->acquire(nullptr, device, bytes, Access::write, find_device_), host, bytes);
}

void SplitBackend::read(void* host, const void* device, std::size_t bytes) {
  const auto block = MirroredMemory::find(device);
  std::memcpy(host, block->acquire(nullptr, device, bytes, Access::read, find_device_), bytes);
}

void SplitBackend::copy(void* to_device, const void* from_device, std::size_t bytes) {
  const auto from = MirroredMemory::find(from_device);
  write(to_device, from->acquire(nullptr, from_device, bytes, Access::read, find_device_), bytes);
}

void SplitBackend::begin(const Batch& batch) {
  batch_ = batch;
  states_.clear();
  for (const Sequence& s : batch.sequences)
    states_.push_back(s.state == nullptr ? nullptr : MirroredMemory::find(s.state));
  for (Running& r : running_) r.begun = false;
  current_ = 0;
}

void SplitBackend::end() {
  std::exception_ptr failed;
  for (Running& r : running_) {
    if (!std::exchange(r.begun, false)) continue;
    try {
      r.backend->end();
    } catch (...) {
      if (!failed) failed = std::current_exception();
    }
  }
  states_.clear();
  recent_ = nullptr;
  if (failed) std::rethrow_exception(failed);
}

/// What follows runs where `place` lies; a device begins its step when it is first needed.
void SplitBackend::go(int place) {
  current_ = running_of_[static_cast<std::size_t>(place)];
  Running& r = running_[current_];
  if (r.begun) return;
  r.batch = batch_;
  for (std::size_t i = 0; i < states_.size(); ++i)
    if (states_[i] != nullptr)
      r.batch.sequences[i].state =
          static_cast<float*>(states_[i]->on(r.backend.get(), batch_.sequences[i].state));
  r.backend->begin(r.batch);
  r.begun = true;
}

void* SplitBackend::acquire(const void* address, std::size_t bytes, Access access) {
  if (recent_ == nullptr || !recent_->holds(address)) recent_ = MirroredMemory::find(address);
  return recent_->acquire(&current(), address, bytes, access, find_device_);
}

Tensor SplitBackend::moved(Tensor x, Access access) {
  if (!x || x.rows == 0 || x.cols == 0) return x;
  const bool whole = x.stride == x.cols;  // what lies between the rows of a view stays
  const auto elements = static_cast<std::size_t>((x.rows - 1) * x.stride + x.cols);
  x.data = acquire(x.data, elements * dtype_size(x.dtype),
                   access == Access::write && !whole ? Access::update : access);
  return x;
}

std::vector<Tensor> SplitBackend::out(std::span<const Tensor> y) {
  std::vector<Tensor> moved;
  for (const Tensor& t : y) moved.push_back(out(t));
  return moved;
}

/// Makes a part of every state current.
void SplitBackend::hold(Slot slot) {
  for (std::size_t i = 0; i < states_.size(); ++i)
    states_[i]->acquire(&current(), batch_.sequences[i].state + slot.offset,
                        static_cast<std::size_t>(slot.size) * sizeof(float), Access::update,
                        find_device_);
}

void SplitBackend::embed(Tensor y, const Matrix& table) {
  go(table.place);
  current().embed(out(y), table);
}

void SplitBackend::layer_norm(Tensor y, Tensor x, const Norm& norm) {
  go(norm.weight.place);
  x = in(x);
  current().layer_norm(out(y), x, norm);
}

void SplitBackend::shift_delta(Tensor dx, Tensor x, Slot prev) {
  hold(prev);
  x = in(x);
  current().shift_delta(out(dx), x, prev);
}

void SplitBackend::lerp(std::span<const Tensor> y, Tensor x, Tensor dx,
                        std::span<const Vector> mu) {
  go(mu[0].place);
  x = in(x);
  dx = in(dx);
  current().lerp(out(y), x, dx, mu);
}

void SplitBackend::shift_mix(std::span<const Tensor> y, Tensor x, Slot prev,
                             std::span<const Vector> mu) {
  go(mu[0].place);
  hold(prev);
  x = in(x);
  current().shift_mix(out(y), x, prev, mu);
}

void SplitBackend::linear(std::span<const LinearJob> jobs) {
  std::vector<LinearJob> group;
  for (std::size_t first = 0; first < jobs.size(); first += group.size()) {
    const int place = jobs[first].w->place;
    go(place);
    group.clear();
    for (const LinearJob& job : jobs.subspan(first)) {
      if (job.w->place != place) break;
      LinearJob& moved = group.emplace_back(job);
      moved.x = in(job.x);
      moved.epilogue.gate = in(job.epilogue.gate);
      moved.epilogue.add = in(job.epilogue.add);
    }
    for (LinearJob& job : group) {  // results last: none of a group is an input of another
      job.y = job.epilogue.into ? update(job.y) : out(job.y);
      if (job.epilogue.into) job.epilogue.into = job.y;
      if (job.epilogue.out) job.epilogue.out = job.y;
    }
    current().linear(group);
  }
}

void SplitBackend::add(Tensor y, Tensor a, Tensor b) {
  a = in(a);
  b = in(b);
  current().add(out(y), a, b);
}

void SplitBackend::multiply(Tensor y, Tensor a, Tensor b) {
  a = in(a);
  b = in(b);
  current().multiply(out(y), a, b);
}

void SplitBackend::select_rows(Tensor y, Tensor x) {
  x = in(x);
  current().select_rows(out(y), x);
}

void SplitBackend::wkv4(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                        const Vector& bonus, Slot aa_bb_pp) {
  go(decay.place);
  hold(aa_bb_pp);
  r = in(r);
  k = in(k);
  v = in(v);
  current().wkv4(out(y), r, k, v, decay, bonus, aa_bb_pp);
}

void SplitBackend::wkv6(Tensor y, Tensor r, Tensor k, Tensor v, Tensor decay,
                        const Vector* decay_const, const Vector& bonus, int heads,
                        const HeadEpilogue& epilogue, Slot state) {
  go(bonus.place);
  hold(state);
  r = in(r);
  k = in(k);
  v = in(v);
  decay = in(decay);
  HeadEpilogue e = epilogue;
  e.gate = in(e.gate);
  current().wkv6(out(y), r, k, v, decay, decay_const, bonus, heads, e, state);
}

void SplitBackend::wkv7(Tensor y, const Wkv7& in_, int heads, Slot state) {
  go(in_.k_k->place);
  hold(state);
  Wkv7 w = in_;
  for (Tensor* t : {&w.r, &w.w, &w.k, &w.v, &w.a, &w.v_first, &w.v_mix, &w.gate}) *t = in(*t);
  current().wkv7(out(y), w, heads, state);
}

void SplitBackend::wkv1(Tensor y, const Wkv1& in_, int heads, Slot sum_k, Slot past) {
  go(in_.time_w->place);
  hold(sum_k);
  hold(past);
  Wkv1 w = in_;
  for (Tensor* t : {&w.r, &w.k, &w.v}) *t = in(*t);
  current().wkv1(out(y), w, heads, sum_k, past);
}

void SplitBackend::wkv2(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                        const Vector& bonus, float eps, Slot aa_bb) {
  go(decay.place);
  hold(aa_bb);
  r = in(r);
  k = in(k);
  v = in(v);
  current().wkv2(out(y), r, k, v, decay, bonus, eps, aa_bb);
}

void SplitBackend::by_position(Tensor y, const Vector& values) {
  go(values.place);
  current().by_position(out(y), values);
}

void SplitBackend::remember(Tensor x, Slot past) {
  hold(past);
  current().remember(in(x), past);
}

void SplitBackend::remember_tokens(Slot past) {
  if (!running_[current_].begun) go(0);
  hold(past);
  current().remember_tokens(past);
}

void SplitBackend::copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) {
  hold(keys);
  hold(tokens);
  q = in(q);
  current().copy_logits(update(logits), q, keys, tokens, scale);
}

void SplitBackend::attention(Tensor y, Tensor q, Slot keys, Slot values) {
  hold(keys);
  hold(values);
  q = in(q);
  current().attention(out(y), q, keys, values);
}

void SplitBackend::linear_attention(Tensor y, Tensor q, Tensor k, Tensor v, float scale,
                                    Slot state) {
  hold(state);
  q = in(q);
  k = in(k);
  v = in(v);
  current().linear_attention(out(y), q, k, v, scale, state);
}

void SplitBackend::row_matvec(Tensor y, Tensor x, Tensor m) {
  x = in(x);
  m = in(m);
  current().row_matvec(out(y), x, m);
}

}  // namespace wkv
