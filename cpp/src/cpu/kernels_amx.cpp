#define WKV_TABLE kernels_amx
#include "cpu/kernels/amx_table.inl"
