// The copy head of v1 to v4 ("head-QK", spec section 2): tokens seen before get logits of their
// own,
//   logits_t[token_u] += (q_t . k_u) / D   for every u <= t,  q = W_q x, k = W_k x, x = ln_out(...)
// It keeps a row of D and the token of every position, so the context is bounded.
#pragma once

#include <optional>

#include "core/check.h"
#include "models/arch.h"
#include "models/checkpoint.h"
#include "models/detect.h"

namespace wkv {

struct CopyHead {
  Matrix query, key;            // [D, C]
  Vector query_bias, key_bias;  // [D], v1 only
  Slot rows, tokens;            // [ctx][D], [ctx]

  /// Before anything is written to a state.
  static void check(const Step& step) {
    WKV_CHECK(step.batch.inputs == nullptr, unsupported,
              "[forward] this model has a copy head, which needs tokens in place of vectors");
  }
  /// Remembers all rows. hidden [T, C].
  void read(Tensor hidden) const {
    remember(linear(hidden, key, {.bias = key_bias ? &key_bias : nullptr}), rows);
    remember_tokens(*hidden.step, tokens);
  }
  /// hidden [wanted, C].
  void add_to(Tensor logits, Tensor hidden) const {
    Tensor q = linear(hidden, query, {.bias = query_bias ? &query_bias : nullptr});
    copy_logits(logits, q, rows, tokens, 1.0f / static_cast<float>(query.out));
  }
};

/// Nothing if the file has none. Adds its parts to the layout.
inline std::optional<CopyHead> load_copy_head(Checkpoint& in, const Detected& d,
                                              StateLayout& layout) {
  if (d.head_qk == 0) return std::nullopt;
  CopyHead head{
      .query = in.matrix("head_q.weight", d.head_qk, d.n_embd),
      .key = in.matrix("head_k.weight", d.head_qk, d.n_embd),
      .query_bias = {},
      .key_bias = {},
      .rows = layout.add("head_k.rows", {d.ctx_len, d.head_qk}),
      .tokens = layout.add_exact("head_k.tokens", {d.ctx_len}),
  };
  if (d.version == "1") {
    head.query_bias = in.vector("head_q.bias", d.head_qk);
    head.key_bias = in.vector("head_k.bias", d.head_qk);
  }
  return head;
}

}  // namespace wkv
