// What kernels use of CUDA, on the host: the words of the language, and cuda/platform.cuh's
// wrappers. A block's threads are fibres (tests/shim/fibres.cpp); its collectives are exact.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>

#include "core/dtype.h"

#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define WKV_HD inline
#define WKV_DEV inline
#define WKV_SHARED(name) unsigned char* name = ::wkv::shim::dynamic_shared()
#define __syncthreads() ::wkv::shim::block_barrier()

namespace wkv::shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

void block_barrier();
void cluster_barrier();
unsigned char* dynamic_shared() noexcept;
/// Where block `rank` of the cluster has what this one has at `mine`.
const void* in_cluster(const void* mine, int rank);

/// What the lanes of a warp tell each other in one collective; valid until the lane's next but one.
struct Payload {
  float value[12];
};
enum class Collective : std::uint8_t { shuffle, product };
/// Returns the 32 payloads when every lane has come. Lanes that come for different collectives are
/// an error.
const Payload* exchange(Collective kind, const Payload& mine);
int lane() noexcept;

/// Copies happen when they are waited for, as late as the hardware may do them.
void copy_async(void* shared, const void* global);
void copy_async_commit();
void copy_async_wait(int pending);

}  // namespace wkv::shim

extern wkv::shim::Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

namespace wkv::cuda {

struct Vec16;

inline std::uint16_t to_f16(float v) {
  return f32_to_f16(v != v ? v : fminf(fmaxf(v, -65504.0f), 65504.0f));
}
inline std::uint16_t to_bf16(float v) { return f32_to_bf16(v); }
// As the device has them, within an ulp; the host's own are worse.
inline float expf(float x) { return static_cast<float>(exp(static_cast<double>(x))); }
inline float tanhf(float x) { return static_cast<float>(tanh(static_cast<double>(x))); }
inline float log1pf(float x) { return static_cast<float>(log1p(static_cast<double>(x))); }

inline float from_f16(std::uint16_t bits) { return f16_to_f32(bits); }
inline float from_bf16(std::uint16_t bits) { return bf16_to_f32(bits); }

inline std::uint32_t sub_f16x2(std::uint32_t a, std::uint32_t b) {
  const auto sub = [](std::uint32_t x, std::uint32_t y) {
    return static_cast<std::uint32_t>(f32_to_f16(f16_to_f32(static_cast<std::uint16_t>(x)) -
                                                 f16_to_f32(static_cast<std::uint16_t>(y))));
  };
  return sub(a & 0xffffu, b & 0xffffu) | (sub(a >> 16, b >> 16) << 16);
}

inline std::uint32_t byte_perm(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t both = (static_cast<std::uint64_t>(b) << 32) | a;
  std::uint32_t r = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = (selector >> (4 * i)) & 7u;
    r |= static_cast<std::uint32_t>((both >> (8 * from)) & 0xffu) << (8 * i);
  }
  return r;
}

template <class V = Vec16>
V load_stream(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

/// The fragment layout of mma.sync.m16n8k16; sums in double, rounded once. Word w of a lane (a0 to
/// a3, b0, b1) is numbers 2w and 2w + 1 of its payload.
template <class Widen>
void product(float (&c)[4], const std::uint32_t (&words)[6], Widen widen) {
  shim::Payload mine;
  for (int w = 0; w < 6; ++w) {
    mine.value[2 * w] = widen(static_cast<std::uint16_t>(words[w]));
    mine.value[2 * w + 1] = widen(static_cast<std::uint16_t>(words[w] >> 16));
  }
  const shim::Payload* all = shim::exchange(shim::Collective::product, mine);
  const int g = shim::lane() / 4, t = shim::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, col = 2 * t + i % 2;
    double sum = 0.0;
    for (int k = 0; k < 16; ++k) {
      const float a = all[row % 8 * 4 + k % 8 / 2].value[2 * (row / 8 + k / 8 * 2) + k % 2];
      const float b = all[col * 4 + k % 8 / 2].value[2 * (4 + k / 8) + k % 2];
      sum += static_cast<double>(a) * static_cast<double>(b);
    }
    c[i] = static_cast<float>(static_cast<double>(c[i]) + sum);
  }
}
inline void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  product(c, {a0, a1, a2, a3, b0, b1}, f16_to_f32);
}
inline void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  product(c, {a0, a1, a2, a3, b0, b1}, bf16_to_f32);
}

inline void copy_async(void* shared, const void* global) { shim::copy_async(shared, global); }
inline void copy_async_commit() { shim::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  shim::copy_async_wait(kPending);
}

inline void wait_for_previous_kernel() {}
inline int forget(int v) { return v; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline float shuffle_xor(float v, int mask) {
  shim::Payload mine;
  mine.value[0] = v;
  return shim::exchange(shim::Collective::shuffle, mine)[shim::lane() ^ mask].value[0];
}
inline void add_shared(unsigned long long* to, unsigned long long n) { *to += n; }
inline void cluster_barrier() { shim::cluster_barrier(); }
inline float load_cluster(const float* mine, int rank) {
  return *static_cast<const float*>(shim::in_cluster(mine, rank));
}
inline unsigned take_ticket(unsigned* counter) { return (*counter)++; }

}  // namespace wkv::cuda
