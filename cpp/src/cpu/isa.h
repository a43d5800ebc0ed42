// Which instruction sets are built, which this machine runs, which one is chosen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
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

/// How far ahead this processor wants to be asked for a stream of weights of a WeightType.
StreamAhead stream_ahead(int type) noexcept;

/// In how many streams a thread reads weights of a WeightType, with one row of x: 1, 2 (int4
/// alone), 4 or 8. Kernels take less where they have not so many registers.
Streams streams(int type) noexcept;

/// MatmulArgs::segment for this processor.
int segment_inputs() noexcept;

/// What a machine answers when asked for AMX.
struct AmxProbe {
  unsigned features = 0;           ///< CPUID 7.0 EDX
  unsigned features_1 = 0;         ///< CPUID 7.1 EAX
  std::uint64_t saved_states = 0;  ///< XCR0
  int refusal = 0;                 ///< errno of arch_prctl(ARCH_REQ_XCOMP_PERM), 0: granted
};
/// What is missing, as a part of an error; empty if nothing is.
std::string why_no_amx(const AmxProbe& probe);

}  // namespace wkv::cpu
