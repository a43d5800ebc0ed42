// LoRA adapters, merged while a model loads.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"
#include "io/hf.h"
#include "io/notes.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

// blocks.0.att.key.lora_A (RWKV-LM-LoRA, RWKV-PEFT), ....lora_A.weight and
// ....lora_A.default.weight under base_model.model. (the peft library).
constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr std::array<std::string_view, 3> kEndings{"", ".weight", ".default.weight"};
constexpr std::array<std::string_view, 5> kOtherMethods{"init_lora", "bone", "disha", "lora_embed",
                                                        "lora_magnitude"};
constexpr std::size_t kShownProblems = 10;

struct Pair {
  std::string down;  // lora_A [rank, in]
  std::string up;    // lora_B [out, rank]
};

// The base's name for what an adapter's tensor changes, and whether it is lora_A or lora_B.
struct Target {
  std::string name;
  char factor = 0;
};

std::optional<Target> factor_of(std::string_view name) {
  for (const std::string_view ending : kEndings)
    for (const char factor : {'A', 'B'}) {
      const std::string tail = std::string(".lora_") + factor + std::string(ending);
      if (name.ends_with(tail))
        return Target{
            official_name(std::string(name.substr(0, name.size() - tail.size())) + ".weight"),
            factor};
    }
  return std::nullopt;
}

std::vector<float> as_f32(const HostTensor& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.numel()));
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = element_as_f32(tensor.data, tensor.dtype, i);
  return out;
}

void store_row(const std::vector<float>& row, DType dtype, std::byte* to) {
  for (const float value : row) {
    if (dtype == DType::f32) {
      std::memcpy(to, &value, sizeof value);
    } else {
      const std::uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
      std::memcpy(to, &bits, sizeof bits);
    }
    to += dtype_size(dtype);
  }
}

class LoraSource final : public TensorSource {
 public:
  LoraSource(std::shared_ptr<const TensorSource> base, std::shared_ptr<const TensorSource> adapter,
             double alpha)
      : base_(std::move(base)), adapter_(std::move(adapter)), alpha_(alpha) {
    WKV_CHECK(std::isfinite(alpha), invalid_argument, place(), "alpha is ", alpha);
    std::vector<std::string> problems;
    for (const std::string& name : adapter_->names()) {
      const std::string problem = add(name);
      if (!problem.empty()) problems.push_back(problem);
    }
    for (const auto& [name, pair] : pairs_) {
      const std::string problem = check(name, pair);
      if (!problem.empty()) problems.push_back(problem);
    }
    std::sort(problems.begin(), problems.end());
    std::string list;
    for (std::size_t i = 0; i < std::min(problems.size(), kShownProblems); ++i)
      list += (i == 0 ? "" : "; ") + problems[i];
    WKV_CHECK(problems.empty(), bad_model, place(), problems.size(), " tensors do not fit ",
              base_->description(), ": ", list);
    WKV_CHECK(!pairs_.empty(), bad_model, place(), "holds no lora_A and lora_B");
    digest_ = base_->metadata(kAdapterNote) + digest();
  }

  const std::vector<std::string>& names() const noexcept override { return base_->names(); }
  bool contains(std::string_view name) const noexcept override { return base_->contains(name); }
  std::vector<std::int64_t> shape(std::string_view name) const override {
    return base_->shape(name);
  }
  DType dtype(std::string_view name) const override {
    const auto replaced = replaced_.find(std::string(name));
    return replaced == replaced_.end() ? base_->dtype(name) : adapter_->dtype(replaced->second);
  }
  std::string metadata(std::string_view key) const override {
    return key == kAdapterNote ? digest_ : base_->metadata(key);
  }
  std::string description() const override {
    return base_->description() + " with " + adapter_->description();
  }

  HostTensor get(std::string_view name) const override {
    const std::string key(name);
    if (const auto found = replaced_.find(key); found != replaced_.end()) {
      HostTensor tensor = adapter_->get(found->second);
      tensor.shape = base_->shape(name);
      return tensor;
    }
    const auto found = pairs_.find(key);
    return found == pairs_.end() ? base_->get(name) : merged(name, found->second);
  }

 private:
  std::string place() const { return str("[", adapter_->description(), "] LoRA: "); }

  // Files a tensor of the adapter; what is wrong with it, or "".
  std::string add(const std::string& stored) {
    std::string_view name = stored;
    if (name.starts_with(kPeftPrefix)) name.remove_prefix(kPeftPrefix.size());
    for (const std::string_view other : kOtherMethods)
      if (name.find(other) != std::string_view::npos)
        return quote(stored) + " belongs to a method other than LoRA";
    if (const auto target = factor_of(name)) {
      if (!base_->contains(target->name)) return quote(target->name) + " is not in the model";
      Pair& pair = pairs_[target->name];
      (target->factor == 'A' ? pair.down : pair.up) = stored;
      return {};
    }
    // Norms and mixes that were trained whole.
    const std::string whole = official_name(std::string(name));
    if (!base_->contains(whole)) return quote(stored) + " is not in the model";
    std::int64_t wanted = 1;
    std::int64_t have = 1;
    for (const std::int64_t d : base_->shape(whole)) wanted *= d;
    for (const std::int64_t d : adapter_->shape(stored)) have *= d;
    if (wanted != have)
      return str(quote(stored), " is ", shape_str(adapter_->shape(stored)), ", the model's ",
                 shape_str(base_->shape(whole)));
    replaced_.emplace(whole, stored);
    return {};
  }

  std::string check(const std::string& name, const Pair& pair) const {
    if (pair.down.empty() || pair.up.empty())
      return quote(name) + " has only one of lora_A and lora_B";
    const auto w = base_->shape(name);
    const auto a = adapter_->shape(pair.down);
    const auto b = adapter_->shape(pair.up);
    const bool fits = w.size() == 2 && a.size() == 2 && b.size() == 2 && a[0] == b[1] && a[0] > 0 &&
                      b[0] == w[0] && a[1] == w[1];
    if (!fits)
      return str(quote(name), " is ", shape_str(w), ", lora_A ", shape_str(a), ", lora_B ",
                 shape_str(b));
    if (!is_stored_float(base_->dtype(name)) || !is_float(adapter_->dtype(pair.down)) ||
        !is_float(adapter_->dtype(pair.up)))
      return quote(name) + " or its factors are not of type fp32, fp16 or bf16";
    return {};
  }

  // 16 hex digits of alpha, names and a few elements of every tensor: reading them all would take
  // as long as merging does, and two adapters that were trained differ nearly everywhere.
  std::string digest() const {
    constexpr std::size_t kElements = 64;
    std::uint64_t hash = 0xcbf29ce484222325u;
    const auto mix = [&](std::uint64_t bits) { hash = (hash ^ bits) * 0x100000001b3u; };
    mix(std::bit_cast<std::uint64_t>(alpha_));
    for (const std::string& name : adapter_->names()) {
      for (const char c : name) mix(static_cast<unsigned char>(c));
      const HostTensor tensor = adapter_->get(name);
      const auto n = static_cast<std::size_t>(tensor.numel());
      const std::size_t stride = std::max<std::size_t>(1, n / kElements);
      if (!is_float(tensor.dtype)) continue;
      for (std::size_t i = 0; i < n; i += stride)
        mix(std::bit_cast<std::uint32_t>(element_as_f32(tensor.data, tensor.dtype, i)));
    }
    constexpr std::string_view kHex = "0123456789abcdef";
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += kHex[(hash >> shift) & 15u];
    return text;
  }

  static bool is_stored_float(DType dtype) noexcept {
    return is_float(dtype) && dtype != DType::f64;
  }

  // W + alpha / rank * B A, in fp32, rounded once to the type of W.
  HostTensor merged(std::string_view name, const Pair& pair) const {
    const HostTensor w = base_->get(name);
    const std::vector<float> down = as_f32(adapter_->get(pair.down));
    const std::vector<float> up = as_f32(adapter_->get(pair.up));
    const auto out = static_cast<std::size_t>(w.shape[0]);
    const auto in = static_cast<std::size_t>(w.shape[1]);
    const std::size_t rank = up.size() / out;
    const auto scale = static_cast<float>(alpha_ / static_cast<double>(rank));
    const std::size_t element = dtype_size(w.dtype);
    auto data = std::make_shared<const Buffer>(allocate_host(out * in * element));
    std::vector<float> row(in);
    for (std::size_t i = 0; i < out; ++i) {
      for (std::size_t j = 0; j < in; ++j) row[j] = element_as_f32(w.data, w.dtype, i * in + j);
      for (std::size_t r = 0; r < rank; ++r) {
        const float b = scale * up[i * rank + r];
        const float* a = down.data() + r * in;
        for (std::size_t j = 0; j < in; ++j) row[j] += b * a[j];
      }
      store_row(row, w.dtype, static_cast<std::byte*>(data->data()) + i * in * element);
    }
    HostTensor result = w;
    result.data = data->data();
    result.owner = std::move(data);
    result.mapped = false;
    return result;
  }

  std::shared_ptr<const TensorSource> base_;
  std::shared_ptr<const TensorSource> adapter_;
  double alpha_;
  std::string digest_;
  std::unordered_map<std::string, Pair> pairs_;            // by the base's name
  std::unordered_map<std::string, std::string> replaced_;  // base's name -> adapter's
};

}  // namespace

std::shared_ptr<const TensorSource> merge_lora(std::shared_ptr<const TensorSource> base,
                                               std::shared_ptr<const TensorSource> adapter,
                                               double alpha) {
  return std::make_shared<const LoraSource>(std::move(base), std::move(adapter), alpha);
}

}  // namespace wkv
