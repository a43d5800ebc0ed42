#include "io/zip.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <unordered_set>

#include "core/check.h"
#include "io/bytes.h"

namespace wkv {
namespace {

// Record signatures and fixed sizes of the zip application note (6.3.x), sections 4.3.7 to 4.3.16.
constexpr std::uint32_t kLocalHeader = 0x04034b50;
constexpr std::uint32_t kCentralHeader = 0x02014b50;
constexpr std::uint32_t kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50;
constexpr std::uint32_t kEnd64Locator = 0x07064b50;
constexpr std::size_t kLocalSize = 30;
constexpr std::size_t kCentralSize = 46;
constexpr std::size_t kEndSize = 22;
constexpr std::size_t kEnd64Size = 56;
constexpr std::size_t kLocatorSize = 20;
constexpr std::size_t kMaxComment = 65535;
constexpr std::uint64_t kMaxEntries = 1 << 18;  // a file of ours has one per tensor

constexpr std::uint16_t kStored = 0;
constexpr std::uint16_t kEncrypted = 1;  // bit of the flags
constexpr std::uint16_t kZip64Extra = 1;
constexpr std::uint16_t kIn64_16 = 0xffff;  // "see the zip64 record"
constexpr std::uint32_t kIn64_32 = 0xffffffff;

struct Directory {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t entries = 0;
};

struct Header {
  std::string_view name;
  std::uint64_t local_offset = 0;
  std::uint64_t size = 0;
};

class ZipReader {
 public:
  explicit ZipReader(const MappedFile& file) : name_(file.name()), bytes_(file.bytes()) {}

  std::vector<ZipEntry> read() {
    const Directory directory = find_directory();
    std::vector<ZipEntry> entries;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    std::unordered_set<std::string_view> names;
    std::uint64_t at = directory.offset;
    const std::uint64_t end = directory.offset + directory.size;
    for (std::uint64_t i = 0; i < directory.entries; ++i) {
      const Header header = central_header(at, end);
      WKV_CHECK(names.insert(header.name).second, bad_model, place(), "entry ", quote(header.name),
                " occurs twice");
      const std::uint64_t data = data_offset(header, directory.offset);
      ranges.emplace_back(header.local_offset, data + header.size);
      entries.push_back({header.name, bytes_.subspan(data, header.size)});
    }
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
      WKV_CHECK(ranges[i - 1].second <= ranges[i].first, bad_model, place(),
                "entries overlap at byte ", ranges[i].first);
    return entries;
  }

 private:
  std::string place() const { return str("[", name_, "] zip: "); }

  template <class T>
  T at(std::uint64_t offset) const noexcept {
    return load_le<T>(bytes_.data() + offset);
  }

  // The end record is the last thing in the file but for a comment of up to 64 KiB.
  std::uint64_t find_end() const {
    const std::uint64_t size = bytes_.size();
    if (size >= kEndSize) {
      const std::uint64_t last = size - kEndSize;
      const std::uint64_t first = last > kMaxComment ? last - kMaxComment : 0;
      for (std::uint64_t i = last + 1; i-- > first;)
        if (at<std::uint32_t>(i) == kEnd && i + kEndSize + at<std::uint16_t>(i + 20) == size)
          return i;
    }
    fail(ErrorCode::bad_model, place(), "no end-of-directory record in ", size,
         " bytes: the file is cut off or not a zip archive");
  }

  Directory find_directory() const {
    const std::uint64_t end = find_end();
    const auto disk = at<std::uint16_t>(end + 4);
    Directory d{at<std::uint32_t>(end + 16), at<std::uint32_t>(end + 12),
                at<std::uint16_t>(end + 10)};
    WKV_CHECK(disk == 0 || disk == kIn64_16, bad_model, place(), "archive of several volumes");
    std::uint64_t limit = end;
    const bool wants_64 =
        d.offset == kIn64_32 || d.size == kIn64_32 || d.entries == kIn64_16 || disk == kIn64_16;
    if (end >= kLocatorSize && at<std::uint32_t>(end - kLocatorSize) == kEnd64Locator) {
      limit = at<std::uint64_t>(end - kLocatorSize + 8);
      WKV_CHECK(end - kLocatorSize >= kEnd64Size && limit <= end - kLocatorSize - kEnd64Size &&
                    at<std::uint32_t>(limit) == kEnd64,
                bad_model, place(), "zip64 record out of place, at byte ", limit);
      d = {at<std::uint64_t>(limit + 48), at<std::uint64_t>(limit + 40),
           at<std::uint64_t>(limit + 32)};
    } else {
      WKV_CHECK(!wants_64, bad_model, place(), "zip64 record missing");
    }
    WKV_CHECK(d.offset <= limit && d.size <= limit - d.offset, bad_model, place(), "directory of ",
              d.size, " bytes at byte ", d.offset, " does not fit before byte ", limit);
    WKV_CHECK(d.entries <= d.size / kCentralSize && d.entries <= kMaxEntries, bad_model, place(),
              d.entries, " entries in a directory of ", d.size, " bytes");
    return d;
  }

  // Reads one header of the directory and moves `offset` behind it.
  Header central_header(std::uint64_t& offset, std::uint64_t end) const {
    WKV_CHECK(end - offset >= kCentralSize && at<std::uint32_t>(offset) == kCentralHeader,
              bad_model, place(), "directory entry missing at byte ", offset);
    const auto flags = at<std::uint16_t>(offset + 8);
    const auto method = at<std::uint16_t>(offset + 10);
    const auto compressed = at<std::uint32_t>(offset + 20);
    const auto size = at<std::uint32_t>(offset + 24);
    const auto name_size = at<std::uint16_t>(offset + 28);
    const auto extra_size = at<std::uint16_t>(offset + 30);
    const auto comment_size = at<std::uint16_t>(offset + 32);
    const auto local = at<std::uint32_t>(offset + 42);
    const std::uint64_t total = kCentralSize + name_size + extra_size + comment_size;
    WKV_CHECK(end - offset >= total, bad_model, place(), "directory entry at byte ", offset,
              " reaches outside the directory");
    Header header;
    header.name = {reinterpret_cast<const char*>(bytes_.data() + offset + kCentralSize), name_size};
    WKV_CHECK((flags & kEncrypted) == 0, bad_model, place(), "entry ", quote(header.name),
              " is encrypted");
    WKV_CHECK(method == kStored, bad_model, place(), "entry ", quote(header.name),
              " is compressed (method ", method,
              "); torch.save stores its entries, so unpack the archive and save it again");
    // The zip64 extra field holds, in this order, only the values that did not fit.
    std::span<const std::byte> wide =
        zip64_extra(bytes_.subspan(offset + kCentralSize + name_size, extra_size), header.name);
    const auto widen = [&](std::uint32_t narrow) -> std::uint64_t {
      if (narrow != kIn64_32) return narrow;
      WKV_CHECK(wide.size() >= 8, bad_model, place(), "entry ", quote(header.name),
                " lacks its zip64 size");
      const auto value = load_le<std::uint64_t>(wide.data());
      wide = wide.subspan(8);
      return value;
    };
    header.size = widen(size);
    const std::uint64_t packed = widen(compressed);
    header.local_offset = widen(local);
    WKV_CHECK(packed == header.size, bad_model, place(), "entry ", quote(header.name),
              " is stored, yet ", packed, " bytes stand for ", header.size);
    offset += total;
    return header;
  }

  std::span<const std::byte> zip64_extra(std::span<const std::byte> extra,
                                         std::string_view entry) const {
    while (extra.size() >= 4) {
      const auto id = load_le<std::uint16_t>(extra.data());
      const std::size_t size = load_le<std::uint16_t>(extra.data() + 2);
      WKV_CHECK(size <= extra.size() - 4, bad_model, place(), "entry ", quote(entry),
                " has a broken extra field");
      if (id == kZip64Extra) return extra.subspan(4, size);
      extra = extra.subspan(4 + size);
    }
    return {};
  }

  std::uint64_t data_offset(const Header& header, std::uint64_t limit) const {
    const std::uint64_t local = header.local_offset;
    WKV_CHECK(limit >= kLocalSize && local <= limit - kLocalSize &&
                  at<std::uint32_t>(local) == kLocalHeader,
              bad_model, place(), "entry ", quote(header.name), " has no header at byte ", local);
    const auto name_size = at<std::uint16_t>(local + 26);
    const std::uint64_t data = local + kLocalSize + name_size + at<std::uint16_t>(local + 28);
    WKV_CHECK(data <= limit && header.size <= limit - data, bad_model, place(), "entry ",
              quote(header.name), " of ", header.size, " bytes at byte ", data,
              " does not fit before byte ", limit);
    const std::string_view name{reinterpret_cast<const char*>(bytes_.data() + local + kLocalSize),
                                name_size};
    WKV_CHECK(name == header.name, bad_model, place(), "entry ", quote(header.name), " is called ",
              quote(name), " in its own header");
    return data;
  }

  const std::string& name_;
  std::span<const std::byte> bytes_;
};

}  // namespace

bool is_zip(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= 4 && (load_le<std::uint32_t>(bytes.data()) == kLocalHeader ||
                               load_le<std::uint32_t>(bytes.data()) == kEnd);
}

std::vector<ZipEntry> read_zip(const MappedFile& file) { return ZipReader(file).read(); }

}  // namespace wkv
