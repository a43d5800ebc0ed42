#include "models/arch.h"

#include "core/check.h"
#include "models/checkpoint.h"
#include "models/detect.h"

namespace wkv {
namespace {

std::uint64_t fnv1a(std::uint64_t hash, const void* data, std::size_t bytes) noexcept {
  const auto* p = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace

Slot StateLayout::add(std::string name, std::vector<std::int64_t> shape, float initial,
                      bool transposed) {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  const Slot slot{size_, n};
  slots_.push_back({std::move(name), std::move(shape), slot, initial, transposed, false});
  size_ += n;
  return slot;
}

Slot StateLayout::add_exact(std::string name, std::vector<std::int64_t> shape, float initial) {
  const Slot slot = add(std::move(name), std::move(shape), initial);
  slots_.back().exact = true;
  return slot;
}

std::uint64_t StateLayout::fingerprint() const noexcept {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const SlotInfo& slot : slots_) {
    hash = fnv1a(hash, slot.name.data(), slot.name.size() + 1);
    hash = fnv1a(hash, slot.shape.data(), slot.shape.size() * sizeof(std::int64_t));
    hash = fnv1a(hash, &slot.slot.offset, sizeof slot.slot.offset);
  }
  return hash;
}

std::vector<float> swap_axes(const std::vector<float>& values, std::int64_t groups,
                             std::int64_t rows, std::int64_t cols) {
  std::vector<float> swapped(values.size());
  if (values.empty()) return swapped;
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < cols; ++j)
        swapped[static_cast<std::size_t>((g * cols + j) * rows + i)] =
            values[static_cast<std::size_t>((g * rows + i) * cols + j)];
  return swapped;
}

std::unique_ptr<Arch> make_arch(Checkpoint& in, const Detected& sizes) {
  using Maker = std::unique_ptr<Arch> (*)(Checkpoint&, const Detected&);
  struct Entry {
    std::string_view version;
    Maker make;
  };
  static constexpr Entry kMakers[] = {
      {"1", make_v1},   {"2", make_v2},       {"3", make_v3},       {"4", make_v4},
      {"4a", make_v4},  {"5.0", make_v5},     {"5.1", make_v5},     {"5.2", make_v5},
      {"6.0", make_v6}, {"6.0a", make_v6abc}, {"6.0b", make_v6abc}, {"6.0c", make_v6abc},
      {"7.0", make_v7}, {"7.0a", make_v7},
  };
  for (const Entry& e : kMakers)
    if (e.version == sizes.version) return e.make(in, sizes);
  fail(ErrorCode::unsupported, "RWKV version ", sizes.version, " is recognised but not supported");
}

}  // namespace wkv
