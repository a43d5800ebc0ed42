// Runs launches at once, or gathers those of a step and replays them as a graph when the same step
// comes again.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda/device.h"

namespace wkv::cuda {

/// Decoding repeats one list of launches, bit for bit: the arena hands out equal addresses for
/// equal shapes, and tokens, rows and state pointers lie in device memory. So a gathered list is
/// compared with those seen before: the second occurrence is captured, later ones are one graph
/// launch. The model's code runs every time and nobody has to declare what a graph depends on. A
/// long list is cut: the GPU begins with its first launches while the model makes the others.
class LaunchQueue {
 public:
  explicit LaunchQueue(Device& device) : device_(device) {}

  /// From here on: gather until flush() (`defer`), or launch at once.
  void start(bool defer);
  void push(const Launch& launch);
  /// Submits what was gathered.
  void flush();
  /// Forgets what was gathered and every graph.
  void reset() noexcept;

  std::size_t graphs() const noexcept { return graphs_; }
  std::size_t replays() const noexcept { return replays_; }

 private:
  struct Seen {
    LaunchList list;
    std::unique_ptr<Graph> graph;
    std::uint64_t last_use = 0;
    bool refused = false;
  };
  void run_all();
  void make_room();

  Device& device_;
  bool defer_ = false;
  std::size_t part_ = 0;  // of the list
  LaunchList pending_, running_;
  std::unordered_map<std::uint64_t, Seen> seen_;
  std::uint64_t uses_ = 0;
  std::size_t graphs_ = 0;
  std::size_t replays_ = 0;
};

}  // namespace wkv::cuda
