// Which reader for which bytes.
#pragma once

#include <memory>

#include "io/mapped_file.h"
#include "wkv/types.h"

namespace wkv {

/// Picks the reader by the first bytes, never by the suffix. Throws Error(bad_model).
std::shared_ptr<const TensorSource> read_tensors(std::shared_ptr<const MappedFile> file);

/// The same, seen under the official names if the file has those of a Hugging Face repository.
std::shared_ptr<const TensorSource> open_checkpoint_bytes(std::shared_ptr<const MappedFile> file);

}  // namespace wkv
