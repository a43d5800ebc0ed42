#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "core/check.h"
#include "core/dtype.h"
#include "io/atomic_file.h"
#include "io/bytes.h"
#include "io/json.h"
#include "io/tensor_file.h"

namespace wkv {
namespace {

constexpr std::size_t kLengthSize = 8;
// The format allows 100 MB. A header with 10000 tensors has 1 MB.
constexpr std::uint64_t kMaxHeader = std::uint64_t{1} << 25;
constexpr std::size_t kAlignment = 64;
constexpr std::string_view kMetadata = "__metadata__";

struct TypeName {
  std::string_view name;
  DType dtype;  // automatic: we only know its size
  std::size_t size;
};

constexpr std::array<TypeName, 19> kTypes{{
    {"F32", DType::f32, 4},
    {"F16", DType::f16, 2},
    {"BF16", DType::bf16, 2},
    {"F64", DType::f64, 8},
    {"I64", DType::i64, 8},
    {"I32", DType::i32, 4},
    {"I16", DType::i16, 2},
    {"I8", DType::i8, 1},
    {"U8", DType::u8, 1},
    {"BOOL", DType::boolean, 1},
    {"U16", DType::automatic, 2},
    {"U32", DType::automatic, 4},
    {"U64", DType::automatic, 8},
    {"F8_E4M3", DType::automatic, 1},
    {"F8_E5M2", DType::automatic, 1},
    {"F8_E8M0", DType::automatic, 1},
    {"C64", DType::automatic, 8},
    {"F8_E4M3FNUZ", DType::automatic, 1},
    {"F8_E5M2FNUZ", DType::automatic, 1},
}};

struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::size_t index = 0;  // of the entry
};

std::uint64_t header_size(std::span<const std::byte> bytes) noexcept {
  return load_le<std::uint64_t>(bytes.data());
}

class Reader {
 public:
  explicit Reader(const MappedFile& file)
      : place_(str("[", file.name(), "] safetensors: ")), bytes_(file.bytes()) {}

  void read() {
    WKV_CHECK(bytes_.size() >= kLengthSize, bad_model, place_, bytes_.size(),
              " bytes are too few for a header");
    const std::uint64_t size = header_size(bytes_);
    WKV_CHECK(size <= bytes_.size() - kLengthSize && size <= kMaxHeader, bad_model, place_,
              "header of ", size, " bytes in a file of ", bytes_.size(), " (at most ", kMaxHeader,
              " are read): the file is cut off or damaged");
    data_ = bytes_.subspan(kLengthSize + size);
    const JsonValue header =
        parse_json({reinterpret_cast<const char*>(bytes_.data() + kLengthSize), size}, place_);
    WKV_CHECK(header.object() != nullptr, bad_model, place_, "the header is not a JSON object");
    for (const auto& [name, value] : *header.object()) {
      if (name == kMetadata) {
        read_metadata(value);
      } else {
        read_tensor(name, value);
      }
    }
    check_layout();
  }

  std::vector<TensorEntry> entries;
  TensorFile::Metadata metadata;

 private:
  void read_metadata(const JsonValue& value) {
    WKV_CHECK(value.object() != nullptr, bad_model, place_, kMetadata, " is not an object");
    for (const auto& [key, text] : *value.object()) {
      WKV_CHECK(text.string() != nullptr, bad_model, place_, kMetadata, " ", quote(key),
                " is not a text");
      metadata.emplace_back(key, *text.string());
    }
  }

  std::vector<std::int64_t> integers(const JsonValue* value, const TensorPlace& what,
                                     const char* key) const {
    WKV_CHECK(value != nullptr && value->array() != nullptr, bad_model, what, " has no array '",
              key, "'");
    std::vector<std::int64_t> out;
    for (const JsonValue& item : *value->array()) {
      WKV_CHECK(item.integer() != nullptr && *item.integer() >= 0, bad_model, what, ": '", key,
                "' holds something that is not a size");
      out.push_back(*item.integer());
    }
    return out;
  }

  void read_tensor(const std::string& name, const JsonValue& value) {
    const TensorPlace what{place_, name};
    const JsonValue* type = value.find("dtype");
    WKV_CHECK(type != nullptr && type->string() != nullptr, bad_model, what, " has no dtype");
    TensorEntry entry;
    entry.name = name;
    entry.stored_dtype = *type->string();
    entry.shape = integers(value.find("shape"), what, "shape");
    const auto offsets = integers(value.find("data_offsets"), what, "data_offsets");
    WKV_CHECK(offsets.size() == 2 && offsets[0] <= offsets[1] &&
                  static_cast<std::uint64_t>(offsets[1]) <= data_.size(),
              bad_model, what, " has the offsets ", shape_str(offsets), " in ", data_.size(),
              " bytes of data: the file is cut off or damaged");
    const auto known = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeName& t) {
      return t.name == entry.stored_dtype;
    });
    const bool sized = known != kTypes.end();
    const std::int64_t bytes = checked_bytes(entry.shape, sized ? known->size : 1, what);
    if (sized) {
      entry.dtype = known->dtype;
      WKV_CHECK(bytes == offsets[1] - offsets[0], bad_model, what, " of shape ",
                shape_str(entry.shape), " and type ", entry.stored_dtype, " wants ", bytes,
                " bytes, has ", offsets[1] - offsets[0]);
    }
    entry.data = data_.data() + offsets[0];
    ranges_.push_back({static_cast<std::uint64_t>(offsets[0]),
                       static_cast<std::uint64_t>(offsets[1]), entries.size()});
    entries.push_back(std::move(entry));
  }

  void check_layout() {
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t at = 0;
    for (const Range& range : ranges_) {
      WKV_CHECK(range.begin == at, bad_model, place_, "tensor ", quote(entries[range.index].name),
                " begins at byte ", range.begin, " of the data, the one before it ends at ", at);
      at = range.end;
    }
    WKV_CHECK(at == data_.size(), bad_model, place_, "the tensors end at byte ", at,
              " of the data, which has ", data_.size());
  }

  std::string place_;
  std::span<const std::byte> bytes_;
  std::span<const std::byte> data_;
  std::vector<Range> ranges_;
};

const TypeName& type_name(const TensorToSave& tensor) {
  const auto found = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const TypeName& t) { return t.dtype == tensor.dtype; });
  WKV_CHECK(found != kTypes.end() && tensor.dtype != DType::automatic, invalid_argument,
            "[save_safetensors] tensor ", quote(tensor.name), " has type ",
            dtype_name(tensor.dtype), ", which the format does not have");
  return *found;
}

}  // namespace

std::shared_ptr<const TensorSource> open_safetensors(std::shared_ptr<const MappedFile> file) {
  Reader reader(*file);
  reader.read();
  return std::make_shared<const TensorFile>(std::move(file), std::move(reader.entries),
                                            std::move(reader.metadata));
}

bool is_safetensors(std::span<const std::byte> bytes) noexcept {
  return bytes.size() > kLengthSize && bytes[kLengthSize] == std::byte{'{'} &&
         header_size(bytes) <= kMaxHeader;
}

TensorToSave tensor_to_save(std::string name, HostTensor tensor) {
  TensorToSave out{std::move(name), tensor.dtype, tensor.shape, {}};
  out.produce = [tensor = std::move(tensor)](const TensorToSave::Sink& sink) {
    sink(tensor.data, static_cast<std::size_t>(tensor.numel()) * dtype_size(tensor.dtype));
  };
  return out;
}

void save_safetensors(const std::filesystem::path& path, const std::vector<TensorToSave>& tensors,
                      const std::vector<std::pair<std::string, std::string>>& metadata,
                      const std::function<bool(std::int64_t, std::int64_t)>& progress) {
  // The format allows no holes, so tensors stay aligned only behind sizes that are multiples of 64.
  std::vector<std::size_t> order;
  std::vector<std::int64_t> bytes;
  for (const TensorToSave& tensor : tensors) {
    const TensorPlace what{"[save_safetensors] ", tensor.name};
    WKV_CHECK(is_utf8(tensor.name) && tensor.name != kMetadata, invalid_argument, what,
              " has an unusable name");
    order.push_back(order.size());
    bytes.push_back(checked_bytes(tensor.shape, type_name(tensor).size, what));
  }
  const auto rank = [&](std::size_t i) {
    return bytes[i] % static_cast<std::int64_t>(kAlignment) == 0 ? std::size_t{0}
                                                                 : 9 - type_name(tensors[i]).size;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return rank(a) < rank(b); });
  std::vector<std::int64_t> offsets(tensors.size());
  std::int64_t total = 0;
  for (const std::size_t i : order) {
    offsets[i] = total;
    total += bytes[i];
  }

  std::string header = "{";
  const auto separate = [&] { header += header.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    header += str(json_string(kMetadata), ":{");
    const char* comma = "";
    for (const auto& [key, value] : metadata) {
      WKV_CHECK(is_utf8(key) && is_utf8(value), invalid_argument, "[save_safetensors] metadata ",
                quote(key), " is not UTF-8");
      header += str(comma, json_string(key), ":", json_string(value));
      comma = ",";
    }
    header += "}";
  }
  std::unordered_set<std::string_view> names;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    WKV_CHECK(names.insert(tensors[i].name).second, invalid_argument,
              "[save_safetensors] two tensors are called ", quote(tensors[i].name));
    separate();
    std::string shape;
    for (const std::int64_t d : tensors[i].shape) shape += str(shape.empty() ? "" : ",", d);
    header += str(json_string(tensors[i].name), ":{\"dtype\":\"", type_name(tensors[i]).name,
                  "\",\"shape\":[", shape, "],\"data_offsets\":[", offsets[i], ",",
                  offsets[i] + bytes[i], "]}");
  }
  header += "}";
  header.resize(
      (kLengthSize + header.size() + kAlignment - 1) / kAlignment * kAlignment - kLengthSize, ' ');
  WKV_CHECK(header.size() <= kMaxHeader, invalid_argument, "[save_safetensors] header of ",
            header.size(), " bytes; at most ", kMaxHeader, " can be read back");

  AtomicFile file(path);
  const std::uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header.data(), header.size());
  std::int64_t done = 0;
  for (const std::size_t i : order) {
    const std::int64_t end = offsets[i] + bytes[i];
    tensors[i].produce([&](const void* data, std::size_t size) {
      WKV_CHECK(size <= static_cast<std::size_t>(end - done), invalid_argument,
                "[save_safetensors] tensor ", quote(tensors[i].name), " has more than ", bytes[i],
                " bytes");
      file.write(data, size);
      done += static_cast<std::int64_t>(size);
      WKV_CHECK(!progress || progress(done, total), cancelled, "[save_safetensors] cancelled at ",
                done, " of ", total, " bytes");
    });
    WKV_CHECK(done == end, invalid_argument, "[save_safetensors] tensor ", quote(tensors[i].name),
              " lacks ", end - done, " of ", bytes[i], " bytes");
  }
  file.commit();
}

}  // namespace wkv
