#include "io/pth.h"

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"
#include "io/pickle.h"
#include "io/tensor_file.h"
#include "io/zip.h"

namespace wkv {
namespace {

using Bytes = std::span<const std::byte>;
using enum PickleKind;

constexpr std::string_view kDeepSpeedPrefix = "_forward_module.";
constexpr std::array<std::string_view, 3> kNested{"state_dict", "model", "module"};
// A hostile module tree can share its branches and so name more tensors than it has bytes.
constexpr std::size_t kMaxTensors = 1 << 16;
constexpr std::size_t kMaxVisits = std::size_t{1} << 24;
constexpr std::size_t kMaxName = 1024;
constexpr int kMaxDepth = 32;

// What a zip or legacy container yields: the pickle's result and the bytes of each storage.
struct Archive {
  PickleHeap heap;
  PickleValue root;
  std::unordered_map<std::string_view, Bytes> records;
};

// Names tensors: state dicts as they are, module objects by the path to each parameter.
class Names {
 public:
  Names(const PickleHeap& heap, std::string place) : heap_(heap), place_(std::move(place)) {}

  std::vector<std::pair<std::string, const PickleTensor*>> collect(const PickleValue& root) {
    if (root.kind == record) {
      module(root, "", 0);
    } else {
      // Only module objects have a use for classes; anywhere else they are a foreign payload.
      const PickleGlobal* unknown = heap_.first_unknown();
      WKV_CHECK(unknown == nullptr, bad_model, place_, "the pickle imports ", global_name(*unknown),
                ", which is no part of a checkpoint; nothing was executed");
      WKV_CHECK(root.kind == dict, bad_model, place_, "holds no dict of tensors");
      state_dict(unwrapped(root));
    }
    return std::move(found_);
  }

 private:
  bool has_tensors(const PickleValue& value) const {
    const auto& pairs = heap_.items(value);
    for (std::size_t i = 1; i < pairs.size(); i += 2)
      if (pairs[i].kind == tensor) return true;
    return false;
  }

  // {"model": {...}, "epoch": 3} -> {...}
  const PickleValue& unwrapped(const PickleValue& root) const {
    if (has_tensors(root)) return root;
    for (const std::string_view key : kNested) {
      const PickleValue* inner = heap_.find(root, key);
      if (inner != nullptr && inner->kind == dict && has_tensors(*inner)) return *inner;
    }
    return root;
  }

  void state_dict(const PickleValue& values) {
    const auto& pairs = heap_.items(values);
    for (std::size_t i = 0; i < pairs.size(); i += 2) {
      if (pairs[i + 1].kind != tensor) continue;
      WKV_CHECK(pairs[i].kind == text, bad_model, place_, "a tensor's name is not a text");
      std::string_view name = pairs[i].text();
      if (name.starts_with(kDeepSpeedPrefix)) name.remove_prefix(kDeepSpeedPrefix.size());
      add(std::string(name.substr(0, kMaxName + 1)), pairs[i + 1]);
    }
  }

  // A torch.nn.Module: its parameters, its persistent buffers, then its children, each by name.
  void module(const PickleValue& value, const std::string& prefix, int depth) {
    WKV_CHECK(depth < kMaxDepth, bad_model, place_, "modules nested more than ", kMaxDepth,
              " deep");
    const PickleRecord& self = heap_.records[value.node];
    const PickleValue* parameters = member(self, "_parameters");
    const PickleValue* children = member(self, "_modules");
    WKV_CHECK(parameters != nullptr && children != nullptr, bad_model, place_, "object of ",
              global_name(heap_.globals[self.type]),
              " where a module was expected; nothing was executed");
    tensors(*parameters, prefix);
    if (const PickleValue* buffers = member(self, "_buffers"); buffers != nullptr)
      tensors(*buffers, prefix);
    const auto& pairs = visit(*children);
    for (std::size_t i = 0; i < pairs.size(); i += 2) {
      if (pairs[i + 1].kind != record) continue;  // a child set to None
      module(pairs[i + 1], join(prefix, pairs[i]) + '.', depth + 1);
    }
  }

  // A dict among a module's attributes; null if there is none.
  const PickleValue* member(const PickleRecord& self, std::string_view key) {
    if (self.state.kind != dict) return nullptr;
    visit(self.state);
    const PickleValue* value = heap_.find(self.state, key);
    return value != nullptr && value->kind == dict ? value : nullptr;
  }

  void tensors(const PickleValue& values, const std::string& prefix) {
    const auto& pairs = visit(values);
    for (std::size_t i = 0; i < pairs.size(); i += 2)
      if (pairs[i + 1].kind == tensor) add(join(prefix, pairs[i]), pairs[i + 1]);
  }

  // The items of a dict. Modules can share their dicts, so the time spent is counted.
  const std::vector<PickleValue>& visit(const PickleValue& values) {
    const auto& pairs = heap_.items(values);
    visits_ += pairs.size() + 1;
    WKV_CHECK(visits_ <= kMaxVisits, bad_model, place_, "a module tree of more than ", kMaxVisits,
              " members");
    return pairs;
  }

  std::string join(const std::string& prefix, const PickleValue& key) const {
    WKV_CHECK(key.kind == text && prefix.size() + key.text().size() <= kMaxName, bad_model, place_,
              "a module's member has no usable name");
    return prefix + std::string(key.text());
  }

  void add(std::string name, const PickleValue& value) {
    WKV_CHECK(found_.size() < kMaxTensors, bad_model, place_, "more than ", kMaxTensors,
              " tensors");
    WKV_CHECK(!name.empty() && name.size() <= kMaxName && is_utf8(name), bad_model, place_,
              "unusable tensor name ", quote(name));
    found_.emplace_back(std::move(name), &heap_.tensors[value.node]);
  }

  const PickleHeap& heap_;
  std::string place_;
  std::size_t visits_ = 0;
  std::vector<std::pair<std::string, const PickleTensor*>> found_;
};

// Row-major strides of `shape`, except that dimensions of size 1 may have any stride.
bool is_contiguous(const std::vector<std::int64_t>& shape,
                   const std::vector<std::int64_t>& strides) {
  std::int64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] == 1) continue;
    if (strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Finds the tensor's bytes and checks that every element lies inside its storage.
TensorEntry locate(const Archive& archive, const PickleTensor& from, std::string_view from_name,
                   const std::string& place) {
  const PickleStorage& storage = archive.heap.storages[from.storage];
  const TensorPlace what{place, from_name};
  const auto record = archive.records.find(storage.key);
  WKV_CHECK(record != archive.records.end(), bad_model, what, " lies in storage ",
            quote(storage.key), ", which the file does not have");
  WKV_CHECK(from.shape.size() == from.strides.size(), bad_model, what, " has shape ",
            shape_str(from.shape), " and strides ", shape_str(from.strides));

  TensorEntry entry;
  entry.name = std::string(from_name);
  entry.dtype = from.dtype;
  entry.stored_dtype = std::string(from.stored_dtype);
  entry.shape = from.shape;
  const std::size_t element = dtype_size(from.dtype);
  const std::int64_t bytes = checked_bytes(entry.shape, element == 0 ? 1 : element, what);
  if (element == 0) return entry;  // refused when it is asked for

  // `numel` counts elements, or bytes where the storage has no type of its own.
  const Bytes data = record->second;
  const std::uint64_t unit = storage.dtype == DType::automatic ? 1 : element;
  WKV_CHECK(static_cast<std::uint64_t>(storage.record_numel) <= data.size() / unit, bad_model, what,
            " lies in storage ", quote(storage.key), " of ", storage.record_numel,
            " elements, which has only ", data.size(), " bytes");
  const std::int64_t size = storage.numel / static_cast<std::int64_t>(element / unit);
  const std::int64_t count = bytes / static_cast<std::int64_t>(element);
  WKV_CHECK(from.offset <= size && (count == 0 || count <= size), bad_model, what, " of shape ",
            shape_str(entry.shape), " at ", from.offset, " is larger than its storage of ", size,
            " elements");
  // The last element's position. Each step is bounded by `size`, so nothing overflows.
  std::int64_t last = from.offset;
  std::vector<std::int64_t> strides(from.strides);
  for (std::size_t i = 0; count > 0 && i < entry.shape.size(); ++i) {
    const std::int64_t steps = entry.shape[i] - 1;
    if (steps == 0) strides[i] = 0;
    const bool fits = last < size && (steps == 0 || strides[i] <= (size - 1 - last) / steps);
    WKV_CHECK(fits, bad_model, what, " of shape ", shape_str(entry.shape), ", strides ",
              shape_str(from.strides), " at ", from.offset, " reaches outside its storage of ",
              size, " elements");
    last += steps * strides[i];
  }
  WKV_CHECK(count == 0 || last < size, bad_model, what, " at ", from.offset,
            " lies outside its storage of ", size, " elements");
  entry.data = data.data() + static_cast<std::size_t>(storage.offset) * unit +
               static_cast<std::size_t>(from.offset) * element;
  if (count > 0 && !is_contiguous(entry.shape, strides)) entry.strides = std::move(strides);
  return entry;
}

std::string_view text_of(Bytes bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// <stem>/data.pkl, <stem>/data/<key>, and <stem>/byteorder since torch 2.1.
Archive open_zip(const MappedFile& file, const std::string& place) {
  constexpr std::string_view kPickle = "/data.pkl";
  const std::vector<ZipEntry> entries = read_zip(file);
  const ZipEntry* pickle = nullptr;
  for (const ZipEntry& entry : entries)
    if (entry.name.ends_with(kPickle) && entry.name.find('/') == entry.name.size() - kPickle.size())
      pickle = &entry;
  WKV_CHECK(pickle != nullptr, bad_model, place,
            "a zip archive, but not one of torch.save: it has no */data.pkl");
  const std::string_view stem = pickle->name.substr(0, pickle->name.size() - kPickle.size());

  Archive archive;
  for (const ZipEntry& entry : entries) {
    std::string_view name = entry.name;
    if (!name.starts_with(stem) || name.size() <= stem.size() || name[stem.size()] != '/') continue;
    name.remove_prefix(stem.size() + 1);
    if (name.starts_with("data/")) {
      archive.records.emplace(name.substr(5), entry.data);
    } else if (name == "byteorder") {
      const std::string_view order = text_of(entry.data);
      WKV_CHECK(order == "little", bad_model, place, "its byte order is ", quote(order),
                ", only little is read");
    } else {
      WKV_CHECK(name != "constants.pkl", bad_model, place,
                "a TorchScript program, not a checkpoint; nothing was executed");
    }
  }
  std::size_t pos = 0;
  archive.root = run_pickle(pickle->data, pos, archive.heap, place);
  return archive;
}

// The container from before torch 1.6: five pickles (magic, protocol, system, object, keys), then
// for each key its number of elements and the bytes.
constexpr unsigned char kLegacyMagic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                          0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
constexpr std::int64_t kLegacyProtocol = 1001;

Archive open_legacy(const MappedFile& file, const std::string& place) {
  const Bytes bytes = file.bytes();
  std::size_t pos = sizeof(kLegacyMagic);
  Archive archive;
  PickleHeap scratch;
  const PickleValue protocol = run_pickle(bytes, pos, scratch, place);
  WKV_CHECK(protocol.kind == integer && protocol.integer == kLegacyProtocol, bad_model, place,
            "unknown protocol of the old container");
  const PickleValue system = run_pickle(bytes, pos, scratch, place);
  const PickleValue* little = system.kind == dict ? scratch.find(system, "little_endian") : nullptr;
  WKV_CHECK(little != nullptr && little->kind == boolean && little->integer == 1, bad_model, place,
            "not saved on a little-endian machine, only little is read");
  archive.root = run_pickle(bytes, pos, archive.heap, place);
  const PickleValue keys = run_pickle(bytes, pos, scratch, place);
  WKV_CHECK(keys.kind == list, bad_model, place, "list of storages missing");

  std::unordered_map<std::string_view, const PickleStorage*> storages;
  for (const PickleStorage& storage : archive.heap.storages) {
    const auto [known, is_new] = storages.emplace(storage.key, &storage);
    WKV_CHECK(is_new || (known->second->dtype == storage.dtype &&
                         known->second->record_numel == storage.record_numel),
              bad_model, place, "storage ", quote(storage.key), " is described in two ways");
  }
  for (const PickleValue& key : scratch.items(keys)) {
    const auto storage = key.kind == text ? storages.find(key.text()) : storages.end();
    WKV_CHECK(storage != storages.end(), bad_model, place, "a storage that no tensor names");
    const std::size_t left = bytes.size() - pos;
    const std::size_t element = dtype_size(storage->second->dtype);
    WKV_CHECK(element > 0, bad_model, place, "storage ", quote(key.text()),
              " has the unknown element type ", quote(storage->second->stored_dtype));
    WKV_CHECK(left >= 8, bad_model, place, "cut off before storage ", quote(key.text()));
    const auto numel = load_le<std::uint64_t>(bytes.data() + pos);
    WKV_CHECK(numel == static_cast<std::uint64_t>(storage->second->record_numel) &&
                  numel <= (left - 8) / element,
              bad_model, place, "storage ", quote(key.text()), " should have ",
              storage->second->record_numel, " elements of ", element, " bytes, has ", numel,
              " with ", left - 8, " bytes left");
    archive.records.emplace(key.text(), bytes.subspan(pos + 8, numel * element));
    pos += 8 + numel * element;
  }
  return archive;
}

// What the `rwkv` package leaves in the files that it converts: io/converted.h.
TensorFile::Metadata notes_of(const Archive& archive) {
  TensorFile::Metadata notes;
  if (archive.root.kind != dict) return notes;
  const PickleValue* strategy = archive.heap.find(archive.root, "_strategy");
  if (strategy != nullptr && strategy->kind == text && is_utf8(strategy->text()))
    notes.emplace_back("_strategy", strategy->text());
  const PickleValue* rescale = archive.heap.find(archive.root, "_rescale_layer");
  if (rescale != nullptr && rescale->kind == integer)
    notes.emplace_back("_rescale_layer", std::to_string(rescale->integer));
  return notes;
}

}  // namespace

bool is_legacy_pth(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= sizeof(kLegacyMagic) &&
         std::memcmp(bytes.data(), kLegacyMagic, sizeof(kLegacyMagic)) == 0;
}

std::shared_ptr<const TensorSource> open_pth(std::shared_ptr<const MappedFile> file) {
  const std::string place = str("[", file->name(), "] ");
  const Archive archive =
      is_zip(file->bytes()) ? open_zip(*file, place) : open_legacy(*file, place);
  std::vector<TensorEntry> entries;
  for (auto& [name, tensor] : Names(archive.heap, place).collect(archive.root))
    entries.push_back(locate(archive, *tensor, name, place));
  WKV_CHECK(!entries.empty(), bad_model, place, "holds no tensors");
  TensorFile::Metadata notes = notes_of(archive);
  return std::make_shared<const TensorFile>(std::move(file), std::move(entries), std::move(notes));
}

}  // namespace wkv
