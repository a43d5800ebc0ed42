// The kernels of one ISA as plain function pointers. Kernels are single-threaded, allocation-free
// and noexcept; they take a range of the output, cpu_backend splits ranges over threads.
#pragma once

#include "cpu/kernels_matmul.h"
#include "cpu/kernels_rows.h"

namespace wkv::cpu {

struct KernelTable {
  const char* isa;
  MatmulKernels matmul;
  RowKernels rows;
};

extern const KernelTable kernels_generic;
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
/// With kernels_avx512: isa.cpp puts them together.
extern const NarrowKernels kernels_avx512_bf16, kernels_amx;

}  // namespace wkv::cpu
