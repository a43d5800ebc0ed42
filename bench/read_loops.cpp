// Functions for several instruction sets in one file: no STL here, so that no shared inline
// function is compiled for the wrong one.
#include "read_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace wkv::bench {
namespace {

// Eight accumulators hide the latency of the additions behind the loads.
constexpr int kAccumulators = 8;

float sum_scalar(const char* data, size_t bytes) {
  const float* values = reinterpret_cast<const float*>(data);
  float sums[16] = {};
  for (size_t i = 0; i < bytes / sizeof(float); i += 16)
    for (int j = 0; j < 16; ++j) sums[j] += values[i + static_cast<size_t>(j)];
  float total = 0;
  for (float s : sums) total += s;
  return total;
}

#if defined(__x86_64__)

constexpr size_t kAhead = 1024;  // bytes

__attribute__((target("avx2"))) float sum_avx2(const char* data, size_t bytes) {
  __m256 sums[kAccumulators];
  for (__m256& s : sums) s = _mm256_setzero_ps();
  for (size_t i = 0; i < bytes; i += 32 * kAccumulators)
    for (size_t j = 0; j < kAccumulators; ++j)
      sums[j] =
          _mm256_add_ps(sums[j], _mm256_load_ps(reinterpret_cast<const float*>(data + i + 32 * j)));
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][7];
}

__attribute__((target("avx2"))) float sum_avx2_prefetching(const char* data, size_t bytes) {
  const char* streams[2] = {data, data + bytes / 2};
  __m256 sums[kAccumulators];
  for (__m256& s : sums) s = _mm256_setzero_ps();
  for (size_t i = 0; i < bytes / 2; i += 32 * kAccumulators / 2)
    for (size_t s = 0; s < 2; ++s)
      for (size_t j = 0; j < kAccumulators / 2; ++j) {
        const char* at = streams[s] + i + 32 * j;
        if (j % 2 == 0) _mm_prefetch(at + kAhead, _MM_HINT_T0);
        __m256& sum = sums[s * kAccumulators / 2 + j];
        sum = _mm256_add_ps(sum, _mm256_load_ps(reinterpret_cast<const float*>(at)));
      }
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][7];
}

/// A line of each stream by turns, asked for kAsk bytes ahead if that is not 0.
template <size_t kStreams, size_t kAsk>
__attribute__((target("avx2"))) float sum_avx2_streams(const char* data, size_t bytes) {
  const size_t stream = bytes / kStreams;
  __m256 sums[kAccumulators];
  for (__m256& s : sums) s = _mm256_setzero_ps();
  for (size_t i = 0; i < stream; i += 64)
    for (size_t s = 0; s < kStreams; ++s) {
      const char* line = data + s * stream + i;
      if (kAsk != 0) _mm_prefetch(line + kAsk, _MM_HINT_T0);
      for (size_t j = 0; j < 2; ++j) {
        __m256& sum = sums[(2 * s + j) % kAccumulators];
        sum = _mm256_add_ps(sum, _mm256_load_ps(reinterpret_cast<const float*>(line + 32 * j)));
      }
    }
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][7];
}

__attribute__((target("avx512f"))) float sum_avx512(const char* data, size_t bytes) {
  __m512 sums[kAccumulators];
  for (__m512& s : sums) s = _mm512_setzero_ps();
  for (size_t i = 0; i < bytes; i += 64 * kAccumulators)
    for (size_t j = 0; j < kAccumulators; ++j)
      sums[j] = _mm512_add_ps(sums[j], _mm512_load_ps(data + i + 64 * j));
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][15];
}

__attribute__((target("avx512f"))) float sum_avx512_prefetching(const char* data, size_t bytes) {
  const char* streams[2] = {data, data + bytes / 2};
  __m512 sums[kAccumulators];
  for (__m512& s : sums) s = _mm512_setzero_ps();
  for (size_t i = 0; i < bytes / 2; i += 64 * kAccumulators / 2)
    for (size_t s = 0; s < 2; ++s)
      for (size_t j = 0; j < kAccumulators / 2; ++j) {
        const char* at = streams[s] + i + 64 * j;
        _mm_prefetch(at + kAhead, _MM_HINT_T0);
        __m512& sum = sums[s * kAccumulators / 2 + j];
        sum = _mm512_add_ps(sum, _mm512_load_ps(at));
      }
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][15];
}

/// Two lines of each stream by turns, likewise.
template <size_t kStreams, size_t kAsk>
__attribute__((target("avx512f"))) float sum_avx512_streams(const char* data, size_t bytes) {
  const size_t stream = bytes / kStreams;
  __m512 sums[kAccumulators];
  for (__m512& s : sums) s = _mm512_setzero_ps();
  for (size_t i = 0; i < stream; i += 128)
    for (size_t s = 0; s < kStreams; ++s)
      for (size_t j = 0; j < 2; ++j) {
        const char* line = data + s * stream + i + 64 * j;
        if (kAsk != 0) _mm_prefetch(line + kAsk, _MM_HINT_T0);
        __m512& sum = sums[(2 * s + j) % kAccumulators];
        sum = _mm512_add_ps(sum, _mm512_load_ps(line));
      }
  for (size_t j = 1; j < kAccumulators; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sums[0][0] + sums[0][15];
}

#endif

}  // namespace

ReadLoop read_loop([[maybe_unused]] int which) {
#if defined(__x86_64__)
  constexpr ReadLoop kAvx512[kReadLoops] = {
      sum_avx512, sum_avx512_prefetching, sum_avx512_streams<4, 0>, sum_avx512_streams<8, kAhead>};
  constexpr ReadLoop kAvx2[kReadLoops] = {sum_avx2, sum_avx2_prefetching, sum_avx2_streams<4, 0>,
                                          sum_avx2_streams<8, kAhead>};
  if (__builtin_cpu_supports("avx512f")) return kAvx512[which];
  if (__builtin_cpu_supports("avx2")) return kAvx2[which];
#endif
  return sum_scalar;
}

}  // namespace wkv::bench
