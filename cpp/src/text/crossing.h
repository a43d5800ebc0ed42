// Finds where a sorted running sum crosses a bound without sorting.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "text/vector_passes.h"

namespace wkv::detail {

struct Crossing {
  bool found = false;
  std::uint32_t key = 0;  ///< of the item that crosses
  double before = 0;      ///< mass of all items with smaller keys
  double at = 0;          ///< mass of all items with this key
};

/// Imagine items 0 .. n-1 sorted by key(i), ascending, and the running sum of mass(i) >= 0 over
/// them; items without mass do not count. Finds the item at which the sum first reaches `bound`
/// (`strict`: exceeds it). Not found if it never does.
///
/// A radix search: sums per value of the key's upper 11 bits, then again inside the one value where
/// the sum crosses, three times. Two reads of everything and a few of little, whatever the order.
/// `before` is mass to begin with. `must`: the sum is known to cross, but for rounding; if it does
/// not, the last item is found. `scratch` is memory to reuse.
template <class Key, class Mass>
Crossing find_crossing(std::size_t n, const Key& key, const Mass& mass, double bound, bool strict,
                       std::vector<std::uint32_t>& scratch, double before = 0, bool must = false) {
  constexpr std::size_t kBuckets = 2048;
  // Neighbours often fall into one bucket: four sums of each, or every addition waits for the last.
  std::array<std::array<double, kBuckets>, 4> sums{};
  Crossing result;
  result.before = before;

  // Finds the bucket where the sum crosses, going on from result.before.
  const auto find_bucket = [&](bool surely) -> std::size_t {
    std::size_t last = kBuckets;
    double so_far = result.before;
    for (std::size_t b = 0; b < kBuckets; ++b) {
      const double at = (sums[0][b] + sums[1][b]) + (sums[2][b] + sums[3][b]);
      if (at <= 0) continue;
      const double sum = so_far + at;
      result.before = so_far;
      result.at = at;
      if (strict ? sum > bound : sum >= bound) return b;
      last = b;
      so_far = sum;
    }
    // The parts of a bucket may sum to a rounding less than the bucket: then it is the last.
    return surely ? last : kBuckets;
  };

  for (std::size_t i = 0; i < n; ++i) sums[i & 3][key(i) >> 21] += mass(i);
  const std::size_t top = find_bucket(must);
  if (top == kBuckets) return {};
  scratch.clear();
  for (std::size_t i = 0; i < n; ++i) {
    if (key(i) >> 21 == top) scratch.push_back(static_cast<std::uint32_t>(i));
  }
  result.found = true;
  result.key = static_cast<std::uint32_t>(top) << 21;
  for (const int shift : {10, 0}) {
    const std::uint32_t mask = shift == 10 ? 2047 : 1023;
    sums = {};
    for (std::size_t j = 0; j < scratch.size(); ++j) {
      sums[j & 3][key(scratch[j]) >> shift & mask] += mass(scratch[j]);
    }
    const auto bucket = static_cast<std::uint32_t>(find_bucket(true));
    result.key |= bucket << shift;
    std::erase_if(scratch, [&](std::uint32_t i) { return (key(i) >> shift & mask) != bucket; });
  }
  return result;
}

/// The same over whole vectors whose keys are floats in [0, 1], the largest first; `size` is whole
/// chunks, and padding has no mass. Result.key is descending_key() of the key. Narrows the place
/// down by sums above four keys at a time, in vector passes, until few items are between two: three
/// times as fast as find_crossing where there are thousands above the crossing. `ids` and `scratch`
/// are memory to reuse.
Crossing find_crossing_dense(const VectorPasses& passes, const float* keys, const float* masses,
                             std::size_t size, double bound, bool strict,
                             std::vector<std::uint32_t>& ids, std::vector<std::uint32_t>& scratch);

/// Orders floats as unsigned integers, the largest first; and back.
inline std::uint32_t descending_key(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);  // -0 equals 0
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}
inline float from_descending_key(std::uint32_t key) noexcept {
  return std::bit_cast<float>(key >> 31 ? key : ~key & 0x7fffffff);
}

}  // namespace wkv::detail
