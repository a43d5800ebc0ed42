// Writing a file so that it is either the old one or the whole new one.
#pragma once

#include <cstddef>
#include <filesystem>

namespace wkv {

/// Collects bytes in a temporary file in the target's directory; commit() flushes it to the disk
/// and renames it over the target. Destroyed without commit(), it leaves the target as it was.
class AtomicFile {
 public:
  /// Throws Error(io), as do write() and commit().
  explicit AtomicFile(const std::filesystem::path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail_with(const char* what) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

}  // namespace wkv
