#include "runtime/state_storage.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv::detail {
namespace {

/// Floats of a row as it lies in memory.
std::size_t row_of(const SlotInfo& slot) noexcept {
  const std::size_t last = slot.shape.size() - (slot.transposed ? 2 : 1);
  return static_cast<std::size_t>(slot.shape[last]);
}

std::size_t code_bytes(DType type) noexcept { return type == DType::int8 ? 1 : 2; }

std::size_t part_bytes(const SlotInfo& slot, DType type) noexcept {
  const auto n = static_cast<std::size_t>(slot.slot.size);
  if (type == DType::f32) return n * sizeof(float);
  return n * code_bytes(type) + n / row_of(slot) * sizeof(float);
}

float scale_of(std::span<const float> row, DType type, const SlotInfo& slot) {
  float largest = 0.0f;
  bool finite = true;
  for (const float x : row) {
    finite = finite && std::isfinite(x);
    largest = std::max(largest, std::abs(x));
  }
  WKV_CHECK(finite, invalid_argument, "[state] part '", slot.name,
            "' holds infinity or NaN, which only fp32 stores");
  // Below this, scales would be denormal; the error of dropping the row is nothing to it.
  if (largest < 1e-30f) return 0.0f;
  return type == DType::int8 ? largest / 127.0f : std::ldexp(1.0f, std::ilogb(largest));
}

void pack_row(std::span<const float> row, DType type, float scale, std::byte* out) {
  std::memcpy(out, &scale, sizeof scale);
  out += sizeof scale;
  if (scale == 0.0f) {
    std::memset(out, 0, row.size() * code_bytes(type));
    return;
  }
  for (const float x : row) {
    if (type == DType::int8) {
      const auto code = static_cast<std::int8_t>(std::nearbyint(x / scale));
      std::memcpy(out, &code, sizeof code);
    } else {
      const std::uint16_t code = f32_to_f16(x / scale);
      std::memcpy(out, &code, sizeof code);
    }
    out += code_bytes(type);
  }
}

void unpack_row(const std::byte* in, DType type, std::span<float> row) {
  float scale = 0.0f;
  std::memcpy(&scale, in, sizeof scale);
  in += sizeof scale;
  for (float& x : row) {
    if (type == DType::int8) {
      x = scale * static_cast<float>(static_cast<std::int8_t>(*in));
    } else {
      std::uint16_t code = 0;
      std::memcpy(&code, in, sizeof code);
      x = scale * f16_to_f32(code);
    }
    in += code_bytes(type);
  }
}

}  // namespace

DType stored_as(const SlotInfo& slot, DType storage) noexcept {
  if (slot.exact || storage == DType::f32) return DType::f32;
  return slot.shape.size() > 1 ? storage : DType::f16;
}

std::size_t packed_bytes(const StateLayout& layout, DType storage) noexcept {
  std::size_t total = 0;
  for (const SlotInfo& slot : layout.slots()) total += part_bytes(slot, stored_as(slot, storage));
  return total;
}

void pack_state(const StateLayout& layout, DType storage, std::span<const float> state,
                std::span<std::byte> out) {
  std::byte* to = out.data();
  for (const SlotInfo& slot : layout.slots()) {
    const DType type = stored_as(slot, storage);
    const auto part = state.subspan(static_cast<std::size_t>(slot.slot.offset),
                                    static_cast<std::size_t>(slot.slot.size));
    if (type == DType::f32) {
      std::memcpy(to, part.data(), part.size_bytes());
      to += part.size_bytes();
      continue;
    }
    const std::size_t row = row_of(slot);
    for (std::size_t first = 0; first < part.size(); first += row) {
      const auto values = part.subspan(first, row);
      pack_row(values, type, scale_of(values, type, slot), to);
      to += sizeof(float) + row * code_bytes(type);
    }
  }
}

void unpack_state(const StateLayout& layout, DType storage, std::span<const std::byte> in,
                  std::span<float> state) {
  const std::byte* from = in.data();
  for (const SlotInfo& slot : layout.slots()) {
    const DType type = stored_as(slot, storage);
    const auto part = state.subspan(static_cast<std::size_t>(slot.slot.offset),
                                    static_cast<std::size_t>(slot.slot.size));
    if (type == DType::f32) {
      std::memcpy(part.data(), from, part.size_bytes());
      from += part.size_bytes();
      continue;
    }
    const std::size_t row = row_of(slot);
    for (std::size_t first = 0; first < part.size(); first += row) {
      unpack_row(from, type, part.subspan(first, row));
      from += sizeof(float) + row * code_bytes(type);
    }
  }
}

}  // namespace wkv::detail
