// What a checkpoint's metadata tell beside its tensors.
#pragma once

namespace wkv {

/// "normed" if the embedding went through ln0 already; such a checkpoint has none.
inline constexpr const char* kEmbeddingNote = "wkv.embedding";

/// The digest of an adapter that is merged while the model loads.
inline constexpr const char* kAdapterNote = "wkv.adapter";

/// Of the file that a converted one was made from: runtime/fingerprint.h.
inline constexpr const char* kSignsNote = "wkv.signs";

}  // namespace wkv
