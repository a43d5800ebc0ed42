// Loops that read memory as fast as a core can, the roof of batch-1 decode.
#pragma once

#include <stddef.h>

namespace wkv::bench {

/// Sums `bytes` (a multiple of 2048) at `data` (64-byte aligned). The sum keeps the loads alive.
typedef float (*ReadLoop)(const char* data, size_t bytes);

/// Vector loads over one stream, with the widest registers of this processor.
ReadLoop plain_read_loop();
/// The same over two streams side by side, each prefetched 1 KiB ahead: 5-10 % more on some cores,
/// less on others.
ReadLoop prefetching_read_loop();

}  // namespace wkv::bench
