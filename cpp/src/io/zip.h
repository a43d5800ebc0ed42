// Index of a zip archive whose entries are stored, as torch.save writes them.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "io/mapped_file.h"

namespace wkv {

struct ZipEntry {
  std::string_view name;  ///< points into the file
  std::span<const std::byte> data;
};

/// The entries in the order of the central directory, zip64 included. Every offset and size has
/// been checked against the file, and no two entries share a byte. Checksums are not: torch.save
/// can be told not to write them. Throws Error(bad_model); compressed or encrypted entries are
/// named.
std::vector<ZipEntry> read_zip(const MappedFile& file);

/// Whether the bytes begin as a zip archive does.
bool is_zip(std::span<const std::byte> bytes) noexcept;

}  // namespace wkv
