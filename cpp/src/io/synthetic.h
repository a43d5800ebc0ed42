// Checkpoints with random weights: benchmarks and tests of any version and size.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "wkv/types.h"

namespace wkv {

/// "v7:24x2048:65536:64@0.2": version, layers x channels, vocabulary, head size, and the share of
/// hidden units of channel mixes that are not zero behind relu^2. The last three may be left out:
/// 65536 (50277 before v5), 64 (channels, if those are fewer), about 0.5.
struct SyntheticSpec {
  std::string version;  ///< "1", "2", "3", "4", "5.0", "5.1", "5.2", "6.0", "7.0"
  int layers = 0;
  int channels = 0;
  int vocab = 0;
  int head_size = 0;
  float density = 0.5f;  ///< below 0.5 rows of ffn.key are zero

  /// Throws Error(invalid_argument) that shows the form.
  static SyntheticSpec parse(std::string_view text);
};

enum class Fill : std::uint8_t {
  normal,   ///< mean a, standard deviation b
  uniform,  ///< between a and b
  ramp,     ///< from a to b along the elements
  causal,   ///< a square lower-triangular matrix of ones
};

struct SyntheticTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  Fill fill = Fill::normal;
  float a = 0;
  float b = 0;
  float zero_rows = 0;  ///< the share of rows that are zero throughout
};

/// The official names and shapes of a version, with values that keep a model numerically alive.
std::vector<SyntheticTensor> synthetic_tensors(const SyntheticSpec& spec);

}  // namespace wkv
