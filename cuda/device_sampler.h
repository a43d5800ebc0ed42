// Samplers of several streams on the GPU: tokens are chosen where the logits are.
#pragma once

#include <vector>

#include "cuda/cuda_backend.h"
#include "wkv/text.hpp"

namespace wkv::cuda {

/// Sampler (wkv/text.hpp) for `rows` streams, choice for choice. It does what decoding needs:
/// temperature, top-k, top-p and penalties of variant pip. Must not outlive the backend.
class DeviceSampler {
 public:
  /// Throws Error(unsupported) for a vocabulary of more than 262144.
  DeviceSampler(CudaBackend& backend, int rows, int vocab);

  /// Whether the device can do it; the rest is the CPU's.
  static bool supports(const SamplingParams& params) noexcept;
  /// Begins stream `row` anew, `draws` numbers into its random stream.
  void start(int row, const SamplingParams& params, std::uint64_t draws = 0);
  /// Draws and accepts a token for each row of `logits` [rows, vocab]; asynchronous, inside a step.
  void sample(Tensor logits);
  /// Where the tokens lie on the device, [rows].
  const std::int32_t* device_tokens() const noexcept { return params_.out; }
  /// The tokens of the last sample(). Throws Error(invalid_argument) for a row of NaN, infinity or
  /// nothing above -infinity.
  std::vector<Token> tokens();

 private:
  CudaBackend& backend_;
  Buffer memory_;
  SampleParams params_;
};

}  // namespace wkv::cuda
