// exp and log in double from basic operations, within 4 ulp: libm's differ from one machine to the
// next in the last bit, and a token can hang on it. Compile with -ffp-contract=off. constexpr, for
// cuda/sample.cu compiles it for a GPU.
#pragma once

#include <bit>
#include <cstdint>

namespace wkv::detail {

/// Natural logarithm of a positive normal number.
constexpr double log_double(double x) noexcept {
  auto bits = std::bit_cast<std::uint64_t>(x);
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
  constexpr std::uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const auto e = static_cast<std::int64_t>(bits - kSqrtHalf) >> 52;
  bits -= static_cast<std::uint64_t>(e) << 52;
  const double m = std::bit_cast<double>(bits);
  // log m = 2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...), |s| <= 0.1716: the term s^25/25 is 3e-21.
  const double s = (m - 1) / (m + 1);
  const double z = s * s;
  double sum = 0;
  for (int k = 23; k >= 3; k -= 2) sum = (sum + 1.0 / k) * z;
  return static_cast<double>(e) * 0.6931471805599453 + 2 * (s + s * sum);
}

/// e^x for x <= 0; 0 below -700.
constexpr double exp_double(double x) noexcept {
  if (!(x > -700)) return 0;
  const double n = static_cast<double>(static_cast<std::int64_t>(x * 1.4426950408889634 - 0.5));
  // ln 2 in two parts; n times the first is exact.
  const double r = (x - n * 0x1.62e42fefap-1) - n * 0x1.cf79abc9e3b3ap-40;
  double sum = 1;  // Taylor: |r| <= 0.35, r^15/15! is 1e-19
  for (int k = 14; k >= 1; --k) sum = 1 + sum * r / k;
  return sum * std::bit_cast<double>(static_cast<std::uint64_t>(1023 + static_cast<int>(n)) << 52);
}

/// e^a for a <= 0 in float; 0 below -87. One number of VectorPasses::exp, where the formula is
/// explained, to the last bit.
constexpr float exp_nonpositive(float a) noexcept {
  if (!(a > -87.0f)) return 0.0f;
  constexpr float kRound = 12582912.0f;
  const float t = a * 1.44269504f + kRound;
  const float n = t - kRound;
  const float r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  float q = r * 0x1.6a23dcp-10f + 0x1.123a24p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.55549p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const float y = (r * r) * q + r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(y) +
                              (std::bit_cast<std::uint32_t>(t) << 23));
}

}  // namespace wkv::detail
