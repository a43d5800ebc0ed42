#include "kernels/roof.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#include "core/buffer.h"
#include "footprint.h"
#include "read_loops.h"

namespace wkv::bench {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The best rate of work(index) that threads reach together in samples of 20 ms within `seconds`.
/// The best, because whatever else runs on the machine can only lower it.
template <class F>
double together(int threads, double seconds, F work) {
  constexpr double kSample = 0.02;
  const int samples = std::max(1, static_cast<int>(seconds / kSample));
  std::barrier start(threads);
  std::vector<std::atomic<double>> rate(static_cast<std::size_t>(samples));
  const auto measure = [&](int i) {
    for (std::atomic<double>& sum : rate) {
      start.arrive_and_wait();
      const auto begin = Clock::now();
      double done = 0, elapsed = 0;
      while ((elapsed = since(begin)) < kSample) done += work(i);
      sum.fetch_add(done / elapsed);
    }
  };
  std::vector<std::thread> team;
  for (int i = 0; i < threads; ++i) team.emplace_back(measure, i);
  for (std::thread& member : team) member.join();
  return *std::max_element(rate.begin(), rate.end());
}

template <class V, int N>
__attribute__((always_inline)) inline double multiply_adds(V (&acc)[N], const V& x) {
  constexpr int kRounds = 20000;
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) asm volatile("vfmadd231ps %1, %1, %0" : "+v"(acc[j]) : "v"(x));
  }
  return 2.0 * kRounds * N * (sizeof(V) / sizeof(float));
}

__attribute__((target("avx2,fma"))) double fma_avx2() {
  __m256 acc[12] = {};
  return multiply_adds(acc, _mm256_set1_ps(0.5f));
}

/// Products of 16 bits, added up by an instruction of their own.
__attribute__((target("avx2"))) double words_avx2() {
  constexpr int kRounds = 20000, kChains = 12;
  __m256i acc[kChains] = {};
  const __m256i x = _mm256_set1_epi32(1);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
      __m256i products;
      asm volatile("vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(acc[j]), "=&x"(products)
                   : "x"(x));
    }
  }
  return 2.0 * kRounds * kChains * 16;
}

__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 acc[12] = {};
  return multiply_adds(acc, _mm512_set1_ps(0.5f));
}

__attribute__((target("avx512f,avx512bf16"))) double pairs_avx512() {
  constexpr int kRounds = 20000, kChains = 12;
  __m512 acc[kChains] = {};
  const __m512i x = _mm512_setzero_si512();
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(acc[j]) : "v"(x));
  }
  return 2.0 * 32 * kRounds * kChains;
}

__attribute__((target("avx512f,avx512vnni"))) double dot_avx512() {
  constexpr int kRounds = 20000, kChains = 12;
  __m512i acc[kChains] = {};
  const __m512i x = _mm512_set1_epi32(1);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) asm volatile("vpdpbusd %1, %1, %0" : "+v"(acc[j]) : "v"(x));
  }
  return 2.0 * kRounds * kChains * 64;
}

__attribute__((target("avx512f,avx512vnni"))) double words_avx512() {
  constexpr int kRounds = 20000, kChains = 12;
  __m512i acc[kChains] = {};
  const __m512i x = _mm512_set1_epi32(1);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) asm volatile("vpdpwssd %1, %1, %0" : "+v"(acc[j]) : "v"(x));
  }
  return 2.0 * kRounds * kChains * 32;
}

#if defined(WKV_AMX)
struct alignas(64) TileConfig {
  unsigned char palette = 1, start = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTiles;
constexpr int kTileRounds = 2000;

/// Four sums, two tiles of x and two of W, all zero: the arithmetic of the kernels without their
/// loads.
__attribute__((target("amx-tile,amx-bf16"))) double tiles_bf16() {
  asm volatile("ldtilecfg %0" ::"m"(kTiles));
  for (int i = 0; i < kTileRounds; ++i)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
  return 2.0 * kTileRounds * 4 * 16 * 16 * 32;
}

__attribute__((target("amx-tile,amx-int8"))) double tiles_int8() {
  asm volatile("ldtilecfg %0" ::"m"(kTiles));
  for (int i = 0; i < kTileRounds; ++i)
    asm volatile(
        "tdpbsud %tmm6, %tmm4, %tmm0\n\ttdpbsud %tmm7, %tmm4, %tmm1\n\t"
        "tdpbsud %tmm6, %tmm5, %tmm2\n\ttdpbsud %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
  return 2.0 * kTileRounds * 4 * 16 * 16 * 64;
}
#else
double tiles_bf16() { return 0; }
double tiles_int8() { return 0; }
#endif

/// SSE2 has no fused multiply-add: one multiplication and one addition.
double fma_generic() {
  constexpr int kRounds = 20000, kChains = 12;
  __m128 acc[kChains] = {};
  const __m128 x = _mm_set1_ps(0.5f);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
      __m128 product = x;
      asm volatile("mulps %2, %1\n\taddps %1, %0" : "+x"(acc[j]), "+x"(product) : "x"(x));
    }
  }
  return 2.0 * kRounds * kChains * 4;
}

}  // namespace

double read_bandwidth(int threads, double seconds) {
  constexpr std::size_t kBlock = std::size_t{256} << 10;
  const std::size_t part = footprint_bytes() / static_cast<std::size_t>(threads) / kBlock * kBlock;
  const Buffer memory = allocate_host(part * static_cast<std::size_t>(threads));
  std::memset(memory.data(), 1, memory.bytes());
  std::vector<std::size_t> at(static_cast<std::size_t>(threads));
  std::atomic<float> sink{0};
  double best = 0;
  for (int which = 0; which < kReadLoops; ++which) {
    const ReadLoop loop = read_loop(which);
    best = std::max(best, together(threads, seconds / kReadLoops, [&](int i) {
                      std::size_t& offset = at[static_cast<std::size_t>(i)];
                      offset = (offset + kBlock) % part;
                      const char* base = static_cast<const char*>(memory.data());
                      sink.store(loop(base + part * static_cast<std::size_t>(i) + offset, kBlock));
                      return static_cast<double>(kBlock);
                    }));
  }
  return best;
}

double arithmetic_peak(std::string_view unit, int threads, double seconds) {
  double (*const work)() = unit == "avx512"         ? fma_avx512
                           : unit == "avx512 int8"  ? dot_avx512
                           : unit == "avx512 int16" ? words_avx512
                           : unit == "avx512 bf16"  ? pairs_avx512
                           : unit == "avx2"         ? fma_avx2
                           : unit == "avx2 int16"   ? words_avx2
                           : unit == "amx bf16"     ? tiles_bf16
                           : unit == "amx int8"     ? tiles_int8
                                                    : fma_generic;
  return together(threads, seconds, [work](int) { return work(); });
}

}  // namespace wkv::bench
