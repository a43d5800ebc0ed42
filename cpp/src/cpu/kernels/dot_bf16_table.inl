// Defines the kernels WKV_TABLE that AVX512-BF16 adds to those of AVX-512.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#include "cpu/kernels/vmath.inl"

#include "cpu/kernels/matmul_dot_bf16.inl"

namespace wkv::cpu {

extern const NarrowKernels WKV_TABLE;
const NarrowKernels WKV_TABLE = {tiles::dot_gemm};

}  // namespace wkv::cpu
