#include "io/tensor_file.h"

#include <cstring>
#include <limits>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"

namespace wkv {
namespace {

constexpr std::size_t kMaxRank = 8;

// Copies a strided view into row-major order: an odometer over all dimensions but the last.
void gather(std::byte* to, const TensorEntry& entry) {
  const std::size_t size = dtype_size(entry.dtype);
  const std::size_t rank = entry.shape.size();
  for (const std::int64_t d : entry.shape)
    if (d == 0) return;
  const std::int64_t inner = rank == 0 ? 1 : entry.shape[rank - 1];
  const std::int64_t stride = rank == 0 ? 1 : entry.strides[rank - 1];
  std::vector<std::int64_t> at(rank, 0);
  std::int64_t offset = 0;
  while (true) {
    const std::byte* from = entry.data + static_cast<std::size_t>(offset) * size;
    for (std::int64_t i = 0; i < inner; ++i, to += size)
      std::memcpy(to, from + static_cast<std::size_t>(i * stride) * size, size);
    std::size_t d = rank < 2 ? 0 : rank - 1;
    for (; d > 0; --d) {
      offset += entry.strides[d - 1];
      if (++at[d - 1] < entry.shape[d - 1]) break;
      offset -= entry.strides[d - 1] * entry.shape[d - 1];
      at[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

}  // namespace

void append(std::string& to, const TensorPlace& tensor) {
  to += str(tensor.place, "tensor ", quote(tensor.name));
}

std::int64_t checked_bytes(const std::vector<std::int64_t>& shape, std::size_t element_size,
                           const TensorPlace& tensor) {
  WKV_CHECK(shape.size() <= kMaxRank, bad_model, tensor, " has ", shape.size(),
            " dimensions; at most ", kMaxRank, " are read");
  // Without the zeros, so that [0, 2^62, 2^62] is refused as well.
  std::int64_t product = static_cast<std::int64_t>(element_size);
  bool empty = false;
  for (const std::int64_t d : shape) {
    WKV_CHECK(d >= 0, bad_model, tensor, " has a negative dimension: ", shape_str(shape));
    if (d == 0) {
      empty = true;
      continue;
    }
    WKV_CHECK(product <= std::numeric_limits<std::int64_t>::max() / d, bad_model, tensor,
              " has the impossible shape ", shape_str(shape));
    product *= d;
  }
  return empty ? 0 : product;
}

TensorFile::TensorFile(std::shared_ptr<const MappedFile> file, std::vector<TensorEntry> entries,
                       Metadata metadata)
    : file_(std::move(file)), entries_(std::move(entries)), metadata_(std::move(metadata)) {
  names_.reserve(entries_.size());
  index_.reserve(entries_.size());
  for (TensorEntry& entry : entries_) names_.push_back(std::move(entry.name));
  for (std::size_t i = 0; i < names_.size(); ++i)
    WKV_CHECK(index_.emplace(names_[i], i).second, bad_model, "[", file_->name(), "] tensor ",
              quote(names_[i]), " occurs twice");
}

const TensorEntry& TensorFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  WKV_CHECK(found != index_.end(), bad_model, "[", file_->name(), "] has no tensor ", quote(name));
  return entries_[found->second];
}

DType TensorFile::dtype(std::string_view name) const {
  const TensorEntry& entry = find(name);
  WKV_CHECK(entry.dtype != DType::automatic, bad_model, "[", file_->name(), "] tensor ",
            quote(name), " has the unknown element type ", quote(entry.stored_dtype));
  return entry.dtype;
}

std::vector<std::int64_t> TensorFile::shape(std::string_view name) const {
  return find(name).shape;
}

HostTensor TensorFile::get(std::string_view name) const {
  const TensorEntry& entry = find(name);
  HostTensor tensor{entry.data, dtype(name), entry.shape, file_, file_->mapped()};
  if (!entry.strides.empty()) {
    const auto bytes = static_cast<std::size_t>(tensor.numel()) * dtype_size(tensor.dtype);
    auto copy = std::make_shared<const Buffer>(allocate_host(bytes));
    gather(static_cast<std::byte*>(copy->data()), entry);
    tensor.data = copy->data();
    tensor.owner = std::move(copy);
    tensor.mapped = false;
  }
  return tensor;
}

std::string TensorFile::metadata(std::string_view key) const {
  for (const auto& [name, value] : metadata_)
    if (name == key) return value;
  return {};
}

}  // namespace wkv
