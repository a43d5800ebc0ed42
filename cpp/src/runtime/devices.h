// The one place that knows which backends exist.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "wkv/wkv.hpp"

namespace wkv {

/// The devices that `device` stands for, the one to try first in front: itself, or for "auto" the
/// first usable GPU and the CPU, which alone runs models that look back.
std::vector<std::string> candidates(const std::string& device, bool looks_back);

/// For `options.device`: "cpu", "cuda", "cuda:N", or a placement of the layers over several
/// (runtime/placement.h), of which the model has `n_layer`. Throws Error(unsupported) with the
/// reason, Error(invalid_argument) for another name.
std::shared_ptr<Backend> make_backend(const Options& options, int n_layer = 0);

}  // namespace wkv
