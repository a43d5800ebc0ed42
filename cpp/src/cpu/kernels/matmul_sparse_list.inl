// The inputs that products of few rows of x, mostly zero, have to read (matmul_sparse.inl).
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels_matmul.h"
#include "cpu/simd.h"

namespace wkv::cpu {
namespace {

/// Inputs that are taken in a pass over the outputs: one alone would read and write the sums as
/// often as it reads weights.
constexpr int kActive = 8;
constexpr int kSparseRows = 4;  // rows of x in a pass
constexpr int kSparseMaxRows = 12;

inline int part_begin(const MatmulArgs& a, int part) {
  const int units = (a.in + kInt4Group - 1) / kInt4Group;
  const int begin = (int)((int64_t)units * part / kInputParts) * kInt4Group;
  return begin < a.in ? begin : a.in;
}

/// Floats between rows of sums.
inline ptrdiff_t sums_stride(const MatmulArgs& a) {
  return (ptrdiff_t)round_up((size_t)a.out, kOutBlock);
}
size_t sparse_sums(const MatmulArgs& a) {
  return (size_t)kInputParts * (size_t)a.rows * (size_t)sums_stride(a);
}
/// Places of a part's list of inputs.
inline ptrdiff_t list_size(const MatmulArgs& a) {
  return (ptrdiff_t)(a.in / kInputParts + 2 * kInt4Group + kActive);
}
size_t sparse_scratch(const MatmulArgs& a) {
  return (size_t)list_size(a) * (sizeof(int32_t) + (size_t)a.rows * sizeof(float));
}

/// The inputs of a part that are to be read, in order, with their values.
struct InputList {
  int32_t* index;
  float* values;  ///< [rows][stride]
  ptrdiff_t stride;
  int count = 0;

  InputList(const MatmulArgs& a, void* scratch)
      : index((int32_t*)scratch), values((float*)(index + list_size(a))), stride(list_size(a)) {}

  /// Inputs [begin, end), all of them or those that are not zero in every row.
  void fill(const MatmulArgs& a, int begin, int end, bool all) {
    count = 0;
    for (int i = begin; i < end; i += W) {
      const int n = end - i < W ? end - i : W;
      uint32_t found = (1u << n) - 1;
      if (!all) {
        uint32_t any = 0;
        for (int m = 0; m < a.rows; ++m) {
          const float* x = a.x + m * a.x_stride + i;
          any |= nonzero_lanes(n < W ? load_part(x, n) : load(x));
        }
        found &= any;
      }
      // Every lane is written, one that does not count overwritten by the next: no branch on x.
#pragma GCC unroll 16
      for (int lane = 0; lane < W; ++lane) {
        index[count] = i + lane;
        count += (int)(found >> lane & 1u);
      }
    }
    for (int m = 0; m < a.rows; ++m) {
      const float* x = a.x + m * a.x_stride;
      float* to = values + m * stride;
      if (const float* scale = a.scales.in_scale)
        for (int u = 0; u < count; ++u) to[u] = x[index[u]] * scale[index[u]];
      else
        for (int u = 0; u < count; ++u) to[u] = x[index[u]];
    }
  }

  /// Fills the last pass up with the last input, times zero.
  void pad(const MatmulArgs& a) {
    for (; count % kActive != 0; ++count) {
      index[count] = index[count - 1];
      for (int m = 0; m < a.rows; ++m) values[m * stride + count] = 0.0f;
    }
  }
};

/// f(rows as a constant, the first of them) for the rows of x that a pass is taken with.
template <class F>
inline void for_row_blocks(int rows, F f) {
  for (int m = 0; m < rows; m += kSparseRows) switch (rows - m) {
      case 1:
        f(Rows<1>{}, m);
        break;
      case 2:
        f(Rows<2>{}, m);
        break;
      case 3:
        f(Rows<3>{}, m);
        break;
      default:
        f(Rows<4>{}, m);
    }
}

}  // namespace
}  // namespace wkv::cpu
