#include "text/crossing.h"

namespace wkv::detail {

Crossing find_crossing_dense(const VectorPasses& passes, const float* keys, const float* masses,
                             std::size_t size, double bound, bool strict,
                             std::vector<std::uint32_t>& ids, std::vector<std::uint32_t>& scratch) {
  // Positive floats are in the order of their bits, in which an octave is 2^23 steps. The crossing
  // is in [low, end): the mass above `low` reaches the bound, that above `end` does not.
  std::uint32_t low = 0;
  std::uint32_t end = std::bit_cast<std::uint32_t>(1.0f) + 1;
  std::uint32_t try_from = end - (15u << 23);  // most vocabularies' tokens are within 15 octaves
  double above_end = 0;
  // Four passes leave a 40th of an octave, 1 % of a flat distribution; more often it is one value.
  for (int pass = 0; (pass < 4 || low == 0) && end - low > 64; ++pass) {
    const std::uint32_t from = low > 0 ? low : try_from;
    float bounds[4];
    std::uint32_t bits[4];
    for (std::uint32_t k = 0; k < 4; ++k) {
      bits[k] = low > 0 ? from + (end - from) / 5 * (4 - k) : from + (end - from) / 4 * (3 - k);
      bounds[k] = std::bit_cast<float>(bits[k]);
    }
    double sums[4];
    passes.mass_above(keys, masses, size, bounds, sums);
    for (int k = 0; k < 4; ++k) {
      if (sums[k] > 0 && (strict ? sums[k] > bound : sums[k] >= bound)) {
        low = bits[k];
        break;
      }
      end = bits[k];
      above_end = sums[k];
    }
    if (low > 0) continue;
    if (try_from == 1) return {};  // all there is does not reach it
    try_from = try_from > 40u << 23 ? try_from - (40u << 23) : 1;
  }
  if (ids.size() < size) ids.resize(size);
  const std::size_t count = passes.collect(keys, size, std::bit_cast<float>(low),
                                           std::bit_cast<float>(end), size, ids.data());
  return find_crossing(
      count, [&](std::size_t i) { return descending_key(keys[ids[i]]); },
      [&](std::size_t i) { return double{masses[ids[i]]}; }, bound, strict, scratch, above_end,
      true);
}

}  // namespace wkv::detail
