// Which RWKV is this file? From names and shapes alone (docs/versions.md, section 1).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/weights.h"
#include "wkv/types.h"

namespace wkv {

struct Detected {
  /// "1", "2", "3", "4", "4a", "5.0", "5.1", "5.2", "6.0", "6.0a", "6.0b", "6.0c", "7.0", "7.0a"
  std::string version;
  int n_layer = 0;
  int n_embd = 0;
  int n_att = 0;
  int n_head = 0;     ///< 0 in v2 to v4
  int head_size = 0;  ///< 0 in v2 to v4
  int n_vocab = 0;
  int dim_ffn = 0;
  int head_qk = 0;          ///< rows of the copy head's q and k; 0: none
  int ctx_len = 0;          ///< 0: unlimited
  bool looks_back = false;  ///< needs a device with Backend::looks_back()
  std::int64_t n_params = 0;
};

/// Throws Error(bad_model) if the source is no RWKV checkpoint, Error(unsupported) naming a variant
/// that is known but not run.
Detected detect(const TensorSource& source);

/// What a tensor that dtype int8, int4 or mm8 may quantise is used for: a projection, in every
/// version the matrices called .weight but for embeddings, or a low-rank factor, stored [in, out].
std::optional<MatrixUse> quantised_use(std::string_view name,
                                       const std::vector<std::int64_t>& shape) noexcept;

/// Masks that a checkpoint may hold (spec section 0): they carry nothing that inference needs.
bool is_training_buffer(std::string_view name) noexcept;

}  // namespace wkv
