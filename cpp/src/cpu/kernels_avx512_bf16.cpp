// What AVX512-BF16 adds to the kernels of AVX-512.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#include "cpu/kernels/vmath.inl"

#include "cpu/kernels/matmul_dot_bf16.inl"

namespace wkv::cpu {

const NarrowKernels kernels_avx512_bf16 = {tiles::dot_gemm};

}  // namespace wkv::cpu
