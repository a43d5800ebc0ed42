// Memory that several devices work on: a block of host memory, and one of the same size on every
// other device that ever touched it. What is current where is kept track of, byte by byte, and a
// device gets what it lacks when it asks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "ops/backend.h"

namespace wkv {

enum class Access : std::uint8_t {
  read,
  write,   ///< all of it, whatever it was
  update,  ///< some of it
};

/// Addresses are those of the host's block. A block is used by one thread at a time (a state is
/// locked, an arena belongs to a model); blocks are independent of each other.
class MirroredMemory {
 public:
  /// The devices of whoever asks; a device's own backend copies, after its earlier work.
  using Devices = std::function<Backend*(const std::string& device)>;

  /// The content is undefined: reading it copies nothing. Throws Error(out_of_memory).
  static Buffer allocate(std::size_t bytes);
  /// The block that holds an address of any allocate() of this process. Throws Error(internal).
  static std::shared_ptr<MirroredMemory> find(const void* address);

  explicit MirroredMemory(std::size_t bytes);

  bool holds(const void* address) const noexcept;
  /// Where the byte lies on `device`, current or not. Null: the host.
  void* on(Backend* device, const void* address);
  /// Makes the bytes current on `device`; those of others are out of date if it writes.
  void* acquire(Backend* device, const void* address, std::size_t bytes, Access access,
                const Devices& devices);

 private:
  struct Mirror {
    std::string device;
    Buffer memory;
  };
  /// Bytes from `begin` to the next piece's: bit 0 if the host's are current, bit i + 1 those of
  /// mirror i; 0 if nobody ever wrote them.
  struct Piece {
    std::size_t begin;
    std::uint32_t current;
  };

  int bit_of(Backend* device);
  unsigned char* base(int bit) const noexcept;
  std::size_t cut(std::size_t at);
  void merge();
  void fetch(int bit, Backend* device, std::size_t begin, std::size_t end, std::uint32_t current,
             const Devices& devices);

  Buffer host_;
  std::vector<Mirror> mirrors_;
  std::vector<Piece> pieces_;
};

}  // namespace wkv
