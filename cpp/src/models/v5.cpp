// RWKV-5 "Eagle" (arXiv:2404.05892) and its previews: 5.0, 5.1, 5.2; spec section 6. C = H * N.
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/frame.h"

namespace wkv {
namespace v5 {

struct TimeMix {
  std::array<Vector, 4> mix;  // k v r g, each [C]: how much of the past; no g in 5.0
  Vector decay;               // [C]; exp(-exp(time_decay)), one per head in 5.0 and 5.1
  Vector bonus;               // [C]; time_faaaa, or exp(time_first)
  Matrix receptance, key, value, gate, output;  // [C, C]; no gate in 5.0
  Norm ln_x;                                    // one group per head
  int heads = 0;
};

struct Slots {
  Slot att_shift, wkv, ffn_shift;
};

struct Block {
  Norm ln1, ln2;
  TimeMix att;
  ChannelMix ffn;
  Slots state;
};

Tensor time_mix(Tensor x, Tensor z, const TimeMix& p, const Slots& s) {
  auto [xk, xv, xr, xg] = shift_mix(z, s.att_shift, p.mix);
  auto [r, k, v, g] =
      linears({{xr, p.receptance}, {xk, p.key}, {xv, p.value}, {xg, p.gate, Act::silu}});
  // y = r (S + diag(u) k^T v),   S <- diag(w) S + k^T v
  Tensor y = wkv6(r, k, v, p.decay, p.bonus, p.heads, {.norm = &p.ln_x, .gate = g}, s.wkv);
  return linear(y, p.output, {.into = x});
}

Tensor block(Tensor x, const Block& p) {
  x = time_mix(x, layer_norm(x, p.ln1), p.att, p.state);
  return channel_mix(x, layer_norm(x, p.ln2), p.ffn, p.state.ffn_shift);
}

class Model final : public Arch {
 public:
  Model(Checkpoint& in, const Detected& d);

  Tensor forward(Step& step) const override {
    return run_blocks(step, frame_.enter(step), blocks_, block);
  }
  Tensor leave(Tensor hidden) const override { return frame_.leave(hidden); }
  void logits(Tensor hidden, Tensor out) const override { frame_.logits(hidden, out); }

 private:
  Frame frame_;
  std::vector<Block> blocks_;
};

/// [H] (one per head) or [H, N] -> [C], mapped.
Vector per_channel(Checkpoint& in, const std::string& name, const Detected& d,
                   float (*map)(float)) {
  const bool per_head = in.has(name) && in.shape(name).size() <= 3 &&
                        in.shape(name)[0] == d.n_head && d.version != "5.2";
  const int n = per_head ? d.n_head : d.n_att;
  const std::vector<float> stored = in.values(name, n);
  if (stored.empty()) return {};
  std::vector<float> values(static_cast<std::size_t>(d.n_att));
  for (std::size_t c = 0; c < values.size(); ++c) {
    const std::size_t from = per_head ? c / static_cast<std::size_t>(d.head_size) : c;
    values[c] = map(stored[from]);
  }
  return in.upload(values);
}

float decay(float x) { return std::exp(-std::exp(x)); }
float exponential(float x) { return std::exp(x); }
float as_is(float x) { return x; }

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  TimeMix p{
      .mix = {in.vector(att + "time_mix_k", C, past),
              in.vector(att + "time_mix_v", C, past),
              in.vector(att + "time_mix_r", C, past),
              {}},
      .decay = per_channel(in, att + "time_decay", d, decay),
      .bonus = in.has(att + "time_first") ? per_channel(in, att + "time_first", d, exponential)
                                          : per_channel(in, att + "time_faaaa", d, as_is),
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .gate = {},
      .output = in.matrix(att + "output.weight", C, A),
      .ln_x = in.norm(att + "ln_x", A, 64e-5f),
      .heads = d.n_head,
  };
  if (d.version == "5.0") {
    p.mix[3] = p.mix[2];  // mixed and not used: 5.0 has no gate
  } else {
    p.mix[3] = in.vector(att + "time_mix_g", C, past);
    p.gate = in.matrix(att + "gate.weight", A, C);
  }
  return p;
}

Model::Model(Checkpoint& in, const Detected& d) : frame_(load_frame(in, d)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block b{
        .ln1 = in.norm(name + "ln1", d.n_embd),
        .ln2 = in.norm(name + "ln2", d.n_embd),
        .att = load_time_mix(in, name + "att.", d),
        .ffn = load_channel_mix(in, name + "ffn.", d.n_embd, d.dim_ffn, "time_mix_", past),
        .state = {},
    };
    const int H = d.n_head, N = d.head_size;
    b.state.att_shift = layout.add(name + "att.shift", {d.n_embd});
    b.state.wkv = layout.add(name + "att.wkv", {H, N, N});
    if (in.has(name + "att.time_state"))  // a tuned initial state, stored [H][value][key]
      initial_parts.emplace_back(layout.slots().size() - 1,
                                 swap_axes(in.values(name + "att.time_state", H * N * N), H, N, N));
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    blocks_.push_back(b);
  }
}

}  // namespace v5

std::unique_ptr<Arch> make_v5(Checkpoint& in, const Detected& d) {
  return std::make_unique<v5::Model>(in, d);
}

}  // namespace wkv
