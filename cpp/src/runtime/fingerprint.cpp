#include "runtime/fingerprint.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string_view>

#include "core/check.h"
#include "core/dtype.h"
#include "io/notes.h"
#include "models/detect.h"

namespace wkv::detail {
namespace {

constexpr std::array<const char*, 6> kMatrices{"att.key.weight", "att.output.weight",
                                               "ffn.key.weight", "attn.key.weight",
                                               "mlp.key.weight", "att.receptance.weight"};
// 256 elements of 2 bytes lie on one or two pages, each of which a cold file has to be asked for.
constexpr std::size_t kRuns = 16;
constexpr std::size_t kRun = 256;

class Hash {
 public:
  explicit Hash(std::uint64_t start) : value_(start) {}
  void mix(std::uint64_t bits) noexcept { value_ = (value_ ^ bits) * 0x100000001b3u; }
  void mix(std::string_view text) noexcept {
    for (const char c : text) mix(static_cast<unsigned char>(c));
  }
  std::uint64_t value() const noexcept { return value_; }

 private:
  std::uint64_t value_;
};

void mix_signs(Hash& hash, const HostTensor& tensor) {
  const auto n = static_cast<std::size_t>(tensor.numel());
  const std::size_t run = std::min(kRun, n);
  for (std::size_t r = 0; r < kRuns; ++r) {
    const std::size_t first = (n - run) / (kRuns - 1) * r;
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < run; ++i) {
      const float x = element_as_f32(tensor.data, tensor.dtype, first + i);
      bits = bits << 1 | static_cast<std::uint64_t>(std::signbit(x));
      if (i % 64 == 63 || i + 1 == run) hash.mix(bits);
    }
  }
}

std::string hex(std::uint64_t value) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[(value >> shift) & 15u];
  return text;
}

}  // namespace

std::string sign_digest(const TensorSource& source) {
  if (std::string note = source.metadata(kSignsNote); !note.empty()) return note;
  if (!source.metadata(kAdapterNote).empty()) return {};  // to merge is to read all
  Hash hash(0xcbf29ce484222325u);
  const int layers = detect(source).n_layer;
  for (const int layer : {0, layers / 2, layers - 1})
    for (const char* part : kMatrices) {
      const std::string name = str("blocks.", layer, '.', part);
      if (source.contains(name) && is_float(source.dtype(name))) mix_signs(hash, source.get(name));
    }
  return hex(hash.value());
}

std::uint64_t weight_fingerprint(const TensorSource& source, std::uint64_t start) {
  Hash hash(start);
  for (const char* name : {"ln_out.weight", "ln_out.bias", "ln_f.weight", "ln_f.bias"}) {
    if (!source.contains(name)) continue;
    const HostTensor t = source.get(name);
    for (std::int64_t i = 0; i < t.numel(); ++i)
      hash.mix(f32_to_bf16(element_as_f32(t.data, t.dtype, static_cast<std::size_t>(i))));
  }
  hash.mix(sign_digest(source));
  hash.mix(source.metadata(kAdapterNote));
  return hash.value();
}

}  // namespace wkv::detail
