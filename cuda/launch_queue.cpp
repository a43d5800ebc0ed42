#include "cuda/launch_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace wkv::cuda {
namespace {

constexpr std::size_t kMinGraph = 8;   // fewer launches are not worth a capture
constexpr std::size_t kMaxSeen = 192;  // lists remembered; a graph of 250 launches is about 1 MB
/// Launches of the first parts of a list. To make one takes a tenth of the time in which it runs.
constexpr std::size_t kParts[] = {12, 60};

}  // namespace

void LaunchList::push(const Launch& launch) {
  const std::size_t at = bytes_.size();
  const std::size_t params = padded(launch.header.params_bytes);
  bytes_.resize(at + kHeaderBytes + params);  // zero-filled: padding compares equal
  std::memcpy(bytes_.data() + at, &launch.header, sizeof launch.header);
  std::memcpy(bytes_.data() + at + kHeaderBytes, launch.params.data(), launch.header.params_bytes);
  ++count_;
}

std::uint64_t LaunchList::hash() const noexcept {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i + sizeof h <= bytes_.size(); i += sizeof h) {
    std::uint64_t word;
    std::memcpy(&word, bytes_.data() + i, sizeof word);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
  }
  return h;
}

void LaunchQueue::start(bool defer) {
  flush();
  defer_ = defer;
  part_ = 0;
}

void LaunchQueue::push(const Launch& launch) {
  if (!defer_) return device_.launch(launch.header, launch.params.data());
  if (part_ < std::size(kParts) && pending_.size() >= kParts[part_] && launch.header.beside == 0) {
    flush();
    ++part_;
  }
  pending_.push(launch);
}

void LaunchQueue::run_all() {
  running_.clear();
  std::swap(pending_, running_);  // a launch that fails leaves nothing behind to run again
  running_.each([&](const LaunchHeader& h, const void* params) { device_.launch(h, params); });
}

void LaunchQueue::make_room() {
  if (seen_.size() < kMaxSeen) return;
  const auto oldest = std::min_element(
      seen_.begin(), seen_.end(),
      [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  if (oldest->second.graph) --graphs_;
  seen_.erase(oldest);
}

void LaunchQueue::flush() {
  if (pending_.size() == 0) return;
  if (pending_.size() < kMinGraph) return run_all();
  const std::uint64_t hash = pending_.hash();
  auto found = seen_.find(hash);
  if (found == seen_.end() || !(found->second.list == pending_)) {
    if (found == seen_.end()) make_room();
    Seen& seen = seen_[hash];
    if (seen.graph) --graphs_;
    seen = {};
    seen.list = pending_;
    seen.last_use = ++uses_;
    return run_all();
  }
  Seen& seen = found->second;
  seen.last_use = ++uses_;
  if (!seen.graph && !seen.refused) {
    seen.refused = true;
    running_.clear();
    std::swap(pending_, running_);  // if it throws, nothing is left to run again
    seen.graph = device_.capture(running_);
    std::swap(pending_, running_);
    seen.refused = !seen.graph;
    graphs_ += seen.graph ? 1 : 0;
  }
  if (!seen.graph) return run_all();
  pending_.clear();
  ++replays_;
  device_.replay(*seen.graph);
}

void LaunchQueue::reset() noexcept {
  pending_.clear();
  running_.clear();
  seen_.clear();
  graphs_ = 0;
}

}  // namespace wkv::cuda
