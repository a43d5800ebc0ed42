// Read-only bytes of a file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace wkv {

/// A whole file mapped read-only, or bytes in memory that stand for one. Immutable; shared by
/// everything that points into it. Another process that truncates a mapped file takes the pages
/// away: reading them then raises SIGBUS, as with any mapping.
class MappedFile {
 public:
  /// Throws Error(io): missing, a directory, unreadable; Error(bad_model): empty.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  static std::shared_ptr<const MappedFile> from_bytes(std::vector<std::byte> bytes,
                                                      std::string name);

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// False for from_bytes().
  bool mapped() const noexcept { return mapped_; }
  /// The path as it was given, for messages.
  const std::string& name() const noexcept { return name_; }

 private:
  MappedFile() = default;

  std::string name_;
  std::span<const std::byte> bytes_;
  bool mapped_ = false;
  std::shared_ptr<const void> owner_;
};

}  // namespace wkv
