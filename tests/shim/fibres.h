// Runs a kernel on the host, block by block.
#pragma once

namespace wkv::shim {

struct LaunchCall {
  const void* kernel;
  void (*invoke)(const void* kernel, const void* params);
  const void* params;
  unsigned grid[3];
  unsigned block;
  unsigned cluster;  ///< blocks that run together; grid[0] is a multiple
  unsigned shared_bytes;
};

/// Throws Error(device) if threads of a block wait for each other for ever.
void run_kernel(const LaunchCall& call);

}  // namespace wkv::shim
