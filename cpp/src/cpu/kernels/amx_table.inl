// Defines the kernels WKV_TABLE that AMX adds to those of AVX-512.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#include "cpu/kernels/vmath.inl"

#include "cpu/kernels/matmul_amx.inl"

namespace wkv::cpu {

extern const NarrowKernels WKV_TABLE;
const NarrowKernels WKV_TABLE = {tiles::amx_gemm};

}  // namespace wkv::cpu
