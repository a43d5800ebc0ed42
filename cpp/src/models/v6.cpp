// RWKV-6 "Finch" (arXiv:2404.05892); spec section 7. C = H * N, D the rank of the token-shift LoRA.
#include <array>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/frame.h"

namespace wkv {
namespace v6 {

struct TimeMix {
  std::array<Vector, 1> maa_x;                  // [C]
  std::array<Vector, 5> maa;                    // w k v r g, each [C]
  Matrix maa_w1;                                // [5D, C]
  std::array<Matrix, 5> maa_w2;                 // w k v r g, each [C, D]
  Matrix receptance, key, value, gate, output;  // [C, C]
  Lora decay_lora;                              // [D2, C], [C, D2]
  Vector decay, bonus;                          // [C]; time_decay, time_faaaa
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
  // ddlerp: how far each of w k v r g looks back is itself a low-rank function of the token,
  //   x_j = z + dx (maa_j + tanh((z + dx maa_x) maa_w1)_j maa_w2_j)
  Tensor dx = shift_delta(z, s.att_shift);
  auto [xx] = lerp(z, dx, p.maa_x);
  Tensor m = linear(xx, p.maa_w1, Act::tanh);  // [T, 5D]
  const auto mix = [&](int j) {
    const int rank = m.cols / 5;
    const auto i = static_cast<std::size_t>(j);
    return Linear(columns(m, j * rank, rank), p.maa_w2[i],
                  {.bias = &p.maa[i], .gate = dx, .add = z});
  };
  auto [xw, xk, xv, xr, xg] = linears({mix(0), mix(1), mix(2), mix(3), mix(4)});

  auto [r, k, v, g, d] = linears({{xr, p.receptance},
                                  {xk, p.key},
                                  {xv, p.value},
                                  {xg, p.gate, Act::silu},
                                  {xw, p.decay_lora.down, Act::tanh}});
  Tensor w = linear(d, p.decay_lora.up, {.act = Act::exp_neg_exp, .bias = &p.decay});  // in (0, 1)

  // y = r (S + diag(u) k^T v),   S <- diag(w) S + k^T v
  Tensor y = wkv6(r, k, v, w, p.bonus, p.heads, {.norm = &p.ln_x, .gate = g}, s.wkv);
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

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  const int D = in.extent(att + "time_maa_w2", 1);
  const int D2 = in.extent(att + "time_decay_w1", 1);
  const auto maa = [&](const char* of) { return in.vector(att + "time_maa_" + of, C); };
  const auto w2 = [&](int j) { return in.transposed(att + "time_maa_w2", D, C, j); };
  return {
      .maa_x = {maa("x")},
      .maa = {maa("w"), maa("k"), maa("v"), maa("r"), maa("g")},
      .maa_w1 = in.transposed(att + "time_maa_w1", C, 5 * D),
      .maa_w2 = {w2(0), w2(1), w2(2), w2(3), w2(4)},
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .gate = in.matrix(att + "gate.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
      .decay_lora = {.down = in.transposed(att + "time_decay_w1", C, D2),
                     .up = in.transposed(att + "time_decay_w2", D2, A)},
      .decay = in.vector(att + "time_decay", A),
      .bonus = in.vector(att + "time_faaaa", A),
      .ln_x = in.norm(att + "ln_x", A, 64e-5f),
      .heads = d.n_head,
  };
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
    if (in.has(name + "att.time_state"))  // a tuned initial state, stored [H][value][key]
      initial_parts.emplace_back(layout.slots().size() - 1,
                                 swap_axes(in.values(name + "att.time_state", H * N * N), H, N, N));
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    blocks_.push_back(b);
  }
}

}  // namespace v6

std::unique_ptr<Arch> make_v6(Checkpoint& in, const Detected& d) {
  return std::make_unique<v6::Model>(in, d);
}

}  // namespace wkv
