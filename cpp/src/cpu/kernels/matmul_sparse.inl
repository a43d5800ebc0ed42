// Few rows of x that are mostly zero, W input-major: inputs that are zero in every row are not
// read. Exact: a zero input contributes nothing, and the others are added in the order of the
// inputs whatever the share of a thread is. kActive inputs are taken per pass over the outputs,
// because one alone would read and write the sums as often as it reads weights (12 against 23 of 33
// GB/s).
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"

namespace wkv::cpu {
namespace {

constexpr int kActive = 8;
constexpr int kSparseRows = 4;

/// Scratch: values [rows][in padded to kActive] of the active inputs, their indices, sums
/// [rows][outputs], row sums.
size_t sparse_scratch(const MatmulArgs& a) {
  const size_t in = round_up((size_t)a.in, kActive) + 2 * kActive;
  return (size_t)a.rows * (in + (size_t)a.out + W) * sizeof(float) + in * sizeof(int32_t) +
         (size_t)a.rows * sizeof(RowSums);
}

/// sums[m][j] += values[m][u] * W[index[u]][j] over kActive inputs, outputs [0, n) from w on.
/// `next`: the inputs of the next pass.
template <class T, int R>
void add_inputs(const MatmulArgs& a, const unsigned char* w, const int32_t* index,
                const int32_t* next, const float* values, ptrdiff_t values_stride, float* sums,
                ptrdiff_t sums_stride, int n) {
  const T* rows[kActive];
  const unsigned char* ahead[kActive];
  for (int u = 0; u < kActive; ++u) {
    rows[u] = (const T*)(w + index[u] * a.row_bytes);
    ahead[u] = w + next[u] * a.row_bytes;
  }
  int j = 0;
  for (; j + W <= n; j += W) {
    if ((size_t)j * sizeof(T) % 64 < W * sizeof(T))
      for (int u = 0; u < kActive; ++u) __builtin_prefetch(ahead[u] + (size_t)j * sizeof(T));
    f32v acc[R] = {};
#pragma GCC unroll 8
    for (int u = 0; u < kActive; ++u) {
      const f32v v = load(rows[u] + j);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) acc[m] += v * values[m * values_stride + u];
    }
#pragma GCC unroll 4
    for (int m = 0; m < R; ++m) {
      float* at = sums + m * sums_stride + j;
      store(at, load(at) + acc[m]);
    }
  }
  if (j < n) {
    f32v acc[R] = {};
    for (int u = 0; u < kActive; ++u) {
      T part[W] = {};
      __builtin_memcpy(part, rows[u] + j, (size_t)(n - j) * sizeof(T));
      const f32v v = load(part);
      for (int m = 0; m < R; ++m) acc[m] += v * values[m * values_stride + u];
    }
    for (int m = 0; m < R; ++m) {
      float* at = sums + m * sums_stride + j;
      store(at, load(at) + acc[m]);
    }
  }
}

template <class T, int R>
int sparse_typed(const MatmulArgs& a, int begin, int end, float* scratch) {
  const ptrdiff_t vs = (ptrdiff_t)round_up((size_t)a.in, kActive) + 2 * kActive;
  const ptrdiff_t ss = (ptrdiff_t)round_up((size_t)(end - begin), W);
  float* values = scratch;
  float* sums = values + R * vs;
  int32_t* index = (int32_t*)(sums + R * ss);
  int active = 0;
  for (int i = 0; i < a.in; ++i) {
    bool any = false;
    for (int m = 0; m < R; ++m) any |= a.x[m * a.x_stride + i] != 0.0f;
    if (!any) continue;
    const float scale = a.scales.in_scale ? a.scales.in_scale[i] : 1.0f;
    for (int m = 0; m < R; ++m) values[m * vs + active] = a.x[m * a.x_stride + i] * scale;
    index[active++] = i;
  }
  const int passes = (active + kActive - 1) / kActive;
  for (int u = active; u < (passes + 1) * kActive; ++u) {  // padding repeats an input, times zero
    index[u] = active > 0 ? index[active - 1] : 0;
    for (int m = 0; m < R; ++m) values[m * vs + u] = 0.0f;
  }
  for (ptrdiff_t j = 0; j < R * ss; ++j) sums[j] = 0.0f;
  const unsigned char* w = (const unsigned char*)a.w + (size_t)begin * sizeof(T);
  for (int p = 0; p < passes; ++p)
    add_inputs<T, R>(a, w, index + p * kActive, index + (p + 1) * kActive, values + p * kActive, vs,
                     sums, ss, end - begin);
  for (int m = 0; m < R; ++m) {
    const RowSums row =
        needs_sums(a.scales) ? row_sums(a.scales, a.x + m * a.x_stride, a.in) : RowSums{};
    store_outputs(a, row, sums + m * ss, m, begin, end);
  }
  return active;
}

template <class T>
int sparse_rows(const MatmulArgs& a, int begin, int end, float* scratch) {
  switch (a.rows) {
    case 1:
      return sparse_typed<T, 1>(a, begin, end, scratch);
    case 2:
      return sparse_typed<T, 2>(a, begin, end, scratch);
    case 3:
      return sparse_typed<T, 3>(a, begin, end, scratch);
    default:
      return sparse_typed<T, 4>(a, begin, end, scratch);
  }
}

int sparse(const MatmulArgs& a, int begin, int end, void* scratch) {
  switch (a.type) {
    case kWeightF32:
      return sparse_rows<float>(a, begin, end, (float*)scratch);
    case kWeightF16:
      return sparse_rows<f16>(a, begin, end, (float*)scratch);
    case kWeightBF16:
      return sparse_rows<bf16>(a, begin, end, (float*)scratch);
    case kWeightI8:
      return sparse_rows<int8_t>(a, begin, end, (float*)scratch);
    default:
      return sparse_rows<uint8_t>(a, begin, end, (float*)scratch);
  }
}

}  // namespace
}  // namespace wkv::cpu
