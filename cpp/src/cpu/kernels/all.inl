// Compiled once per ISA: defines the table WKV_TABLE named WKV_ISA_NAME.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#include "cpu/kernels/vmath.inl"

#include "cpu/kernels/matmul.inl"
#include "cpu/kernels/rows.inl"

namespace wkv::cpu {

extern const KernelTable WKV_TABLE;
const KernelTable WKV_TABLE = {WKV_ISA_NAME, kMatmul, kRows};

}  // namespace wkv::cpu
