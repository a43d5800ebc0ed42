// NVIDIA's matrix library, if this machine has it: opened at run time, never linked. Its wheel is
// 444 MB, far too much to demand for prefill alone.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "cuda/device.h"

namespace wkv::cuda {

class CublasLt {
 public:
  /// Looks at WKV_CUBLASLT (a file; "0": do without), for a copy that is in the process already (of
  /// torch, say), in the site-packages that the plugin lies in, and where the loader looks. Null if
  /// it is nowhere or does not start.
  static std::unique_ptr<CublasLt> open();
  ~CublasLt();
  /// Whether the library has a way to do it, found once for each shape, and it is large enough.
  bool accepts(const LibraryProduct& product);
  /// What was accepted. May be captured. Products that may run at the same time have different
  /// branches, below kBranches.
  static constexpr int kBranches = 4;
  void multiply(const LibraryProduct& product, cudaStream_t stream, int branch);

 private:
  struct Impl;
  explicit CublasLt(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace wkv::cuda
