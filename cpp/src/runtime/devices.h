// The one place that knows which backends exist.
#pragma once

#include <memory>
#include <string>

#include "ops/backend.h"

namespace wkv {

/// "auto" (the CPU for now), "cpu", "cuda", "cuda:N". `threads` is for the CPU, 0: usable
/// cores. Throws Error(unsupported) with the reason, Error(invalid_argument) for another name.
std::shared_ptr<Backend> make_backend(const std::string& device, int threads);

}  // namespace wkv
