// RWKV-7 "Goose" (arXiv:2503.14456) and 7a, which adds DeepEmbed; spec sections 8 and 9. C = H * N.
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "core/check.h"
#include "models/frame.h"

namespace wkv {
namespace v7 {

struct TimeMix {
  std::array<Vector, 6> mix;              // r w k v a g, each [C]: how much of the past
  Lora w, a, v, g;                        // decay, in-context learning rate, value residual, gate
  Vector w0, a0, v0;                      // [C]; layer 0 has no v
  Vector k_k, k_a, r_k;                   // [C]
  Matrix receptance, key, value, output;  // [C, C]
  Norm ln_x;                              // one group per head
  int heads = 0;
};

/// 7a: a token's own [R, R] matrix scales the hidden layer of the channel mix.
struct DeepEmbed {
  Matrix s_emb, s_emb_x;  // [V, R * R], [R * R, C]
  Matrix s1, s2;          // [R, C], [F, R]
  Vector s0;              // [F]
};

struct ChannelMix {
  std::array<Vector, 1> mix;  // k
  Matrix key;                 // [F, C]
  Matrix value;               // [C, F]
  std::optional<DeepEmbed> deep;
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

Tensor time_mix(Tensor x, Tensor z, const TimeMix& p, const Slots& s, Tensor& v_first) {
  auto [xr, xw, xk, xv, xa, xg] = shift_mix(z, s.att_shift, p.mix);

  auto [r, k, v, w_, a_, v_, g_] = linears({{xr, p.receptance},
                                            {xk, p.key},
                                            {xv, p.value},
                                            {xw, p.w.down, Act::tanh},
                                            {xa, p.a.down},
                                            {xv, p.v.down},
                                            {xg, p.g.down, Act::sigmoid}});
  auto [w, a, g, v_mix] = linears({{w_, p.w.up, {.act = Act::decay7, .bias = &p.w0}},
                                   {a_, p.a.up, {.act = Act::sigmoid, .bias = &p.a0}},
                                   {g_, p.g.up},
                                   {v_, p.v.up, {.act = Act::sigmoid, .bias = &p.v0}}});
  if (!v_first) v_first = v;  // layer 0 lends its values

  // S <- diag(w) S - (a kk)^T (kk S) + k^T v,   y = (GN(r S) + (r k r_k) v) g
  Tensor y = wkv7({.r = r,
                   .w = w,
                   .k = k,
                   .v = v,
                   .a = a,
                   .v_first = v_first,
                   .v_mix = v_mix,
                   .k_k = &p.k_k,
                   .k_a = &p.k_a,
                   .r_k = &p.r_k,
                   .norm = &p.ln_x,
                   .gate = g},
                  p.heads, s.wkv);
  return linear(y, p.output, {.into = x});
}

/// k (((z s1) E) s2 + s0), where E = s_emb[token] + s_emb_x first and first = LN0(emb[token]).
Tensor deep_embed(Tensor k, Tensor z, Tensor first, const DeepEmbed& p) {
  Tensor e = linear(first, p.s_emb_x, {.add = embed(*z.step, p.s_emb)});
  return linear(row_matvec(linear(z, p.s1), e), p.s2, {.bias = &p.s0, .gate = k});
}

Tensor channel_mix(Tensor x, Tensor z, Tensor first, const ChannelMix& p, Slot shift) {
  auto [xk] = shift_mix(z, shift, p.mix);
  Tensor k = linear(xk, p.key, Act::relu_squared);
  if (p.deep) k = deep_embed(k, z, first, *p.deep);
  return linear(k, p.value, {.into = x});
}

Tensor block(Tensor x, const Block& p, Tensor& v_first, Tensor first) {
  x = time_mix(x, layer_norm(x, p.ln1), p.att, p.state, v_first);
  return channel_mix(x, layer_norm(x, p.ln2), first, p.ffn, p.state.ffn_shift);
}

class Model final : public Arch {
 public:
  Model(Checkpoint& in, const Detected& d);

  Tensor forward(Step& step) const override {
    Tensor v_first;  // made in block 0, used by every later one
    Tensor first;    // a second copy of what enters block 0, which adds to the first one
    if (blocks_[0].ffn.deep) {
      WKV_CHECK(step.batch.inputs == nullptr, unsupported,
                "[forward] DeepEmbed needs tokens in place of vectors");
      first = frame_.enter(step);
    }
    const auto run = [&](Tensor x, const Block& b) { return block(x, b, v_first, first); };
    return run_blocks(step, frame_.enter(step), blocks_, run, /*kept=*/1);
  }
  Tensor leave(Tensor hidden) const override { return frame_.leave(hidden); }
  void logits(Tensor hidden, Tensor out) const override { frame_.logits(hidden, out); }

 private:
  Frame frame_;
  std::vector<Block> blocks_;
};

/// Names `p`1 [C, R] and `p`2 [R, C]; every rank is what the shapes say.
Lora load_lora(Checkpoint& in, const std::string& p, const Detected& d) {
  const int rank = in.extent(p + "1", 1);
  return {.down = in.transposed(p + "1", d.n_embd, rank),
          .up = in.transposed(p + "2", rank, d.n_att)};
}

DeepEmbed load_deep_embed(Checkpoint& in, const std::string& ffn, const Detected& d) {
  const int R = in.extent(ffn + "s1", 1);
  return {
      .s_emb = in.matrix(ffn + "s_emb.weight", d.n_vocab, R * R, MatrixUse::embedding),
      .s_emb_x = in.matrix(ffn + "s_emb_x.weight", R * R, d.n_embd),
      .s1 = in.transposed(ffn + "s1", d.n_embd, R),
      .s2 = in.transposed(ffn + "s2", R, d.dim_ffn),
      .s0 = in.vector(ffn + "s0", d.dim_ffn),
  };
}

TimeMix load_time_mix(Checkpoint& in, const std::string& att, const Detected& d, bool first) {
  const int C = d.n_embd, A = d.n_att;
  const auto mix = [&](const char* of) { return in.vector(att + "x_" + of, C); };
  TimeMix p{
      .mix = {mix("r"), mix("w"), mix("k"), mix("v"), mix("a"), mix("g")},
      .w = load_lora(in, att + "w", d),
      .a = load_lora(in, att + "a", d),
      .v = {},
      .g = load_lora(in, att + "g", d),
      .w0 = in.vector(att + "w0", A),
      .a0 = in.vector(att + "a0", A),
      .v0 = {},
      .k_k = in.vector(att + "k_k", A),
      .k_a = in.vector(att + "k_a", A),
      .r_k = in.vector(att + "r_k", A),
      .receptance = in.matrix(att + "receptance.weight", A, C),
      .key = in.matrix(att + "key.weight", A, C),
      .value = in.matrix(att + "value.weight", A, C),
      .output = in.matrix(att + "output.weight", C, A),
      .ln_x = in.norm(att + "ln_x", A, 64e-5f),
      .heads = d.n_head,
  };
  if (first) {
    for (const char* name : {"v0", "v1", "v2"}) in.ignore(att + name);  // some files have them
  } else {
    p.v = load_lora(in, att + "v", d);
    p.v0 = in.vector(att + "v0", A);
  }
  return p;
}

Model::Model(Checkpoint& in, const Detected& d) : frame_(load_frame(in, d)) {
  for (int i = 0; i < d.n_layer; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    const std::int64_t H = d.n_head, N = d.head_size;
    Block b{
        .ln1 = in.norm(name + "ln1", d.n_embd),
        .ln2 = in.norm(name + "ln2", d.n_embd),
        .att = load_time_mix(in, name + "att.", d, i == 0),
        .ffn = {.mix = {in.vector(name + "ffn.x_k", d.n_embd)},
                .key = in.matrix(name + "ffn.key.weight", d.dim_ffn, d.n_embd),
                .value =
                    in.matrix(name + "ffn.value.weight", d.n_embd, d.dim_ffn, MatrixUse::ffn_value),
                .deep = {}},
        .state = {},
    };
    if (d.version == "7.0a") b.ffn.deep = load_deep_embed(in, name + "ffn.", d);
    b.state.att_shift = layout.add(name + "att.shift", {d.n_embd});
    // Stored [H][key][value] for the kernels, shown [H][value][key] as in the official code.
    b.state.wkv = layout.add(name + "att.wkv", {H, N, N}, 0.0f, /*transposed=*/true);
    if (in.has(name + "att.time_state"))
      initial_parts.emplace_back(layout.slots().size() - 1,
                                 swap_axes(in.values(name + "att.time_state", H * N * N), H, N, N));
    b.state.ffn_shift = layout.add(name + "ffn.shift", {d.n_embd});
    blocks_.push_back(b);
  }
}

}  // namespace v7

std::unique_ptr<Arch> make_v7(Checkpoint& in, const Detected& d) {
  return std::make_unique<v7::Model>(in, d);
}

}  // namespace wkv
