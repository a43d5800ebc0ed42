// What a Model holds.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/check.h"
#include "models/arch.h"
#include "runtime/state.h"
#include "wkv/wkv.hpp"

namespace wkv::detail {

struct ModelImpl {
  ModelInfo info;
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const StateSchema> schema;
  std::vector<std::shared_ptr<const void>> keep;  // what the weights point to
  std::unique_ptr<Arch> arch;
  std::unique_ptr<Arena> arena;
  int max_rows = 0;
  Buffer idle_state;  // of the rows that only fill a step up; its content means nothing
  DType dtype = DType::f32;
  std::vector<std::pair<std::string, DType>> weight_types;
  std::int64_t weight_bytes = 0;
  std::mutex mutex;  // one step at a time: the backend, the arena and the batch are shared
};

/// Calls a Progress at most every 50 ms: often enough for Ctrl-C, rare enough to cost nothing.
class Poll {
 public:
  /// `progress` and `what` must outlive the Poll.
  Poll(const Progress& progress, std::string_view what) : progress_(progress), what_(what) {}

  void report(std::int64_t done, std::int64_t total, bool force = false) {
    if (!progress_) return;
    const auto now = std::chrono::steady_clock::now();
    if (!force && now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    WKV_CHECK(progress_(done, total), cancelled, what_, " cancelled after ", done, " of ", total);
  }

 private:
  const Progress& progress_;
  std::string_view what_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace wkv::detail
