#include "cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv::cuda {
namespace {

constexpr std::size_t kTickets = 65536;

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }
/// Rows can be read 16 bytes at a time.
bool aligned(Tensor x) { return aligned(x.data) && x.stride % 4 == 0; }
float* data(Tensor x) { return static_cast<float*>(x.data); }

}  // namespace

CudaBackend::CudaBackend(std::unique_ptr<Device> device)
    : device_(std::move(device)), queue_(*device_) {
  tickets_ = device_->allocate(kTickets * sizeof(unsigned));
  device_->zero(tickets_.data(), tickets_.bytes());
}

CudaBackend::~CudaBackend() {
  queue_.reset();
  try {
    device_->synchronize();  // nothing may still use the memory that goes now
  } catch (const Error&) {   // the device has failed already, and whoever ran the step was told
  }
}

std::string CudaBackend::name() const { return str(device_->name(), ' ', device_->description()); }

Buffer CudaBackend::allocate(std::size_t bytes) { return device_->allocate(bytes); }

void CudaBackend::copy(void* to_device, const void* from_device, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  flush();
  device_->copy(to_device, from_device, bytes);
  device_->synchronize();
}

void* CudaBackend::grow(Scratch& scratch, std::size_t bytes) {
  if (scratch.buffer.bytes() < bytes) {
    Buffer larger = device_->allocate(std::max(bytes, 2 * scratch.buffer.bytes()));
    if (scratch.buffer) retired_.push_back(std::move(scratch.buffer));
    scratch.buffer = std::move(larger);
  }
  return scratch.buffer.data();
}

void CudaBackend::begin(const Batch& batch) {
  const std::lock_guard lock(mutex_);
  made_.clear();
  turn_ = 0;  // a step of equal shape then finds everything at the same place
  batch_ = batch;
  const auto sequences = batch.sequences.size();
  const auto rows = static_cast<std::size_t>(batch.rows);
  // Arrays start at multiples of a power of two, so that their addresses depend on the number of
  // rows alone and a step of equal shape finds them where a captured graph looks.
  const std::size_t stride = std::bit_ceil(std::max<std::size_t>({rows, sequences, 64}));
  constexpr std::size_t kArrays = 7;
  const std::size_t bytes = stride * (sizeof(float*) + kArrays * sizeof(std::int32_t));
  if (batch_device_.bytes() < bytes) {
    flush();
    device_->synchronize();
    batch_host_ = device_->allocate_pinned(bytes);
    batch_device_ = device_->allocate(bytes);
  }
  auto** states = static_cast<float**>(batch_host_.data());
  auto* tokens = reinterpret_cast<std::int32_t*>(states + stride);
  std::int32_t *first_of = tokens + stride, *seq_row = first_of + stride,
               *seq_rows = seq_row + stride, *wanted = seq_rows + stride, *seq_of = wanted + stride,
               *position = seq_of + stride;
  std::copy(batch.tokens.begin(), batch.tokens.end(), tokens);
  std::fill_n(first_of, rows, -1);
  std::copy(batch.wanted_rows.begin(), batch.wanted_rows.end(), wanted);
  one_row_each_ = true;
  for (std::size_t i = 0; i < sequences; ++i) {
    const Sequence& s = batch.sequences[i];
    states[i] = s.state;
    seq_row[i] = s.row;
    seq_rows[i] = s.rows;
    first_of[s.row] = static_cast<std::int32_t>(i);
    for (int t = 0; t < s.rows; ++t) {
      seq_of[s.row + t] = static_cast<std::int32_t>(i);
      position[s.row + t] = static_cast<std::int32_t>(s.position) + t;
    }
    one_row_each_ = one_row_each_ && s.rows == 1;
  }
  queue_.start(one_row_each_ && batch.inputs == nullptr);
  device_->copy_in(batch_device_.data(), batch_host_.data(), bytes);

  auto* device_states = static_cast<float**>(batch_device_.data());
  auto* device_ints = reinterpret_cast<std::int32_t*>(device_states + stride);
  view_ = {
      device_ints,   device_ints + stride,     device_ints + 2 * stride, device_ints + 3 * stride,
      device_states, device_ints + 4 * stride, device_ints + 5 * stride, device_ints + 6 * stride};
}

void CudaBackend::end() {
  const std::lock_guard lock(mutex_);
  flush();
  queue_.start(false);
  device_->synchronize();
  retired_.clear();
}

void CudaBackend::settle() {
  if (!norm_waits_) return;
  norm_waits_ = false;
  Launch launch;
  cuda::layer_norm(launch, norm_);
  queue_.push(launch);
}

void CudaBackend::push() {
  settle();
  queue_.push(launch_);
  made_.clear();
}

void CudaBackend::flush() {
  settle();
  queue_.flush();
}

void CudaBackend::embed(Tensor y, const Matrix& table) {
  if (batch_.inputs != nullptr) {
    const auto cols = static_cast<std::size_t>(y.cols) * sizeof(float);
    const std::lock_guard lock(mutex_);
    flush();
    made_.clear();
    upload_rows(y.data, batch_.inputs, static_cast<std::size_t>(y.rows), cols,
                static_cast<std::size_t>(y.stride) * sizeof(float));
    return;
  }
  auto p = zeroed<EmbedParams>();
  p.table = table.data;
  p.y = data(y);
  p.tokens = view_.tokens;
  p.ldy = y.stride;
  p.element = table.dtype == DType::f16    ? Element::f16
              : table.dtype == DType::bf16 ? Element::bf16
                                           : Element::f32;
  p.rows = y.rows;
  p.cols = y.cols;
  const std::lock_guard lock(mutex_);
  cuda::embed(launch_, p);
  push();
}

void CudaBackend::layer_norm(Tensor y, Tensor x, const Norm& norm) {
  auto p = zeroed<LayerNormParams>();
  p.x = x.f32();
  p.y = data(y);
  p.weight = norm.weight.data;
  p.bias = norm.bias.data;
  p.ldx = x.stride;
  p.ldy = y.stride;
  p.rows = x.rows;
  p.cols = x.cols;
  p.eps = norm.eps;
  const std::lock_guard lock(mutex_);
  settle();
  made_.clear();
  norm_ = p;
  norm_waits_ = true;
}

void CudaBackend::mix(std::span<const Tensor> y, Tensor x, Tensor dx, Slot prev,
                      std::span<const Vector> mu, bool shift, bool delta) {
  WKV_CHECK(y.size() <= kMaxMix, internal, "[mix] ", y.size(), " outputs, at most ", kMaxMix);
  auto p = zeroed<MixParams>();
  p.batch = view_;
  p.x = x.f32();
  p.dx = dx.f32();
  p.ldx = x.stride;
  p.lddx = dx.stride;
  p.ldy = y[0].stride;
  p.slot = shift ? prev.offset : 0;
  p.rows = x.rows;
  p.cols = x.cols;
  p.outputs = static_cast<std::int32_t>(y.size());
  p.shift = shift ? 1 : 0;
  p.delta = delta ? 1 : 0;
  bool vectors = x.cols % 4 == 0 && p.slot % 4 == 0 && aligned(x) && (shift || aligned(dx));
  for (std::size_t g = 0; g < y.size(); ++g) {
    WKV_CHECK(y[g].stride == p.ldy, internal, "[mix] outputs of different row length");
    p.y[g] = data(y[g]);
    p.mu[g] = delta ? nullptr : mu[g].data;
    vectors = vectors && aligned(y[g]) && aligned(p.mu[g]);
  }
  p.vectors = vectors ? 1 : 0;
  const std::lock_guard lock(mutex_);
  const auto beside = delta ? std::vector<void*>{} : round_beside(y.size(), x.rows, x.cols);
  for (std::size_t g = 0; g < beside.size(); ++g) p.y16[g] = beside[g];
  p.bf16 = half_ == Half::bf16 ? 1 : 0;
  const auto done = [&] {
    for (std::size_t g = 0; g < beside.size(); ++g)
      made_.push_back(rounded(p.y[g], p.ldy, p.cols, 1.0f, beside[g]));
  };
  if (norm_waits_ && shift && one_row_each_ && norm_.y == p.x && norm_.ldy == p.ldx &&
      norm_.rows == p.rows && norm_.cols == p.cols) {
    auto both = zeroed<NormMixParams>();
    both.norm = norm_;
    both.mix = p;
    norm_waits_ = false;
    norm_mix(launch_, both);
    push();
    return done();
  }
  cuda::mix(launch_, p);
  push();
  done();
}

void CudaBackend::shift_delta(Tensor dx, Tensor x, Slot prev) {
  mix({&dx, 1}, x, {}, prev, {}, true, true);
}
void CudaBackend::lerp(std::span<const Tensor> y, Tensor x, Tensor dx, std::span<const Vector> mu) {
  mix(y, x, dx, {}, mu, false, false);
}
void CudaBackend::shift_mix(std::span<const Tensor> y, Tensor x, Slot prev,
                            std::span<const Vector> mu) {
  mix(y, x, {}, prev, mu, true, false);
}

void CudaBackend::binary(Tensor y, Tensor a, Tensor b, bool product) {
  auto p = zeroed<BinaryParams>();
  p.a = a.f32();
  p.b = b.f32();
  p.y = data(y);
  p.lda = a.stride;
  p.ldb = b.stride;
  p.ldy = y.stride;
  p.rows = y.rows;
  p.cols = y.cols;
  p.product = product ? 1 : 0;
  const std::lock_guard lock(mutex_);
  cuda::binary(launch_, p);
  push();
}

void CudaBackend::add(Tensor y, Tensor a, Tensor b) { binary(y, a, b, false); }
void CudaBackend::multiply(Tensor y, Tensor a, Tensor b) { binary(y, a, b, true); }

void CudaBackend::select_rows(Tensor y, Tensor x) {
  auto p = zeroed<GatherParams>();
  p.x = x.f32();
  p.y = data(y);
  p.index = view_.wanted;
  p.ldx = x.stride;
  p.ldy = y.stride;
  p.rows = y.rows;
  p.cols = y.cols;
  const std::lock_guard lock(mutex_);
  gather(launch_, p);
  push();
}

void CudaBackend::wkv4(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                       const Vector& bonus, Slot aa_bb_pp) {
  auto p = zeroed<Wkv4Params>();
  p.batch = view_;
  p.r = r.f32();
  p.k = k.f32();
  p.v = v.f32();
  p.decay = decay.data;
  p.bonus = bonus.data;
  p.y = data(y);
  p.ldr = r.stride;
  p.ldk = k.stride;
  p.ldv = v.stride;
  p.ldy = y.stride;
  p.slot = aa_bb_pp.offset;
  p.sequences = static_cast<std::int32_t>(batch_.sequences.size());
  p.cols = y.cols;
  const std::lock_guard lock(mutex_);
  cuda::wkv4(launch_, p);
  push();
}

namespace {

/// What wkv6 and wkv7 have in common.
WkvParams wkv_params(const BatchView& view, const Batch& batch, Tensor y, Tensor r, Tensor k,
                     Tensor v, const Norm* norm, Tensor gate, int heads, Slot state) {
  constexpr int kMaxHead = 128;
  const int head_size = y.cols / heads;
  WKV_CHECK(head_size <= kMaxHead, unsupported, "[wkv] heads of ", head_size,
            " channels; the CUDA kernels take up to ", kMaxHead);
  auto p = zeroed<WkvParams>();
  p.batch = view;
  p.r = r.f32();
  p.k = k.f32();
  p.v = v.f32();
  p.gate = gate.f32();
  p.y = data(y);
  p.ldr = r.stride;
  p.ldk = k.stride;
  p.ldv = v.stride;
  p.ldgate = gate.stride;
  p.ldy = y.stride;
  p.slot = state.offset;
  p.rows = y.rows;
  p.sequences = static_cast<std::int32_t>(batch.sequences.size());
  p.heads = heads;
  p.head_size = head_size;
  if (norm != nullptr) {
    p.norm_weight = norm->weight.data;
    p.norm_bias = norm->bias.data;
    p.eps = norm->eps;
  }
  return p;
}

}  // namespace

void CudaBackend::wkv6(Tensor y, Tensor r, Tensor k, Tensor v, Tensor decay,
                       const Vector* decay_const, const Vector& bonus, int heads,
                       const HeadEpilogue& epilogue, Slot state) {
  WkvParams p = wkv_params(view_, batch_, y, r, k, v, epilogue.norm, epilogue.gate, heads, state);
  p.version = 6;
  p.w = decay_const != nullptr ? decay_const->data : decay.f32();
  p.ldw = decay_const != nullptr ? 0 : decay.stride;
  p.r_k = bonus.data;
  run_wkv(p);
}

void CudaBackend::wkv7(Tensor y, const Wkv7& in, int heads, Slot state) {
  WkvParams p = wkv_params(view_, batch_, y, in.r, in.k, in.v, in.norm, in.gate, heads, state);
  p.version = 7;
  p.w = in.w.f32();
  p.a = in.a.f32();
  p.ldw = in.w.stride;
  p.lda = in.a.stride;
  if (in.v_mix) {
    p.v_first = in.v_first.f32();
    p.v_mix = in.v_mix.f32();
    p.ldv_first = in.v_first.stride;
    p.ldv_mix = in.v_mix.stride;
  }
  p.k_k = in.k_k->data;
  p.k_a = in.k_a->data;
  p.r_k = in.r_k->data;
  run_wkv(p);
}

/// A head is split where its blocks find a processor of their own, for sequences that are long
/// enough to pay for the second kernel.
void CudaBackend::run_wkv(WkvParams& p) {
  constexpr int kLong = 16, kMostBlocks = 4;
  int longest = 0;
  for (const Sequence& s : batch_.sequences) longest = std::max(longest, s.rows);
  p.split = std::min(kMostBlocks, device_->processors() / std::max(1, p.heads * p.sequences));
  if (p.split == 3) p.split = 2;
  p.crowded = longest == 1 && p.heads * p.sequences > 2 * device_->processors() ? 1 : 0;
  const std::lock_guard lock(mutex_);
  const int cols = p.heads * p.head_size;
  const auto beside = round_beside(1, p.rows, cols);
  // Without anything to finish, no kernel has whole rows of split heads.
  const bool finish = p.version == 7 || p.norm_weight != nullptr || p.gate != nullptr;
  const bool split = longest >= kLong && p.split >= 2;
  if (!beside.empty() && (finish || !split)) p.y16 = beside[0];
  p.bf16 = half_ == Half::bf16 ? 1 : 0;
  if (!split) {
    wkv(launch_, p);
  } else {
    wkv_split(launch_, p);
    push();
    if (!finish) return;
    wkv_finish(launch_, p);
  }
  push();
  if (p.y16 != nullptr) made_.push_back(rounded(p.y, p.ldy, cols, 1.0f, p.y16));
}

void CudaBackend::sample(const SampleParams& p) {
  const std::lock_guard lock(mutex_);
  cuda::sample(launch_, p);
  push();
}

}  // namespace wkv::cuda
