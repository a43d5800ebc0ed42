// Options of v4neo's training code, each recognised by its tensors (spec section 5): MishGLU in
// place of the channel mix, a narrow softmax attention beside att, and RWKV-4a's tiny attention.
#pragma once

#include <array>
#include <cmath>
#include <string>

#include "models/arch.h"
#include "models/channel_mix.h"
#include "models/checkpoint.h"

namespace wkv {
namespace v4 {

/// `my_testing` g.
struct MishGlu {
  std::array<Vector, 2> mix;  // k r, each [C]: how much of the past
  Matrix aa, bb, value;       // [F, C], [F, C], [C, F]
};

/// x + W_v ( (W_aa xk) mish(W_bb xr) ), where z = LN(x).
inline Tensor mish_glu(Tensor x, Tensor z, const MishGlu& p, Slot shift) {
  auto [xk, xr] = shift_mix(z, shift, p.mix);
  auto [a, b] = linears({{xk, p.aa}, {xr, p.bb, Act::mish}});
  return linear(a * b, p.value, {.into = x});
}

inline MishGlu load_mish_glu(Checkpoint& in, const std::string& ffn, int n_embd, int dim_ffn) {
  return {
      .mix = {in.vector(ffn + "time_mix_k", n_embd, past),
              in.vector(ffn + "time_mix_r", n_embd, past)},
      .aa = in.matrix(ffn + "aa.weight", dim_ffn, n_embd),
      .bb = in.matrix(ffn + "bb.weight", dim_ffn, n_embd),
      .value = in.matrix(ffn + "value.weight", n_embd, dim_ffn),
  };
}

/// `my_testing` a: one head of D = C / 16. It keeps D keys and values of every position.
struct SoftmaxAttention {
  std::array<Vector, 3> mix;  // qq kk vv, each [C]
  Matrix qq, kk, vv, oo;      // [D, C], [C, D]
  Slot keys, values;          // [ctx][D]
};

/// x + W_oo softmax(q k^T / sqrt(D)) v; dx is z's token shift.
inline Tensor softmax_attention(Tensor x, Tensor z, Tensor dx, const SoftmaxAttention& p) {
  auto [xq, xk, xv] = lerp(z, dx, p.mix);
  auto [q, k, v] = linears({{xq, p.qq}, {xk, p.kk}, {xv, p.vv}});
  return linear(attention(q, k, v, p.keys, p.values), p.oo, {.into = x});
}

inline SoftmaxAttention load_softmax_attention(Checkpoint& in, const std::string& att, int n_embd,
                                               int ctx_len, StateLayout& layout) {
  const int width = in.extent(att + "kk.weight", 0);
  const auto mix = [&](const char* of) { return in.vector(att + "time_mix_" + of, n_embd, past); };
  return {
      .mix = {mix("qq"), mix("kk"), mix("vv")},
      .qq = in.matrix(att + "qq.weight", width, n_embd),
      .kk = in.matrix(att + "kk.weight", width, n_embd),
      .vv = in.matrix(att + "vv.weight", width, n_embd),
      .oo = in.matrix(att + "oo.weight", n_embd, width),
      .keys = layout.add(att + "kk", {ctx_len, width}),
      .values = layout.add(att + "vv", {ctx_len, width}),
  };
}

/// RWKV-4a. No softmax, so a [D, C] sum is all that it keeps and the context has no end.
struct TinyAttention {
  Norm ln;
  Matrix q, k;  // [D, C]
  Matrix v;     // [C, C]
  Slot kv;      // [D][C]
};

/// x + sum over u <= t of (q_t . k_u) D^{-1/2} v_u; v comes from the raw embedding rows.
inline Tensor tiny_attention(Tensor x, Tensor embedding, const TinyAttention& p) {
  Tensor z = layer_norm(x, p.ln);
  auto [q, k, v] = linears({{z, p.q}, {z, p.k}, {embedding, p.v}});
  Tensor y = linear_attention(q, k, v, 1.0f / std::sqrt(static_cast<float>(q.cols)), p.kv);
  return add_to(x, y);
}

inline TinyAttention load_tiny_attention(Checkpoint& in, const std::string& block, int n_embd,
                                         StateLayout& layout) {
  const int width = in.extent(block + "tiny_q.weight", 0);
  return {
      .ln = in.norm(block + "tiny_ln", n_embd),
      .q = in.matrix(block + "tiny_q.weight", width, n_embd),
      .k = in.matrix(block + "tiny_k.weight", width, n_embd),
      .v = in.matrix(block + "tiny_v.weight", n_embd, n_embd),
      .kv = layout.add(block + "tiny_kv", {width, n_embd}),
  };
}

}  // namespace v4
}  // namespace wkv
