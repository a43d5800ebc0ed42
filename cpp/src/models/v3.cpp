// RWKV-3; spec section 4. Pre-LN with ln0 and a mix for each of k, v, r. The last version whose
// sums are not rescaled: k is clamped at 60 and the denominator has an epsilon.
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/copy_head.h"
#include "models/frame.h"

namespace wkv {
namespace v3 {

constexpr float kEps = 1e-8f;

struct TimeMix {
  std::array<Vector, 3> mix;              // k v r, each [C]: how much of the past
  Vector decay, first;                    // [A]; exp(-exp(time_decay)), exp(time_first)
  Matrix key, value, receptance, output;  // [A, C], [C, A]
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

Tensor time_mix(Tensor x, Tensor z, const TimeMix& p, const Slots& s) {
  auto [xk, xv, xr] = shift_mix(z, s.att_shift, p.mix);
  auto [k, v, r] = linears({{xk, p.key}, {xv, p.value}, {xr, p.receptance, Act::sigmoid}});
  Tensor y = wkv2(r, k, v, p.decay, p.first, kEps, s.wkv);
  return linear(y, p.output, {.into = x});
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
    Tensor x = run_blocks(step, frame_.enter(step), blocks_, block);
    if (copy_) copy_->read(leave(x));
    return x;
  }
  Tensor leave(Tensor hidden) const override { return frame_.leave(hidden); }
  void logits(Tensor hidden, Tensor out) const override {
    frame_.logits(hidden, out);
    if (copy_) copy_->add_to(out, hidden);
  }

 private:
  Frame frame_;
  std::vector<Block> blocks_;
  std::optional<CopyHead> copy_;
};

float decay_of(float x) { return std::exp(-std::exp(x)); }
float exp_of(float x) { return std::exp(x); }

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  return {
      .mix = {in.vector(att + "time_mix_k", C, past), in.vector(att + "time_mix_v", C, past),
              in.vector(att + "time_mix_r", C, past)},
      .decay = in.vector(att + "time_decay", A, decay_of),
      .first = in.vector(att + "time_first", A, exp_of),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
  };
}

Model::Model(Checkpoint& in, const Detected& d) : frame_(load_frame(in, d)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    const auto mix = [&](const char* of) {
      return load_channel_mix(in, name + of, d.n_embd, d.dim_ffn, "time_mix_", past);
    };
    Block b;
    b.ln1 = in.norm(name + "ln1", d.n_embd);
    b.ln2 = in.norm(name + "ln2", d.n_embd);
    b.ffn = mix("ffn.");
    if (i == 0 && in.has(name + "ffnPre.key.weight")) {
      b.ffn_pre = mix("ffnPre.");
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

}  // namespace v3

std::unique_ptr<Arch> make_v3(Checkpoint& in, const Detected& d) {
  return std::make_unique<v3::Model>(in, d);
}

}  // namespace wkv
