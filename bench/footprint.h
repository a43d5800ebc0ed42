#pragma once

#include <cstddef>

namespace wkv::bench {

/// Bytes that have to be read round and round for no cache to help: 1 GiB or four times the
/// last-level cache, at most a quarter of the memory that is free. Beside 480 MiB of L3, 200 MB of
/// int8 weights came 1.2 times as fast as 1.9 GB.
std::size_t footprint_bytes();

}  // namespace wkv::bench
