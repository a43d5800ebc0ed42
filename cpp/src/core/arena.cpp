#include "core/arena.h"

#include <algorithm>
#include <cstdint>

namespace wkv {
namespace {

constexpr std::size_t kAlignment = 256;  // what CUDA's widest loads and cuBLASLt want
constexpr std::size_t kMinBlock = std::size_t{1} << 20;

#if defined(WKV_DEBUG_CHECKS)
void poison(void* memory, std::size_t bytes) {
  auto* words = static_cast<std::uint32_t*>(memory);
  std::fill_n(words, bytes / sizeof(std::uint32_t), 0x7fc0dead);  // a quiet NaN
}
#endif

}  // namespace

void* Arena::allocate(std::size_t bytes) {
  const std::size_t size = std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  while (block_ < blocks_.size() && size > blocks_[block_].bytes() - used_) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size())
    blocks_.push_back(allocate_(std::max({size, kMinBlock, capacity()})));
  void* p = static_cast<std::byte*>(blocks_[block_].data()) + used_;
  used_ += size;
#if defined(WKV_DEBUG_CHECKS)
  if (host_memory_) poison(p, size);
#endif
  return p;
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    const std::size_t total = capacity();
    blocks_.clear();
    blocks_.push_back(allocate_(total));
  }
  block_ = 0;
  used_ = 0;
}

std::size_t Arena::capacity() const noexcept {
  std::size_t total = 0;
  for (const Buffer& block : blocks_) total += block.bytes();
  return total;
}

}  // namespace wkv
