// One row with weights of a byte: codes are small integers, so x becomes fixed point and the sums
// are exact integers. A processor does four times as many byte products as float ones, and the
// codes need no conversion. x is rounded to 2^-30 of its largest element (2^-29 with AVX2), less
// than sums in fp32 lose.
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

/// Inputs [k0, k0 + n) of a segment: products[r] (+)= step times those of row r of RW rows of W.
template <class C, int RW>
void fixed_tile(const MatmulArgs& a, int row, const unsigned char* x, float step, int k0, int n,
                float* products) {
  typename C::template Sums<RW> sums(x);
  x += C::kHeadBytes;
  const unsigned char* rows[RW];
#pragma GCC unroll 4
  for (int r = 0; r < RW; ++r) rows[r] = (const unsigned char*)a.w + (row + r) * a.row_bytes + k0;
  // The same inputs of rows that follow, at least kFixedAhead bytes on.
  const ptrdiff_t segment = (ptrdiff_t)RW * n;
  const ptrdiff_t ahead = RW * ((kFixedAhead + segment - 1) / segment) * a.row_bytes;
  int k = 0;
  for (; k + C::kInputs <= n; k += C::kInputs, x += C::kXBytes) {
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r)
#pragma GCC unroll 2
      for (int line = 0; line < C::kInputs; line += 64) {
        __builtin_prefetch(rows[r] + ahead + line, 0, 2);
        __builtin_prefetch(rows[r] + kFixedNear + line, 0, 3);
      }
    sums.step(rows, x);
#pragma GCC unroll 4
    for (int r = 0; r < RW; ++r) rows[r] += C::kInputs;
  }
  if (k < n) {
    unsigned char tail[RW][C::kInputs] = {};
    for (int r = 0; r < RW; ++r) {
      __builtin_memcpy(tail[r], rows[r], (size_t)(n - k));
      rows[r] = tail[r];
    }
    sums.step(rows, x);
  }
  for (int r = 0; r < RW; ++r)
    products[r] = k0 > 0 ? products[r] + sums.total(r) * step : sums.total(r) * step;
}

/// False if fixed point does not hold x; nothing is written then.
template <class C>
bool gemv_fixed_typed(const MatmulArgs& a, int begin, int end, void* scratch) {
  unsigned char* x = (unsigned char*)scratch;
  int32_t most;
  if (!row_range(a.x, a.scales.in_scale, a.in, &most)) return false;
  const RowStep s(most, C::kBits);
  for (int k = 0; k < a.in; k += kSegment)
    C::prepare(x + (k / kSegment) * fixed_segment_bytes<C>(kSegment), a.x + k,
               a.scales.in_scale ? a.scales.in_scale + k : nullptr,
               a.in - k < kSegment ? a.in - k : kSegment, s.inverse);
  const RowSums sums = needs_sums(a.scales) ? row_sums(a.scales, a.x, a.in) : RowSums{};
  for (int j = begin; j < end; j += kOutBlock) {
    const int stop = end - j < kOutBlock ? end : j + kOutBlock;
    float products[kOutBlock];
    for (int k = 0; k < a.in; k += kSegment) {
      const unsigned char* part = x + (k / kSegment) * fixed_segment_bytes<C>(kSegment);
      const int n = a.in - k < kSegment ? a.in - k : kSegment;
      int r = j;
      for (; r + C::kRows <= stop; r += C::kRows)
        fixed_tile<C, C::kRows>(a, r, part, s.step, k, n, products + r - j);
      for (; r < stop; ++r) fixed_tile<C, 1>(a, r, part, s.step, k, n, products + r - j);
    }
    store_outputs(a, sums, products, 0, j, stop);
  }
  return true;
}

/// False if fixed point does not hold x, for several rows and for other types; nothing is written
/// then. With more rows, converting the codes to floats once for all is as fast.
bool gemv_fixed(const MatmulArgs& a, int begin, int end, void* scratch) {
  if (a.rows != 1) return false;
  if (a.type == kWeightI8)
    return gemv_fixed_typed<FixedByte</*kSigned=*/true>>(a, begin, end, scratch);
  if (a.type == kWeightU8)
    return gemv_fixed_typed<FixedByte</*kSigned=*/false>>(a, begin, end, scratch);
  return false;
}

size_t fixed_scratch(const MatmulArgs& a) { return fixed_x_bytes<FixedByte<true>>(a.in); }

#else

bool gemv_fixed(const MatmulArgs&, int, int, void*) { return false; }
size_t fixed_scratch(const MatmulArgs&) { return 0; }

#endif

}  // namespace
}  // namespace wkv::cpu
