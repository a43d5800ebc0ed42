#define WKV_TABLE kernels_generic
#define WKV_ISA_NAME "generic"
#include "cpu/kernels/all.inl"
