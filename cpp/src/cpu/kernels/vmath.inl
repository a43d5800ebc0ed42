// Transcendental functions on f32v and loads of part of a vector. Errors are measured against
// float64 over the whole range (tests/ops/test_vmath.py). NaN goes through, infinities give limits.
#include "cpu/act.h"

namespace wkv::cpu {
namespace {

/// The first n < W floats at p, the other lanes zero. Reads nothing beyond them. A tail that goes
/// through here is computed by the same instructions as a full vector, so a value does not depend
/// on the lane it falls into.
inline f32v load_part(const float* p, int n) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
  float lanes[W] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

inline void store_part(float* p, f32v v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
  float lanes[W];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

/// x * 2^n for integral n in [-152, 130]. Two steps: 2^n alone may not be a normal number.
inline f32v scale_exponent(f32v x, f32v n, i32v n_bits) {
#if defined(__AVX512F__)
  (void)n_bits;
  return (f32v)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)n);
#else
  (void)n;
  const i32v half = n_bits >> 1;
  const f32v a = (f32v)((half + 127) << 23);
  const f32v b = (f32v)((n_bits - half + 127) << 23);
  return x * a * b;
#endif
}

/// e^x, 1.0 ulp. 0 below -103.97, infinite above 88.72.
inline f32v exp(f32v x) {
  x = max(splat(-104.0f), min(splat(89.0f), x));  // this order of operands keeps NaN
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
  const f32v magic = splat(12582912.0f);
  const f32v shifted = x * 1.44269504f + magic;
  const f32v n = shifted - magic;
  // ln 2 in two parts, the first of 9 bits: n times it is exact without FMA too.
  const f32v r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f32v p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return scale_exponent(p, n, (i32v)shifted - (i32v)magic);
}

/// 2.5 ulp; below -88.7 it is 0.
inline f32v sigmoid(f32v x) { return 1.0f / (1.0f + exp(-x)); }

inline f32v silu(f32v x) {
  // x / (1 + e^-x) is -inf / inf at minus infinity; the limit of the product is wanted.
  return max(splat(-104.0f), x) * sigmoid(x);
}

/// 1.3 ulp. The polynomial below 0.625, because 1 - 2 / (e^2x + 1) cancels near 0.
inline f32v tanh(f32v x) {
  const i32v sign = (i32v)x & INT32_MIN;
  const f32v magnitude = (f32v)((i32v)x & INT32_MAX);
  const f32v z = x * x;
  f32v p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const f32v near = x + x * (z * p);
  const f32v far = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  return magnitude < 0.625f ? near : (f32v)((i32v)far | sign);
}

inline f32v relu_squared(f32v x) {
  x = max(splat(0.0f), x);
  return x * x;
}

/// exp(-exp(x)): 6e-8 absolute.
inline f32v exp_neg_exp(f32v x) { return exp(-exp(x)); }

/// exp(-e^{-1/2} sigmoid(x)), in [0.5452, 1].
inline f32v decay7(f32v x) { return exp(-0.60653066f * sigmoid(x)); }

/// x tanh(ln(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2): no logarithm, no cancellation. From
/// 20 on it is x to the last bit, and e^2x is still finite there.
inline f32v mish(f32v x) {
  const f32v e = exp(min(splat(20.0f), x));
  const f32v n = e * (e + 2.0f);
  return max(splat(-104.0f), x) * (n / (n + 2.0f));  // -inf: the limit is 0
}

/// `act` is an ActCode.
inline f32v apply(int act, f32v x) {
  switch (act) {
    case kActTanh:
      return tanh(x);
    case kActSigmoid:
      return sigmoid(x);
    case kActSilu:
      return silu(x);
    case kActReluSquared:
      return relu_squared(x);
    case kActExpNegExp:
      return exp_neg_exp(x);
    case kActDecay7:
      return decay7(x);
    case kActMish:
      return mish(x);
    default:
      return x;
  }
}

}  // namespace
}  // namespace wkv::cpu
