// Runs a synthetic model for a fixed number of tokens and measures nothing: the program that
// bench/instructions.py counts instructions of.
//
//   count_tokens decode|prefill SPEC DTYPE TOKENS
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "wkv/wkv.hpp"

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--compiler") {
    std::printf("%s\n", __VERSION__);
    return 0;
  }
  if (argc != 5) {
    std::fprintf(stderr, "usage: count_tokens decode|prefill SPEC DTYPE TOKENS\n");
    return 2;
  }
  try {
    const bool prefill = std::string_view(argv[1]) == "prefill";
    const wkv::DType dtype = wkv::parse_dtype(argv[3]);
    const bool stored =
        dtype == wkv::DType::f32 || dtype == wkv::DType::f16 || dtype == wkv::DType::bf16;
    wkv::Options options;
    options.device = "cpu";
    options.dtype = dtype;
    options.threads = 1;  // a waiting thread would count its spinning
    wkv::Model model = wkv::Model::load(
        wkv::synthetic_checkpoint(argv[2], stored ? dtype : wkv::DType::bf16), options);

    std::vector<wkv::Token> tokens(static_cast<std::size_t>(std::atoi(argv[4])));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] =
          static_cast<wkv::Token>(i * 7919 % static_cast<std::size_t>(model.info().n_vocab));
    wkv::State state = model.new_state();
    std::vector<float> logits(static_cast<std::size_t>(model.info().n_vocab));
    if (prefill)
      model.forward(tokens, state, logits);
    else
      for (const wkv::Token& token : tokens) model.forward({&token, 1}, state, logits);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "count_tokens: %s\n", error.what());
    return 1;
  }
}
