// The op vocabulary: everything a model file may say. T rows (tokens of all sequences), C channels,
// H heads of N = C / H, V vocabulary. Every function returns a tensor that lives until the end of
// the step (or of the enclosing ArenaScope). Row-wise unless "per sequence" is said. Shapes are
// checked here (ops.cpp): Error(internal) names op and sizes. Section numbers: docs/versions.md.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "ops/backend.h"

namespace wkv {

/// y_t = table[token_t], or the batch's input vectors.  table [V, C] -> [T, C].
Tensor embed(Step& step, const Matrix& table);

/// y = (x - mean) / sqrt(var + eps) * weight + bias over C; biased variance.
Tensor layer_norm(Tensor x, const Norm& norm);

/// d_t = x_{t-1} - x_t, per sequence. The row before a sequence's first comes from `prev` ([C] in
/// its state); its last row goes there.
Tensor shift_delta(Tensor x, Slot prev);

namespace detail {
void lerp(Tensor* y, Tensor x, Tensor dx, const Vector* mu, std::size_t n);
void shift_mix(Tensor* y, Tensor x, Slot prev, const Vector* mu, std::size_t n);
}  // namespace detail

/// y_g = x + dx * mu_g: `mu` says how much of the past. [T, C] each.
template <std::size_t G>
std::array<Tensor, G> lerp(Tensor x, Tensor dx, const std::array<Vector, G>& mu) {
  std::array<Tensor, G> y;
  detail::lerp(y.data(), x, dx, mu.data(), G);
  return y;
}

/// lerp(x, shift_delta(x, prev), mu) in one pass.
template <std::size_t G>
std::array<Tensor, G> shift_mix(Tensor x, Slot prev, const std::array<Vector, G>& mu) {
  std::array<Tensor, G> y;
  detail::shift_mix(y.data(), x, prev, mu.data(), G);
  return y;
}

/// One product of a group, see linears().
struct Linear {
  Linear(Tensor x_, const Matrix& w_, Epilogue e = {}) : x(x_), w(&w_), epilogue(e) {}
  Linear(Tensor x_, const Matrix& w_, Act act) : x(x_), w(&w_), epilogue{.act = act} {}
  Tensor x;
  const Matrix* w;
  Epilogue epilogue;
};

namespace detail {
void linears(Tensor* y, const Linear* calls, std::size_t n);
}  // namespace detail

/// y = act(x W^T + bias) * gate + add.  x [T, in], W [out, in] -> [T, out].
inline Tensor linear(Tensor x, const Matrix& w, Epilogue e = {}) {
  const Linear call(x, w, e);
  Tensor y;
  detail::linears(&y, &call, 1);
  return y;
}
inline Tensor linear(Tensor x, const Matrix& w, Act act) {
  return linear(x, w, Epilogue{.act = act});
}

/// Independent products in one dispatch: auto [r, k] = linears({{xr, p.receptance}, {xk, p.key}}).
/// A weight that the model does not have (an empty Matrix) yields an empty Tensor.
template <std::size_t G>
std::array<Tensor, G> linears(const Linear (&calls)[G]) {
  std::array<Tensor, G> y;
  detail::linears(y.data(), calls, G);
  return y;
}

Tensor operator+(Tensor a, Tensor b);
Tensor operator*(Tensor a, Tensor b);

/// x += y in place. -> x.
Tensor add_to(Tensor x, Tensor y);

/// Columns [begin, begin + n) of x: a view.
Tensor columns(Tensor x, int begin, int n);

/// The rows that the batch wants logits of. [T, C] -> [wanted, C].
Tensor select_rows(Tensor x);

/// v4's WKV, times r; per sequence and channel, spec section 5, numerically stable form:
///   y = r (e^{pp-q} aa + e^{u+k-q} v) / (e^{pp-q} bb + e^{u+k-q}),   q = max(pp, u + k)
///   aa, bb <- e^{pp+w-q'} aa + e^{k-q'} v, ... + e^{k-q'},  pp <- q' = max(pp + w, k)
/// `decay` holds w = -exp(time_decay); `state` holds aa, bb, pp, [3][C].
Tensor wkv4(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, Slot state);

/// v5's and v6's WKV; per sequence and head, S [H][N key][N value]:
///   y = r (S + diag(u) k^T v),   S <- diag(w) S + k^T v
/// `decay` is w per token [T, C] (v6) or constant [C] (v5).
Tensor wkv6(Tensor r, Tensor k, Tensor v, Tensor decay, const Vector& bonus, int heads,
            const HeadEpilogue& epilogue, Slot state);
Tensor wkv6(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, int heads,
            const HeadEpilogue& epilogue, Slot state);

/// v7's WKV, the generalised delta rule; per sequence and head, S [H][N key][N value]:
///   kk = (k k_k) / max(|k k_k|, 1e-12) per head;  k <- k (1 + (a - 1) k_a)
///   S <- diag(w) S - (a kk)^T (kk S) + k^T v,   y = r S
///   y <- (GroupNorm(y) + (sum_j r_j k_j r_k,j) v) gate
Tensor wkv7(const Wkv7& in, int heads, Slot state);

/// v1's WKV, times r; per sequence and head, at position t of a context of `ctx` tokens:
///   k <- exp(clip(k, -60, 30)),  sum_k <- sum_k + k,  history_t = k v
///   y = r beta_t (sum_{u <= t} w_{ctx-1-(t-u)} alpha_u history_u) / sum_k
/// `sum_k` [C], `history` [ctx][C].
Tensor wkv1(const Wkv1& in, int heads, Slot sum_k, Slot history);

/// v2's and v3's WKV, times r; per sequence and channel, with k <- exp(min(k, 60)):
///   y = r (aa + u k v) / (bb + u k + eps),   aa <- d aa + k v,   bb <- d bb + k
/// `decay` holds d = exp(-exp(time_decay)), `bonus` u = exp(time_first); `state` aa, bb, [2][C].
Tensor wkv2(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, float eps,
            Slot state);

/// y_t = values[p] in every column, p the position of row t in its stream. Shaped like x, which
/// holds all rows or the wanted ones.
Tensor by_position(Tensor x, const Vector& values);

/// history[p] = x_t, p the position of row t. `history` [ctx][cols].
void remember(Tensor x, Slot history);
/// history[p] = the token of row t, exact up to 2^24. `history` [ctx].
void remember_tokens(Step& step, Slot history);

/// The copy head: logits_t[token_u] += scale (q_t . key_u) for every u <= t; a token seen twice
/// counts twice. q [wanted, D]; `keys` [ctx][D] and `tokens` [ctx] as remembered.
void copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale);

/// Causal softmax attention of one head over a history: y_t = softmax_u(q_t . k_u / sqrt(D)) v_u.
/// k [T, D] and v [T, E] are remembered first; `keys` [ctx][D], `values` [ctx][E].
Tensor attention(Tensor q, Tensor k, Tensor v, Slot keys, Slot values);

/// The same without softmax, so that the history is a sum: S <- S + k^T v,  y = scale q S.
/// q, k [T, D], v [T, C], S [D][C].
Tensor linear_attention(Tensor q, Tensor k, Tensor v, float scale, Slot state);

/// y_j = sum_i x_i m_ij: a matrix of its own for every row. x [T, R], m [T, R * R].
Tensor row_matvec(Tensor x, Tensor m);

}  // namespace wkv
