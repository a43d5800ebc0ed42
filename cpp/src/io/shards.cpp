// Directories of Hugging Face repositories: one file, or shards with an index.
#include <array>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/bytes.h"
#include "io/hf.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/open.h"

namespace wkv {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 4> kFiles{"model.safetensors", "model.safetensors.index.json",
                                            "pytorch_model.bin", "pytorch_model.bin.index.json"};
constexpr std::size_t kMaxShards = 1024;

// The tensors of several files as one source.
class ShardedSource final : public TensorSource {
 public:
  using Part = std::pair<std::string, std::shared_ptr<const TensorSource>>;

  ShardedSource(std::string description, const std::vector<Part>& parts)
      : description_(std::move(description)) {
    for (const auto& [name, source] : parts) names_.push_back(name);
    for (std::size_t i = 0; i < parts.size(); ++i) index_.emplace(names_[i], parts[i].second);
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override { return index_.contains(name); }
  HostTensor get(std::string_view name) const override { return find(name).get(name); }
  std::vector<std::int64_t> shape(std::string_view name) const override {
    return find(name).shape(name);
  }
  DType dtype(std::string_view name) const override { return find(name).dtype(name); }
  std::string metadata(std::string_view) const override { return {}; }
  std::string description() const override { return description_; }

 private:
  const TensorSource& find(std::string_view name) const {
    const auto found = index_.find(name);
    WKV_CHECK(found != index_.end(), bad_model, "[", description_, "] has no tensor ", quote(name));
    return *found->second;
  }

  std::string description_;
  std::vector<std::string> names_;
  std::unordered_map<std::string_view, std::shared_ptr<const TensorSource>> index_;
};

// {"weight_map": {"rwkv.embeddings.weight": "model-00001-of-00002.safetensors", ...}}
std::shared_ptr<const TensorSource> open_index(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const std::string place = str("[", file->name(), "] ");
  const auto bytes = file->bytes();
  const JsonValue index =
      parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, place);
  const JsonValue* map = index.find("weight_map");
  WKV_CHECK(map != nullptr && map->object() != nullptr, bad_model, place, "has no 'weight_map'");
  std::unordered_map<std::string, std::shared_ptr<const TensorSource>> shards;
  std::vector<ShardedSource::Part> parts;
  for (const auto& [name, value] : *map->object()) {
    WKV_CHECK(value.string() != nullptr, bad_model, place, "tensor ", quote(name),
              " has no file name");
    const std::string& shard = *value.string();
    // A shard lies beside its index: an index must not reach into other directories.
    WKV_CHECK(!shard.empty() && fs::path(shard).filename() == fs::path(shard) && shard != "..",
              bad_model, place, "the shard ", quote(shard), " is not a plain file name");
    auto& source = shards[shard];
    if (source == nullptr) {
      WKV_CHECK(shards.size() <= kMaxShards, bad_model, place, "more than ", kMaxShards, " shards");
      source = read_tensors(MappedFile::open(path.parent_path() / shard));
    }
    WKV_CHECK(source->contains(name), bad_model, place, "tensor ", quote(name),
              " is not in its shard ", quote(shard));
    parts.emplace_back(name, source);
  }
  return std::make_shared<const ShardedSource>(file->name(), parts);
}

}  // namespace

std::shared_ptr<const TensorSource> open_directory(const fs::path& directory) {
  std::string tried;
  for (const char* name : kFiles) {
    const fs::path path = directory / name;
    std::error_code ignored;
    if (fs::exists(path, ignored))
      return path.extension() == ".json" ? open_index(path) : read_tensors(MappedFile::open(path));
    tried += str(tried.empty() ? "" : ", ", name);
  }
  fail(ErrorCode::io, "[", directory.string(), "] is a directory without one of ", tried);
}

}  // namespace wkv
