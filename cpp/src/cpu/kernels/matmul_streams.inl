// One row of x and four parts of W, whose rows a thread reads by turns, a line or two of each. Zen
// 3 alone wants it: its prefetchers bring more for four streams than for one, and less if lines far
// ahead are asked for as well (two threads, 512 KiB each, median GB/s of a loop that only reads:
// one stream 16.5, with a prefetch 1 KiB ahead 15.2; two 19.5; four 21.0, with the prefetch 17.7).
#pragma once

#include "cpu/kernels/matmul_epilogue.inl"

namespace wkv::cpu {
namespace {

constexpr int kStreams = 4;

/// How many of the outputs [begin, end) each stream has, the first from `begin` on, the others
/// behind it; what is left over is read as one. 0: all of it is.
inline int streams_apart(const MatmulArgs& a, int begin, int end) {
  constexpr int kTogether = 8;       // outputs whose lanes are added up together
  constexpr int kLeastInputs = 512;  // below, beginning four rows at once costs more than it brings
  if (!a.four_streams || a.rows > 1 || a.in < kLeastInputs) return 0;
  return (end - begin) / kStreams / kTogether * kTogether;
}

/// Outputs [begin, begin + kStreams apart): multiply(j, n, products) computes products [stream]
/// [kOutBlock] of outputs [j, j + n) of the first stream and of those `apart` outputs further.
template <class Multiply>
inline __attribute__((always_inline)) void multiply_streams(const MatmulArgs& a,
                                                            const RowSums& sums, int begin,
                                                            int apart, Multiply multiply) {
  for (int j = begin; j < begin + apart; j += kOutBlock) {
    const int left = begin + apart - j, n = left < kOutBlock ? left : kOutBlock;
    float products[kStreams][kOutBlock];
    for (int s = 0; s < kStreams; ++s) ask_operands(a, j + s * apart);
    multiply(j, n, products);
    for (int s = 0; s < kStreams; ++s)
      store_outputs(a, sums, products[s], 0, j + s * apart, j + s * apart + n);
  }
}

}  // namespace
}  // namespace wkv::cpu
