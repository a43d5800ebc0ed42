#include "runtime/placement.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "core/check.h"

namespace wkv {
namespace {

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + separator.size());
  }
}

std::optional<int> layers_of(std::string_view word) {
  if (word.empty() || word[0] != '*') return std::nullopt;
  int n = 0;
  const auto [rest, error] = std::from_chars(word.data() + 1, word.data() + word.size(), n);
  if (error != std::errc() || rest != word.data() + word.size() || n < 0) return std::nullopt;
  return n;
}

Stage parse_stage(std::string_view text, std::string_view whole) {
  Stage stage;
  int next = 0;  // the parts come in order, and all but the first may be missing
  for (const std::string_view word : split(text, " ")) {
    if (word.empty()) continue;
    const std::optional<int> layers = layers_of(word);
    if (next == 0) {
      stage.device = word;
      next = 1;
    } else if (next <= 2 && layers) {
      stage.layers = *layers;
      next = 3;
    } else if (next <= 3 && word == "stream") {
      stage.stream = true;
      next = 4;
    } else {
      WKV_CHECK(next == 1, invalid_argument, "[device] '", word, "' in '", whole,
                "'; a stage is 'DEVICE [DTYPE] [*LAYERS] [stream]', as in 'cuda *20 -> cpu'");
      stage.dtype = parse_dtype(word);
      next = 2;
    }
  }
  WKV_CHECK(!stage.device.empty(), invalid_argument, "[device] '", whole,
            "' has a stage without a device; write 'cuda *20 -> cpu'");
  return stage;
}

}  // namespace

std::vector<Stage> parse_placement(std::string_view text) {
  std::vector<Stage> stages;
  for (const std::string_view part : split(text, "->")) stages.push_back(parse_stage(part, text));
  return stages;
}

std::vector<Stage> resolve(std::vector<Stage> stages, int n_layer) {
  const int total = n_layer + 1;
  int taken = 0;
  Stage* rest = nullptr;
  for (Stage& stage : stages) {
    WKV_CHECK(stage.layers >= 0 || rest == nullptr, invalid_argument,
              "[device] two stages without a number of layers; one takes what is left");
    if (stage.layers < 0)
      rest = &stage;
    else
      taken += stage.layers;
  }
  if (rest != nullptr) rest->layers = std::max(total - taken, 0);
  WKV_CHECK(taken == total || (rest != nullptr && taken < total), invalid_argument, "[device] '",
            placement_text(stages), "' places ", taken + (rest != nullptr ? rest->layers : 0),
            " layers; this model has ", n_layer, " and the output layer, ", total);
  std::erase_if(stages, [](const Stage& stage) { return stage.layers == 0; });
  return stages;
}

std::string placement_text(const std::vector<Stage>& stages) {
  std::string text;
  for (const Stage& stage : stages) {
    if (!text.empty()) text += " -> ";
    text += stage.device;
    if (stage.dtype != DType::automatic) text += str(' ', dtype_name(stage.dtype));
    if (stages.size() > 1) text += str(" *", stage.layers);
    if (stage.stream) text += " stream";
  }
  return text;
}

}  // namespace wkv
