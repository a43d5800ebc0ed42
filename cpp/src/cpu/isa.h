// Which instruction sets are built, which this machine runs, which one is chosen.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "wkv/wkv.hpp"

namespace wkv::cpu {

/// Built tables, from the plainest to the best, with `runnable` and `active` filled in.
std::vector<IsaInfo> list_isas();

/// The best runnable table, or the one WKV_ISA names. Error(unsupported) if that is not built or
/// cannot run here; never a silent fallback.
const KernelTable& select_isa();
/// By name: what select_isa() does for WKV_ISA. An empty name chooses the best.
const KernelTable& select_isa(const char* name);

}  // namespace wkv::cpu
