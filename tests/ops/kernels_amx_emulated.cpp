// The kernels of cpp/src/cpu/kernels_amx.cpp with tile registers in software.
#include "emulated_amx.h"

namespace wkv::test {
AmxCounters amx_counters = {};
}

#define WKV_TABLE kernels_amx_emulated
#include "cpu/kernels/amx_table.inl"
