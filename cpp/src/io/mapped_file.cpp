#include "io/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace wkv {
namespace {

struct Mapping {
  const void* data = nullptr;
  std::size_t size = 0;
  std::shared_ptr<const void> owner;
};

// The one place that knows the operating system.
#if defined(_WIN32)

Mapping map_file(const std::filesystem::path& path, const std::string& name) {
  const auto close = [](void* handle) { CloseHandle(handle); };
  const HANDLE opened = CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  WKV_CHECK(opened != INVALID_HANDLE_VALUE, io, "[", name, "] cannot be opened (Windows error ",
            GetLastError(), ")");
  const std::shared_ptr<void> file(opened, close);
  LARGE_INTEGER size{};
  WKV_CHECK(GetFileSizeEx(opened, &size) != 0, io, "[", name, "] its size cannot be read");
  WKV_CHECK(size.QuadPart > 0, bad_model, "[", name, "] is empty (0 bytes)");
  const HANDLE section = CreateFileMappingW(opened, nullptr, PAGE_READONLY, 0, 0, nullptr);
  WKV_CHECK(section != nullptr, io, "[", name, "] cannot be mapped (Windows error ", GetLastError(),
            ")");
  const std::shared_ptr<void> mapping(section, close);
  const void* data = MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0);
  WKV_CHECK(data != nullptr, io, "[", name, "] cannot be mapped (Windows error ", GetLastError(),
            ")");
  return {data, static_cast<std::size_t>(size.QuadPart),
          std::shared_ptr<const void>(data, [](const void* p) { UnmapViewOfFile(p); })};
}

#else

Mapping map_file(const std::filesystem::path& path, const std::string& name) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer; fstat refuses it below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  WKV_CHECK(fd >= 0, io, "[", name, "] cannot be opened: ", std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } const closer{fd};
  struct stat info{};
  WKV_CHECK(::fstat(fd, &info) == 0, io, "[", name, "] cannot be read: ", std::strerror(errno));
  WKV_CHECK(!S_ISDIR(info.st_mode), io, "[", name, "] is a directory, not a file");
  WKV_CHECK(S_ISREG(info.st_mode), io, "[", name, "] is not a regular file and cannot be mapped");
  WKV_CHECK(info.st_size > 0, bad_model, "[", name, "] is empty (0 bytes)");
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  WKV_CHECK(data != MAP_FAILED, io, "[", name, "] cannot be mapped (", size,
            " bytes): ", std::strerror(errno));
  return {data, size, std::shared_ptr<const void>(data, [size](const void* p) {
            ::munmap(const_cast<void*>(p), size);
          })};
}

#endif

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  auto file = std::shared_ptr<MappedFile>(new MappedFile);
  file->name_ = path.string();
  Mapping mapping = map_file(path, file->name_);
  file->bytes_ = {static_cast<const std::byte*>(mapping.data), mapping.size};
  file->owner_ = std::move(mapping.owner);
  file->mapped_ = true;
  return file;
}

std::shared_ptr<const MappedFile> MappedFile::from_bytes(std::vector<std::byte> bytes,
                                                         std::string name) {
  auto file = std::shared_ptr<MappedFile>(new MappedFile);
  file->name_ = std::move(name);
  WKV_CHECK(!bytes.empty(), bad_model, "[", file->name_, "] is empty (0 bytes)");
  auto owned = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  file->bytes_ = *owned;
  file->owner_ = std::move(owned);
  return file;
}

}  // namespace wkv
