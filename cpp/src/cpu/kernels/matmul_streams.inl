// One row of x and four or eight parts of W, whose rows a thread reads by turns, a line or two of
// each. Zen 3 and Ice Lake want it: a core there gets more from memory for several streams than for
// one. Zen 3, two threads, 512 KiB each, median GB/s of a loop that only reads: one stream 16.5,
// two 19.5, four 21.0, with a prefetch 1 KiB ahead 17.7. Ice Lake: see streams() in isa.cpp.
#pragma once

#include "cpu/kernels/matmul_epilogue.inl"

namespace wkv::cpu {
namespace {

constexpr int kLeastStreams = 4, kMostStreams = 8;

/// Outputs [begin, begin + count apart) are read by turns, the first stream from `begin` on, the
/// others behind it; what is left over is read as one. `apart` is 0 if all of it is.
struct Turns {
  int count = 1, apart = 0;

  Turns(const MatmulArgs& a, int most, int begin, int end) {
    constexpr int kTogether = 8;       // outputs whose lanes are added up together
    constexpr int kLeastInputs = 512;  // below, beginning rows at once costs more than it brings
    if (a.streams.count < kLeastStreams || a.rows > 1 || a.in < kLeastInputs) return;
    count = a.streams.count < most ? a.streams.count : most;
    if (end - begin < count * kTogether) count = kLeastStreams;
    apart = (end - begin) / count / kTogether * kTogether;
  }
};

/// f(Rows<S>) of the S streams that there are.
template <class F>
inline __attribute__((always_inline)) void with_streams(const Turns& turns, F f) {
  if (turns.count == kMostStreams)
    f(Rows<kMostStreams>{});
  else
    f(Rows<kLeastStreams>{});
}

/// Outputs [begin, begin + S apart): multiply(j, n, ask, products) computes products [stream]
/// [kOutBlock] of outputs [j, j + n) of the first stream and of those `apart` outputs further.
template <int S, class Multiply>
inline __attribute__((always_inline)) void multiply_streams(const MatmulArgs& a,
                                                            const RowSums& sums, int begin,
                                                            int apart, Multiply multiply) {
  for (int j = begin; j < begin + apart; j += kOutBlock) {
    const int left = begin + apart - j, n = left < kOutBlock ? left : kOutBlock;
    float products[S][kOutBlock];
    for (int s = 0; s < S; ++s) ask_operands(a, j + s * apart);
    with_ask(a.streams.ahead, [&](auto ask) { multiply(j, n, ask, products); });
    for (int s = 0; s < S; ++s)
      store_outputs(a, sums, products[s], 0, j + s * apart, j + s * apart + n);
  }
}

}  // namespace
}  // namespace wkv::cpu
