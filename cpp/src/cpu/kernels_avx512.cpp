#define WKV_TABLE kernels_avx512
#define WKV_ISA_NAME "avx512"
#include "cpu/kernels/all.inl"
