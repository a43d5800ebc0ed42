#include "io/synthetic.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"
#include "io/notes.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kVersions{{
    {"v1", "1"},
    {"v2", "2"},
    {"v3", "3"},
    {"v4", "4"},
    {"v5.0", "5.0"},
    {"v5.1", "5.1"},
    {"v5.2", "5.2"},
    {"v5", "5.2"},
    {"v6.0", "6.0"},
    {"v6", "6.0"},
    {"v7.0", "7.0"},
    {"v7", "7.0"},
}};
constexpr int kMaxLayers = 4096;
constexpr int kMaxChannels = 1 << 17;
constexpr int kMaxVocab = 1 << 24;

// splitmix64: passes the usual tests, one multiply chain per number, equal on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  // In [0, 1), in steps of 2^-24.
  float uniform() noexcept { return static_cast<float>(next() >> 40) * 0x1p-24f; }
  // Mean 0, variance 1: the sum of four uniform 16-bit numbers. Integers until the last step, so
  // that no rounding depends on the machine.
  float normal() noexcept {
    const std::uint64_t z = next();
    const auto sum = static_cast<std::int32_t>((z & 0xffff) + (z >> 16 & 0xffff) +
                                               (z >> 32 & 0xffff) + (z >> 48));
    return static_cast<float>(sum - 131070) * (1.0f / 37837.227f);
  }

 private:
  std::uint64_t state_;
};

std::uint64_t hash(std::string_view text, std::uint64_t seed) noexcept {
  std::uint64_t h = 0xcbf29ce484222325u ^ seed;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return Random(h).next();
}

// Stores fp32 values as another type.
class Writer {
 public:
  Writer(void* to, DType dtype) : to_(static_cast<std::byte*>(to)), dtype_(dtype) {}

  void put(float value) noexcept {
    if (dtype_ == DType::f32) return store(value);
    store(dtype_ == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value));
  }

 private:
  template <class T>
  void store(T value) noexcept {
    std::memcpy(to_, &value, sizeof value);
    to_ += sizeof value;
  }

  std::byte* to_;
  DType dtype_;
};

void fill_values(const SyntheticTensor& tensor, DType dtype, std::uint64_t seed, std::int64_t count,
                 void* to) {
  Random random(seed);
  Writer out(to, dtype);
  const float step = count > 1 ? (tensor.b - tensor.a) / static_cast<float>(count - 1) : 0;
  const std::int64_t side = tensor.shape.back();
  for (std::int64_t i = 0; i < count; ++i) {
    switch (tensor.fill) {
      case Fill::normal:
        out.put(tensor.a + tensor.b * random.normal());
        break;
      case Fill::uniform:
        out.put(tensor.a + (tensor.b - tensor.a) * random.uniform());
        break;
      case Fill::ramp:
        out.put(tensor.a + step * static_cast<float>(i));
        break;
      case Fill::causal:
        out.put(i % side <= i / side ? 1.0f : 0.0f);
        break;
    }
  }
}

// Large matrices are pieces of one table of random values, cut at random places: the bytes are
// different everywhere, and they come at the speed of memcpy.
constexpr std::int64_t kLarge = 1 << 20;
constexpr std::int64_t kPiece = 1 << 13;
constexpr std::int64_t kTable = 1 << 17;

void fill_large(const SyntheticTensor& tensor, DType dtype, std::uint64_t seed, std::int64_t count,
                void* to) {
  const auto size = static_cast<std::int64_t>(dtype_size(dtype));
  std::vector<std::byte> table(static_cast<std::size_t>((kTable + kPiece) * size));
  fill_values(tensor, dtype, seed, kTable + kPiece, table.data());
  Random random(~seed);
  auto* out = static_cast<std::byte*>(to);
  for (std::int64_t done = 0; done < count; done += kPiece) {
    const auto from = static_cast<std::int64_t>(random.next() % kTable);
    std::memcpy(out + done * size, table.data() + from * size,
                static_cast<std::size_t>(std::min(kPiece, count - done) * size));
  }
}

void clear_rows(const SyntheticTensor& tensor, std::uint64_t seed, void* data, std::size_t bytes) {
  Random random(seed);
  const auto rows = static_cast<std::size_t>(tensor.shape[0]);
  const std::size_t row_bytes = bytes / rows;
  for (std::size_t row = 0; row < rows; ++row)
    if (random.uniform() < tensor.zero_rows)
      std::memset(static_cast<std::byte*>(data) + row * row_bytes, 0, row_bytes);
}

/// Makes each tensor when it is asked for; two requests give two copies of the same values.
class SyntheticSource final : public TensorSource {
 public:
  SyntheticSource(std::string text, const SyntheticSpec& spec, DType dtype, std::uint64_t seed)
      : text_(std::move(text)), tensors_(synthetic_tensors(spec)), dtype_(dtype), seed_(seed) {
    for (const SyntheticTensor& tensor : tensors_) names_.push_back(tensor.name);
    for (std::size_t i = 0; i < names_.size(); ++i) index_.emplace(names_[i], i);
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override { return index_.contains(name); }
  std::vector<std::int64_t> shape(std::string_view name) const override { return find(name).shape; }
  DType dtype(std::string_view name) const override { return find(name), dtype_; }
  std::string metadata(std::string_view key) const override {
    return key == kSignsNote ? str(text_, '/', seed_) : std::string();  // for reading no weights
  }
  std::string description() const override { return "synthetic " + text_; }

  HostTensor get(std::string_view name) const override {
    const SyntheticTensor& tensor = find(name);
    HostTensor out{nullptr, dtype_, tensor.shape, nullptr};
    const std::int64_t count = out.numel();
    auto data = std::make_shared<const Buffer>(
        allocate_host(static_cast<std::size_t>(count) * dtype_size(dtype_)));
    const bool large = tensor.fill == Fill::normal && count > kLarge;
    (large ? fill_large : fill_values)(tensor, dtype_, hash(name, seed_), count, data->data());
    if (tensor.zero_rows > 0) clear_rows(tensor, hash(name, ~seed_), data->data(), data->bytes());
    out.data = data->data();
    out.owner = std::move(data);
    return out;
  }

 private:
  const SyntheticTensor& find(std::string_view name) const {
    const auto found = index_.find(name);
    WKV_CHECK(found != index_.end(), bad_model, "[", description(), "] has no tensor ",
              quote(name));
    return tensors_[found->second];
  }

  std::string text_;
  std::vector<SyntheticTensor> tensors_;
  std::vector<std::string> names_;
  std::unordered_map<std::string_view, std::size_t> index_;
  DType dtype_;
  std::uint64_t seed_;
};

}  // namespace

SyntheticSpec SyntheticSpec::parse(std::string_view text) {
  const auto wrong = [&](std::string_view problem) {
    fail(ErrorCode::invalid_argument, "[synthetic_checkpoint] ", quote(text), ": ", problem,
         "; the form is v7:LAYERSxCHANNELS[:VOCABULARY[:HEAD_SIZE]][@DENSITY] with v1, v2, v3, v4, "
         "v5.0, v5.1, v5.2, v6 or v7");
  };
  std::string_view rest = text;
  // The text up to `separator` or the end; `rest` begins behind it.
  const auto take = [&](char separator) {
    const std::size_t end = std::min(rest.find(separator), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return part;
  };
  const auto number = [&](std::string_view part, int most, std::string_view what) {
    int value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || value < 1 || value > most)
      wrong(str(what, " must be a number from 1 to ", most));
    return value;
  };

  SyntheticSpec spec;
  if (const std::size_t mark = text.find('@'); mark != std::string_view::npos) {
    const std::string_view part = text.substr(mark + 1);
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), spec.density);
    if (error != std::errc() || end != part.data() + part.size() || !(spec.density > 0) ||
        spec.density > 0.5f)
      wrong("the density must be a number above 0, at most 0.5");
    rest = text = text.substr(0, mark);
  }
  const std::string_view version = take(':');
  for (const auto& [written, official] : kVersions)
    if (version == written) spec.version = official;
  if (spec.version.empty()) wrong("unknown version");
  if (text.ends_with(':')) wrong("something is missing at the end");
  spec.layers = number(take('x'), kMaxLayers, "the number of layers");
  spec.channels = number(take(':'), kMaxChannels, "the number of channels");
  spec.vocab = spec.version < "5" ? 50277 : 65536;
  if (!rest.empty()) spec.vocab = number(take(':'), kMaxVocab, "the vocabulary");
  spec.head_size = std::min(64, spec.channels);
  if (!rest.empty()) spec.head_size = number(rest, kMaxChannels, "the head size");
  if (spec.channels % spec.head_size != 0)
    wrong(str(spec.channels, " channels are no multiple of the head size ", spec.head_size));
  return spec;
}

std::shared_ptr<const TensorSource> synthetic_checkpoint(std::string_view spec, DType dtype,
                                                         std::uint64_t seed) {
  if (dtype == DType::automatic) dtype = DType::bf16;
  WKV_CHECK(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, invalid_argument,
            "[synthetic_checkpoint] stored as fp32, fp16 or bf16, not ", dtype_name(dtype));
  return std::make_shared<const SyntheticSource>(std::string(spec), SyntheticSpec::parse(spec),
                                                 dtype, seed);
}

}  // namespace wkv
