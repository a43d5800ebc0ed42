#pragma once

#include <cstdint>
#include <string>

#include "wkv/types.h"

namespace wkv::detail {

/// 16 hex digits of the signs of some weights; empty for a model with an adapter.
///
/// Rounding to fp16 or bf16 changes no sign, so that these forms of a model agree; quantisation
/// may, wherefore conversion writes the digest down (kSignsNote). A change of 1 % of a matrix (a
/// merged LoRA that left the norms alone) flips 0.3 % of its signs, and some 50,000 are looked at.
std::string sign_digest(const TensorSource& source);

/// Tells models of one size apart, from `hash` on: the final norm, which every conversion keeps,
/// rounded to bf16; the signs; an adapter's own digest.
std::uint64_t weight_fingerprint(const TensorSource& source, std::uint64_t hash);

}  // namespace wkv::detail
