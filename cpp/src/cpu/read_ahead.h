// The first weights of the next product, asked for while a thread has nothing to do. A model reads
// its weights in the same order for every token, so what follows a product is known from the token
// before; between two products the caller works on rows and the memory would rest.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <unordered_map>
#include <vector>

namespace wkv::cpu {

class ReadAhead {
 public:
  struct Range {
    const std::byte* begin = nullptr;
    std::size_t bytes = 0;
  };

  explicit ReadAhead(int threads) : slots_(static_cast<std::size_t>(threads)) {}

  int threads() const noexcept { return static_cast<int>(slots_.size()); }

  /// The caller starts a group of products, whose name is `group`: an address, never read. Thread
  /// i will begin with the weights range(i). Not while threads compute.
  template <class F>
  void enter(const void* group, F range) {
    if (now_ != nullptr && now_->next != group) {
      now_->next = group;
      now_->ranges.resize(slots_.size());
      for (std::size_t i = 0; i < slots_.size(); ++i) now_->ranges[i] = range(static_cast<int>(i));
    }
    now_ = &groups_[group];
  }

  /// Nothing is known of what comes next.
  void forget() noexcept { now_ = nullptr; }

  /// Thread `index` has done its part of the group.
  void done(int index) noexcept {
    if (now_ == nullptr || now_->ranges.empty()) return;
    const auto i = static_cast<std::size_t>(index);
    slots_[i].begin.store(now_->ranges[i].begin, std::memory_order_relaxed);
    slots_[i].bytes.store(std::min(now_->ranges[i].bytes, kMost), std::memory_order_relaxed);
  }

  /// Asks for a few lines of what thread `index` will read; false if it has asked for all it
  /// should.
  bool ask(int index) noexcept {
    Slot& slot = slots_[static_cast<std::size_t>(index)];
    const std::size_t bytes = slot.bytes.load(std::memory_order_relaxed);
    if (bytes == 0) return false;
    const std::byte* at = slot.begin.load(std::memory_order_relaxed);
    const std::size_t now = std::min(bytes, kAtOnce);
    for (std::size_t i = 0; i < now; i += 64) __builtin_prefetch(at + i, 0, 2);
    slot.begin.store(at + now, std::memory_order_relaxed);
    slot.bytes.store(bytes - now, std::memory_order_relaxed);
    return true;
  }

 private:
  static constexpr std::size_t kMost = 128 << 10;  // of an L2 of 256 KiB or more
  static constexpr std::size_t kAtOnce = 512;      // about 0.02 us

  struct Group {
    const void* next = nullptr;
    std::vector<Range> ranges;  // of every thread in `next`
  };
  /// Whoever executes an index writes its slot, which need not be the thread that waits with it:
  /// what is then asked for twice or not at all costs time alone.
  struct alignas(64) Slot {
    std::atomic<const std::byte*> begin{nullptr};
    std::atomic<std::size_t> bytes{0};
  };

  std::vector<Slot> slots_;
  std::unordered_map<const void*, Group> groups_;
  Group* now_ = nullptr;
};

}  // namespace wkv::cpu
