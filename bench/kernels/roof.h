// The two roofs of a machine, measured in the run that quotes them.
#pragma once

#include <string_view>

namespace wkv::bench {

/// Bytes per second that `threads` threads read together from memory far larger than the caches:
/// the best of the loops of read_loops.h.
double read_bandwidth(int threads, double seconds);

/// Multiplications and additions per second from registers with `unit`: fused multiply-adds of fp32
/// ("generic", "avx2", "avx512"), products of words ("avx2 int16", "avx512 int16"), dot products of
/// bytes ("avx512 int8") and of bf16 ("avx512 bf16"), tiles ("amx bf16", "amx int8"; after
/// select_isa has asked for them). 0 where this build has none.
double arithmetic_peak(std::string_view unit, int threads, double seconds);

}  // namespace wkv::bench
