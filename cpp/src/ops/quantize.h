// The quantised weight formats: the one definition of int8, mm8 and int4 (docs/weights.md).
//
//   int8  W[o][i] = q[o][i] out_scale[o] in_scale[i],                     q in [-127, 127]
//   mm8   W[o][i] = (q[o][i] + 1/2) out_scale[o] in_scale[i] + out_offset[o] + in_offset[i],
//         q in [0, 255]; the form of the `rwkv` package, its codes and scales bit for bit
//   int4  W[o][i] = (q[o][i] - 8) group_scale[o][i / 32],                 q in [0, 15]
#pragma once

#include <cstddef>
#include <functional>

#include "core/buffer.h"
#include "ops/weights.h"
#include "wkv/types.h"

namespace wkv::quantize {

/// Inputs that share a scale in int4: 4.5 bits per weight.
constexpr int kGroup = 32;

constexpr bool is_quantized(DType dtype) noexcept {
  return dtype == DType::int8 || dtype == DType::mm8 || dtype == DType::int4;
}

/// Bytes of one output's codes; of one row of a float matrix for float types.
std::size_t row_bytes(DType dtype, int in) noexcept;

/// parallel(n, work) calls work(begin, end) for parts that make up [0, n), maybe at once. Results
/// do not depend on the parts.
using Parallel = std::function<void(int n, const std::function<void(int begin, int end)>& work)>;
/// On the calling thread.
void serial(int n, const std::function<void(int begin, int end)>& work);

/// Quantises W [out, in] of a float type to int8, mm8 or int4. All of the result lies in `memory`
/// (host, filled); its name is left to the caller. Non-finite weights are Error(bad_model).
Matrix quantize(const HostTensor& w, DType want, Buffer& memory, const Parallel& parallel = serial);

/// The inverse, row `o` of a quantised or float matrix in row-major order as fp32 [in]. Slow; what
/// kernels are tested against.
void decode_row(const Matrix& w, int o, float* to);

}  // namespace wkv::quantize
