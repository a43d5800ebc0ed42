// What every version from v3 on has around its blocks: the embedding with its norm, and the head.
#pragma once

#include <optional>
#include <vector>

#include "models/arch.h"
#include "models/checkpoint.h"
#include "models/detect.h"

namespace wkv {

struct Frame {
  Matrix emb;  // [V, C]
  Norm ln0;    // stored in block 0; none if the table went through it already
  Norm ln_out;
  Matrix head;  // [V, C]

  /// ln0 runs in fp32 at run time: the table stays untouched (and mapped) in the file's dtype.
  Tensor enter(Step& step) const {
    Tensor x = embed(step, emb);
    return step.batch.raw_inputs || !ln0.weight ? x : layer_norm(x, ln0);
  }
  Tensor leave(Tensor hidden) const { return layer_norm(hidden, ln_out); }
  void logits(Tensor hidden, Tensor out) const { linear(hidden, head, {.out = out}); }
};

/// x through blocks: x = run(x, block) for each. Memory is released after every block but the first
/// `kept`, whose tensors later blocks may use.
template <class Block, class Run>
Tensor run_blocks(Step& step, Tensor x, const std::vector<Block>& blocks, Run run, int kept = 0) {
  int layer = 0;
  for (const Block& block : blocks) {
    std::optional<ArenaScope> scope;
    if (layer >= kept) scope.emplace(step);
    x = run(x, block);
    if (step.tap != nullptr) (*step.tap)(layer, x);
    ++layer;
  }
  return x;
}

inline Frame load_frame(Checkpoint& in, const Detected& d) {
  return {
      .emb = in.matrix("emb.weight", d.n_vocab, d.n_embd, MatrixUse::embedding),
      .ln0 = in.metadata("wkv.embedding") == "normed" ? Norm{} : in.norm("blocks.0.ln0", d.n_embd),
      .ln_out = in.norm("ln_out", d.n_embd),
      .head = in.matrix("head.weight", d.n_vocab, d.n_embd, MatrixUse::head),
  };
}

}  // namespace wkv
