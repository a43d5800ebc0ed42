// Loops that read memory as fast as a core can, the roof of batch-1 decode.
#pragma once

#include <stddef.h>

namespace wkv::bench {

/// Sums `bytes` (a multiple of 2048) at `data` (64-byte aligned). The sum keeps the loads alive.
typedef float (*ReadLoop)(const char* data, size_t bytes);

constexpr int kReadLoops = 4;
/// With the widest registers of this processor: 0, vector loads over one stream; 1, over two side
/// by side, each prefetched 1 KiB ahead, 5-10 % more on some cores, less on others; 2, over four,
/// 30 % more on Zen 3; 3, over eight, each prefetched 1 KiB ahead, 25 % more on Ice Lake.
ReadLoop read_loop(int which);

}  // namespace wkv::bench
