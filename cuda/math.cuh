// Scalar mathematics of the kernels; the same source runs on the host in the shim.
#pragma once

#include <math.h>

#include "cuda/platform.cuh"
#include "ops/backend.h"

namespace wkv::cuda {

WKV_DEV float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// The activations of ops/backend.h.
WKV_DEV float activate(float x, std::int32_t act) {
  switch (static_cast<Act>(act)) {
    case Act::tanh:
      return tanhf(x);
    case Act::sigmoid:
      return sigmoid(x);
    case Act::silu:
      return x < -100.0f ? -0.0f : x * sigmoid(x);  // infinity times 0 would be NaN
    case Act::relu_squared:
      return x <= 0.0f ? 0.0f : x * x;  // NaN stays
    case Act::exp_neg_exp:
      return expf(-expf(x));
    case Act::mish:
      return x * tanhf(x > 20.0f ? x : log1pf(expf(x)));
    case Act::decay7:
      return expf(-0.60653065971263342f * sigmoid(x));  // e^{-1/2}
    default:
      return x;
  }
}

}  // namespace wkv::cuda
