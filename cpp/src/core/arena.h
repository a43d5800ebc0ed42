// A bump allocator for the tensors of one step.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "core/buffer.h"

namespace wkv {

/// Hands out 256-byte aligned pieces until reset. It grows by blocks; reset() merges them into one,
/// so from the second step of a shape on equal steps get equal addresses, which is what lets a CUDA
/// graph be captured once and replayed. Debug builds fill host memory with NaN at every allocation.
/// Not thread-safe: one step, one arena.
class Arena {
 public:
  using Allocate = std::function<Buffer(std::size_t bytes)>;

  Arena(Allocate allocate, bool host_memory)
      : allocate_(std::move(allocate)), host_memory_(host_memory) {}

  /// Throws Error(out_of_memory).
  void* allocate(std::size_t bytes);
  void reset();

  struct Mark {
    std::size_t block = 0;
    std::size_t used = 0;
  };
  Mark mark() const noexcept { return {block_, used_}; }
  /// Release everything allocated after `mark`.
  void rewind(Mark mark) noexcept {
    block_ = mark.block;
    used_ = mark.used;
  }
  std::size_t capacity() const noexcept;

 private:
  Allocate allocate_;
  bool host_memory_;
  std::vector<Buffer> blocks_;
  std::size_t block_ = 0;  // the block in use
  std::size_t used_ = 0;   // bytes of it
};

}  // namespace wkv
