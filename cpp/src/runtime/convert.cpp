#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "core/quantised_parts.h"
#include "core/thread_pool.h"
#include "io/converted.h"
#include "io/safetensors.h"
#include "models/detect.h"
#include "ops/quantize.h"
#include "runtime/fingerprint.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

/// Vectors are a thousandth of a model, and some (decays) do not survive 8 bits of mantissa.
bool is_matrix(const std::vector<std::int64_t>& shape) {
  return std::count_if(shape.begin(), shape.end(), [](std::int64_t d) { return d > 1; }) >= 2;
}

void convert_tensor(const HostTensor& from, DType to, const std::string& name,
                    const TensorToSave::Sink& sink) {
  constexpr std::size_t kPiece = std::size_t{1} << 18;  // elements: the buffer stays in L2
  const auto n = static_cast<std::size_t>(from.numel());
  std::vector<std::byte> buffer(std::min(n, kPiece) * dtype_size(to));
  for (std::size_t first = 0; first < n; first += kPiece) {
    const std::size_t count = std::min(kPiece, n - first);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = element_as_f32(from.data, from.dtype, first + i);
      std::byte* out = buffer.data() + i * dtype_size(to);
      if (to == DType::f32) {
        __builtin_memcpy(out, &value, sizeof value);
        continue;
      }
      const std::uint16_t half = to == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      WKV_CHECK(to != DType::f16 || (half & 0x7fffu) != 0x7c00u || std::isinf(value), unsupported,
                "[convert] '", name, "' holds ", value,
                ", beyond the largest fp16 (65504); use bf16");
      __builtin_memcpy(out, &half, sizeof half);
    }
    sink(buffer.data(), count * dtype_size(to));
  }
}

/// A matrix (`factor`: stored [in, out]) while it is written: quantised when the first of its
/// tensors has its turn, held until the last has had it, the codes until their own.
class Quantised {
 public:
  Quantised(std::shared_ptr<const TensorSource> source, std::string name, DType want, bool factor,
            std::shared_ptr<ThreadPool> pool)
      : source_(std::move(source)),
        name_(std::move(name)),
        want_(want),
        factor_(factor),
        pool_(std::move(pool)) {}

  void write_codes(const TensorToSave::Sink& sink) {
    make(sink);
    sink(tensor_.data, static_cast<std::size_t>(stored_size(want_, tensor_.shape)));
    std::vector<HostTensor> kept;
    for (const HostTensor& part : tensor_.parts) {
      const auto bytes = static_cast<std::size_t>(stored_size(part.dtype, part.shape));
      auto copy = std::make_shared<const Buffer>(allocate_host(bytes));
      std::memcpy(copy->data(), part.data, bytes);
      kept.push_back({copy->data(), part.dtype, part.shape, std::move(copy)});
    }
    tensor_.owner.reset();
    tensor_.parts = std::move(kept);
    count();
  }

  void write_part(std::size_t index, const TensorToSave::Sink& sink) {
    make(sink);
    const HostTensor& part = tensor_.parts[index];
    sink(part.data, static_cast<std::size_t>(stored_size(part.dtype, part.shape)));
    count();
  }

 private:
  /// Writes nothing to `sink`: an empty write asks whether to go on.
  void make(const TensorToSave::Sink& sink) {
    if (written_ > 0 || tensor_.data != nullptr) return;
    tensor_ = source_->get(name_);
    if (tensor_.dtype == want_) return;
    const quantize::Parallel parallel =
        quantize::polled([this](int n, const auto& work) { pool_->run_parts(n, work); },
                         [&] { sink(tensor_.data, 0); }, tensor_.shape[1]);
    auto memory = std::make_shared<Buffer>();
    Matrix m;
    try {
      tensor_ = quantize::dequantize(tensor_, parallel);
      if (factor_) tensor_ = quantize::transpose(tensor_);
      m = quantize::quantize(tensor_, want_, *memory, parallel);
    } catch (const Error& e) {
      fail(e.code(), "[convert] '", name_, "': ", e.what());
    }
    tensor_ = {m.data, want_, tensor_.shape, memory};
    const std::array<const void*, 4> data{want_ == DType::int4 ? m.group_scale : m.out_scale,
                                          m.in_scale, m.out_offset, m.in_offset};
    for (const PartInfo& part : quantised_parts(want_, tensor_.shape))
      tensor_.parts.push_back({data[tensor_.parts.size()], part.dtype, part.shape, memory});
    if (factor_) tensor_ = quantize::transpose(tensor_);
  }

  void count() {
    if (++written_ > tensor_.parts.size()) tensor_ = {};
  }

  std::shared_ptr<const TensorSource> source_;
  std::string name_;
  DType want_;
  bool factor_;
  std::shared_ptr<ThreadPool> pool_;
  HostTensor tensor_;
  std::size_t written_ = 0;
};

void add_quantised(std::vector<TensorToSave>& tensors, const std::shared_ptr<Quantised>& matrix,
                   const std::string& name, DType want, const std::vector<std::int64_t>& shape) {
  const auto row = static_cast<std::int64_t>(row_size(want, shape[1]));
  tensors.push_back({str(name, '.', kCodes),
                     want == DType::int8 ? DType::i8 : DType::u8,
                     {shape[0], row},
                     [matrix](const TensorToSave::Sink& sink) { matrix->write_codes(sink); }});
  std::size_t index = 0;
  for (const PartInfo& part : quantised_parts(want, shape)) {
    tensors.push_back(
        {str(name, '.', part.name), part.dtype, part.shape,
         [matrix, index](const TensorToSave::Sink& sink) { matrix->write_part(index, sink); }});
    ++index;
  }
}

/// What loading with this plan makes of a tensor.
DType type_in_file(const DTypePlan& plan, const std::string& name, DType stored,
                   const std::vector<std::int64_t>& shape) {
  DType want = plan.type_for(name);
  if (is_quantized(want)) {
    const std::optional<MatrixUse> use = quantised_use(name, shape);
    want = use ? quantize::type_of(want, *use) : DType::automatic;
  }
  if (want == DType::automatic || want == stored) return stored;
  if (is_quantized(stored)) return want;
  const bool narrows = dtype_size(want) < dtype_size(stored);
  return !is_float(stored) || (narrows && !is_matrix(shape)) ? stored : want;
}

}  // namespace

HostTensor dequantize(const HostTensor& tensor) { return quantize::dequantize(tensor); }

void convert_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out,
                        const DTypePlan& dtype, const Progress& progress) {
  const std::shared_ptr<const TensorSource> source = open_checkpoint(in);
  detect(*source);  // refuses files that no model can be loaded from
  for (const DTypePlan::Rule& rule : dtype.rules)
    WKV_CHECK(std::any_of(source->names().begin(), source->names().end(),
                          [&](const std::string& name) { return rule.matches(name); }),
              invalid_argument, "[convert] the dtype plan's pattern '", rule.pattern,
              "' matches no tensor of ", source->description());
  const auto pool = std::make_shared<ThreadPool>(usable_cores());
  std::vector<TensorToSave> tensors;
  std::vector<std::pair<std::string, std::string>> metadata{
      {"format", "pt"}, {kSignsNote, detail::sign_digest(*source)}};
  for (const char* key : {"rwkv.version", kEmbeddingNote})  // what the tensors do not tell
    if (const std::string note = source->metadata(key); !note.empty())
      metadata.emplace_back(key, note);
  for (const std::string& name : source->names()) {
    const DType stored = source->dtype(name);
    const std::vector<std::int64_t> shape = source->shape(name);
    const DType to = type_in_file(dtype, name, stored, shape);
    const bool factor = quantised_use(name, shape) == MatrixUse::lora;
    if (is_quantized(to)) {
      add_quantised(tensors, std::make_shared<Quantised>(source, name, to, factor, pool), name, to,
                    shape);
      if (to == DType::int4 && shape[1] % kInt4Group != 0)
        metadata.emplace_back(name + ".inputs", std::to_string(shape[1]));
      continue;
    }
    const bool turned = factor && stored == DType::int8;
    tensors.push_back({name, to, shape, [source, name, to, turned](const TensorToSave::Sink& sink) {
                         HostTensor tensor = source->get(name);
                         // As loading does: the order of the scales matters to the last bit.
                         if (turned) tensor = quantize::transpose(tensor);
                         tensor = quantize::dequantize(tensor);
                         if (turned) tensor = quantize::transpose(tensor);
                         if (tensor.dtype == to)
                           sink(tensor.data,
                                static_cast<std::size_t>(stored_size(to, tensor.shape)));
                         else
                           convert_tensor(tensor, to, name, sink);
                       }});
  }
  save_safetensors(out, tensors, metadata, progress);
}

}  // namespace wkv
