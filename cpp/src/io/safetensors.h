// The safetensors format: eight bytes of header size, a JSON header, then the tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/mapped_file.h"
#include "wkv/types.h"

namespace wkv {

/// Reads a file after checking all of it: header size, JSON, shapes against byte counts, tensors
/// that follow one another without holes or overlaps to the end of the file. A tensor of an element
/// type unknown here is an error only when it is asked for. Throws Error(bad_model).
std::shared_ptr<const TensorSource> open_safetensors(std::shared_ptr<const MappedFile> file);

/// Whether the bytes begin as a safetensors file does: a plausible header size, then '{'.
bool is_safetensors(std::span<const std::byte> bytes) noexcept;

/// A tensor to be written. `produce` hands its bytes to the sink, in pieces of any size, when its
/// turn comes, so that a converted checkpoint never has to exist in memory.
struct TensorToSave {
  using Sink = std::function<void(const void* data, std::size_t bytes)>;

  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::function<void(const Sink&)> produce;
};

/// One that writes a tensor in memory.
TensorToSave tensor_to_save(std::string name, HostTensor tensor);

/// Writes to a temporary file beside `path` and renames it: whatever goes wrong, an old file stays.
/// The data begins at a multiple of 64 bytes, and so does every tensor that comes before the first
/// whose size is no such multiple (those are put last). `progress` counts bytes; returning false
/// cancels. Throws Error: invalid_argument (a name twice, a type the format lacks, a wrong number
/// of bytes), io, cancelled.
void save_safetensors(
    const std::filesystem::path& path, const std::vector<TensorToSave>& tensors,
    const std::vector<std::pair<std::string, std::string>>& metadata = {},
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress = {});

}  // namespace wkv
