// What kernels use of the hardware beyond plain C++: the only inline assembly of the project. The
// host shim (tests/shim) replaces this file's lower half, so that every kernel runs on a CPU too.
#pragma once

#include <cstdint>

#if defined(WKV_SHIM)
#include "shim/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define WKV_HD __host__ __device__ __forceinline__
#define WKV_DEV __device__ __forceinline__
/// Dynamic shared memory, 16-byte aligned.
#define WKV_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace wkv::cuda {

/// 16 bytes, the widest load.
struct alignas(16) Vec16 {
  std::uint32_t x, y, z, w;
};

#if !defined(WKV_SHIM)

/// The bits of a half or bfloat16 nearest to `v`; halves saturate at +-65504 instead of becoming
/// infinite, so that one outlier does not turn a row of logits into NaN. NaN stays.
WKV_DEV std::uint16_t to_f16(float v) {
  const float bounded = fminf(fmaxf(v, -65504.0f), 65504.0f);
  return __half_as_ushort(__float2half_rn(v == v ? bounded : v));
}
WKV_DEV std::uint16_t to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
WKV_DEV float from_f16(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
WKV_DEV float from_bf16(std::uint16_t bits) {
  return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
}

/// a - b of two pairs of halves.
WKV_DEV std::uint32_t sub_f16x2(std::uint32_t a, std::uint32_t b) {
  __half2 ha, hb;
  memcpy(&ha, &a, 4);
  memcpy(&hb, &b, 4);
  const __half2 d = __hsub2(ha, hb);
  std::uint32_t r;
  memcpy(&r, &d, 4);
  return r;
}
WKV_DEV std::uint32_t byte_perm(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  return __byte_perm(a, b, selector);
}

/// Weights are read once: do not let them push activations out of L1.
WKV_DEV Vec16 load_stream(const void* p) {
  Vec16 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

/// c += A B: A 16 x 16 (outputs x inputs), B 16 x 8 (inputs x rows), fp32 accumulation. Lane
/// (g = lane / 4, t = lane % 4) holds of A rows g, g + 8 at inputs 2t, 2t+1 (a0, a1) and 2t+8,
/// 2t+9 (a2, a3); of B row g at the same inputs (b0, b1); of C (g, 2t), (g, 2t+1), (g+8, ...).
WKV_DEV void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}
/// The same of bfloat16. Before sm_80 there is none: adopt() converts such weights to fp16 there.
WKV_DEV void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                      std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

/// Copies 16 bytes from global to shared memory in the background.
WKV_DEV void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
#else
  *static_cast<Vec16*>(shared) = *static_cast<const Vec16*>(global);
#endif
}
WKV_DEV void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most `kPending` of this thread's groups are in flight.
template <int kPending>
WKV_DEV void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/// Programmatic dependent launch. Every kernel calls this before it touches anything but weights,
/// and does so with every thread: that makes the rule transitive along the stream. The release
/// after the wait lets the next kernel's blocks start early and wait in turn.
WKV_DEV void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The same number, of which the compiler knows nothing.
WKV_DEV int forget(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

WKV_DEV float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
/// Adds to a number in shared memory, whatever the other threads of the block add meanwhile.
WKV_DEV void add_shared(unsigned long long* to, unsigned long long n) { atomicAdd(to, n); }
/// Adds one to a counter of the whole device; returns its old value. Earlier writes of this block
/// (after a barrier) are visible to the block that sees the counter's last value.
WKV_DEV unsigned take_ticket(unsigned* counter) {
  __threadfence();
  const unsigned ticket = atomicAdd(counter, 1u);
  __threadfence();
  return ticket;
}

/// Waits for all threads of all blocks of the cluster; what they wrote to shared memory is visible.
WKV_DEV void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
/// What block `rank` of the cluster has where this one has `mine`, in dynamic shared memory.
WKV_DEV float load_cluster(const float* mine, int rank) {
  float v = 0.0f;
#if __CUDA_ARCH__ >= 900
  std::uint32_t at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(at)
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(mine))), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
#endif
  return v;
}

#endif  // !WKV_SHIM

/// Two neighbouring values in a register, the lower first.
WKV_DEV std::uint32_t pack(std::uint16_t lo, std::uint16_t hi) {
  return static_cast<std::uint32_t>(lo) | (static_cast<std::uint32_t>(hi) << 16);
}

/// Rounded for the tensor cores.
WKV_DEV std::uint16_t round_half(float v, std::int32_t bf16) {
  return bf16 != 0 ? to_bf16(v) : to_f16(v);
}
/// Four neighbours, 8-byte aligned: `at` is a multiple of 4.
WKV_DEV void store_halves(void* to, std::int64_t at, const float (&v)[4], float scale,
                          std::int32_t bf16) {
  const auto half = [&](int i) { return round_half(v[i] * scale, bf16); };
  *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(to) + at) =
      make_uint2(pack(half(0), half(1)), pack(half(2), half(3)));
}

WKV_DEV float warp_sum(float v) {
  for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

}  // namespace wkv::cuda
