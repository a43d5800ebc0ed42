#include "io/atomic_file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "core/check.h"

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <sys/stat.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace wkv {
namespace {

// The one place that knows the operating system.
#if defined(_WIN32)
int create(const std::filesystem::path& path) {
  return _wopen(path.c_str(), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, _S_IREAD | _S_IWRITE);
}
std::ptrdiff_t write_some(int fd, const char* data, std::size_t bytes) {
  return _write(fd, data, static_cast<unsigned>(bytes));
}
int flush(int fd) { return _commit(fd); }
int close_file(int fd) { return _close(fd); }
int process_id() { return _getpid(); }
void flush_directory(const std::filesystem::path&) {}
#else
int create(const std::filesystem::path& path) {
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}
std::ptrdiff_t write_some(int fd, const char* data, std::size_t bytes) {
  return ::write(fd, data, bytes);
}
int flush(int fd) { return ::fsync(fd); }
int close_file(int fd) { return ::close(fd); }
int process_id() { return ::getpid(); }
// Makes the rename itself durable. Some file systems refuse; the file is whole either way.
void flush_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  static_cast<void>(::fsync(fd));
  ::close(fd);
}
#endif

constexpr std::size_t kMaxWrite = std::size_t{1} << 30;  // the systems' limit is just below 2 GiB

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

AtomicFile::AtomicFile(const std::filesystem::path& target) : target_(target) {
  // A rename over a symbolic link would replace the link, not what it points to.
  std::error_code error;
  if (std::filesystem::is_symlink(target, error)) {
    auto resolved = std::filesystem::canonical(target, error);
    if (!error) target_ = std::move(resolved);
  }
  static std::atomic<unsigned> counter{0};
  temporary_ = target_;
  temporary_ += str(".", process_id(), "-", counter++, ".tmp");
  fd_ = create(temporary_);
  if (fd_ < 0) fail_with("cannot be created");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close_file(fd_);
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

void AtomicFile::fail_with(const char* what) const {
  fail(ErrorCode::io, "[", target_.string(), "] ", what, ": ", std::strerror(errno));
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const std::ptrdiff_t written = write_some(fd_, from, std::min(bytes, kMaxWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_with("cannot be written");
    from += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  if (flush(fd_) != 0) fail_with("cannot be written to the disk");
  const int closed = close_file(fd_);
  fd_ = -1;
  std::error_code error;
  if (closed == 0) std::filesystem::rename(temporary_, target_, error);
  if (closed != 0 || error) {
    const std::string reason = error ? error.message() : std::strerror(errno);
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
    fail(ErrorCode::io, "[", target_.string(), "] cannot be replaced: ", reason);
  }
  flush_directory(directory_of(target_));
}

}  // namespace wkv
