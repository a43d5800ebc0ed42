#define WKV_TABLE kernels_avx512_bf16
#include "cpu/kernels/dot_bf16_table.inl"
