#include "io/converted.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"

namespace wkv {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr std::array<std::string_view, 6> kTurned{"key.weight",        "value.weight",
                                                  "receptance.weight", "gate.weight",
                                                  "output.weight",     "head.weight"};
// The order of HostTensor::parts: scale and offset per output, per input.
constexpr std::array<std::string_view, 4> kParts{"_rx", "_ry", "_mx", "_my"};
constexpr int kMaxExponent = 64;

bool ends_with_any(std::string_view name, const auto& endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

int integer_in(std::string_view text, int otherwise) {
  int value = otherwise;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// to [cols, rows] = from [rows, cols] in squares that stay in L1.
template <class T>
void turn(std::byte* to, const std::byte* from, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kSquare = 64;
  for (std::int64_t r0 = 0; r0 < rows; r0 += kSquare)
    for (std::int64_t c0 = 0; c0 < cols; c0 += kSquare)
      for (std::int64_t c = c0; c < std::min(c0 + kSquare, cols); ++c)
        for (std::int64_t r = r0; r < std::min(r0 + kSquare, rows); ++r)
          std::memcpy(to + static_cast<std::size_t>(c * rows + r) * sizeof(T),
                      from + static_cast<std::size_t>(r * cols + c) * sizeof(T), sizeof(T));
}

HostTensor turned(const HostTensor& from) {
  const auto bytes = static_cast<std::size_t>(stored_size(from.dtype, from.shape));
  auto memory = std::make_shared<const Buffer>(allocate_host(std::max<std::size_t>(bytes, 1)));
  auto* to = static_cast<std::byte*>(memory->data());
  const auto* data = static_cast<const std::byte*>(from.data);
  const std::int64_t rows = from.shape[0], cols = from.shape[1];
  const std::size_t size = dtype_size(from.dtype);
  if (size == 1)
    turn<std::uint8_t>(to, data, rows, cols);
  else if (size == 2)
    turn<std::uint16_t>(to, data, rows, cols);
  else
    turn<std::uint32_t>(to, data, rows, cols);
  return {memory->data(), from.dtype, {cols, rows}, memory};
}

/// fp32 in new memory, each element mapped.
template <class Map>
HostTensor mapped(const HostTensor& from, Map map) {
  const auto n = static_cast<std::size_t>(from.numel());
  auto memory = std::make_shared<const Buffer>(allocate_host((n + 1) * sizeof(float)));
  auto* to = static_cast<float*>(memory->data());
  for (std::size_t i = 0; i < n; ++i) to[i] = map(element_as_f32(from.data, from.dtype, i));
  return {to, DType::f32, from.shape, memory};
}

class ConvertedSource final : public TensorSource {
 public:
  explicit ConvertedSource(std::shared_ptr<const TensorSource> source)
      : source_(std::move(source)), rescale_(integer_in(source_->metadata("_rescale_layer"), 0)) {
    const auto has = [&](std::string_view part) {
      return std::any_of(source_->names().begin(), source_->names().end(),
                         [&](const std::string& n) { return n.find(part) != n.npos; });
    };
    version_ = has(".time_maa") ? 6 : has(".ln_x") ? 5 : 4;
    for (const std::string& stored : source_->names()) {
      if (ends_with_any(stored, kParts)) continue;
      std::string name = stored;
      // u itself, whatever it was computed from
      if (version_ > 4 && name.ends_with(".time_first"))
        name.replace(name.size() - 10, 10, "time_faaaa");
      if (is_turned(stored)) check(stored);
      names_.push_back(name);
      stored_.emplace(name, stored);
    }
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override {
    return stored_.find(name) != stored_.end();
  }
  std::string metadata(std::string_view key) const override {
    return key == kEmbeddingNote ? "normed" : source_->metadata(key);
  }
  std::string description() const override { return source_->description(); }

  Shape shape(std::string_view name) const override {
    const std::string& stored = find(name);
    Shape shape = source_->shape(stored);
    if (is_turned(stored)) std::swap(shape[0], shape[1]);
    if (name.ends_with(".time_faaaa"))
      while (shape.size() > 2 && shape.back() == 1) shape.pop_back();
    return shape;
  }
  DType dtype(std::string_view name) const override {
    const DType stored = source_->dtype(find(name));
    if (stored == DType::u8) return DType::mm8;
    return is_decay(name) ? DType::f32 : stored;
  }

  HostTensor get(std::string_view name) const override {
    const std::string& stored = find(name);
    HostTensor tensor = source_->get(stored);
    if (is_turned(stored)) return matrix(stored, tensor);
    tensor.shape = shape(name);
    if (!is_decay(name)) return tensor;
    if (version_ == 4) return mapped(tensor, [](float w) { return std::log(-w); });
    return mapped(tensor, [](float w) { return std::log(-std::log(w)); });
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const noexcept {
      return std::hash<std::string_view>()(s);
    }
  };

  static bool is_turned(std::string_view stored) { return ends_with_any(stored, kTurned); }
  /// v4 and v5 hold what the decay is computed to; v6 holds what it is computed from.
  bool is_decay(std::string_view name) const {
    return version_ < 6 && name.ends_with(".time_decay");
  }

  const std::string& find(std::string_view name) const {
    const auto found = stored_.find(name);
    WKV_CHECK(found != stored_.end(), bad_model, source_->description(), " has no tensor ",
              quote(name));
    return found->second;
  }

  void check(const std::string& stored) const {
    const Shape shape = source_->shape(stored);
    const DType dtype = source_->dtype(stored);
    WKV_CHECK(shape.size() == 2 && (dtype == DType::u8 || dtype == DType::f32 ||
                                    dtype == DType::f16 || dtype == DType::bf16),
              bad_model, source_->description(), ": ", quote(stored), " is ", dtype_name(dtype),
              ' ', shape_str(shape), ", expected a matrix of floats or of mm8 codes");
    for (std::size_t i = 0; dtype == DType::u8 && i < kParts.size(); ++i) {
      const std::string name = stored + std::string(kParts[i]);
      std::int64_t n = 1;
      const bool there = source_->contains(name) && is_float(source_->dtype(name));
      for (const std::int64_t d : there ? source_->shape(name) : Shape{}) n *= d;
      WKV_CHECK(there && n == shape[i % 2 == 0 ? 1 : 0], bad_model, source_->description(), ": ",
                quote(stored), " has no ", quote(name), " of its size");
    }
  }

  /// Deep layers were divided so that fp16 does not overflow.
  float factor(const std::string& stored) const {
    constexpr std::string_view kBlocks = "blocks.";
    const bool divided =
        stored.ends_with("att.output.weight") || stored.ends_with("ffn.value.weight");
    if (rescale_ <= 0 || !divided || !stored.starts_with(kBlocks)) return 1.0f;
    const int layer = integer_in(std::string_view(stored).substr(kBlocks.size()), 0);
    return std::ldexp(1.0f, std::clamp(layer / rescale_, 0, kMaxExponent));
  }

  HostTensor matrix(const std::string& stored, const HostTensor& from) const {
    const float times = factor(stored);
    HostTensor tensor = turned(from);
    if (from.dtype != DType::u8) {
      if (times == 1.0f) return tensor;
      return mapped(tensor, [times](float w) { return w * times; });
    }
    tensor.dtype = DType::mm8;
    for (std::size_t i = 0; i < kParts.size(); ++i) {
      // The factor belongs to one of the two scales and to both offsets.
      const float by = i == 1 ? 1.0f : times;
      HostTensor part =
          mapped(source_->get(stored + std::string(kParts[i])), [by](float v) { return v * by; });
      part.shape = {tensor.shape[i % 2]};
      const auto* values = static_cast<const float*>(part.data);
      WKV_CHECK(
          std::all_of(values, values + part.numel(), [](float v) { return std::isfinite(v); }),
          bad_model, source_->description(), ": ", quote(stored + std::string(kParts[i])),
          " holds infinities or NaN; a constant row or column was quantised");
      tensor.parts.push_back(std::move(part));
    }
    return tensor;
  }

  std::shared_ptr<const TensorSource> source_;
  int rescale_;
  int version_ = 4;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::string, Hash, std::equal_to<>> stored_;
};

}  // namespace

bool is_converted(const TensorSource& source) { return !source.metadata("_strategy").empty(); }

std::shared_ptr<const TensorSource> open_converted(std::shared_ptr<const TensorSource> source) {
  return std::make_shared<const ConvertedSource>(std::move(source));
}

}  // namespace wkv
