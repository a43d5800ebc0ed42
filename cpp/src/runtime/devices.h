// The one place that knows which backends exist.
#pragma once

#include <memory>
#include <string>

#include "ops/backend.h"
#include "wkv/wkv.hpp"

namespace wkv {

/// For `options.device`: "auto" (the CPU for now), "cpu", "cuda", "cuda:N", or a placement of the
/// layers over several (runtime/placement.h), of which the model has `n_layer`. Throws
/// Error(unsupported) with the reason, Error(invalid_argument) for another name.
std::shared_ptr<Backend> make_backend(const Options& options, int n_layer = 0);

}  // namespace wkv
