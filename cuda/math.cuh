// Scalar mathematics of the kernels; the same source runs on the host in the shim, and its formulas
// are those of the CPU's kernels (cpp/src/cpu/kernels/vmath.inl). CUDA's own tanhf and expf are
// right to 2 ulp only: exp(-e^{-1/2} sigmoid) then misses 1.6 ulp and tanh 1.7.
#pragma once

#include <math.h>

#include "cuda/platform.cuh"
#include "ops/backend.h"

namespace wkv::cuda {

/// 2^n, n in [-126, 127].
WKV_DEV float power_of_two(int n) {
  const std::int32_t bits = (n + 127) << 23;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/// e^x, 1.0 ulp. 0 below -103.97, infinite above 88.72; NaN stays.
WKV_DEV float exponential(float x) {
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  const float n = rintf(x * 1.44269504f);
  // ln 2 in two parts, the first of 9 bits: n times it is exact.
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
  float p = fmaf(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  // In two steps: 2^n alone may not be a normal number. (NaN as an integer is anything.)
  const int whole = n == n ? static_cast<int>(n) : 0, half = whole / 2;
  return p * power_of_two(half) * power_of_two(whole - half);
}

/// 2.5 ulp; below -88.7 it is 0.
WKV_DEV float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/// 1.3 ulp. The polynomial below 0.625, because 1 - 2 / (e^2x + 1) cancels near 0.
WKV_DEV float hyperbolic_tangent(float x) {
  const float magnitude = fabsf(x);
  if (magnitude < 0.625f) {
    const float z = x * x;
    float p = fmaf(z, -5.70498872745e-3f, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    return fmaf(x, z * p, x);
  }
  return copysignf(1.0f - 2.0f / (exponential(magnitude + magnitude) + 1.0f), x);
}

/// The activations of ops/backend.h.
WKV_DEV float activate(float x, std::int32_t act) {
  const float bounded = x < -104.0f ? -104.0f : x;  // minus infinity times 0 would be NaN
  switch (static_cast<Act>(act)) {
    case Act::tanh:
      return hyperbolic_tangent(x);
    case Act::sigmoid:
      return sigmoid(x);
    case Act::silu:
      return bounded * sigmoid(x);
    case Act::relu_squared:
      return x <= 0.0f ? 0.0f : x * x;  // NaN stays
    case Act::exp_neg_exp:
      return exponential(-exponential(x));
    case Act::mish: {
      // x tanh(ln(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2). From 20 on it is x.
      const float e = exponential(x > 20.0f ? 20.0f : x), n = e * (e + 2.0f);
      return bounded * (n / (n + 2.0f));
    }
    case Act::decay7:
      return exponential(-0.60653065971263342f * sigmoid(x));  // e^{-1/2}
    default:
      return x;
  }
}

}  // namespace wkv::cuda
