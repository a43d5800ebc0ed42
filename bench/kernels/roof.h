// The two roofs of a machine, measured in the run that quotes them.
#pragma once

namespace wkv::bench {

/// Bytes per second that `threads` threads read together from memory far larger than the caches:
/// the better of a plain loop and a loop over two streams with software prefetch.
double read_bandwidth(int threads, double seconds);

/// Floating-point operations per second of fused multiply-adds from registers with the vectors of
/// `isa` ("generic", "avx2", "avx512").
double fma_peak(const char* isa, int threads, double seconds);

}  // namespace wkv::bench
