#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "io/safetensors.h"
#include "models/detect.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

/// Vectors are a thousandth of a model, and some (decays) do not survive 8 bits of mantissa.
bool is_matrix(const std::vector<std::int64_t>& shape) {
  return std::count_if(shape.begin(), shape.end(), [](std::int64_t d) { return d > 1; }) >= 2;
}

void convert_tensor(const HostTensor& from, DType to, const std::string& name,
                    const TensorToSave::Sink& sink) {
  constexpr std::size_t kPiece = std::size_t{1} << 18;  // elements: the buffer stays in L2
  const auto n = static_cast<std::size_t>(from.numel());
  std::vector<std::byte> buffer(std::min(n, kPiece) * dtype_size(to));
  for (std::size_t first = 0; first < n; first += kPiece) {
    const std::size_t count = std::min(kPiece, n - first);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = element_as_f32(from.data, from.dtype, first + i);
      std::byte* out = buffer.data() + i * dtype_size(to);
      if (to == DType::f32) {
        __builtin_memcpy(out, &value, sizeof value);
        continue;
      }
      const std::uint16_t half = to == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      WKV_CHECK(to != DType::f16 || (half & 0x7fffu) != 0x7c00u || std::isinf(value), unsupported,
                "[convert] '", name, "' holds ", value,
                ", beyond the largest fp16 (65504); use bf16");
      __builtin_memcpy(out, &half, sizeof half);
    }
    sink(buffer.data(), count * dtype_size(to));
  }
}

}  // namespace

void convert_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out,
                        DType dtype, const Progress& progress) {
  WKV_CHECK(dtype == DType::automatic || dtype == DType::f32 || dtype == DType::f16 ||
                dtype == DType::bf16,
            unsupported, "[convert] a file can be written as fp32, fp16 or bf16, not as ",
            dtype_name(dtype));
  const std::shared_ptr<const TensorSource> source = open_checkpoint(in);
  detect(*source);  // refuses files that no model can be loaded from
  std::vector<TensorToSave> tensors;
  for (const std::string& name : source->names()) {
    const DType stored = source->dtype(name);
    const std::vector<std::int64_t> shape = source->shape(name);
    const bool narrows = dtype != DType::automatic && dtype_size(dtype) < dtype_size(stored);
    const bool keep = dtype == DType::automatic || dtype == stored || !is_float(stored) ||
                      (narrows && !is_matrix(shape));
    const DType to = keep ? stored : dtype;
    tensors.push_back({name, to, shape, [source, name, to](const TensorToSave::Sink& sink) {
                         const HostTensor tensor = source->get(name);
                         if (tensor.dtype == to)
                           sink(tensor.data,
                                static_cast<std::size_t>(tensor.numel()) * dtype_size(to));
                         else
                           convert_tensor(tensor, to, name, sink);
                       }});
  }
  save_safetensors(out, tensors, {{"format", "pt"}}, progress);
}

}  // namespace wkv
