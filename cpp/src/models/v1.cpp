// RWKV-1; spec section 2. A weight for every pair of positions, no decay in the denominator, half
// of the channels taken from the previous token, a Mish-gated channel mix, a copy head. The
// official program reads the last ctx_len tokens again for every new one; here the state holds
// their k v.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "models/copy_head.h"
#include "models/frame.h"

namespace wkv {
namespace v1 {

/// The only version with biases.
struct Biased {
  Matrix w;     // [out, in]
  Vector bias;  // [out]

  Linear operator()(Tensor x, Act act = Act::none) const {
    return {x, w, {.act = act, .bias = &bias}};
  }
};

struct TimeMix {
  Biased key, value, receptance, output;  // [A, C], [C, A]
  Vector time_w, time_alpha, time_beta;   // [H, ctx]
  Vector time_gamma;                      // [ctx]
  int heads = 0;
};

struct ChannelMix {
  Biased key, value;          // [F, C]
  Biased weight, receptance;  // [C, F], [C, C]
};

struct Slots {
  Slot attn_shift, sum_k, kv, mlp_shift;
};

struct Block {
  Norm ln1, ln2;
  TimeMix attn;
  ChannelMix mlp;
  std::array<Vector, 1> half;  // [C]: 1 in the first half, all of it from the past; then 0
  Slots state;
};

Tensor time_mix(Tensor x, Tensor z, const Block& b) {
  const TimeMix& p = b.attn;
  auto [m] = shift_mix(z, b.state.attn_shift, b.half);
  auto [k, v, r] = linears({p.key(m), p.value(m), p.receptance(m, Act::sigmoid)});
  Tensor y = wkv1({.r = r,
                   .k = k,
                   .v = v,
                   .time_w = &p.time_w,
                   .time_alpha = &p.time_alpha,
                   .time_beta = &p.time_beta},
                  p.heads, b.state.sum_k, b.state.kv);
  Tensor gamma = by_position(x, p.time_gamma);
  return linear(y, p.output.w, {.bias = &p.output.bias, .gate = gamma, .into = x});
}

Tensor channel_mix(Tensor x, Tensor z, const Block& b) {
  const ChannelMix& p = b.mlp;
  auto [m] = shift_mix(z, b.state.mlp_shift, b.half);
  auto [k, v, r] = linears({p.key(m, Act::mish), p.value(m), p.receptance(m, Act::sigmoid)});
  return linear(k * v, p.weight.w, {.bias = &p.weight.bias, .gate = r, .into = x});
}

Tensor block(Tensor x, const Block& b) {
  x = time_mix(x, layer_norm(x, b.ln1), b);
  return channel_mix(x, layer_norm(x, b.ln2), b);
}

class Model final : public Arch {
 public:
  Model(Checkpoint& in, const Detected& d);

  Tensor forward(Step& step) const override {
    CopyHead::check(step);
    Tensor x = run_blocks(step, embed(step, emb_), blocks_, block);
    copy_.read(leave(x));
    return x;
  }
  Tensor leave(Tensor hidden) const override { return layer_norm(hidden, ln_f_); }
  void logits(Tensor hidden, Tensor out) const override {
    linear(hidden * by_position(hidden, time_out_), head_, {.out = out});
    copy_.add_to(out, hidden);
  }

 private:
  Matrix emb_;  // [V, C]
  std::vector<Block> blocks_;
  Norm ln_f_;
  Vector time_out_;  // [ctx]
  Matrix head_;      // [V, C]
  CopyHead copy_;
};

Biased load_biased(Checkpoint& in, const std::string& name, int out, int in_features) {
  return {in.matrix(name + ".weight", out, in_features), in.vector(name + ".bias", out)};
}

TimeMix load_time_mix(Checkpoint& in, const std::string& attn, const Detected& d) {
  const int C = d.n_embd, A = d.n_att, curve = d.n_head * d.ctx_len;
  return {
      .key = load_biased(in, attn + "key", A, C),
      .value = load_biased(in, attn + "value", A, C),
      .receptance = load_biased(in, attn + "receptance", A, C),
      .output = load_biased(in, attn + "output", C, A),
      .time_w = in.vector(attn + "time_w", curve),
      .time_alpha = in.vector(attn + "time_alpha", curve),
      .time_beta = in.vector(attn + "time_beta", curve),
      .time_gamma = in.vector(attn + "time_gamma", d.ctx_len),
      .heads = d.n_head,
  };
}

ChannelMix load_channel_mix(Checkpoint& in, const std::string& mlp, const Detected& d) {
  return {
      .key = load_biased(in, mlp + "key", d.dim_ffn, d.n_embd),
      .value = load_biased(in, mlp + "value", d.dim_ffn, d.n_embd),
      .weight = load_biased(in, mlp + "weight", d.n_embd, d.dim_ffn),
      .receptance = load_biased(in, mlp + "receptance", d.n_embd, d.n_embd),
  };
}

Model::Model(Checkpoint& in, const Detected& d)
    : emb_(in.matrix("tok_emb.weight", d.n_vocab, d.n_embd, MatrixUse::embedding)),
      ln_f_(in.norm("ln_f", d.n_embd)),
      time_out_(in.vector("time_out", d.ctx_len)),
      head_(in.matrix("head.weight", d.n_vocab, d.n_embd, MatrixUse::head)) {
  std::vector<float> half(static_cast<std::size_t>(d.n_embd), 0.0f);
  std::fill_n(half.begin(), half.size() / 2, 1.0f);
  const std::array<Vector, 1> from_past = {in.upload(half)};
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block b{
        .ln1 = in.norm(name + "ln1", d.n_embd),
        .ln2 = in.norm(name + "ln2", d.n_embd),
        .attn = load_time_mix(in, name + "attn.", d),
        .mlp = load_channel_mix(in, name + "mlp.", d),
        .half = from_past,
        .state = {},
    };
    b.state.attn_shift = layout.add(name + "attn.shift", {d.n_embd});
    b.state.sum_k = layout.add_exact(name + "attn.sum_k", {d.n_att});
    b.state.kv = layout.add(name + "attn.kv", {d.ctx_len, d.n_head, d.head_size});
    b.state.mlp_shift = layout.add(name + "mlp.shift", {d.n_embd});
    blocks_.push_back(b);
  }
  copy_ = *load_copy_head(in, d, layout);
}

}  // namespace v1

std::unique_ptr<Arch> make_v1(Checkpoint& in, const Detected& d) {
  return std::make_unique<v1::Model>(in, d);
}

}  // namespace wkv
