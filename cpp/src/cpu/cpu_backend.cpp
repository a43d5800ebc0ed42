#include "cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/check.h"
#include "cpu/act.h"
#include "cpu/split.h"

namespace wkv::cpu {

static_assert(static_cast<int>(Act::none) == kActNone);
static_assert(static_cast<int>(Act::tanh) == kActTanh);
static_assert(static_cast<int>(Act::sigmoid) == kActSigmoid);
static_assert(static_cast<int>(Act::silu) == kActSilu);
static_assert(static_cast<int>(Act::relu_squared) == kActReluSquared);
static_assert(static_cast<int>(Act::exp_neg_exp) == kActExpNegExp);
static_assert(static_cast<int>(Act::decay7) == kActDecay7);
static_assert(static_cast<int>(Act::mish) == kActMish);

namespace {

constexpr int kMaxGroup = 16;  // tensors that one lerp or shift_mix writes

HeadFinish finish(const Norm* norm, Tensor gate, int row, int col) {
  HeadFinish f{nullptr, nullptr, 0.0f, in(gate, row, col)};
  if (norm != nullptr) {
    f.weight = norm->weight.data + col;
    f.bias = norm->bias.data + col;
    f.eps = norm->eps;
  }
  return f;
}

}  // namespace

CpuBackend::CpuBackend(int threads, const KernelTable& kernels, SkipZeros skip_zeros,
                       MatmulPrecision precision)
    : kernels_(kernels),
      skip_zeros_(skip_zeros),
      precision_(precision),
      read_ahead_(threads > 0 ? threads : usable_cores()),
      pool_(read_ahead_.threads(),
            {[](void* ahead, int i) noexcept { return static_cast<ReadAhead*>(ahead)->ask(i); },
             &read_ahead_}),
      shares_(pool_.threads()) {}

std::string CpuBackend::name() const {
  const int n = pool_.threads();
  return str("cpu ", kernels_.isa, ", ", n, n == 1 ? " thread" : " threads");
}

Buffer CpuBackend::allocate(std::size_t bytes) { return allocate_host(bytes); }

void CpuBackend::write(void* device, const void* host, std::size_t bytes) {
  std::memcpy(device, host, bytes);
}
void CpuBackend::read(void* host, const void* device, std::size_t bytes) {
  std::memcpy(host, device, bytes);
}
void CpuBackend::copy(void* to_device, const void* from_device, std::size_t bytes) {
  std::memmove(to_device, from_device, bytes);
}

void CpuBackend::begin(const Batch& batch) {
  batch_ = &batch;
  sequence_of_row_.resize(static_cast<std::size_t>(batch.rows));
  for (const Sequence& s : batch.sequences)
    std::fill_n(sequence_of_row_.begin() + s.row, s.rows, &s);
}

void CpuBackend::end() { batch_ = nullptr; }

void CpuBackend::embed(Tensor y, const Matrix& table) {
  const std::int64_t work = std::int64_t{y.rows} * y.cols;
  if (batch_->inputs != nullptr) {
    for_rows(pool_, y.rows, work, [&](int t) {
      std::memcpy(y.row(t), batch_->inputs + std::int64_t{t} * y.cols, floats(y.cols));
    });
    return;
  }
  WKV_CHECK(
      table.layout == Layout::row_major &&
          (table.dtype == DType::f32 || table.dtype == DType::f16 || table.dtype == DType::bf16),
      internal, "[embed] the table '", table.name, "' is no row-major float matrix");
  const int type = table.dtype == DType::f32   ? kTableF32
                   : table.dtype == DType::f16 ? kTableF16
                                               : kTableBF16;
  for_rows(pool_, y.rows, work, [&](int t) {
    const auto token = static_cast<std::size_t>(batch_->tokens[static_cast<std::size_t>(t)]);
    kernels_.rows.gather(y.row(t), table.data, type, token, y.cols);
  });
}

void CpuBackend::layer_norm(Tensor y, Tensor x, const Norm& norm) {
  for_rows(pool_, x.rows, 4 * std::int64_t{x.rows} * x.cols, [&](int t) {
    kernels_.rows.layer_norm(y.row(t), x.row(t), norm.weight.data, norm.bias.data, norm.eps,
                             x.cols);
  });
}

/// f(row, the row before it) for every row of x; then `prev` of each state takes its last row.
template <class F>
void CpuBackend::for_shifted(Tensor x, Slot prev, std::int64_t work, F f) {
  for_rows(pool_, x.rows, work, [&](int t) {
    const Sequence& s = *sequence_of_row_[static_cast<std::size_t>(t)];
    float* state = s.state + prev.offset;
    f(t, t == s.row ? state : x.row(t - 1));
    if (s.rows == 1) std::memcpy(state, x.row(t), floats(x.cols));
  });
  // With more rows another thread may have had the first one, so the last waits for all.
  for (const Sequence& s : batch_->sequences)
    if (s.rows > 1) std::memcpy(s.state + prev.offset, x.row(s.row + s.rows - 1), floats(x.cols));
}

void CpuBackend::shift_delta(Tensor dx, Tensor x, Slot prev) {
  for_shifted(x, prev, std::int64_t{x.rows} * x.cols, [&](int t, const float* before) {
    kernels_.rows.subtract(dx.row(t), before, x.row(t), x.cols);
  });
}

void CpuBackend::shift_mix(std::span<const Tensor> y, Tensor x, Slot prev,
                           std::span<const Vector> mu) {
  const auto groups = static_cast<int>(y.size());
  WKV_CHECK(groups <= kMaxGroup, internal, "[shift_mix] ", groups, " outputs, at most ", kMaxGroup);
  const std::int64_t work = std::int64_t{x.rows} * x.cols * (groups + 1);
  for_shifted(x, prev, work, [&](int t, const float* before) {
    std::array<float*, kMaxGroup> to;
    std::array<const float*, kMaxGroup> mix;
    for (std::size_t g = 0; g < y.size(); ++g) {
      to[g] = y[g].row(t);
      mix[g] = mu[g].data;
    }
    kernels_.rows.shift_mix(to.data(), x.row(t), before, mix.data(), groups, x.cols);
  });
}

void CpuBackend::lerp(std::span<const Tensor> y, Tensor x, Tensor dx, std::span<const Vector> mu) {
  const auto groups = static_cast<int>(y.size());
  WKV_CHECK(groups <= kMaxGroup, internal, "[lerp] ", groups, " outputs, at most ", kMaxGroup);
  for_rows(pool_, x.rows, std::int64_t{x.rows} * x.cols * (groups + 1), [&](int t) {
    std::array<float*, kMaxGroup> to;
    std::array<const float*, kMaxGroup> mix;
    for (std::size_t g = 0; g < y.size(); ++g) {
      to[g] = y[g].row(t);
      mix[g] = mu[g].data;
    }
    kernels_.rows.lerp(to.data(), x.row(t), dx.row(t), mix.data(), groups, x.cols);
  });
}

void CpuBackend::add(Tensor y, Tensor a, Tensor b) {
  for_rows(pool_, y.rows, std::int64_t{y.rows} * y.cols,
           [&](int t) { kernels_.rows.add(y.row(t), a.row(t), b.row(t), y.cols); });
}

void CpuBackend::multiply(Tensor y, Tensor a, Tensor b) {
  for_rows(pool_, y.rows, std::int64_t{y.rows} * y.cols,
           [&](int t) { kernels_.rows.multiply(y.row(t), a.row(t), b.row(t), y.cols); });
}

void CpuBackend::select_rows(Tensor y, Tensor x) {
  for_rows(pool_, y.rows, std::int64_t{y.rows} * y.cols, [&](int i) {
    std::memcpy(y.row(i), x.row(batch_->wanted_rows[static_cast<std::size_t>(i)]), floats(y.cols));
  });
}

void CpuBackend::wkv4(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                      const Vector& bonus, Slot aa_bb_pp) {
  constexpr std::int64_t kWork = 32;  // two exponentials and a division
  const int channels = r.cols;
  const int blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  for_units(pool_, *batch_, blocks, kWork * r.rows * channels,
            [&](int, const Sequence& s, int from, int to) {
              const int c = from * kChannelBlock;
              float* state = s.state + aa_bb_pp.offset + c;
              Wkv4Args args{};
              args.y = out(y, s.row, c);
              args.r = in(r, s.row, c);
              args.k = in(k, s.row, c);
              args.v = in(v, s.row, c);
              args.decay = decay.data + c;
              args.bonus = bonus.data + c;
              args.aa = state;
              args.bb = state + channels;
              args.pp = state + 2 * channels;
              args.rows = s.rows;
              args.channels = std::min(to * kChannelBlock, channels) - c;
              kernels_.rows.wkv4(args);
            });
}

void CpuBackend::wkv6(Tensor y, Tensor r, Tensor k, Tensor v, Tensor decay,
                      const Vector* decay_const, const Vector& bonus, int heads,
                      const HeadEpilogue& epilogue, Slot state) {
  const int n = r.cols / heads;
  for_units(pool_, *batch_, heads, std::int64_t{r.rows} * r.cols * n,
            [&](int, const Sequence& s, int from, int to) {
              for_head_tokens(s, from, to, [&](int h, int row, int rows) {
                const int c = h * n;
                Wkv6Args args{};
                args.y = out(y, row, c);
                args.r = in(r, row, c);
                args.k = in(k, row, c);
                args.v = in(v, row, c);
                args.decay =
                    decay_const != nullptr ? RowsIn{decay_const->data + c, 0} : in(decay, row, c);
                args.bonus = bonus.data + c;
                args.finish = finish(epilogue.norm, epilogue.gate, row, c);
                args.state = s.state + state.offset + std::int64_t{c} * n;
                args.rows = rows;
                args.head_size = n;
                kernels_.rows.wkv6(args);
              });
            });
}

void CpuBackend::wkv7(Tensor y, const Wkv7& x, int heads, Slot state) {
  const int n = x.r.cols / heads;
  const std::size_t scratch = wkv7_scratch_floats(n);
  scratch_.resize(std::max(scratch_.size(), scratch * static_cast<std::size_t>(pool_.threads())));
  for_units(pool_, *batch_, heads, std::int64_t{x.r.rows} * x.r.cols * n,
            [&](int index, const Sequence& s, int from, int to) {
              for_head_tokens(s, from, to, [&](int h, int row, int rows) {
                const int c = h * n;
                Wkv7Args args{};
                args.y = out(y, row, c);
                args.r = in(x.r, row, c);
                args.w = in(x.w, row, c);
                args.k = in(x.k, row, c);
                args.v = in(x.v, row, c);
                args.a = in(x.a, row, c);
                args.v_first = in(x.v_first, row, c);
                args.v_mix = in(x.v_mix, row, c);
                args.k_k = x.k_k->data + c;
                args.k_a = x.k_a->data + c;
                args.r_k = x.r_k->data + c;
                args.finish = finish(x.norm, x.gate, row, c);
                args.state = s.state + state.offset + std::int64_t{c} * n;
                args.next_state = h + 1 < to ? std::ptrdiff_t{n} * n : 0;
                args.scratch = scratch_.data() + scratch * static_cast<std::size_t>(index);
                args.rows = rows;
                args.head_size = n;
                kernels_.rows.wkv7(args);
              });
            });
}

}  // namespace wkv::cpu
