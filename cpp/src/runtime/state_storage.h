// States in fewer bytes: rows of fp16 or int8 with a scale each.
#pragma once

#include <cstddef>
#include <span>

#include "models/arch.h"

namespace wkv::detail {

/// What a part is stored as when a state is asked for in `storage` (f32, f16 or int8): fp32 if it
/// is exact, fp16 if it is a vector, `storage` if it is a matrix.
DType stored_as(const SlotInfo& slot, DType storage) noexcept;

/// Bytes of a packed state.
std::size_t packed_bytes(const StateLayout& layout, DType storage) noexcept;

/// `state` [layout.size()] -> `out` [packed_bytes()]. Part after part; of an fp16 or int8 part row
/// after row (the last axis), each a fp32 scale and its codes:
///   fp16: x = scale * code, the scale the power of two that brings the largest |x| into [1, 2)
///   int8: x = scale * code, scale = max |x| / 127
/// so that |error| <= 2^-11 |x| + 2^-25 max |x| for fp16 and <= max |x| / 254 for int8, the maxima
/// over the row. Throws Error(invalid_argument) if a row to be rounded holds infinity or NaN.
void pack_state(const StateLayout& layout, DType storage, std::span<const float> state,
                std::span<std::byte> out);

/// The inverse.
void unpack_state(const StateLayout& layout, DType storage, std::span<const std::byte> in,
                  std::span<float> state);

}  // namespace wkv::detail
