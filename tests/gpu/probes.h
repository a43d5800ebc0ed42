// What the hardware does without our kernels: reading, waiting for each other. For micro.cpp.
#pragma once

#include <cstddef>

namespace wkv::probes {

/// Seconds to read `bytes` once; the median of several runs.
double read(const void* memory, std::size_t bytes);
/// Seconds of one barrier of the whole grid, a block on each processor.
double grid_barrier();
/// Seconds from one empty kernel of clusters of 8 blocks to the next, in one stream.
double cluster_launch();

}  // namespace wkv::probes
