// The tensors of one file, found but not read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/mapped_file.h"
#include "wkv/types.h"

namespace wkv {

/// Where a tensor lies. Readers check that [data, data + extent of shape and strides) is inside the
/// file before they make one.
struct TensorEntry {
  std::string name;
  DType dtype = DType::automatic;  ///< automatic: a type we do not know, see `stored_dtype`
  std::string stored_dtype;        ///< the file's word for an unknown type
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< in elements; empty if contiguous
  const std::byte* data = nullptr;
};

/// A tensor in a message, written only when there is one: "[model.pth] tensor 'emb.weight'".
struct TensorPlace {
  std::string_view place;
  std::string_view name;
};
void append(std::string& to, const TensorPlace& tensor);

/// Bytes of a contiguous tensor. Throws Error(bad_model) if a dimension is negative, if there are
/// more than 8 of them, or if the product does not fit in 63 bits.
std::int64_t checked_bytes(const std::vector<std::int64_t>& shape, std::size_t element_size,
                           const TensorPlace& tensor);

/// TensorSource over a mapped file. get() points into the mapping; only views with strides are
/// copied, at each get().
class TensorFile final : public TensorSource {
 public:
  using Metadata = std::vector<std::pair<std::string, std::string>>;

  /// Throws Error(bad_model) if two tensors have one name.
  TensorFile(std::shared_ptr<const MappedFile> file, std::vector<TensorEntry> entries,
             Metadata metadata = {});

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override { return index_.contains(name); }
  HostTensor get(std::string_view name) const override;
  std::vector<std::int64_t> shape(std::string_view name) const override;
  DType dtype(std::string_view name) const override;
  std::string metadata(std::string_view key) const override;
  std::string description() const override { return file_->name(); }

 private:
  const TensorEntry& find(std::string_view name) const;

  std::shared_ptr<const MappedFile> file_;
  std::vector<TensorEntry> entries_;
  std::vector<std::string> names_;
  std::unordered_map<std::string_view, std::size_t> index_;  // views of names_
  Metadata metadata_;
};

}  // namespace wkv
