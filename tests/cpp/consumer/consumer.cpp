// Uses every class of the public header once. Exit status 0: everything behaved.
#include <cmath>
#include <cstdio>
#include <vector>

#include "wkv/wkv.hpp"

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "consumer: %s\n", what);
  ++failures;
}

}  // namespace

int main() {
  const auto source = wkv::synthetic_checkpoint("v7:2x64:97", wkv::DType::f32);
  wkv::Options options;
  options.device = "cpu";
  wkv::Model model = wkv::Model::load(source, options);
  expect(model.info().version == "7.0" && model.info().n_layer == 2, "sizes are found");
  expect(!wkv::isas().empty() && !wkv::devices().empty(), "tiers and devices are listed");

  const std::vector<wkv::Token> tokens = {1, 2, 3, 4, 5};
  const auto n_vocab = static_cast<std::size_t>(model.info().n_vocab);
  std::vector<float> whole(n_vocab), stepwise(n_vocab);
  wkv::State prefilled = model.new_state();
  model.forward(tokens, prefilled, whole);
  wkv::State stepped = model.new_state();
  for (const wkv::Token& token : tokens) model.forward({&token, 1}, stepped, stepwise);
  expect(prefilled.position() == 5 && stepped.position() == 5, "states count tokens");
  for (std::size_t i = 0; i < n_vocab; ++i)
    if (!(std::abs(whole[i] - stepwise[i]) <= 1e-4f * (1.0f + std::abs(whole[i])))) {
      expect(false, "prefill equals token by token");
      break;
    }

  const wkv::State restored = model.state_from_bytes(prefilled.to_bytes());
  expect(restored.position() == 5, "a state survives its bytes");
  try {
    const wkv::Token outside = model.info().n_vocab;
    model.forward({&outside, 1}, prefilled, whole);
    expect(false, "a token outside the vocabulary is refused");
  } catch (const wkv::Error& error) {
    expect(error.code() == wkv::ErrorCode::invalid_argument, "with the code of a bad argument");
  }
  if (failures == 0)
    std::printf("consumer: wkv %s, %s\n", wkv::version().data(), model.backend().c_str());
  return failures == 0 ? 0 : 1;
}
