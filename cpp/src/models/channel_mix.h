// Channel mix of v3 to v6 (spec sections 4 to 7): a gated two-layer perceptron on shifted tokens.
#pragma once

#include <array>
#include <string>

#include "models/checkpoint.h"
#include "ops/ops.h"

namespace wkv {

struct ChannelMix {
  std::array<Vector, 2> mix;  // k r, each [C]: how much of the past
  Matrix key;                 // [F, C]
  Matrix receptance;          // [C, C]
  Matrix value;               // [C, F]
};

/// x + sigmoid(W_r xr) (W_v relu(W_k xk)^2), where z = LN(x).
inline Tensor channel_mix(Tensor x, Tensor z, const ChannelMix& p, Slot shift) {
  auto [xk, xr] = shift_mix(z, shift, p.mix);
  auto [k, r] = linears({{xk, p.key, Act::relu_squared}, {xr, p.receptance, Act::sigmoid}});
  return linear(k, p.value, {.gate = r, .into = x});
}

/// v3 to v5 store how much of the present a mix takes; the ops want how much of the past.
inline float past(float present) { return 1.0f - present; }

/// `mix` is the name before k and r: "time_mix_" (stored as the present's share) or "time_maa_".
inline ChannelMix load_channel_mix(Checkpoint& in, const std::string& prefix, int n_embd,
                                   int dim_ffn, const std::string& mix, float (*map)(float)) {
  return {
      .mix = {in.vector(prefix + mix + "k", n_embd, map),
              in.vector(prefix + mix + "r", n_embd, map)},
      .key = in.matrix(prefix + "key.weight", dim_ffn, n_embd),
      .receptance = in.matrix(prefix + "receptance.weight", n_embd, n_embd),
      .value = in.matrix(prefix + "value.weight", n_embd, dim_ffn, MatrixUse::ffn_value),
  };
}

}  // namespace wkv
