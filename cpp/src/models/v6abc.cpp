// Unreleased siblings of RWKV-6 in the official code; spec section 7. x060a: a low-rank gate
// without silu. x060b: no gate, one LayerNorm over all channels, mixes in the order r k v w. x060c:
// b with k (1 - w), w the decay. C = H * N.
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/frame.h"

namespace wkv {
namespace v6abc {

/// One of w k v r g: x_j = z + dx (maa + m_j w2), m_j its part of the low-rank token shift.
struct Mix {
  Vector maa;  // [C]
  Matrix w2;   // [C, D]
  int part = 0;
};

struct TimeMix {
  std::array<Vector, 1> maa_x;            // [C]
  Matrix maa_w1;                          // [parts * D, C]
  Mix w, k, v, r, g;                      // g in a only
  Matrix receptance, key, value, output;  // [C, C]
  Lora decay_lora;                        // [D2, C], [C, D2]
  std::optional<Lora> gate;               // a
  Vector decay, bonus;                    // [C]; time_decay, time_faaaa
  Norm ln_x;                              // a: per head; b, c: over all channels
  std::array<Vector, 1> minus_one;        // [C], c only
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
  Tensor dx = shift_delta(z, s.att_shift);
  auto [xx] = lerp(z, dx, p.maa_x);
  Tensor m = linear(xx, p.maa_w1, Act::tanh);
  const auto mix = [&](const Mix& j) {
    return Linear(columns(m, j.part * j.w2.in, j.w2.in), j.w2,
                  {.bias = &j.maa, .gate = dx, .add = z});
  };
  auto [xw, xk, xv, xr] = linears({mix(p.w), mix(p.k), mix(p.v), mix(p.r)});
  auto [r, k, v, d] =
      linears({{xr, p.receptance}, {xk, p.key}, {xv, p.value}, {xw, p.decay_lora.down, Act::tanh}});
  Tensor w = linear(d, p.decay_lora.up, {.act = Act::exp_neg_exp, .bias = &p.decay});  // in (0, 1)

  if (p.gate) {  // a
    auto [xg] = linears({mix(p.g)});
    Tensor g = linear(linear(xg, p.gate->down, Act::tanh), p.gate->up);
    Tensor y = wkv6(r, k, v, w, p.bonus, p.heads, {.norm = &p.ln_x, .gate = g}, s.wkv);
    return linear(y, p.output, {.into = x});
  }
  if (p.minus_one[0]) k = lerp(k, k * w, p.minus_one)[0];  // c: k - k w
  Tensor y = wkv6(r, k, v, w, p.bonus, p.heads, {}, s.wkv);
  return linear(layer_norm(y, p.ln_x), p.output, {.into = x});
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

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  const bool a = d.version == "6.0a";
  const std::string order = a ? "wkvrg" : "rkvw";
  const std::string lora = att + (a ? "time_maa_w" : "time_maa_rkvw_w");
  const int D = in.extent(lora + "2", 1);
  const int D2 = in.extent(att + "time_decay_w1", 1);
  // In the order of the file: the first part read checks the shape of all.
  std::array<Mix, 5> parts;
  for (std::size_t j = 0; j < order.size(); ++j)
    parts[j] = {.maa = in.vector(att + "time_maa_" + order[j], C),
                .w2 = in.transposed(lora + "2", D, C, static_cast<int>(j)),
                .part = static_cast<int>(j)};
  const auto part = [&](char of) { return parts[order.find(of)]; };
  TimeMix p{
      .maa_x = {in.vector(att + "time_maa_x", C)},
      .maa_w1 = in.transposed(lora + "1", C, static_cast<int>(order.size()) * D),
      .w = part('w'),
      .k = part('k'),
      .v = part('v'),
      .r = part('r'),
      .g = a ? part('g') : Mix{},
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
      .decay_lora = {.down = in.transposed(att + "time_decay_w1", C, D2),
                     .up = in.transposed(att + "time_decay_w2", D2, A)},
      .gate = {},
      .decay = in.vector(att + "time_decay", A),
      .bonus = in.vector(att + "time_faaaa", A),
      .ln_x = in.norm(att + "ln_x", A, a ? 64e-5f : 1e-5f),
      .minus_one = {},
      .heads = d.n_head,
  };
  if (a) {
    const int G = in.extent(att + "gate_w1", 1);
    p.gate = {.down = in.transposed(att + "gate_w1", C, G),
              .up = in.transposed(att + "gate_w2", G, A)};
  }
  if (d.version == "6.0c")
    p.minus_one = {in.upload(std::vector<float>(static_cast<std::size_t>(A), -1.0f))};
  return p;
}

Model::Model(Checkpoint& in, const Detected& d) : frame_(load_frame(in, d)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    const std::int64_t H = d.n_head, N = d.head_size;
    Block b{
        .ln1 = in.norm(name + "ln1", d.n_embd),
        .ln2 = in.norm(name + "ln2", d.n_embd),
        .att = load_time_mix(in, name + "att.", d),
        .ffn = load_channel_mix(in, name + "ffn.", d.n_embd, d.dim_ffn, "time_maa_", nullptr),
        .state = {},
    };
    b.state.att_shift = layout.add(name + "att.shift", {d.n_embd});
    b.state.wkv = layout.add(name + "att.wkv", {H, N, N});
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    blocks_.push_back(b);
  }
}

}  // namespace v6abc

std::unique_ptr<Arch> make_v6abc(Checkpoint& in, const Detected& d) {
  return std::make_unique<v6abc::Model>(in, d);
}

}  // namespace wkv
