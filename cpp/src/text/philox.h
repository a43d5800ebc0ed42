// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011):
// a bijection of a 128-bit counter under a 64-bit key, so that the n-th number needs no others.
// constexpr, for cuda/sample.cu compiles it for a GPU.
#pragma once

#include <array>
#include <cstdint>

namespace wkv::detail {

constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                              std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

/// The `index`-th number of a seed, uniform in [0, 1) on a grid of 2^-53.
constexpr double uniform(std::uint64_t seed, std::uint64_t index) noexcept {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const auto r = philox({low(index), high(index), 0, 0}, {low(seed), high(seed)});
  const std::uint64_t bits = std::uint64_t{r[1]} << 32 | r[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace wkv::detail
