// Checkpoints in the layouts of Hugging Face repositories, seen under the official names.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "wkv/types.h"

namespace wkv {

/// Whether the names are those of a Hugging Face layout: RWKV/... repositories (v4 to v6:
/// rwkv.blocks.0.attention...) or fla-hub ones (v6, v7: model.layers.0.attn.r_proj...).
bool is_hf(const TensorSource& source);

/// The same tensors under the official names and in the official shapes. What is only renamed stays
/// in place; low-rank factors, which these layouts store transposed, are copied at each get().
/// Names outside the layouts are passed on as they are. Throws Error(bad_model) for shapes that
/// cannot be those of the layout.
std::shared_ptr<const TensorSource> open_hf(std::shared_ptr<const TensorSource> source);

/// The official name of a tensor that these layouts only rename; any other name as it is.
std::string official_name(const std::string& stored);

/// The tensors of a directory: model.safetensors or pytorch_model.bin, or the shards that its
/// *.index.json lists. Throws Error(io) if it has none of them.
std::shared_ptr<const TensorSource> open_directory(const std::filesystem::path& directory);

}  // namespace wkv
