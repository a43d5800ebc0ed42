#include "kernels/roof.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "core/buffer.h"
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

__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 acc[12] = {};
  return multiply_adds(acc, _mm512_set1_ps(0.5f));
}

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
  constexpr std::size_t kPart = std::size_t{256} << 20, kBlock = std::size_t{256} << 10;
  const Buffer memory = allocate_host(kPart * static_cast<std::size_t>(threads));
  std::memset(memory.data(), 1, memory.bytes());
  std::vector<std::size_t> at(static_cast<std::size_t>(threads));
  std::atomic<float> sink{0};
  double best = 0;
  for (const ReadLoop loop : {plain_read_loop(), prefetching_read_loop()})
    best = std::max(best, together(threads, seconds / 2, [&](int i) {
                      std::size_t& offset = at[static_cast<std::size_t>(i)];
                      offset = (offset + kBlock) % kPart;
                      const char* base = static_cast<const char*>(memory.data());
                      sink.store(loop(base + kPart * static_cast<std::size_t>(i) + offset, kBlock));
                      return static_cast<double>(kBlock);
                    }));
  return best;
}

double fma_peak(const char* isa, int threads, double seconds) {
  double (*const work)() = std::strcmp(isa, "avx512") == 0 ? fma_avx512
                           : std::strcmp(isa, "avx2") == 0 ? fma_avx2
                                                           : fma_generic;
  return together(threads, seconds, [work](int) { return work(); });
}

}  // namespace wkv::bench
