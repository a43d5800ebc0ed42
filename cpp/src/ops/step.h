// One forward step: a ragged batch, the backend that runs it and the arena its tensors live in.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace wkv {

class Backend;

/// A part of a stream's state: `size` floats from `offset` on.
struct Slot {
  std::int64_t offset = -1;
  std::int64_t size = 0;
};

/// Rows [row, row + rows) of the batch belong to one stream. rows >= 1.
struct Sequence {
  int row = 0;
  int rows = 0;
  float* state = nullptr;     ///< backend memory, StateLayout::size floats
  std::int64_t position = 0;  ///< tokens the stream consumed before this step
};

/// Packed rows of any number of sequences: decode is B sequences of one row, prefill one sequence
/// of many rows. Host memory; a backend uploads what it needs in begin().
struct Batch {
  std::vector<Sequence> sequences;
  std::vector<Token> tokens;      ///< [rows]; empty when `inputs` is given
  bool raw_inputs = false;        ///< `inputs` enter the first block as they are, without ln0
  const float* inputs = nullptr;  ///< [rows, C] vectors instead of tokens (host memory)
  std::vector<int> wanted_rows;   ///< rows whose logits are asked for, ascending
  int rows = 0;
  int idle = 0;  ///< the last rows that only fill the step up; see Backend::decode_rows
};

/// What ops find through their first tensor.
struct Step {
  Backend& backend;
  Arena& arena;
  const Batch& batch;
  const std::function<void()>* poll = nullptr;  ///< called once per block; may throw to cancel
  /// Called with the residual stream after every block, if hidden states are asked for.
  const std::function<void(int layer, Tensor x)>* tap = nullptr;

  /// Fresh fp32 [rows, cols]; undefined content.
  Tensor tensor(int rows, int cols, DType dtype = DType::f32);
};

/// Releases at its end what was allocated in the arena since its beginning. Every block of a model
/// has one, so that memory does not grow with depth; its beginning is where a step can be
/// cancelled.
class ArenaScope {
 public:
  explicit ArenaScope(Step& step) : arena_(step.arena), mark_(step.arena.mark()) {
    if (step.poll != nullptr) (*step.poll)();
  }
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace wkv
