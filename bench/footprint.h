#pragma once

#include <cstddef>

namespace wkv::bench {

/// Bytes that have to be read round and round for no cache to help: 1 GiB or four times the
/// last-level cache, at most a quarter of the memory that is free. Of 480 MiB of L3 a model of 200
/// MB finds a tenth or two of its weights.
std::size_t footprint_bytes();

}  // namespace wkv::bench
