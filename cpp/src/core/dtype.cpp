#include "core/dtype.h"

#include <array>
#include <utility>

#include "core/check.h"

namespace wkv {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 14> kNames{{
    {DType::automatic, "auto"},
    {DType::f32, "fp32"},
    {DType::f16, "fp16"},
    {DType::bf16, "bf16"},
    {DType::int8, "int8"},
    {DType::int4, "int4"},
    {DType::mm8, "mm8"},
    {DType::f64, "fp64"},
    {DType::i64, "i64"},
    {DType::i32, "i32"},
    {DType::i16, "i16"},
    {DType::i8, "i8"},
    {DType::u8, "u8"},
    {DType::boolean, "bool"},
}};
constexpr std::size_t kWeightNames = 7;  // what a user may ask for

constexpr std::array<std::string_view, 4> kPrecisions{"auto", "exact", "fast", "w8a8"};

}  // namespace

std::string_view dtype_name(DType dtype) noexcept {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < kWeightNames; ++i)
    if (kNames[i].second == name) return kNames[i].first;
  fail(ErrorCode::invalid_argument, "unknown dtype '", name,
       "'; use one of auto, fp32, fp16, bf16, int8, int4, mm8");
}

std::string_view matmul_precision_name(MatmulPrecision precision) noexcept {
  const auto i = static_cast<std::size_t>(precision);
  return i < kPrecisions.size() ? kPrecisions[i] : "?";
}

MatmulPrecision parse_matmul_precision(std::string_view name) {
  for (std::size_t i = 0; i < kPrecisions.size(); ++i)
    if (kPrecisions[i] == name) return static_cast<MatmulPrecision>(i);
  fail(ErrorCode::invalid_argument, "unknown matmul precision '", name,
       "'; use one of auto, exact, fast, w8a8");
}

}  // namespace wkv
