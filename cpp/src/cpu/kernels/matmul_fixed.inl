// Few rows with quantised weights: codes are small integers, so x becomes fixed point and the sums
// are exact integers. A processor does four times as many byte products as float ones and the codes
// need no conversion. x is rounded to 2^-29 (bytes) or 2^-23 (int4) of the largest of its row, no
// more than sums in fp32 lose. Layout of W as for gemv.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"

namespace wkv::cpu {
namespace {

/// Bytes before its use that a line is asked for, into L2, where a core holds more outstanding
/// lines than in L1, and from there. Two threads of Zen 4, int8, of 64 GB/s: 29 without, 25 with 4
/// KiB into L1 alone, 58 so.
constexpr ptrdiff_t kFixedAhead = 8192, kFixedNear = 768;

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

/// Bytes of prepared x of a row: for every segment a head, then its steps.
template <class C>
inline size_t fixed_segment_bytes(int inputs) {
  return C::kHeadBytes + (size_t)((inputs + C::kInputs - 1) / C::kInputs) * C::kXBytes;
}
template <class C>
inline size_t fixed_row_bytes(int in) {
  return (size_t)(in / kSegment) * fixed_segment_bytes<C>(kSegment) +
         fixed_segment_bytes<C>(in % kSegment);
}

/// Inputs [k0, k0 + n) of a segment: products[x row][weight row] (+)= those of RW rows of W and RX
/// rows of x, `xs` bytes apart.
template <class C, int RW, int RX>
void fixed_tile(const WeightRows& w, const unsigned char* x, ptrdiff_t xs, const float* x_steps,
                int k0, int n, float* products, ptrdiff_t products_stride) {
  typename C::template Sums<RW, RX> sums(x, xs);
  x += C::kHeadBytes;
  const unsigned char* rows[RW];
  const f16* scales[RW];
#pragma GCC unroll 4
  for (int r = 0; r < RW; ++r) {
    rows[r] = w.codes + r * w.row_bytes + (size_t)k0 * C::kBytes / C::kInputs;
    scales[r] = w.scales + r * w.groups + k0 / kInt4Group;
  }
  // The same inputs of rows that follow, at least kFixedAhead bytes on.
  const ptrdiff_t segment = (ptrdiff_t)RW * n * C::kBytes / C::kInputs + 1;
  const ptrdiff_t later = RW * ((kFixedAhead + segment - 1) / segment);
  const ptrdiff_t ahead = later * w.row_bytes, scales_ahead = later * w.groups;
  int k = 0;
  for (; k + C::kInputs <= n; k += C::kInputs, x += C::kXBytes) {
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) {
#pragma GCC unroll 2
      for (int line = 0; line < C::kBytes; line += 64) {
        __builtin_prefetch(rows[r] + ahead + line, 0, 2);
        __builtin_prefetch(rows[r] + kFixedNear + line, 0, 3);
      }
      if constexpr (C::kGroups > 0)
        if (k % 1024 == 0) __builtin_prefetch(scales[r] + scales_ahead, 0, 2);
    }
    sums.step(rows, scales, x, xs);
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) {
      rows[r] += C::kBytes;
      scales[r] += C::kGroups;
    }
  }
  if (k < n) {
    unsigned char tail[RW][C::kBytes] = {};
    f16 tail_scales[RW][8] = {};
    for (int r = 0; r < RW; ++r) {
      const size_t groups = (size_t)(n - k + kInt4Group - 1) / kInt4Group;
      const size_t bytes = C::kGroups > 0 ? groups * kInt4Group / 2 : (size_t)(n - k);
      __builtin_memcpy(tail[r], rows[r], bytes);
      if (C::kGroups > 0) __builtin_memcpy(tail_scales[r], scales[r], groups * sizeof(f16));
      rows[r] = tail[r];
      scales[r] = tail_scales[r];
    }
    sums.step(rows, scales, x, xs);
  }
  for (int m = 0; m < RX; ++m)
    for (int r = 0; r < RW; ++r) {
      float* to = products + m * products_stride + r;
      const float t = sums.total(m, r) * x_steps[m];
      *to = k0 > 0 ? *to + t : t;
    }
}

template <class C, int RX>
void fixed_outputs(const MatmulArgs& a, const unsigned char* x, ptrdiff_t xs, const float* x_steps,
                   int begin, int end, float* products) {
  constexpr int kRows = C::weight_rows(RX);
  for (int k0 = 0; k0 < a.in; k0 += kSegment, x += fixed_segment_bytes<C>(kSegment)) {
    const int n = a.in - k0 < kSegment ? a.in - k0 : kSegment;
    int r = begin;
    for (; r + kRows <= end; r += kRows)
      fixed_tile<C, kRows, RX>(weight_rows(a, r), x, xs, x_steps, k0, n, products + r - begin,
                               kOutBlock);
    for (; r < end; ++r)
      fixed_tile<C, 1, RX>(weight_rows(a, r), x, xs, x_steps, k0, n, products + r - begin,
                           kOutBlock);
  }
}

/// The same for every type; false if a row of x cannot be held.
template <class C>
bool fixed_prepare(unsigned char* to, const float* x, const float* scale, int in, float* step) {
  int32_t most;
  if (!row_range(x, scale, in, &most)) return false;
  const RowStep s(most, C::kBits);
  *step = s.step;
  for (int k = 0; k < in; k += kSegment, to += fixed_segment_bytes<C>(kSegment))
    C::prepare(to, x + k, scale ? scale + k : nullptr, in - k < kSegment ? in - k : kSegment,
               s.inverse);
  return true;
}

template <class C>
bool gemv_fixed_typed(const MatmulArgs& a, int begin, int end, void* scratch) {
  if (a.rows > C::kMaxRows) return false;
  const ptrdiff_t xs = (ptrdiff_t)fixed_row_bytes<C>(a.in);
  unsigned char* x = (unsigned char*)scratch;
  float* products = (float*)(x + a.rows * xs);  // [rows][kOutBlock]
  RowSums* sums = (RowSums*)(products + (ptrdiff_t)a.rows * kOutBlock);
  float* x_steps = (float*)(sums + a.rows);
  for (int m = 0; m < a.rows; ++m) {
    const float* row = a.x + m * a.x_stride;
    if (!fixed_prepare<C>(x + m * xs, row, a.scales.in_scale, a.in, x_steps + m)) return false;
    sums[m] = needs_sums(a.scales) ? row_sums(a.scales, row, a.in) : RowSums{};
  }
  const int chunks = (a.rows + C::kMaxX - 1) / C::kMaxX;
  for (int j = begin; j < end; j += kOutBlock) {
    const int stop = end - j < kOutBlock ? end : j + kOutBlock;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first = a.rows * chunk / chunks, last = a.rows * (chunk + 1) / chunks;
      const unsigned char* xc = x + first * xs;
      float* to = products + first * kOutBlock;
      switch (last - first) {
        case 1:
          fixed_outputs<C, 1>(a, xc, xs, x_steps + first, j, stop, to);
          break;
        case 2:
          if constexpr (C::kMaxX >= 2) fixed_outputs<C, 2>(a, xc, xs, x_steps + first, j, stop, to);
          break;
        case 3:
          if constexpr (C::kMaxX >= 3) fixed_outputs<C, 3>(a, xc, xs, x_steps + first, j, stop, to);
          break;
        default:
          if constexpr (C::kMaxX >= 4) fixed_outputs<C, 4>(a, xc, xs, x_steps + first, j, stop, to);
      }
    }
    for (int m = 0; m < a.rows; ++m)
      store_outputs(a, sums[m], products + m * kOutBlock, m, j, stop);
  }
  return true;
}

/// False if fixed point does not hold x or is of no use to this type; nothing is written then.
bool gemv_fixed(const MatmulArgs& a, int begin, int end, void* scratch) {
  switch (a.type) {
    case kWeightI8:
      return gemv_fixed_typed<FixedByte</*kSigned=*/true>>(a, begin, end, scratch);
    case kWeightU8:
      return gemv_fixed_typed<FixedByte</*kSigned=*/false>>(a, begin, end, scratch);
    case kWeightI4:
      return gemv_fixed_typed<FixedI4>(a, begin, end, scratch);
    default:
      return false;
  }
}

size_t fixed_scratch(const MatmulArgs& a) {
  const size_t bytes = fixed_row_bytes<FixedByte<true>>(a.in);
  const size_t i4 = fixed_row_bytes<FixedI4>(a.in);
  return (size_t)a.rows *
         ((bytes > i4 ? bytes : i4) + (kOutBlock + 1) * sizeof(float) + sizeof(RowSums));
}

#else

bool gemv_fixed(const MatmulArgs&, int, int, void*) { return false; }
size_t fixed_scratch(const MatmulArgs&) { return 0; }

#endif

}  // namespace
}  // namespace wkv::cpu
