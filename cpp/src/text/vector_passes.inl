// The passes of vector_passes.h for vectors of kLanes floats. Included by one source per
// instruction set, each of which says -ffp-contract=off; no STL, so that no inline function of a
// library is compiled for a processor that the program may not run on.
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "text/vector_passes.h"

namespace wkv::detail {
namespace {

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// Sums run in 16 lanes whatever kLanes is: so many vectors.
constexpr size_t kGroup = 16 / kLanes;

inline Floats load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

/// The sum of 16 lanes, pairwise as one order for all widths.
inline double sum_lanes(const Floats (&sums)[kGroup]) {
  float lane[16];
  for (size_t g = 0; g < kGroup; ++g) store(lane + g * kLanes, sums[g]);
  float four[4];
  for (size_t i = 0; i < 4; ++i) four[i] = (lane[i] + lane[i + 4]) + (lane[i + 8] + lane[i + 12]);
  return (double{four[0]} + double{four[1]}) + (double{four[2]} + double{four[3]});
}

/// exp(a) for a <= 0: a = n ln 2 + r, |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r) with q minimax.
inline Floats exp_nonpositive(Floats a) {
  const Ints in_range = a > -87.0f;      // below, what follows is garbage or NaN, and masked
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats t = a * 1.44269504f + kRound;
  const Floats n = t - kRound;
  // ln 2 in two parts; the first has 9 bits, so that n times it is exact.
  const Floats r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats q = r * 0x1.6a23dcp-10f + 0x1.123a24p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.55549p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const Floats y = (r * r) * q + r + 1.0f;
  // The low bits of t hold n: shifted, they add n to the exponent.
  const Ints bits = (Ints)y + ((Ints)t << 23);
  return (Floats)(bits & in_range);
}

bool chunk_maxima(const float* x, size_t size, float* maxima) {
  Ints unordered = {};
  for (size_t i = 0; i < size; i += kChunk) {
    Floats m0 = load(x + i), m1 = load(x + i + kLanes);
    unordered |= (m0 != m0) | (m1 != m1);
    for (size_t j = i + 2 * kLanes; j < i + kChunk; j += 2 * kLanes) {
      const Floats v0 = load(x + j), v1 = load(x + j + kLanes);
      unordered |= (v0 != v0) | (v1 != v1);
      m0 = larger(m0, v0);
      m1 = larger(m1, v1);
    }
    const Floats m = larger(m0, m1);
    float best = m[0];
    for (size_t lane = 1; lane < kLanes; ++lane) best = m[lane] > best ? m[lane] : best;
    maxima[i / kChunk] = best;
  }
  int32_t any = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) any |= unordered[lane];
  return any == 0;
}

template <bool kStore>
inline void exp_chunks(const float* x, size_t size, float offset, float scale, float* out,
                       double* sums) {
  for (size_t i = 0; i < size; i += kChunk) {
    Floats sum[kGroup] = {};
    for (size_t j = i; j < i + kChunk; j += 16) {
      for (size_t g = 0; g < kGroup; ++g) {
        const size_t at = j + g * kLanes;
        const Floats e = exp_nonpositive((load(x + at) - offset) * scale);
        if constexpr (kStore) store(out + at, e);
        sum[g] += e;
      }
    }
    sums[i / kChunk] = sum_lanes(sum);
  }
}

void exp_pass(const float* x, size_t size, float offset, float scale, float* out, double* sums) {
  exp_chunks<true>(x, size, offset, scale, out, sums);
}

void exp_sums(const float* x, size_t size, float offset, float scale, double* sums) {
  exp_chunks<false>(x, size, offset, scale, nullptr, sums);
}

void moment(const float* weights, const float* x, size_t size, float offset, double* sums) {
  for (size_t i = 0; i < size; i += kChunk) {
    Floats sum[kGroup] = {};
    for (size_t j = i; j < i + kChunk; j += 16) {
      for (size_t g = 0; g < kGroup; ++g) {
        const size_t at = j + g * kLanes;
        const Floats weight = load(weights + at);
        const Ints counts = weight > 0.0f;  // 0 * -infinity is NaN
        sum[g] += (Floats)((Ints)(weight * (load(x + at) - offset)) & counts);
      }
    }
    sums[i / kChunk] = sum_lanes(sum);
  }
}

void nearness(const float* x, size_t size, float scale, float shift, float* out) {
  for (size_t i = 0; i < size; i += kLanes) {
    const Floats distance = (Floats)((Ints)(load(x + i) * scale + shift) & 0x7fffffff);
    store(out + i, 1.0f / (distance + 1.0f));
  }
}

void mass_above(const float* keys, const float* masses, size_t size, const float (&bounds)[4],
                double (&sums)[4]) {
  for (double& sum : sums) sum = 0;
  for (size_t i = 0; i < size; i += kChunk) {
    Floats sum[4][kGroup] = {};
    for (size_t j = i; j < i + kChunk; j += 16) {
      for (size_t g = 0; g < kGroup; ++g) {
        const Floats key = load(keys + j + g * kLanes);
        const Ints mass = (Ints)load(masses + j + g * kLanes);
        for (size_t k = 0; k < 4; ++k) sum[k][g] += (Floats)(mass & (key >= bounds[k]));
      }
    }
    for (size_t k = 0; k < 4; ++k) sums[k] += sum_lanes(sum[k]);
  }
}

/// A bit for each lane, which is 0 or -1.
inline uint32_t bits_of(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)lanes, _mm512_setzero_si512());
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps((__m256)lanes);
#elif defined(__SSE2__)
  return (uint32_t)_mm_movemask_ps((__m128)lanes);
#else
  uint32_t bits = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) bits |= (uint32_t)(lanes[lane] & 1) << lane;
  return bits;
#endif
}

size_t collect(const float* keys, size_t size, float low, float end, size_t most, uint32_t* ids) {
  size_t count = 0;
  for (size_t i = 0; i < size && count <= most; i += 16) {
    uint32_t hits = 0;
    for (size_t g = 0; g < kGroup; ++g) {
      const Floats key = load(keys + i + g * kLanes);
      hits |= bits_of((key >= low) & (key < end)) << (g * kLanes);
    }
    for (; hits != 0; hits &= hits - 1) ids[count++] = (uint32_t)i + (uint32_t)__builtin_ctz(hits);
  }
  return count;
}

void keep_above(float* values, const float* keys, size_t size, float low, double* sums) {
  for (size_t i = 0; i < size; i += kChunk) {
    Floats sum[kGroup] = {};
    for (size_t j = i; j < i + kChunk; j += 16) {
      for (size_t g = 0; g < kGroup; ++g) {
        const size_t at = j + g * kLanes;
        const Ints keep = load(keys + at) >= low;
        const Floats value = (Floats)((Ints)load(values + at) & keep);
        store(values + at, value);
        sum[g] += value;
      }
    }
    sums[i / kChunk] = sum_lanes(sum);
  }
}

constexpr VectorPasses kPasses = {
    chunk_maxima, exp_pass, exp_sums, moment, nearness, mass_above, collect, keep_above,
};

}  // namespace
}  // namespace wkv::detail
