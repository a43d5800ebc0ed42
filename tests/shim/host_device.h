#pragma once

#include <cstddef>

namespace wkv::shim {

/// Blocks of device memory that were written outside, noticed when they were freed.
std::size_t fences_broken() noexcept;

}  // namespace wkv::shim
