// RWKV-4 "Dove" (arXiv:2305.13048) and the options of 4neo; spec section 5. Rows are tokens; names
// follow the checkpoint.
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "models/channel_mix.h"
#include "models/copy_head.h"
#include "models/frame.h"
#include "models/v4neo.h"

namespace wkv {
namespace v4 {

struct TimeMix {
  std::array<Vector, 3> mix;              // k v r, each [C]: how much of the past
  Vector decay;                           // [A]; w = -exp(time_decay)
  Vector first;                           // [A]; u = time_first
  Matrix key, value, receptance, output;  // [A, C], [C, A]
  std::optional<SoftmaxAttention> softmax;
};

struct Slots {
  Slot att_shift, wkv, ffn_shift;
};

struct Block {
  Norm ln1, ln2;
  std::optional<TimeMix> att;
  std::optional<ChannelMix> ffn_pre;  // block 0 may have it in place of att
  std::optional<ChannelMix> ffn;
  std::optional<MishGlu> glu;  // in place of ffn
  std::optional<TinyAttention> tiny;
  Slots state;
};

Tensor time_mix(Tensor x, Tensor z, const TimeMix& p, const Slots& s) {
  std::array<Tensor, 3> mixed;
  if (p.softmax) {
    Tensor dx = shift_delta(z, s.att_shift);
    mixed = lerp(z, dx, p.mix);
    x = softmax_attention(x, z, dx, *p.softmax);
  } else {
    mixed = shift_mix(z, s.att_shift, p.mix);
  }
  auto [xk, xv, xr] = mixed;
  auto [k, v, r] = linears({{xk, p.key}, {xv, p.value}, {xr, p.receptance, Act::sigmoid}});
  Tensor y = wkv4(r, k, v, p.decay, p.first, s.wkv);
  return linear(y, p.output, {.into = x});
}

Tensor block(Tensor x, const Block& p, Tensor embedding) {
  Tensor z = layer_norm(x, p.ln1);
  x = p.att ? time_mix(x, z, *p.att, p.state) : channel_mix(x, z, *p.ffn_pre, p.state.att_shift);
  z = layer_norm(x, p.ln2);
  x = p.glu ? mish_glu(x, z, *p.glu, p.state.ffn_shift)
            : channel_mix(x, z, *p.ffn, p.state.ffn_shift);
  return p.tiny ? tiny_attention(x, embedding, *p.tiny) : x;
}

class Model final : public Arch {
 public:
  Model(Checkpoint& in, const Detected& d);

  Tensor forward(Step& step) const override {
    if (copy_) CopyHead::check(step);
    Tensor embedding = tiny_ ? embed(step, frame_.emb) : Tensor{};
    const auto run = [&](Tensor x, const Block& b) { return block(x, b, embedding); };
    Tensor x = run_blocks(step, frame_.enter(step), blocks_, run);
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
  bool tiny_ = false;
  std::optional<CopyHead> copy_;
};

float minus_exp(float x) { return -std::exp(x); }

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d) {
  const int C = d.n_embd, A = d.n_att;
  return {
      .mix = {in.vector(att + "time_mix_k", C, past), in.vector(att + "time_mix_v", C, past),
              in.vector(att + "time_mix_r", C, past)},
      .decay = in.vector(att + "time_decay", A, minus_exp),
      .first = in.vector(att + "time_first", A),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
      .softmax = {},
  };
}

constexpr float kLowest = -1e30f;  // pp before the first token: loses every max

/// att or ffnPre, with their parts of the state.
void load_first_half(Checkpoint& in, const std::string& name, const Detected& d, Block& b,
                     StateLayout& layout) {
  if (name == "blocks.0." && in.has("blocks.0.ffnPre.key.weight")) {
    b.ffn_pre = load_channel_mix(in, name + "ffnPre.", d.n_embd, d.dim_ffn, "time_mix_", past);
    b.state.att_shift = layout.add(name + "ffnPre.shift", {d.n_embd});
    return;
  }
  b.att = load_time_mix(in, name + "att.", d);
  b.state.att_shift = layout.add(name + "att.shift", {d.n_embd});
  const Slot aa = layout.add(name + "att.aa", {d.n_att});
  layout.add(name + "att.bb", {d.n_att});
  layout.add_exact(name + "att.pp", {d.n_att}, kLowest);
  b.state.wkv = {aa.offset, 3 * aa.size};
  if (in.has(name + "att.qq.weight"))
    b.att->softmax = load_softmax_attention(in, name + "att.", d.n_embd, d.ctx_len, layout);
}

Model::Model(Checkpoint& in, const Detected& d) : frame_(load_frame(in, d)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block b;
    b.ln1 = in.norm(name + "ln1", d.n_embd);
    b.ln2 = in.norm(name + "ln2", d.n_embd);
    load_first_half(in, name, d, b, layout);
    if (in.has(name + "ffn.aa.weight"))
      b.glu = load_mish_glu(in, name + "ffn.", d.n_embd, d.dim_ffn);
    else
      b.ffn = load_channel_mix(in, name + "ffn.", d.n_embd, d.dim_ffn, "time_mix_", past);
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    if (in.has(name + "tiny_q.weight")) {
      b.tiny = load_tiny_attention(in, name, d.n_embd, layout);
      tiny_ = true;
    }
    blocks_.push_back(b);
  }
  copy_ = load_copy_head(in, d, layout);
}

}  // namespace v4

std::unique_ptr<Arch> make_v4(Checkpoint& in, const Detected& d) {
  return std::make_unique<v4::Model>(in, d);
}

}  // namespace wkv
