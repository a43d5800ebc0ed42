// RWKV-2-RNN; spec section 3. The norms act on the residual stream itself: x = ln(x), x = x + f(x).
// One mix for r, k and v; no ln0.
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/copy_head.h"
#include "models/frame.h"

namespace wkv {
namespace v2 {

constexpr float kEps = 1e-16f;

struct TimeMix {
  std::array<Vector, 1> mix;              // [C]: how much of the past
  Vector decay, first;                    // [A]; exp(-exp(time_decay)), exp(time_first)
  Matrix key, value, receptance, output;  // [A, C], [C, A]
};

struct ChannelMix {
  std::array<Vector, 1> mix;      // [C]
  Matrix key, receptance, value;  // [F, C], [C, C], [C, F]
};

struct Slots {
  Slot att_shift, wkv, ffn_shift;
};

struct Block {
  Norm ln1, ln2;
  std::optional<TimeMix> att;
  std::optional<ChannelMix> ffn_pre;  // block 0 may have it in place of att
  ChannelMix ffn;
  Slots state;
};

/// x <- z + time_mix(z), where z = ln1(x).
Tensor time_mix(Tensor x, Tensor z, const TimeMix& p, const Slots& s) {
  auto [m] = shift_mix(z, s.att_shift, p.mix);
  auto [k, v, r] = linears({{m, p.key}, {m, p.value}, {m, p.receptance, Act::sigmoid}});
  Tensor y = wkv2(r, k, v, p.decay, p.first, kEps, s.wkv);
  return linear(y, p.output, {.add = z, .out = x});
}

/// x <- z + sigmoid(W_r m) (W_v relu(W_k m)^2).
Tensor channel_mix(Tensor x, Tensor z, const ChannelMix& p, Slot shift) {
  auto [m] = shift_mix(z, shift, p.mix);
  auto [k, r] = linears({{m, p.key, Act::relu_squared}, {m, p.receptance, Act::sigmoid}});
  return linear(k, p.value, {.gate = r, .add = z, .out = x});
}

Tensor block(Tensor x, const Block& p) {
  Tensor z = layer_norm(x, p.ln1);
  x = p.att ? time_mix(x, z, *p.att, p.state) : channel_mix(x, z, *p.ffn_pre, p.state.att_shift);
  return channel_mix(x, layer_norm(x, p.ln2), p.ffn, p.state.ffn_shift);
}

class Model final : public Arch {
 public:
  Model(Checkpoint& in, const Detected& d);

  Tensor forward(Step& step) const override {
    if (copy_) CopyHead::check(step);
    Tensor x = run_blocks(step, embed(step, emb_), blocks_, block);
    if (copy_) copy_->read(leave(x));
    return x;
  }
  Tensor leave(Tensor hidden) const override { return layer_norm(hidden, ln_out_); }
  void logits(Tensor hidden, Tensor out) const override {
    linear(hidden, head_, {.out = out});
    if (copy_) copy_->add_to(out, hidden);
  }

 private:
  Matrix emb_;  // [V, C]
  std::vector<Block> blocks_;
  Norm ln_out_;
  Matrix head_;  // [V, C]
  std::optional<CopyHead> copy_;
};

float decay_of(float x) { return std::exp(-std::exp(x)); }
float exp_of(float x) { return std::exp(x); }

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  return {
      .mix = {in.vector(att + "time_mix", C, past)},
      .decay = in.vector(att + "time_decay", A, decay_of),
      .first = in.vector(att + "time_first", A, exp_of),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
  };
}

ChannelMix load_channel_mix(Checkpoint& in, const std::string& ffn, const Detected& d) {
  return {
      .mix = {in.vector(ffn + "time_mix", d.n_embd, past)},
      .key = in.matrix(ffn + "key.weight", d.dim_ffn, d.n_embd),
      .receptance = in.matrix(ffn + "receptance.weight", d.n_embd, d.n_embd),
      .value = in.matrix(ffn + "value.weight", d.n_embd, d.dim_ffn, MatrixUse::ffn_value),
  };
}

Model::Model(Checkpoint& in, const Detected& d)
    : emb_(in.matrix("emb.weight", d.n_vocab, d.n_embd, MatrixUse::embedding)),
      ln_out_(in.norm("ln_out", d.n_embd)),
      head_(in.matrix("head.weight", d.n_vocab, d.n_embd, MatrixUse::head)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block b;
    b.ln1 = in.norm(name + "ln1", d.n_embd);
    b.ln2 = in.norm(name + "ln2", d.n_embd);
    b.ffn = load_channel_mix(in, name + "ffn.", d);
    if (i == 0 && in.has(name + "ffnPre.key.weight")) {
      b.ffn_pre = load_channel_mix(in, name + "ffnPre.", d);
      b.state.att_shift = layout.add(name + "ffnPre.shift", {d.n_embd});
    } else {
      b.att = load_time_mix(in, name + "att.", d);
      b.state.att_shift = layout.add(name + "att.shift", {d.n_embd});
      const Slot aa = layout.add_exact(name + "att.aa", {d.n_att});
      layout.add_exact(name + "att.bb", {d.n_att});
      b.state.wkv = {aa.offset, 2 * aa.size};
    }
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    blocks_.push_back(b);
  }
  copy_ = load_copy_head(in, d, layout);
}

}  // namespace v2

std::unique_ptr<Arch> make_v2(Checkpoint& in, const Detected& d) {
  return std::make_unique<v2::Model>(in, d);
}

}  // namespace wkv
