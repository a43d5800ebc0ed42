#include "runtime/mirrored.h"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <utility>

#include "core/check.h"

namespace wkv {
namespace {

/// Of all blocks, by the host's address. States outlive models, so it belongs to none.
struct Registry {
  std::mutex mutex;
  std::map<std::uintptr_t, std::weak_ptr<MirroredMemory>> blocks;
};

Registry& registry() {
  static Registry& all = *new Registry;  // never destroyed: a State may be static
  return all;
}

}  // namespace

MirroredMemory::MirroredMemory(std::size_t bytes) : host_(allocate_host(bytes)), pieces_{{0, 0}} {}

Buffer MirroredMemory::allocate(std::size_t bytes) {
  auto block = std::make_shared<MirroredMemory>(bytes);
  void* const data = block->host_.data();
  const auto key = reinterpret_cast<std::uintptr_t>(data);
  {
    const std::lock_guard lock(registry().mutex);
    registry().blocks[key] = block;
  }
  return {std::shared_ptr<void>(data,
                                [block = std::move(block), key](void*) mutable {
                                  {
                                    const std::lock_guard lock(registry().mutex);
                                    registry().blocks.erase(key);
                                  }
                                  block.reset();
                                }),
          bytes};
}

std::shared_ptr<MirroredMemory> MirroredMemory::find(const void* address) {
  const std::lock_guard lock(registry().mutex);
  auto after = registry().blocks.upper_bound(reinterpret_cast<std::uintptr_t>(address));
  std::shared_ptr<MirroredMemory> block;
  if (after != registry().blocks.begin()) block = std::prev(after)->second.lock();
  WKV_CHECK(block != nullptr && block->holds(address), internal,
            "[split] an address that no device of this model knows");
  return block;
}

bool MirroredMemory::holds(const void* address) const noexcept {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  const auto begin = reinterpret_cast<std::uintptr_t>(host_.data());
  return at >= begin && at - begin < std::max<std::size_t>(host_.bytes(), 1);
}

unsigned char* MirroredMemory::base(int bit) const noexcept {
  const Buffer& memory = bit == 0 ? host_ : mirrors_[static_cast<std::size_t>(bit - 1)].memory;
  return static_cast<unsigned char*>(memory.data());
}

int MirroredMemory::bit_of(Backend* device) {
  if (device == nullptr || device->host_memory()) return 0;
  const std::string name = device->device();
  for (std::size_t i = 0; i < mirrors_.size(); ++i)
    if (mirrors_[i].device == name) return static_cast<int>(i) + 1;
  mirrors_.push_back({name, device->allocate(host_.bytes())});
  return static_cast<int>(mirrors_.size());
}

void* MirroredMemory::on(Backend* device, const void* address) {
  const auto offset = static_cast<const unsigned char*>(address) - base(0);
  return base(bit_of(device)) + offset;
}

/// The index of the piece that begins at `at`, which is made if there is none.
std::size_t MirroredMemory::cut(std::size_t at) {
  const auto next =
      std::find_if(pieces_.begin(), pieces_.end(), [at](const Piece& p) { return p.begin >= at; });
  const auto index = next - pieces_.begin();
  if (next == pieces_.end() || next->begin != at)
    pieces_.insert(next, {at, std::prev(next)->current});
  return static_cast<std::size_t>(index);
}

void MirroredMemory::merge() {
  const auto end = std::unique(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return a.current == b.current;
  });
  pieces_.erase(end, pieces_.end());
}

/// Copies bytes to the device of `bit` from one that is current, by way of the host.
void MirroredMemory::fetch(int bit, Backend* device, std::size_t begin, std::size_t end,
                           std::uint32_t current, const Devices& devices) {
  if ((current & 1u) == 0) {
    const int from = std::countr_zero(current);
    const std::string& name = mirrors_[static_cast<std::size_t>(from - 1)].device;
    Backend* owner = devices(name);
    WKV_CHECK(owner != nullptr, internal, "[split] what is needed lies on ", name,
              ", which this model does not use");
    owner->read(base(0) + begin, base(from) + begin, end - begin);
  }
  if (bit != 0) device->write(base(bit) + begin, base(0) + begin, end - begin);
}

void* MirroredMemory::acquire(Backend* device, const void* address, std::size_t bytes,
                              Access access, const Devices& devices) {
  const int bit = bit_of(device);
  const auto begin = static_cast<std::size_t>(static_cast<const unsigned char*>(address) - base(0));
  const std::size_t end = begin + bytes;
  WKV_CHECK(end <= host_.bytes(), internal, "[split] bytes ", begin, " to ", end, " of a block of ",
            host_.bytes());
  if (bytes == 0) return base(bit) + begin;
  const std::size_t first = cut(begin);
  const std::size_t last = end < host_.bytes() ? cut(end) : pieces_.size();
  const std::uint32_t mine = 1u << bit;
  for (std::size_t i = first; i < last; ++i) {
    Piece& piece = pieces_[i];
    if (access != Access::write && piece.current != 0 && (piece.current & mine) == 0) {
      // Neighbours that lie on the same devices go in one copy.
      const std::size_t stop = i + 1 < pieces_.size() ? pieces_[i + 1].begin : host_.bytes();
      fetch(bit, device, piece.begin, stop, piece.current, devices);
      piece.current |= mine | 1u;  // it came by way of the host
    }
    if (access != Access::read) piece.current = mine;
  }
  merge();
  return base(bit) + begin;
}

}  // namespace wkv
