// Versions that names and shapes do not tell apart.
#include <memory>
#include <string>
#include <utility>

#include "core/check.h"
#include "models/detect.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

constexpr std::string_view kVersionKey = "rwkv.version";

// A source with another note about its version.
class Noted final : public TensorSource {
 public:
  Noted(std::shared_ptr<const TensorSource> source, std::string version)
      : source_(std::move(source)), version_(std::move(version)) {}

  const std::vector<std::string>& names() const noexcept override { return source_->names(); }
  bool contains(std::string_view name) const noexcept override { return source_->contains(name); }
  HostTensor get(std::string_view name) const override { return source_->get(name); }
  std::vector<std::int64_t> shape(std::string_view name) const override {
    return source_->shape(name);
  }
  DType dtype(std::string_view name) const override { return source_->dtype(name); }
  std::string metadata(std::string_view key) const override {
    return key == kVersionKey ? version_ : source_->metadata(key);
  }
  std::string description() const override { return source_->description(); }

 private:
  std::shared_ptr<const TensorSource> source_;
  std::string version_;
};

}  // namespace

std::shared_ptr<const TensorSource> as_version(std::shared_ptr<const TensorSource> source,
                                               std::string_view version) {
  const std::string found = detect(*source).version;
  if (found == version) return source;
  auto noted = std::make_shared<const Noted>(std::move(source), std::string(version));
  WKV_CHECK(detect(*noted).version == version, invalid_argument, noted->description(),
            ": its tensors are those of RWKV-", found, ", not of RWKV-", version,
            "; only 6.0b and 6.0c cannot be told apart");
  return noted;
}

}  // namespace wkv
