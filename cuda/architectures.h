// Which GPUs the device code of a build runs on.
#pragma once

#include <initializer_list>
#include <string>

namespace wkv::cuda {

/// Capabilities as 10 * major + minor. Machine code runs on devices of its major version from its
/// minor one on; the driver compiles PTX for whatever is not older.
constexpr bool runs_on(int capability, std::initializer_list<int> cubins,
                       std::initializer_list<int> ptx) {
  for (const int built : cubins)
    if (built / 10 == capability / 10 && built <= capability) return true;
  for (const int built : ptx)
    if (built <= capability) return true;
  return false;
}

/// Why this build does not run on such a device; empty if it does.
std::string why_not(int capability);

}  // namespace wkv::cuda
