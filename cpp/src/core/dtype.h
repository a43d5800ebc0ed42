// Element sizes and scalar fp16/bf16 conversion (round to nearest even), exact and slow.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "wkv/types.h"

namespace wkv {

/// Bytes per element; 0 for `automatic` and the packed formats.
constexpr std::size_t dtype_size(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
    default:
      return 0;
  }
}

constexpr bool is_float(DType dtype) noexcept {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

constexpr bool is_quantized(DType dtype) noexcept {
  return dtype == DType::int8 || dtype == DType::mm8 || dtype == DType::int4;
}

/// Inputs that share a scale in int4: 4.5 bits per weight.
constexpr int kInt4Group = 32;

/// Bytes of the codes of a quantised matrix's row of `in` weights; of its elements for other types.
constexpr std::size_t row_size(DType dtype, std::int64_t in) noexcept {
  const auto n = static_cast<std::size_t>(in);
  if (dtype == DType::int4) return (n + kInt4Group - 1) / kInt4Group * (kInt4Group / 2);
  return is_quantized(dtype) ? n : n * dtype_size(dtype);
}

/// Bytes of a tensor's elements, or of its codes alone.
inline std::int64_t stored_size(DType dtype, const std::vector<std::int64_t>& shape) noexcept {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows * static_cast<std::int64_t>(row_size(dtype, shape.empty() ? 1 : shape.back()));
}

inline float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // keep NaN a NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(std::uint16_t h) noexcept {
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 31u;
  const std::uint32_t mantissa = h & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

inline std::uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal half: the FPU rounds
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::nearbyint(scaled)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// Element `i` of an array of `dtype` (a float type), as fp32.
inline float element_as_f32(const void* data, DType dtype, std::size_t i) noexcept {
  const auto* bytes = static_cast<const unsigned char*>(data);
  const auto read = [&]<class T>(T value) {
    __builtin_memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    return value;
  };
  switch (dtype) {
    case DType::f32:
      return read(float{});
    case DType::f64:
      return static_cast<float>(read(double{}));
    case DType::f16:
      return f16_to_f32(read(std::uint16_t{}));
    case DType::bf16:
      return bf16_to_f32(read(std::uint16_t{}));
    default:
      return 0.0f;
  }
}

}  // namespace wkv
