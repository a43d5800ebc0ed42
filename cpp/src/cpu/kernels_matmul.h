// Matrix products y = act(x W^T + bias) * gate + add of one ISA. Plain pointers and counts, no STL:
// the per-ISA files include this.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace wkv::cpu {

/// How the elements of W lie in memory, rows of them `row_bytes` apart at any alignment.
enum WeightType : int {
  kWeightF32,
  kWeightF16,
  kWeightBF16,
  kWeightI8,  ///< int8_t codes
  kWeightU8,  ///< uint8_t codes
  kWeightI4,  ///< two codes (value + 8) to a byte and a f16 scale per 32 inputs, in strips
  kWeightTypes
};
constexpr int kInt4Group = 32;
/// Outputs of a strip of int4: W is [strip][group of 32 inputs][8 inputs][output], where an
/// output's 8 codes are a dword, the first input lowest; scales are [strip][group][output].
constexpr int kStrip = 16;

/// What W is beside its codes: W[o][i] = (q - zero) out_scale[o] in_scale[i] + out_offset[o] +
/// in_offset[i]. Null where absent.
struct MatmulScales {
  const float* in_scale;
  const float* out_scale;
  const float* in_offset;
  const float* out_offset;
  float zero;
  const void* group_scale;  ///< kWeightI4: f16
};

/// What happens to a product before it is stored. Null pointers where absent; rows of `gate` and
/// `add` are `gate_stride` and `add_stride` floats apart.
struct MatmulEpilogue {
  int act;          ///< an ActCode
  bool accumulate;  ///< y += result instead of y = result
  const float* bias;
  const float* gate;
  const float* add;
  ptrdiff_t gate_stride;
  ptrdiff_t add_stride;
};

/// wkv::MatmulPrecision as plain constants; cpu_linear.cpp asserts that both agree.
enum PrecisionCode : int { kPrecisionAuto, kPrecisionExact, kPrecisionFast, kPrecisionW8A8 };

/// Bytes before its use that a single stream of weights is asked for into L2 and into L1; 0: not.
/// See stream_ahead() in isa.h.
struct StreamAhead {
  ptrdiff_t l2, l1;
};

/// Parts of W that a thread multiplies one row of x with by turns, a line or two of each, and how
/// many bytes before its use each is asked for into L1; 0: not. See streams() in isa.h.
struct Streams {
  int count;
  ptrdiff_t ahead;
};

/// One product. W [out][in] (int4: strips), or [in][out] if `input_major`: int4 then has two
/// outputs of an input to a byte, the even one low, and its scales are [group][out]. Strides of x
/// and y in floats.
struct MatmulArgs {
  const void* w;
  ptrdiff_t row_bytes;
  bool input_major;
  int type;  ///< a WeightType
  MatmulScales scales;
  int out, in;
  const float* x;
  ptrdiff_t x_stride;
  float* y;
  ptrdiff_t y_stride;
  int rows;
  MatmulEpilogue epilogue;
  StreamAhead ahead;
  Streams streams;
  int segment;    ///< inputs whose x, as floats, leaves room in L1: kSegment or more
  int precision;  ///< a PrecisionCode: what `narrow` may do
};

/// 16 KiB of x as floats, half of a small L1. A multiple of every kernel's step.
constexpr int kSegment = 4096;

/// Ranges [begin, end) of outputs are multiples of this, or end at `out`. A kernel's order of
/// summation depends on the offset inside such a block alone, never on where a range begins, which
/// makes results independent of the number of threads.
constexpr int kOutBlock = 32;

/// Parts that the inputs of a sparse product are cut into, which is also how many threads can share
/// its first step.
constexpr int kInputParts = 16;
/// From this share of a part's inputs on all of its rows of W are read, without gaps.
constexpr float kDenseShare = 0.75f;
/// Products of many rows. x is packed first, in `pack_units(args)` independent units; `packed`
/// (packed_bytes(args)) is then read by every thread. `scratch`: scratch(args) bytes, 64-byte
/// aligned like `packed`.
struct GemmKernels {
  size_t (*packed_bytes)(const MatmulArgs& args);
  int (*pack_units)(const MatmulArgs& args);
  void (*pack)(const MatmulArgs& args, int begin, int end, void* packed);
  size_t (*scratch)(const MatmulArgs& args);
  void (*multiply)(const MatmulArgs& args, const void* packed, int begin, int end, void* scratch);
  int parts;  ///< a thread begins with all but one in so many of its outputs
};

/// A product that `narrow` does not take is computed by `gemm` from `gemm_min_rows` of its type on,
/// below by `gemv`; with W input-major by `sparse` up to `sparse_max_rows`.
struct MatmulKernels {
  int gemm_min_rows[kWeightTypes];
  int sparse_max_rows;
  /// Products of few rows. gemv_prepare() puts x into the order of the weights; gemv() then makes
  /// outputs [begin, end), in any number of calls: every weight is read once and converted in
  /// registers. `scratch`: gemv_scratch(args) bytes of one thread, 64-byte aligned.
  size_t (*gemv_scratch)(const MatmulArgs& args);
  void (*gemv_prepare)(const MatmulArgs& args, void* scratch);
  void (*gemv)(const MatmulArgs& args, int begin, int end, void* scratch);
  /// Products with W input-major of up to `sparse_max_rows` rows: weights of inputs that are zero
  /// in all rows are not read. The inputs are cut into kInputParts parts, each of which
  /// sparse_part() adds up by itself in `sums` (sparse_sums(args) floats, 64-byte aligned); it
  /// returns how many inputs were not zero. `scratch`: sparse_scratch(args) bytes. When all parts
  /// are done sparse_finish() stores outputs [begin, end).
  size_t (*sparse_sums)(const MatmulArgs& args);
  size_t (*sparse_scratch)(const MatmulArgs& args);
  int (*sparse_part)(const MatmulArgs& args, int part, float* sums, void* scratch);
  void (*sparse_finish)(const MatmulArgs& args, const float* sums, int begin, int end);
  GemmKernels gemm;  ///< in fp32
  /// What computes this product with fewer bits than fp32, as its `precision` allows; null if that
  /// is `gemm`. Products that share a packed x must be of one type and one answer.
  const GemmKernels* (*narrow)(const MatmulArgs& args);
};

/// What a tier that differs from another in `narrow` alone exports.
struct NarrowKernels {
  const GemmKernels* (*narrow)(const MatmulArgs& args);
};

}  // namespace wkv::cpu
