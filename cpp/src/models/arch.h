// What a model version gives to the runtime.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace wkv {

/// One part of a stream's state, named after the checkpoint ("blocks.0.att.wkv").
struct SlotInfo {
  std::string name;
  std::vector<std::int64_t> shape;  ///< as users see it
  Slot slot;
  float initial = 0.0f;
  bool transposed =
      false;           ///< the last two axes are stored swapped (v7: key-major, shown value-major)
  bool exact = false;  ///< fp32 in compressed states too
};

/// Where the parts of a state lie; the same on every device, so a state is one block of fp32.
class StateLayout {
 public:
  Slot add(std::string name, std::vector<std::int64_t> shape, float initial = 0.0f,
           bool transposed = false);
  /// The same for a part that rounding would spoil: exponents, sums of exponentials, token ids.
  Slot add_exact(std::string name, std::vector<std::int64_t> shape, float initial = 0.0f);
  const std::vector<SlotInfo>& slots() const noexcept { return slots_; }
  std::int64_t size() const noexcept { return size_; }  ///< floats
  /// FNV-1a of names, shapes and offsets.
  std::uint64_t fingerprint() const noexcept;

 private:
  std::vector<SlotInfo> slots_;
  std::int64_t size_ = 0;
};

/// [G, rows, cols] -> [G, cols, rows]. An empty input stays empty.
std::vector<float> swap_axes(const std::vector<float>& values, std::int64_t groups,
                             std::int64_t rows, std::int64_t cols);

/// A model version: the mathematics, nothing else. Immutable after loading.
class Arch {
 public:
  virtual ~Arch() = default;

  /// Runs all blocks on the step's batch. -> [T, C], the residual stream after the last block.
  virtual Tensor forward(Step& step) const = 0;
  /// The final norm. [wanted, C] -> [wanted, C].
  virtual Tensor leave(Tensor hidden) const = 0;
  /// The head on rows that leave() returned. -> `out` [wanted, V].
  virtual void logits(Tensor hidden, Tensor out) const = 0;

  StateLayout layout;
  /// Parts of the state that do not start at their constant `initial` (time_state): slot index and
  /// values in stored orientation.
  std::vector<std::pair<std::size_t, std::vector<float>>> initial_parts;
};

class Checkpoint;
struct Detected;

// One maker per file; dispatched by make_arch(). They read every tensor through the checkpoint.
std::unique_ptr<Arch> make_v1(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v2(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v3(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v4(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v5(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v6(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v6abc(Checkpoint& in, const Detected& sizes);
std::unique_ptr<Arch> make_v7(Checkpoint& in, const Detected& sizes);

std::unique_ptr<Arch> make_arch(Checkpoint& in, const Detected& sizes);

}  // namespace wkv
