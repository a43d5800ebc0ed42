// Units of work that threads own in contiguous shares and finish for each other. Processors of one
// machine are not equally fast: large and small cores, neighbours on a shared core.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace wkv::cpu {

class Shares {
 public:
  explicit Shares(int threads) : shares_(static_cast<std::size_t>(threads)) {}

  /// Thread `index` owns [begin, end). Not while threads take.
  void give(int index, int begin, int end) noexcept {
    shares_[static_cast<std::size_t>(index)].range.store(pack(begin, end),
                                                         std::memory_order_relaxed);
  }

  /// What thread `index` does next: from the front of its own share all but one in `parts` of what
  /// is left, at least `least` units; from the back of another's half of it when there is nothing.
  /// False when it is done.
  bool take(int index, int least, int& begin, int& end, int parts = 2) noexcept {
    if (take_from(shares_[static_cast<std::size_t>(index)], least, parts, /*front=*/true, begin,
                  end))
      return true;
    const auto n = static_cast<int>(shares_.size());
    // All of them would be a cache miss for every thread at the end of every product.
    for (int i = 1; i <= std::min(kVictims, n - 1); ++i)
      if (take_from(shares_[static_cast<std::size_t>((index + i) % n)], least, 2, false, begin,
                    end))
        return true;
    return false;
  }

 private:
  static constexpr int kVictims = 3;

  struct alignas(64) Share {
    std::atomic<std::uint64_t> range{0};
  };

  static std::uint64_t pack(int begin, int end) noexcept {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(begin)) << 32 |
           static_cast<std::uint32_t>(end);
  }

  /// Relaxed: the range is all that is shared; what the units read and write is ordered by the
  /// pool.
  static bool take_from(Share& share, int least, int parts, bool front, int& begin,
                        int& end) noexcept {
    std::uint64_t range = share.range.load(std::memory_order_relaxed);
    for (;;) {
      const auto from = static_cast<int>(range >> 32), to = static_cast<int>(range & 0xffffffffu);
      if (from >= to) return false;
      const int n = std::min(to - from, std::max(least, to - from - (to - from) / parts));
      begin = front ? from : to - n;
      end = begin + n;
      const std::uint64_t rest = front ? pack(end, to) : pack(from, begin);
      if (share.range.compare_exchange_weak(range, rest, std::memory_order_relaxed)) return true;
    }
  }

  std::vector<Share> shares_;
};

}  // namespace wkv::cpu
