// The kernels of cpp/src/cpu/kernels_avx512.cpp with AVX-512 in software.
#define WKV_TABLE kernels_avx512_emulated
#define WKV_ISA_NAME "avx512-emulated"
#include "cpu/kernels/all.inl"
