// The quantised weight formats: the one definition of int8, mm8 and int4 (docs/weights.md).
//
//   int8  W[o][i] = q[o][i] out_scale[o] in_scale[i],                     q in [-127, 127]
//   mm8   W[o][i] = (q[o][i] + 1/2) out_scale[o] in_scale[i] + out_offset[o] + in_offset[i],
//         q in [0, 255]; the form of the `rwkv` package, its codes and scales bit for bit
//   int4  W[o][i] = (q[o][i] - 8) group_scale[o][i / 32],                 q in [0, 15]
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "core/buffer.h"
#include "core/dtype.h"
#include "ops/weights.h"
#include "wkv/types.h"

namespace wkv::quantize {

constexpr int kGroup = kInt4Group;
using wkv::is_quantized;

/// The type that a matrix wanted as `want` gets: of quantised ones the embedding, whose rows are
/// only gathered, stays as it is, low-rank factors and the head, which decides on every token, are
/// not int4 but int8; factors are not mm8, which is the form of another package.
DType type_of(DType want, MatrixUse use) noexcept;

/// Bytes of one output's codes; of one row of a float matrix for float types.
std::size_t row_bytes(DType dtype, int in) noexcept;

/// Bytes from a row of W to the next: of an output, or of an input if W is input-major. The rows of
/// an input lie a line further apart than 1 KiB or a multiple of it: one below the other, what many
/// of them have of a few outputs would all want the same places of L2.
inline std::size_t row_bytes(const Matrix& w) noexcept {
  if (w.layout != Layout::input_major) return row_bytes(w.dtype, w.in);
  const std::size_t bytes = row_bytes(w.dtype, w.out);
  return bytes % 1024 == 0 ? bytes + 64 : bytes;
}

/// parallel(n, work) calls work(begin, end) for parts that make up [0, n), maybe at once. Results
/// do not depend on the parts.
using Parallel = std::function<void(int n, const std::function<void(int begin, int end)>& work)>;
/// `parallel` cut into pieces of about a million of the weights of a matrix of `in` inputs, with a
/// call of `poll` (if any), which may throw to cancel, before each: int4 takes 0.1 s for a piece on
/// one core, and a head of 65536 outputs is 64 to 256 of them.
Parallel polled(Parallel parallel, std::function<void()> poll, std::int64_t in);
/// On the calling thread.
void serial(int n, const std::function<void(int begin, int end)>& work);

/// Quantises W [out, in] of a float type to int8, mm8 or int4. All of the result lies in `memory`
/// (host, filled), which comes from `allocate`; its name is left to the caller. Non-finite weights
/// are Error(bad_model).
Matrix quantize(const HostTensor& w, DType want, Buffer& memory, const Parallel& parallel = serial,
                const std::function<Buffer(std::size_t)>& allocate = allocate_host);

/// Takes the codes of rows [first, first + n); they are gone when it returns.
using CodeSink = std::function<void(int first, int n, const unsigned char* codes)>;
/// The same with `rows` rows of codes in memory at a time, which go to `sink` in order: the matrix
/// that is returned has none, only the scales and offsets in `memory`. Pages of a mapped file are
/// dropped as soon as they have been read.
Matrix quantize_in_pieces(const HostTensor& w, DType want, Buffer& memory, int rows,
                          const CodeSink& sink, const Parallel& parallel = serial);

/// A matrix of a quantised type as it came from a file. The codes, and int4's scales, stay where
/// they lie; the scales and offsets of the other formats are copied into `memory`, aligned. What
/// `tensor` points to must stay alive as well. Throws Error(bad_model) if a part is missing or has
/// another type or shape.
Matrix view(const HostTensor& tensor, Buffer& memory);

/// W^T of a matrix of a float type or of int8, whose two scales take each other's place. Its
/// elements may lie at any address and come to lie in memory from `allocate`.
HostTensor transpose(const HostTensor& w,
                     const std::function<Buffer(std::size_t)>& allocate = allocate_host);
/// W of a float type as `want` has it, in fp32.
HostTensor rounded(const HostTensor& w, DType want, const Parallel& parallel = serial);

/// A tensor of a quantised type as fp32 in new memory; any other as it is.
HostTensor dequantize(const HostTensor& tensor, const Parallel& parallel = serial);

/// The inverse, row `o` of a quantised or float matrix in row-major order as fp32 [in]. Slow; what
/// kernels are tested against.
void decode_row(const Matrix& w, int o, float* to);

}  // namespace wkv::quantize
