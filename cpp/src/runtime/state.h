// A stream's state: one block of fp32 in a backend's memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "models/arch.h"
#include "wkv/wkv.hpp"

namespace wkv::detail {

/// What the states of a model have in common. Immutable.
struct StateSchema {
  StateLayout layout;
  std::string version;            ///< of the model
  std::uint64_t fingerprint = 0;  ///< of layout and weights: states of other models are refused
  std::vector<float> initial;     ///< [layout.size()]
  std::vector<StatePart> parts;
};

struct StateImpl {
  std::shared_ptr<const StateSchema> schema;
  std::shared_ptr<Backend> backend;
  Buffer data;
  std::int64_t position = 0;
  std::atomic<bool> busy{false};

  std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(schema->layout.size()) * sizeof(float);
  }
};

/// Marks a state as in use for its lifetime; Error(invalid_argument) if it is already.
class StateLock {
 public:
  explicit StateLock(StateImpl& state);
  ~StateLock() {
    if (state_ != nullptr) state_->busy.store(false, std::memory_order_release);
  }
  StateLock(StateLock&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  StateLock& operator=(StateLock&&) = delete;

 private:
  StateImpl* state_;
};

std::unique_ptr<StateImpl> new_state(std::shared_ptr<const StateSchema> schema,
                                     std::shared_ptr<Backend> backend);
std::unique_ptr<StateImpl> parse_state(std::span<const std::byte> bytes,
                                       std::shared_ptr<const StateSchema> schema,
                                       std::shared_ptr<Backend> backend);

}  // namespace wkv::detail
