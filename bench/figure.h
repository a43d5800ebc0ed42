// A measured figure: the median of its samples and how far they spread.
#pragma once

#include <algorithm>
#include <vector>

namespace wkv::bench {

struct Figure {
  double median = 0;
  double min = 0;
  double max = 0;

  Figure scaled(double factor) const { return {median * factor, min * factor, max * factor}; }
};

/// `samples` must not be empty.
inline Figure summarise(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const std::size_t n = samples.size();
  const double median = n % 2 == 1 ? samples[n / 2] : 0.5 * (samples[n / 2 - 1] + samples[n / 2]);
  return {median, samples.front(), samples.back()};
}

/// A figure that was read off, not sampled.
inline Figure exactly(double value) { return {value, value, value}; }

}  // namespace wkv::bench
