#define WKV_TABLE kernels_avx2
#define WKV_ISA_NAME "avx2"
#include "cpu/kernels/all.inl"
