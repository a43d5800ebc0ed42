// What belongs to the codes of a quantised matrix, in files and in a HostTensor: docs/weights.md.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "wkv/types.h"

namespace wkv {

struct PartInfo {
  std::string_view name;  ///< in a file: the tensor's name, a dot, this
  DType dtype;
  std::vector<std::int64_t> shape;
};

/// Name of the codes themselves.
constexpr std::string_view kCodes = "q";

/// The parts of a matrix [out, in], in the order of HostTensor::parts; none for other types.
inline std::vector<PartInfo> quantised_parts(DType dtype, const std::vector<std::int64_t>& shape) {
  if (shape.size() != 2) return {};
  const std::int64_t out = shape[0], in = shape[1];
  if (dtype == DType::int4)
    return {{"scale", DType::f16, {out, (in + kInt4Group - 1) / kInt4Group}}};
  if (!is_quantized(dtype)) return {};
  std::vector<PartInfo> parts{{"out_scale", DType::f32, {out}}, {"in_scale", DType::f32, {in}}};
  if (dtype == DType::mm8) {
    parts.push_back({"out_offset", DType::f32, {out}});
    parts.push_back({"in_offset", DType::f32, {in}});
  }
  return parts;
}

}  // namespace wkv
