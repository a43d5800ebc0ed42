// Opens the CUDA plugin when a CUDA device is first asked for. Importing and using the library
// without one never touches CUDA.
#pragma once

#include <memory>
#include <vector>

#include "ops/backend.h"
#include "wkv/wkv.hpp"

namespace wkv {

/// "cuda:0", "cuda:1", ...; or one unusable "cuda" with the reason: no plugin file, a plugin of
/// another build, no driver, no device.
std::vector<DeviceInfo> cuda_devices();

/// Throws Error(unsupported) with the same reasons.
std::shared_ptr<Backend> make_cuda_backend(int device);

}  // namespace wkv
