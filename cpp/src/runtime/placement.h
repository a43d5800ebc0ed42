// Where the layers of a model lie: the text of Options::device.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "wkv/types.h"

namespace wkv {

/// Consecutive layers on one device.
struct Stage {
  std::string device;              ///< "cpu", "cuda:1"
  DType dtype = DType::automatic;  ///< of the weights; automatic: that of the model
  int layers = -1;                 ///< -1: those that no other stage takes
  bool stream = false;             ///< matrices stay in host memory and are copied at every use
};

/// stage ("->" stage)*,  stage = device [" " dtype] [" *" layers] [" stream"]. Throws
/// Error(invalid_argument).
std::vector<Stage> parse_placement(std::string_view text);

/// The same with every number known: they sum to `n_layer` blocks and the output layer as one more.
/// Stages without layers are left out. Throws Error(invalid_argument).
std::vector<Stage> resolve(std::vector<Stage> stages, int n_layer);

/// The text that stands for them, numbers included; a single stage is its device alone.
std::string placement_text(const std::vector<Stage>& stages);

}  // namespace wkv
