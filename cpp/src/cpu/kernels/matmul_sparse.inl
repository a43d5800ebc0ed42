// Few rows of x that are mostly zero, W input-major: the weights of inputs that are zero in every
// row are not read. Exact: a zero input contributes nothing.
//
// The inputs are cut into kInputParts parts whatever the number of threads; a part adds up its
// inputs for all outputs, reading whole rows of W, and the parts are added in order at last. Were
// the outputs split instead, a thread would read a piece of every row, and prefetchers would bring
// what follows the piece for nothing: int8, 2048 of 4096 outputs each, 21 GB/s in place of 50.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"
#include "cpu/kernels/matmul_sparse_int4.inl"
#include "cpu/kernels/matmul_sparse_list.inl"

namespace wkv::cpu {
namespace {

/// How 2 W consecutive outputs of an input are read. Where elements share a dword the even ones
/// come first, then the odd ones, and the sums stay so until they are stored.
template <class T>
struct Outputs {
  static void get(const unsigned char* row, int j, f32v (&v)[2]) {
    v[0] = load((const T*)row + j);
    v[1] = load((const T*)row + j + W);
  }
};
template <>
struct Outputs<bf16> {
  static void get(const unsigned char* row, int j, f32v (&v)[2]) {
    u32v bits;
    __builtin_memcpy(&bits, row + 2 * j, sizeof bits);
    v[0] = (f32v)(bits << 16);
    v[1] = (f32v)(bits & 0xffff0000u);
  }
};

/// One pass: sums[m][j] += values[m][u] W[index[u]][j] over kActive inputs, for R rows of x. The
/// rows of the inputs at `next` are asked for meanwhile.
template <class T, int R>
void add_inputs(const MatmulArgs& a, const int32_t* index, const int32_t* next, const float* values,
                ptrdiff_t values_stride, float* sums, bool prefetch) {
  const unsigned char* rows[kActive];
  const unsigned char* ahead[kActive];
  for (int u = 0; u < kActive; ++u) {
    rows[u] = (const unsigned char*)a.w + index[u] * a.row_bytes;
    ahead[u] = (const unsigned char*)a.w + next[u] * a.row_bytes;
  }
  const ptrdiff_t stride = sums_stride(a);
  const auto add = [&](const unsigned char* const(&from)[kActive], int j, int at) {
    f32v acc[R][2] = {};
#pragma GCC unroll 8
    for (int u = 0; u < kActive; ++u) {
      f32v v[2];
      Outputs<T>::get(from[u], j, v);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) {
        const float x = values[m * values_stride + u];
        acc[m][0] += v[0] * x;
        acc[m][1] += v[1] * x;
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        float* to = sums + m * stride + at + h * W;
        store(to, load(to) + acc[m][h]);
      }
  };
  // Into L1 where eight rows of 2048 outputs and the sums take 24 KiB of it: Granite Rapids, int8,
  // 8192 inputs, a fifth of them: 170 us, 182 into L2.
  constexpr int kHint = sizeof(T) == 1 ? 3 : 2;
  int j = 0;
  for (; j + 2 * W <= a.out; j += 2 * W) {
    if (prefetch && j % (64 / (int)sizeof(T)) == 0)
#pragma GCC unroll 8
      for (int u = 0; u < kActive; ++u)
        for (int line = 0; line < 2 * W * (int)sizeof(T); line += 64)
          __builtin_prefetch(ahead[u] + j * (ptrdiff_t)sizeof(T) + line, 0, kHint);
    add(rows, j, j);
  }
  if (j < a.out) {
    unsigned char tail[kActive][2 * W * sizeof(T)] = {};
    const unsigned char* tails[kActive];
    for (int u = 0; u < kActive; ++u) {
      __builtin_memcpy(tail[u], rows[u] + j * (ptrdiff_t)sizeof(T),
                       (size_t)(a.out - j) * sizeof(T));
      tails[u] = tail[u];
    }
    add(tails, 0, j);
  }
}

template <class T>
void add_list(const MatmulArgs& a, InputList& list, float* sums) {
  list.pad(a);
  for (int p = 0; p < list.count; p += kActive) {
    const bool last = p + kActive >= list.count;
    const int32_t* next = list.index + (last ? p : p + kActive);
    for_row_blocks(a.rows, [&](auto rows, int m) {
      add_inputs<T, rows.n>(a, list.index + p, next, list.values + m * list.stride + p, list.stride,
                            sums + m * sums_stride(a), m == 0 && !last);
    });
  }
}

/// Of the inputs that are not zero, the number. A part of which most inputs count is read whole:
/// its rows are then one stream.
int sparse_part(const MatmulArgs& a, int part, float* sums, void* scratch) {
  const int begin = part_begin(a, part), end = part_begin(a, part + 1);
  sums += (ptrdiff_t)part * a.rows * sums_stride(a);
  for (ptrdiff_t j = 0; j < a.rows * sums_stride(a); ++j) sums[j] = 0.0f;
  InputList list(a, scratch);
  list.fill(a, begin, end, false);
  const int active = list.count;
  if ((float)active > kDenseShare * (float)(end - begin)) list.fill(a, begin, end, true);
  switch (a.type) {
    case kWeightF32:
      add_list<float>(a, list, sums);
      break;
    case kWeightF16:
      add_list<f16>(a, list, sums);
      break;
    case kWeightBF16:
      add_list<bf16>(a, list, sums);
      break;
    case kWeightI8:
      add_list<int8_t>(a, list, sums);
      break;
    case kWeightU8:
      add_list<uint8_t>(a, list, sums);
      break;
    default:
      add_groups(a, list, sums);
  }
  return active;
}

void sparse_finish(const MatmulArgs& a, const float* sums, int begin, int end) {
  const ptrdiff_t stride = sums_stride(a);
  const bool paired = a.type == kWeightBF16 || a.type == kWeightI4;
  for (int m = 0; m < a.rows; ++m) {
    const RowSums row =
        needs_sums(a.scales) ? row_sums(a.scales, a.x + m * a.x_stride, a.in) : RowSums{};
    for (int j = begin; j < end; j += kOutBlock) {
      float products[kOutBlock];
      for (int v = 0; v < kOutBlock; v += 2 * W) {
        f32v total[2] = {};
        for (int part = 0; part < kInputParts; ++part) {
          const float* from = sums + ((ptrdiff_t)part * a.rows + m) * stride + j + v;
          total[0] += load(from);
          total[1] += load(from + W);
        }
        if (paired) join_pairs(total[0], total[1], &total[0], &total[1]);
        store(products + v, total[0]);
        store(products + v + W, total[1]);
      }
      store_outputs(a, row, products, m, j, end - j < kOutBlock ? end : j + kOutBlock);
    }
  }
}

}  // namespace
}  // namespace wkv::cpu
