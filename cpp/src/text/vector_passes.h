// Passes over a whole vector of logits. Bit for bit the same results on every machine: each
// operation is one that IEEE 754 rounds in one way, in an order that does not depend on the width
// of a vector register. So the fastest version may be chosen freely.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace wkv::detail {

/// Lengths are whole chunks (padded with -infinity), and sums are kept per chunk.
inline constexpr size_t kChunk = 256;

struct VectorPasses {
  /// maxima[i] = the largest of x[256 i .. 256 i + 255]. False if NaN is among the x.
  bool (*chunk_maxima)(const float* x, size_t size, float* maxima);

  /// out[i] = exp((x[i] - offset) * scale), within 2e-7 of it relative to the rounded argument;
  /// 0 below e^-87. x[i] <= offset, scale > 0. sums[i] = the sum of a chunk of out. `out` may be x.
  void (*exp)(const float* x, size_t size, float offset, float scale, float* out, double* sums);

  /// The sums of exp() alone.
  void (*exp_sums)(const float* x, size_t size, float offset, float scale, double* sums);

  /// sums[i] = the sum of weights[j] * (x[j] - offset) over a chunk, where weights[j] > 0.
  void (*moment)(const float* weights, const float* x, size_t size, float offset, double* sums);

  /// out[i] = 1 / (1 + |x[i] * scale + shift|).
  void (*nearness)(const float* x, size_t size, float scale, float shift, float* out);

  /// sums[k] = the sum of masses[i] where keys[i] >= bounds[k].
  void (*mass_above)(const float* keys, const float* masses, size_t size, const float (&bounds)[4],
                     double (&sums)[4]);

  /// Writes each i with low <= keys[i] < end to ids, ascending; returns their number. Where that is
  /// above `most` it stops, with most + 1 or more; ids has room for most + 16 or, if that is less,
  /// for `size`.
  size_t (*collect)(const float* keys, size_t size, float low, float end, size_t most,
                    uint32_t* ids);

  /// values[i] = 0 where keys[i] < low. sums[i] = the sum of a chunk of values.
  void (*keep_above)(float* values, const float* keys, size_t size, float low, double* sums);
};

/// For any processor, with AVX2 and with AVX-512 (both x86-64 alone).
extern const VectorPasses kGenericPasses;
extern const VectorPasses kAvx2Passes;
extern const VectorPasses kAvx512Passes;

/// The fastest one that this processor runs.
const VectorPasses& vector_passes() noexcept;

}  // namespace wkv::detail
