// A kernel launch as data, and the parameters of every kernel. Kernels take one plain struct each,
// so that a step can be recorded, compared with an earlier one and replayed as a CUDA graph.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace wkv::cuda {

/// What to run; its parameters lie elsewhere.
struct LaunchHeader {
  const void* kernel = nullptr;  ///< null: a product of the vendor's library
  void (*invoke)(const void* kernel, const void* params) = nullptr;  ///< host shim only
  std::uint32_t grid[3] = {1, 1, 1};
  std::uint16_t block = 0;
  std::uint8_t cluster = 1;  ///< neighbouring blocks that reach each other's shared memory
  /// 1: needs nothing of the launch before it, nor of those that one may run beside.
  std::uint8_t beside = 0;
  std::uint32_t shared_bytes = 0;
  std::uint32_t params_bytes = 0;  ///< the first ones; the others are zero
};
static_assert(std::has_unique_object_representations_v<LaunchHeader>, "compared as bytes");

struct Launch {
  static constexpr std::size_t kMaxParams = 3584;  // a kernel's parameters may have 4 KiB
  LaunchHeader header;
  alignas(16) std::array<unsigned char, kMaxParams> params;
};

/// Parameters with zeroed padding, so that equal ones are equal bytes.
template <class Params>
Params zeroed() {
  static_assert(std::is_trivially_copyable_v<Params>);
  Params p;
  std::memset(static_cast<void*>(&p), 0, sizeof p);
  return p;
}

template <class Params>
void make_launch(Launch& out, void (*kernel)(Params), std::uint32_t grid_x, std::uint32_t grid_y,
                 std::uint32_t grid_z, std::uint32_t block, std::uint32_t shared_bytes,
                 const Params& params, std::size_t used = sizeof(Params)) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= Launch::kMaxParams);
  LaunchHeader& h = out.header;
  h = {};
  h.kernel = reinterpret_cast<const void*>(kernel);
#if defined(WKV_SHIM)
  h.invoke = [](const void* k, const void* p) {
    reinterpret_cast<void (*)(Params)>(const_cast<void*>(k))(*static_cast<const Params*>(p));
  };
#endif
  h.grid[0] = grid_x;
  h.grid[1] = grid_y;
  h.grid[2] = grid_z;
  h.block = static_cast<std::uint16_t>(block);
  h.shared_bytes = shared_bytes;
  h.params_bytes = static_cast<std::uint32_t>(used);
  std::memcpy(out.params.data(), &params, used);
}

}  // namespace wkv::cuda
