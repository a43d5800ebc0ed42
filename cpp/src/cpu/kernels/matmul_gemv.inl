// Few rows: rows of W against rows of x, accumulated over `in` in vectors whose lanes are added up
// at the end. One row of x takes one row of W at a time, a single stream that the prefetcher and
// prefetch instructions follow; more take four, so that x is loaded once for them.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"
#include "cpu/kernels/matmul_fixed.inl"
#include "cpu/kernels/matmul_int4.inl"
#include "cpu/kernels/matmul_streams.inl"

namespace wkv::cpu {
namespace {

constexpr int kWeightRows = 4;
#if defined(__AVX512F__)
constexpr int kMaxX = 6;  // 24 accumulators, 6 of x, 1 of W of 32 registers
#elif defined(__AVX2__)
constexpr int kMaxX = 3;  // 12, 3, 1 of 16
#else
constexpr int kMaxX = 2;
#endif
template <class C>
inline int steps(int in) {
  return (in + kStep<C> - 1) / kStep<C>;
}

/// One row of x as the kernels read it: times in_scale, in the order of the codec, padded with
/// zeros.
template <class C>
void prepare_x(float* to, const float* x, const float* scale, int in) {
  for (int k = 0; k < in; k += kStep<C>, to += kStep<C>) {
    f32v v[C::kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < C::kVectors; ++i) v[i] = scaled_inputs(x, scale, k + i * W, in);
    C::order(v);
#pragma GCC unroll 4
    for (int i = 0; i < C::kVectors; ++i) store(to + i * W, v[i]);
  }
}

template <class C, int RW, int RX>
struct Accumulators {
  static constexpr int kChains = RW * RX >= 6 ? 1 : RW * RX >= 3 ? 2 : 4;
  f32v sums[RX][RW][kChains] = {};

  /// One step of every row, or its first `kVectors` vectors. Lines of a stream (RW = 1) are asked
  /// for ahead right before as many are read; into one cache alone, all of a step at once.
  template <int kVectors = C::kVectors, class Asking = AskNothing>
  inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW],
                                                  const float* x, ptrdiff_t xs, Asking ask = {}) {
    constexpr int kLines = kStepBytes<C> < 64 ? 1 : kStepBytes<C> / 64;
    constexpr int kOfALine = C::kVectors / kLines;
    constexpr bool kInParts = Asking::kTwice && C::kLinesAsked < kLines;
    constexpr int kTogether = kInParts ? C::kLinesAsked : kLines;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (!Asking::kNothing)
        if (v % (kOfALine * kTogether) == 0) {
          // GCC would ask for all of a step at its beginning.
          if constexpr (kInParts) asm volatile("" ::: "memory");
#pragma GCC unroll 4
          for (int line = 0; line < kTogether; ++line) ask(rows[0] + (v / kOfALine + line) * 64);
          if constexpr (kInParts) asm volatile("" ::: "memory");
        }
      f32v xv[RX];
#pragma GCC unroll 8
      for (int m = 0; m < RX; ++m) xv[m] = load(x + m * xs + v * W);
#pragma GCC unroll 4
      for (int r = 0; r < RW; ++r) {
        const f32v w = C::get(rows[r], v);
#pragma GCC unroll 8
        for (int m = 0; m < RX; ++m) {
          if constexpr (RW * RX >= 8)
            add_product(sums[m][r][v % kChains], w, xv[m]);
          else
            sums[m][r][v % kChains] += w * xv[m];
        }
      }
    }
  }

  f32v lanes(int m, int r) const {
    f32v s = sums[m][r][0];
    for (int c = 1; c < kChains; ++c) s += sums[m][r][c];
    return s;
  }
};

/// The last inputs of a row, `n` of them, less than a step.
template <class C, int RW, int RX>
inline __attribute__((always_inline)) void add_rest(Accumulators<C, RW, RX>& acc,
                                                    const unsigned char* (&rows)[RW],
                                                    const float* x, ptrdiff_t xs, int n) {
  constexpr int kHalf = kStep<C> / 2;  // 32 inputs with AVX-512: the rank of v7's smallest factors
  if (n >= kHalf) {
    acc.template step<C::kVectors / 2>(rows, x, xs);
    n -= kHalf, x += kHalf;
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) rows[r] += kStepBytes<C> / 2;
  }
  if (n > 0) {
    unsigned char tail[RW][kStepBytes<C> / 2] = {};
    for (int r = 0; r < RW; ++r) {
      __builtin_memcpy(tail[r], rows[r], (size_t)(n * 8 / C::kInputsPerByteX8));
      rows[r] = tail[r];
    }
    acc.template step<C::kVectors / 2>(rows, x, xs);
  }
}

/// The rows of W that follow a tile of RW rows, asked for while the tile is computed: at every step
/// what lies below it.
template <class C, int RW, bool kL1>
struct AskBelow {
  ptrdiff_t tile_bytes;

  inline __attribute__((always_inline)) void step(const unsigned char* const (&rows)[RW]) {
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r)
#pragma GCC unroll 4
      for (int line = 0; line < kStepBytes<C>; line += 64)
        __builtin_prefetch(rows[r] + tile_bytes + line, 0, kL1 ? 3 : 2);
  }
};

/// The same where a tile is computed `parts` times, with as many rows of x: every step asks for as
/// much as memory brings meanwhile. It rests in the other parts if the first asks for all: Zen 3,
/// 12 rows and 2048 x 4096, times as fast as that: fp32 1.4, fp16 1.4, bf16 1.3, int8 1.15.
template <class C, int RW, bool kOnePart>
struct AskInParts {
  static constexpr int kBytes = RW * kStepBytes<C> / (kOnePart ? 1 : 2);
  const unsigned char* at;
  ptrdiff_t step_bytes;

  AskInParts(const MatmulArgs& a, int row, int parts)
      : at((const unsigned char*)a.w + (row + RW) * a.row_bytes),
        step_bytes(RW * kStepBytes<C> / parts) {}
  inline __attribute__((always_inline)) void step(const unsigned char* const (&)[RW]) {
#pragma GCC unroll 8
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(at + line, 0, 2);
    at += step_bytes;
  }
};

/// Products of rows [row, row + RW) of W and RX rows of x, `xs` apart, lane by lane: [x row][weight
/// row]. `ask`: an Ask for a single row of W, one of the above for several.
template <class C, int RW, int RX, class Asking>
inline __attribute__((always_inline)) void tile_lanes(const MatmulArgs& a, int row, const float* x,
                                                      ptrdiff_t xs, Asking& ask, f32v* lanes) {
  Accumulators<C, RW, RX> acc;
  const unsigned char* rows[RW];
#pragma GCC unroll 4
  for (int r = 0; r < RW; ++r) rows[r] = (const unsigned char*)a.w + (row + r) * a.row_bytes;
  const int in = a.in;  // outlives what tells GCC that memory has changed
  Asking asking = ask;
  int k = 0;
  for (; k + kStep<C> <= in; k += kStep<C>, x += kStep<C>) {
    if constexpr (RW == 1) {
      acc.step(rows, x, xs, asking);
    } else {
      asking.step(rows);
      acc.step(rows, x, xs);
    }
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) rows[r] += kStepBytes<C>;
  }
  ask = asking;
  add_rest(acc, rows, x, xs, in - k);
#pragma GCC unroll 8
  for (int m = 0; m < RX; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) lanes[m * RW + r] = acc.lanes(m, r);
}

/// products[x row][weight row].
template <class C, int RW, int RX, class Asking>
__attribute__((noinline)) void dot_tile(const MatmulArgs& a, int row, const float* x, ptrdiff_t xs,
                                        Asking& ask, float* products, ptrdiff_t products_stride) {
  f32v lanes[RX * RW];
  tile_lanes<C, RW, RX>(a, row, x, xs, ask, lanes);
  float totals[RX * RW];
  sum_each(lanes, RX * RW, totals);
#pragma GCC unroll 8
  for (int m = 0; m < RX; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) products[m * products_stride + r] = totals[m * RW + r];
}

/// One row of x and `n` rows of W, one after the other: a single stream, whose rows run into the
/// next.
template <class C>
void dot_stream(const MatmulArgs& a, int row, int n, const float* x, float* products) {
  f32v lanes[kOutBlock];
  with_ask(a.ahead, [&](auto ask) {
    for (int r = 0; r < n; ++r) tile_lanes<C, 1, 1>(a, row + r, x, 0, ask, lanes + r);
  });
  sum_each(lanes, n, products);
}

/// One row of x and rows of W `apart` outputs from each other, a step of each by turns; bit for bit
/// as one after the other. `products`: see multiply_streams().
template <class C, int S, class Asking>
void dot_by_turns(const MatmulArgs& a, int row, int n, int apart, const float* x, Asking ask,
                  float (*products)[kOutBlock]) {
  f32v lanes[S][kOutBlock];
  for (int r = 0; r < n; ++r) {
    Accumulators<C, 1, 1> acc[S];
    const unsigned char* rows[S][1];
    for (int s = 0; s < S; ++s)
      rows[s][0] = (const unsigned char*)a.w + (row + r + (ptrdiff_t)s * apart) * a.row_bytes;
    int k = 0;
    for (; k + kStep<C> <= a.in; k += kStep<C>)
      for (int s = 0; s < S; ++s, rows[s - 1][0] += kStepBytes<C>)
        acc[s].step(rows[s], x + k, 0, ask);
    for (int s = 0; s < S; ++s) {
      add_rest(acc[s], rows[s], x + k, 0, a.in - k);
      lanes[s][r] = acc[s].lanes(0, 0);
    }
  }
  for (int s = 0; s < S; ++s) sum_each(lanes[s], n, products[s]);
}

/// Parts that rows of x are taken in, as equal as they can be: 8 rows are 4 + 4, since 2 of 6 + 2
/// take as long as 4.
inline int parts_of(int rows) { return (rows + kMaxX - 1) / kMaxX; }

/// kMost: rows of x of a part.
template <class C, int RW, int kMost = kMaxX, class Asking>
inline void dot_parts(const MatmulArgs& a, int row, const float* x, ptrdiff_t xs, Asking ask,
                      float* products, ptrdiff_t ps) {
  int rows = a.rows;
  for (int parts = parts_of(rows); parts > 0; --parts) {
    const int part = (rows + parts - 1) / parts;
    switch (part) {
      case 1:
        dot_tile<C, RW, 1>(a, row, x, xs, ask, products, ps);
        break;
      case 2:
        dot_tile<C, RW, 2>(a, row, x, xs, ask, products, ps);
        break;
#if defined(__AVX2__)
      case 3:
        dot_tile<C, RW, 3>(a, row, x, xs, ask, products, ps);
        break;
#endif
#if defined(__AVX512F__)
      case 4:
        if constexpr (kMost >= 4) dot_tile<C, RW, 4>(a, row, x, xs, ask, products, ps);
        break;
      case 5:
        if constexpr (kMost >= 5) dot_tile<C, RW, 5>(a, row, x, xs, ask, products, ps);
        break;
      case 6:
        if constexpr (kMost >= 6) dot_tile<C, RW, 6>(a, row, x, xs, ask, products, ps);
        break;
#endif
      default:
        break;
    }
    rows -= part;
    x += part * xs;
    products += part * ps;
  }
}

template <class C, int RW>
inline void dot_rows(const MatmulArgs& a, int row, const float* x, ptrdiff_t xs, float* products,
                     ptrdiff_t ps) {
  const int parts = parts_of(a.rows);
  if constexpr (RW == 1)
    dot_parts<C, 1>(a, row, x, xs, AskNothing{}, products, ps);
  else if (parts > 1)
    dot_parts<C, RW>(a, row, x, xs, AskInParts<C, RW, false>(a, row, parts), products, ps);
  else if constexpr (kStepBytes<C> < 64)  // lines below would be asked for twice
    dot_parts<C, RW>(a, row, x, xs, AskInParts<C, RW, true>(a, row, 1), products, ps);
  else if (a.rows <= 3 && a.streams.count == kMostStreams)
    // Into L1, what wants eight streams of one row: Ice Lake, four shapes, times as fast as into
    // L2: two rows bf16 1.00 to 1.15, fp16 0.99 to 1.10, fp32 1.06 to 1.11, int8 0.97 to 1.07,
    // three rows 0.99 to 1.10, 0.99 to 1.07, 1.00 to 1.06, 0.99 to 1.03; four 0.97 to 1.02.
    dot_parts<C, RW, 3>(a, row, x, xs, AskBelow<C, RW, true>{RW * a.row_bytes}, products, ps);
  else
    dot_parts<C, RW>(a, row, x, xs, AskBelow<C, RW, false>{RW * a.row_bytes}, products, ps);
}

/// Scratch memory of the kernels above.
template <class C>
struct PreparedX {
  ptrdiff_t stride;
  float* x;         ///< [rows][stride]
  float* products;  ///< [rows][kOutBlock]
  RowSums* sums;    ///< [rows]

  PreparedX(const MatmulArgs& a, void* scratch)
      : stride((ptrdiff_t)steps<C>(a.in) * kStep<C>),
        x((float*)scratch),
        products(x + a.rows * stride),
        sums((RowSums*)(products + (ptrdiff_t)a.rows * kOutBlock)) {}
};

template <class C>
void prepare_typed(const MatmulArgs& a, void* scratch) {
  const PreparedX<C> p(a, scratch);
  for (int m = 0; m < a.rows; ++m) {
    const float* row = a.x + m * a.x_stride;
    prepare_x<C>(p.x + m * p.stride, row, a.scales.in_scale, a.in);
    p.sums[m] = needs_sums(a.scales) ? row_sums(a.scales, row, a.in) : RowSums{};
  }
}

template <class C>
void gemv_typed(const MatmulArgs& a, int begin, int end, void* scratch) {
  const PreparedX<C> p(a, scratch);
  // An x that does not stay in L1 is read for four rows at once too: with 8192 inputs 96 % of 35
  // GB/s and 80 % of 60, row by row 45 % of those. Streams read by turns share what L2 brings.
  const bool tiles = a.rows > 1 || (a.in > a.segment && a.streams.count < kLeastStreams);
  if (const Turns turns(a, kMostStreams, begin, end); turns.apart > 0) {
    with_streams(turns, [&](auto streams) {
      multiply_streams<streams.n>(
          a, p.sums[0], begin, turns.apart, [&](int j, int n, auto ask, auto& products) {
            dot_by_turns<C, streams.n>(a, j, n, turns.apart, p.x, ask, products);
          });
    });
    begin += turns.count * turns.apart;
  }
  for (int j = begin; j < end; j += kOutBlock) {
    const int stop = end - j < kOutBlock ? end : j + kOutBlock;
    ask_operands(a, j);
    int r = j;
    if (tiles)
      for (; r + kWeightRows <= stop; r += kWeightRows)
        dot_rows<C, kWeightRows>(a, r, p.x, p.stride, p.products + r - j, kOutBlock);
    if (a.rows == 1)
      dot_stream<C>(a, r, stop - r, p.x, p.products + r - j);
    else
      for (; r < stop; ++r) dot_rows<C, 1>(a, r, p.x, p.stride, p.products + r - j, kOutBlock);
    for (int m = 0; m < a.rows; ++m)
      store_outputs(a, p.sums[m], p.products + m * kOutBlock, m, j, stop);
  }
}

size_t gemv_scratch(const MatmulArgs& a) {
  if (a.type == kWeightI4) return kHeadBytes + PreparedX4::bytes(a);
  const size_t longest = (size_t)a.in + 4 * W;
  const size_t floats = (size_t)a.rows * ((kOutBlock + longest) * sizeof(float) + sizeof(RowSums));
  const size_t fixed = fixed_scratch(a);
  return kHeadBytes + (floats > fixed ? floats : fixed);
}

void gemv_prepare(const MatmulArgs& a, void* scratch) {
  GemvHead* head = (GemvHead*)scratch;
  void* x = (char*)scratch + kHeadBytes;
  head->fixed = a.type == kWeightI4 ? PreparedX4(a, x).prepare(a) : prepare_fixed(a, head, x);
  if (head->fixed) return;
  switch (a.type) {
    case kWeightF32:
      return prepare_typed<CodecF32>(a, x);
    case kWeightF16:
      return prepare_typed<CodecF16>(a, x);
    case kWeightBF16:
      return prepare_typed<CodecBF16>(a, x);
    case kWeightI8:
      return prepare_typed<CodecByte<int8_t>>(a, x);
    case kWeightU8:
      return prepare_typed<CodecByte<uint8_t>>(a, x);
    default:
      return;
  }
}

void gemv(const MatmulArgs& a, int begin, int end, void* scratch) {
  const GemvHead& head = *(const GemvHead*)scratch;
  void* x = (char*)scratch + kHeadBytes;
  if (a.type == kWeightI4) return gemv_int4(a, begin, end, x, head.fixed);
  if (head.fixed) return gemv_fixed(a, begin, end, head, x);
  switch (a.type) {
    case kWeightF32:
      return gemv_typed<CodecF32>(a, begin, end, x);
    case kWeightF16:
      return gemv_typed<CodecF16>(a, begin, end, x);
    case kWeightBF16:
      return gemv_typed<CodecBF16>(a, begin, end, x);
    case kWeightI8:
      return gemv_typed<CodecByte<int8_t>>(a, begin, end, x);
    default:
      return gemv_typed<CodecByte<uint8_t>>(a, begin, end, x);
  }
}

}  // namespace
}  // namespace wkv::cpu
