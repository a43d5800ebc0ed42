// Checkpoints written by torch.save.
#pragma once

#include <memory>
#include <span>

#include "io/mapped_file.h"
#include "wkv/types.h"

namespace wkv {

/// The tensors of a .pth file: a state dict (OrderedDict or plain dict; also one level down, under
/// "state_dict", "model" or "module"), or a whole pickled module as RWKV-v1 saved it. Both
/// containers are read: the zip archive, and the one from before torch 1.6. Values that are no
/// tensors are skipped; the prefix "_forward_module." is removed. Throws Error(bad_model).
std::shared_ptr<const TensorSource> open_pth(std::shared_ptr<const MappedFile> file);

/// Whether the bytes begin as torch.save files from before torch 1.6 do.
bool is_legacy_pth(std::span<const std::byte> bytes) noexcept;

}  // namespace wkv
