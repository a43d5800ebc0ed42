// The products of matmul_sparse.inl with int4 weights: group by group of 32 inputs, since the sum
// of a group is scaled for every output, with as many inputs as are not zero in it. At a density of
// 0.2 those are six or seven; filled up to multiples of eight, half as much again was computed.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_sparse_list.inl"

namespace wkv::cpu {
namespace {

/// What get_codes() leaves to be subtracted: AVX-512 looks up all sixteen levels.
#if defined(__AVX512F__)
constexpr float kExcess = 0;
#else
constexpr float kExcess = 8;
#endif

/// 2 W codes of an input as floats, the even outputs and the odd ones, without the group's scale.
inline void get_codes(const unsigned char* row, f32v (&v)[2]) {
  const i32v codes = load_codes(row);
#if defined(__AVX512F__)
  const f32v levels{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  v[0] = (f32v)_mm512_permutexvar_ps((__m512i)codes, (__m512)levels);
  v[1] = (f32v)_mm512_permutexvar_ps((__m512i)(codes >> 4), (__m512)levels);
#else
  v[0] = __builtin_convertvector(codes & 15, f32v);
  v[1] = __builtin_convertvector(codes >> 4, f32v);
#endif
}

/// The inputs of a group that count.
struct ActiveInputs {
  const int32_t* index;
  int n;
};

inline const unsigned char* row_at(const MatmulArgs& a, int input) {
  return (const unsigned char*)a.w + input * a.row_bytes;
}
inline const f16* scales_of(const MatmulArgs& a, ActiveInputs inputs) {
  return (const f16*)a.scales.group_scale + (ptrdiff_t)(inputs.index[0] / kInt4Group) * a.out;
}

/// Asks for the part of the weights and scales of a group that is next when N outputs of the
/// present one are read from output j on. Inlined, since GCC 12 drops calls of a function that does
/// nothing but this.
template <int N>
inline __attribute__((always_inline)) void ask_ahead(const MatmulArgs& a, ActiveInputs next,
                                                     int j) {
  if (next.n == 0) return;
#if defined(__AVX512F__)
  constexpr int kLine = 128;  // outputs
  if (j % kLine != 0) return;
  for (int u = 0; u < next.n; ++u) __builtin_prefetch(row_at(a, next.index[u]) + j / 2, 0, 3);
  const f16* scales = scales_of(a, next) + j;
  for (int line = 0; line < kLine; line += 32) __builtin_prefetch(scales + line, 0, 2);
#else
  // Four lines of a row at a time, of all rows while as many outputs are read: Zen 3, two threads,
  // 4096 inputs and 1024 or 2048 outputs, times as fast as a line of every row: 1.06 at a density
  // of 0.2, 1.07 and 1.11 at 0.3, 1.14 and 1.17 at 0.5.
  constexpr int kLines = 4, kMostTurns = 128 * kLines / N;
  const int first = j / N / kMostTurns * kMostTurns, left = a.out / N - first;
  const int turns = left < kMostTurns ? left : kMostTurns, turn = j / N - first;
  const ptrdiff_t from = (ptrdiff_t)first * N / 2;
  for (int u = next.n * turn / turns; u < next.n * (turn + 1) / turns; ++u)
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line)
      __builtin_prefetch(row_at(a, next.index[u]) + from + 64 * line, 0, 3);
  const f16* scales = scales_of(a, next) + j;
#pragma GCC unroll 4
  for (int line = 0; line < N; line += 32) __builtin_prefetch(scales + line, 0, 2);
#endif
}

/// sums[m][j] += values[m][u] W[now.index[u]][j] over the inputs of a group, for R rows of x.
/// Weights and scales of the group of `next` are asked for meanwhile.
template <int R>
void add_group(const MatmulArgs& a, ActiveInputs now, ActiveInputs next, const float* values,
               ptrdiff_t values_stride, float* sums) {
  constexpr int kPairs = R == 1 ? 4 : R == 2 || W == 16 ? 2 : 1;  // of vectors, even and odd
  const f16* scales = scales_of(a, now);
  const ptrdiff_t stride = sums_stride(a);
  f32v offset[R] = {};
  if constexpr (kExcess != 0)
    for (int m = 0; m < R; ++m) {
      float sum = 0;
      for (int u = 0; u < now.n; ++u) sum += values[m * values_stride + u];
      offset[m] = splat(-kExcess * sum);
    }
  const auto add = [&]<int P>(Rows<P>, auto row_of, const f16* s, int at) {
    f32v acc[R][P][2];
#pragma GCC unroll 4
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[m][p][0] = acc[m][p][1] = offset[m];
    for (int u = 0; u < now.n; ++u) {
      const unsigned char* row = row_of(u);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        f32v v[2];
        get_codes(row + p * W, v);
#pragma GCC unroll 4
        for (int m = 0; m < R; ++m) {
          const float x = values[m * values_stride + u];
          acc[m][p][0] += v[0] * x;
          acc[m][p][1] += v[1] * x;
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      f32v scale[2];
      split_pairs(load(s + 2 * p * W), load(s + (2 * p + 1) * W), &scale[0], &scale[1]);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          float* to = sums + m * stride + at + (2 * p + h) * W;
          store(to, load(to) + acc[m][p][h] * scale[h]);
        }
    }
  };
  int j = 0;
  const auto row_of = [&](int u) { return row_at(a, now.index[u]) + j / 2; };
  for (; j + 2 * kPairs * W <= a.out; j += 2 * kPairs * W) {
    ask_ahead<2 * kPairs * W>(a, next, j);
    add(Rows<kPairs>{}, row_of, scales + j, j);
  }
  for (; j + 2 * W <= a.out; j += 2 * W) add(Rows<1>{}, row_of, scales + j, j);
  if (j < a.out) {
    unsigned char tail[kInt4Group][W] = {};
    f16 part[2 * W] = {};
    __builtin_memcpy(part, scales + j, (size_t)(a.out - j) * sizeof(f16));
    for (int u = 0; u < now.n; ++u)
      __builtin_memcpy(tail[u], row_of(u), (size_t)(a.out - j + 1) / 2);
    add(Rows<1>{}, [&](int u) { return tail[u]; }, part, j);
  }
}

void add_groups(const MatmulArgs& a, InputList& list, float* sums) {
  const auto group_from = [&](int first) {
    ActiveInputs g{list.index + first, 0};
    while (first + g.n < list.count && g.index[g.n] / kInt4Group == g.index[0] / kInt4Group) ++g.n;
    return g;
  };
  ActiveInputs now = group_from(0), next;
  for (int first = 0; now.n > 0; first += now.n, now = next) {
    next = group_from(first + now.n);
    for_row_blocks(a.rows, [&](auto rows, int m) {
      add_group<rows.n>(a, now, m == 0 ? next : ActiveInputs{next.index, 0},
                        list.values + m * list.stride + first, list.stride,
                        sums + m * sums_stride(a));
    });
  }
}

}  // namespace
}  // namespace wkv::cpu
