// One row with weights of a byte: codes are small integers, so x becomes fixed point and the sums
// are exact integers. A processor does four times as many byte products as float ones, and the
// codes need no conversion. x is rounded to 2^-30 of its largest element (2^-29 with AVX2), less
// than sums in fp32 lose.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"
#include "cpu/kernels/matmul_streams.inl"

namespace wkv::cpu {
namespace {

/// What gemv_prepare() leaves for gemv() at the beginning of the scratch memory.
struct GemvHead {
  bool fixed;    ///< x is in fixed point
  float step;    ///< of the one row of 8-bit codes
  RowSums sums;  ///< likewise
};
constexpr size_t kHeadBytes = 64;
static_assert(sizeof(GemvHead) <= kHeadBytes);

/// Magnitude bits of floats: they order like the values, infinities and NaN above all.
inline i32v magnitude(f32v v) { return (i32v)v & 0x7fffffff; }
inline i32v larger(i32v a, i32v b) { return a > b ? a : b; }
constexpr int32_t kInfinityBits = 0x7f800000;
/// Below, the reciprocal of a fixed-point step may overflow; such rows are left to floats.
constexpr int32_t kTinyBits = 30 << 23;

inline int32_t largest(i32v v) {
  int32_t most = 0;
  for (int i = 0; i < W; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

/// W inputs of x from k on, times their scale; zeros beyond `in`.
inline f32v scaled_inputs(const float* x, const float* scale, int k, int in) {
  if (k + W <= in) return scale ? load(x + k) * load(scale + k) : load(x + k);
  if (k >= in) return f32v{};
  return scale ? load_part(x + k, in - k) * load_part(scale + k, in - k) : load_part(x + k, in - k);
}

/// The bits of the largest magnitude of a row; false if fixed point does not hold the row.
inline bool row_range(const float* x, const float* scale, int in, int32_t* most) {
  i32v m{};
  for (int k = 0; k < in; k += W) m = larger(m, magnitude(scaled_inputs(x, scale, k, in)));
  *most = largest(m);
  return *most < kInfinityBits && (*most == 0 || *most >= kTinyBits);
}

inline float float_of_bits(int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

/// A row is kept as integers below 2^bits times a power of two: x = integer * step.
struct RowStep {
  float step, inverse;
  RowStep(int32_t most, int bits) {
    const int32_t exponent = most >= kTinyBits ? most >> 23 : kTinyBits >> 23;
    step = float_of_bits((exponent + 1 - bits) << 23);
    inverse = float_of_bits((254 - (exponent + 1 - bits)) << 23);
  }
};

}  // namespace
}  // namespace wkv::cpu

#if defined(__AVX512F__)
#include "cpu/kernels/matmul_fixed_avx512.inl"
#elif defined(__AVX2__)
#include "cpu/kernels/matmul_fixed_avx2.inl"
#endif

namespace wkv::cpu {
namespace {

#if defined(__AVX2__)

/// Bytes of prepared x: for every segment a head, then its steps.
template <class C>
inline size_t fixed_segment_bytes(int inputs) {
  return C::kHeadBytes + (size_t)((inputs + C::kInputs - 1) / C::kInputs) * C::kXBytes;
}
template <class C>
inline size_t fixed_x_bytes(int in) {
  return (size_t)(in / kSegment) * fixed_segment_bytes<C>(kSegment) +
         fixed_segment_bytes<C>(in % kSegment);
}

/// Products of inputs [k0, k0 + n), those of a segment, of S rows of W, `row` and those `apart`
/// rows behind each other, to be added up: lanes[s stride]. A line of each by turns, or two with
/// their sums in memory meanwhile where registers hold those of four alone; more registers than
/// there are would be needed for the x that they share. Two rows in a row are two streams as well:
/// GB/s of two threads of Zen 3, of 35: 21 with two rows, 28 with one.
template <class C, int S, class Asking>
inline __attribute__((always_inline)) void fixed_rows(const MatmulArgs& a, int row, int apart,
                                                      const unsigned char* x, int k0, int n,
                                                      Asking ask, f32v* lanes, ptrdiff_t stride) {
  typename C::Sums sums[S];
  const unsigned char* w[S];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    sums[s].start(x);
    w[s] = (const unsigned char*)a.w + (row + (ptrdiff_t)s * apart) * a.row_bytes + k0;
  }
  x += C::kHeadBytes;
  static_assert(C::kInputs == 64);  // a line
  int k = 0;
  if constexpr (S > kLeastStreams)
    for (; k + 2 * C::kInputs <= n; k += 2 * C::kInputs, x += 2 * C::kXBytes) {
#pragma GCC unroll 1
      for (int s = 0; s < S; ++s) {
        typename C::Sums mine = sums[s];
        const unsigned char* at = w[s];
        w[s] += 2 * C::kInputs;
        ask(at);
        ask(at + C::kInputs);
        mine.step(at, x);
        mine.step(at + C::kInputs, x + C::kXBytes);
        sums[s] = mine;
      }
    }
  for (; k + C::kInputs <= n; k += C::kInputs, x += C::kXBytes) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s, w[s - 1] += C::kInputs) {
      ask(w[s]);
      sums[s].step(w[s], x);
      // GCC 12 would keep x in registers and the sums in memory.
      if constexpr (S > 1) asm volatile("" ::: "memory");
    }
  }
  if (k < n) {
    // x has zeros past the end of a row, so that what follows there in W need not be cut off.
    const ptrdiff_t codes = (a.out - 1) * a.row_bytes + a.in;
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {  // not unrolled, all sums would stay in memory
      unsigned char tail[C::kInputs] = {};
      if (w[s] + C::kInputs > (const unsigned char*)a.w + codes) {
        __builtin_memcpy(tail, w[s], (size_t)(n - k));
        w[s] = tail;
      }
      sums[s].step(w[s], x);
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) lanes[s * stride] = sums[s].lanes();
}

/// The same of `n` inputs, any number of segments.
template <class C, int S, class Asking>
inline __attribute__((always_inline)) void fixed_pieces(const MatmulArgs& a, int row, int apart,
                                                        const unsigned char* x, int k0, int n,
                                                        Asking ask, f32v* lanes, ptrdiff_t stride) {
  x += (k0 / kSegment) * fixed_segment_bytes<C>(kSegment);
  fixed_rows<C, S>(a, row, apart, x, k0, n < kSegment ? n : kSegment, ask, lanes, stride);
  for (int k = kSegment; k < n; k += kSegment) {
    f32v more[S];
    x += fixed_segment_bytes<C>(kSegment);
    fixed_rows<C, S>(a, row, apart, x, k0 + k, n - k < kSegment ? n - k : kSegment, ask, more, 1);
    for (int s = 0; s < S; ++s) lanes[s * stride] += more[s];
  }
}

/// x of the product; false if fixed point does not hold it.
template <class C>
bool prepare_fixed_typed(const MatmulArgs& a, GemvHead* head, unsigned char* x) {
  int32_t most;
  if (!row_range(a.x, a.scales.in_scale, a.in, &most)) return false;
  const RowStep s(most, C::kBits);
  for (int k = 0; k < a.in; k += kSegment)
    C::prepare(x + (k / kSegment) * fixed_segment_bytes<C>(kSegment), a.x + k,
               a.scales.in_scale ? a.scales.in_scale + k : nullptr,
               a.in - k < kSegment ? a.in - k : kSegment, s.inverse);
  head->step = s.step;
  head->sums = needs_sums(a.scales) ? row_sums(a.scales, a.x, a.in) : RowSums{};
  return true;
}

/// Outputs [begin, begin + S apart), whole rows, bit for bit as one after the other.
template <class C, int S>
__attribute__((noinline)) void fixed_by_turns(const MatmulArgs& a, int begin, int apart,
                                              const GemvHead& head, const unsigned char* x) {
  multiply_streams<S>(a, head.sums, begin, apart, [&](int j, int n, auto ask, auto& products) {
    f32v lanes[S][kOutBlock];
    for (int r = 0; r < n; ++r)
      fixed_pieces<C, S>(a, j + r, apart, x, 0, a.in, ask, lanes[0] + r, kOutBlock);
    for (int s = 0; s < S; ++s) {
      sum_each(lanes[s], n, products[s]);
      for (int r = 0; r < n; ++r) products[s][r] *= head.step;
    }
  });
}

/// kRowByRow: the lanes of a row are added up when it ends, not those of many rows together.
template <class C, bool kRowByRow, class Asking>
__attribute__((noinline)) void gemv_fixed_typed(const MatmulArgs& a, int begin, int end,
                                                const GemvHead& head, const unsigned char* x,
                                                Asking ask) {
  const int segment = a.streams.count >= kLeastStreams ? a.in : a.segment;
  for (int j = begin; j < end; j += kOutBlock) {
    const int stop = end - j < kOutBlock ? end : j + kOutBlock;
    ask_operands(a, j);
    float products[kOutBlock];
    for (int k0 = 0; k0 < a.in; k0 += segment) {
      const int piece = a.in - k0 < segment ? a.in - k0 : segment;
      // Of a piece of a row the same inputs of a row that follows, at least that many bytes on.
      if (piece < a.in) ask.ahead.l2 = (a.ahead.l2 + piece - 1) / piece * a.row_bytes;
      f32v lanes[kOutBlock];
      float totals[kOutBlock];
      for (int r = j; r < stop; ++r) {
        f32v row[1];
        fixed_pieces<C, 1>(a, r, 0, x, k0, piece, ask, row, 1);
        if constexpr (kRowByRow)
          totals[r - j] = sum(row[0]);
        else
          lanes[r - j] = row[0];
      }
      if constexpr (!kRowByRow) sum_each(lanes, stop - j, totals);
      for (int r = 0; r < stop - j; ++r) {
        const float product = totals[r] * head.step;
        products[r] = k0 > 0 ? products[r] + product : product;
      }
    }
    store_outputs(a, head.sums, products, 0, j, stop);
  }
}

template <class C>
void gemv_fixed_typed(const MatmulArgs& a, int begin, int end, const GemvHead& head,
                      const unsigned char* x) {
  if (const Turns turns(a, C::kMostStreams, begin, end); turns.apart > 0) {
    with_streams(turns, [&](auto streams) {
      if constexpr (streams.n <= C::kMostStreams)
        fixed_by_turns<C, streams.n>(a, begin, turns.apart, head, x);
    });
    begin += turns.count * turns.apart;
  }
  with_ask(a.ahead, [&](auto ask) {
#if defined(__AVX512F__)
    // To add up many rows together is less work, but nothing is asked for meanwhile. Granite
    // Rapids, row by row: 1024 inputs 1 to 2 % faster, 64 inputs 12 % slower.
    if (a.in >= 512) return gemv_fixed_typed<C, true>(a, begin, end, head, x, ask);
#endif
    gemv_fixed_typed<C, false>(a, begin, end, head, x, ask);
  });
}

/// False if fixed point does not hold x, for several rows and for other types. With more rows,
/// converting the codes to floats once for all is as fast.
bool prepare_fixed(const MatmulArgs& a, GemvHead* head, void* x) {
  if (a.rows != 1) return false;
  if (a.type == kWeightI8) return prepare_fixed_typed<FixedByte<true>>(a, head, (unsigned char*)x);
  if (a.type == kWeightU8) return prepare_fixed_typed<FixedByte<false>>(a, head, (unsigned char*)x);
  return false;
}

void gemv_fixed(const MatmulArgs& a, int begin, int end, const GemvHead& head, const void* x) {
  if (a.type == kWeightI8)
    gemv_fixed_typed<FixedByte</*kSigned=*/true>>(a, begin, end, head, (const unsigned char*)x);
  else
    gemv_fixed_typed<FixedByte</*kSigned=*/false>>(a, begin, end, head, (const unsigned char*)x);
}

size_t fixed_scratch(const MatmulArgs& a) { return fixed_x_bytes<FixedByte<true>>(a.in); }

#else

bool prepare_fixed(const MatmulArgs&, GemvHead*, void*) { return false; }
void gemv_fixed(const MatmulArgs&, int, int, const GemvHead&, const void*) {}
size_t fixed_scratch(const MatmulArgs&) { return 0; }

#endif

}  // namespace
}  // namespace wkv::cpu
