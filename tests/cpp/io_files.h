// Files for the reader tests: those of the data directory, and archives built byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/mapped_file.h"
#include "io/open.h"
#include "wkv/types.h"

namespace io_files {

namespace fs = std::filesystem;

/// A path in the data directory: $WKV_SHARED, by default ../shared beside the checkout.
inline fs::path shared_path(const char* path) {
  const char* root = std::getenv("WKV_SHARED");
  return (root != nullptr ? fs::path(root) : fs::path(WKV_SOURCE_DIR) / "../shared") / path;
}

/// A folder or file of golden data: of the data directory, else the repository's copy.
inline fs::path golden_path(const std::string& name) {
  for (const char* set : {"golden", "golden_extra"})
    if (fs::exists(shared_path(set) / name)) return shared_path(set) / name;
  return fs::path(WKV_SOURCE_DIR) / "tests/golden" / name;
}

/// Checkpoints of the data directory and of tests/golden whose name ends in `suffix`.
inline std::vector<fs::path> checkpoints(std::string_view suffix) {
  std::vector<fs::path> found;
  for (const fs::path& root : {shared_path("golden"), shared_path("golden_extra"),
                               shared_path("tiny"), fs::path(WKV_SOURCE_DIR) / "tests/golden"}) {
    if (!fs::is_directory(root)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root))
      if (entry.path().string().ends_with(suffix)) found.push_back(entry.path());
  }
  return found;
}

inline std::vector<std::byte> read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

inline void write_file(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const fs::path& path) {
  const auto bytes = read_file(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A directory that goes away with the test.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (fs::temp_directory_path() / "wkv-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TemporaryDirectory() { fs::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

template <class T>
std::string le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

inline std::shared_ptr<const wkv::TensorSource> open_text(std::string_view text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return wkv::open_checkpoint_bytes(
      wkv::MappedFile::from_bytes({data, data + text.size()}, "bytes"));
}

/// A zip archive of stored entries; members can be bent before bytes().
struct Zip {
  struct Entry {
    std::string name;
    std::string data;
    std::uint16_t method = 0;
    std::uint16_t flags = 0;
    std::int64_t size_lie = -1;    ///< what the directory says instead
    std::int64_t offset_lie = -1;  ///< likewise, of the local header
  };
  std::vector<Entry> entries;
  bool zip64 = false;

  std::string bytes() const {
    std::string out;
    std::string directory;
    for (const Entry& e : entries) {
      const auto offset = static_cast<std::uint64_t>(
          e.offset_lie >= 0 ? e.offset_lie : static_cast<std::int64_t>(out.size()));
      const auto size = static_cast<std::uint64_t>(
          e.size_lie >= 0 ? e.size_lie : static_cast<std::int64_t>(e.data.size()));
      const auto narrow = [&](std::uint64_t v) {
        return le(zip64 ? 0xffffffffu : static_cast<std::uint32_t>(v));
      };
      const auto name_size = le(static_cast<std::uint16_t>(e.name.size()));
      out += std::string("PK\3\4") + le(std::uint16_t{20}) + le(e.flags) + le(e.method) + le(0u) +
             le(0u) + narrow(size) + narrow(size) + name_size + le(std::uint16_t{0}) + e.name +
             e.data;
      const std::string extra =
          zip64 ? le(std::uint16_t{1}) + le(std::uint16_t{24}) + le(size) + le(size) + le(offset)
                : "";
      directory += std::string("PK\1\2") + le(0x140014u) + le(e.flags) + le(e.method) + le(0u) +
                   le(0u) + narrow(size) + narrow(size) + name_size +
                   le(static_cast<std::uint16_t>(extra.size())) + le(std::uint16_t{0}) + le(0u) +
                   le(0u) + narrow(offset) + e.name + extra;
    }
    const std::uint64_t start = out.size();
    const std::uint64_t count = entries.size();
    out += directory;
    const std::uint64_t end64 = out.size();
    if (zip64) {
      out += std::string("PK\6\6") + le(std::uint64_t{44}) + le(0x2d002du) + le(0u) + le(0u) +
             le(count) + le(count) + le(std::uint64_t{directory.size()}) + le(start);
      out += std::string("PK\6\7") + le(0u) + le(end64) + le(1u);
    }
    const auto n = le(zip64 ? std::uint16_t{0xffff} : static_cast<std::uint16_t>(count));
    return out + std::string("PK\5\6") + le(0u) + n + n +
           le(zip64 ? 0xffffffffu : static_cast<std::uint32_t>(directory.size())) +
           le(zip64 ? 0xffffffffu : static_cast<std::uint32_t>(start)) + le(std::uint16_t{0});
  }
};

// Pieces of protocol 2.
inline std::string text(std::string_view s) {
  return std::string("X") + le(static_cast<std::uint32_t>(s.size())) + std::string(s);
}
inline std::string number(std::int64_t n) { return std::string("\x8a\x08", 2) + le(n); }
inline std::string global(std::string_view module, std::string_view name) {
  return std::string("c") + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string tuple(const std::vector<std::int64_t>& values) {
  std::string out = "(";
  for (const std::int64_t v : values) out += number(v);
  return out + "t";
}
inline std::string pickle(const std::string& body) { return std::string("\x80\x02") + body + "."; }

struct TensorPickle {
  std::string type = "FloatStorage";
  std::string key = "0";
  std::int64_t numel = 6;
  std::int64_t offset = 0;
  std::vector<std::int64_t> shape{2, 3};
  std::vector<std::int64_t> strides{3, 1};

  std::string str() const {
    return global("torch._utils", "_rebuild_tensor_v2") + "((" + text("storage") +
           global("torch", type) + text(key) + text("cpu") + number(numel) + "tQ" + number(offset) +
           tuple(shape) + tuple(strides) + "\x89}tR";
  }
};

/// {name: value, ...}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [name, value] : items) out += text(name) + value;
  return out + "u";
}

inline Zip pth(const std::string& pickle_bytes, const std::string& storage = std::string(24, 'a')) {
  Zip zip;
  zip.entries = {{"x/data.pkl", pickle_bytes},
                 {"x/byteorder", "little"},
                 {"x/data/0", storage},
                 {"x/version", "3\n"}};
  return zip;
}

inline std::string safetensors(std::string header, const std::string& data = std::string(24, 'a')) {
  return le(std::uint64_t{header.size()}) + header + data;
}

}  // namespace io_files
