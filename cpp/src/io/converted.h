// Files that the `rwkv` package converted to a strategy (convert_and_save_and_exit), v4 to v6.
#pragma once

#include <memory>

#include "io/notes.h"
#include "wkv/types.h"

namespace wkv {

/// Whether the file says which strategy it was converted to.
bool is_converted(const TensorSource& source);

/// The same model under the official names, shapes and meanings: matrices turned back to [out, in]
/// (copied at each get), mm8 codes with their scales as one tensor, decays as logarithms, the
/// division of deep layers undone. The embedding stays as it is: see kEmbeddingNote. Throws
/// Error(bad_model).
std::shared_ptr<const TensorSource> open_converted(std::shared_ptr<const TensorSource> source);

}  // namespace wkv
