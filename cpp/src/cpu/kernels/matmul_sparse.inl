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
/// Places of a part's list of inputs: every group of int4 ends at a multiple of kActive.
inline ptrdiff_t list_size(const MatmulArgs& a) {
  return (ptrdiff_t)(a.in / kInputParts + 2 * kInt4Group + kActive);
}
size_t sparse_scratch(const MatmulArgs& a) {
  return (size_t)list_size(a) * (sizeof(int32_t) + (size_t)a.rows * sizeof(float));
}

/// How 2 W consecutive outputs of an input are read. Where elements share a dword the even ones
/// come first, then the odd ones: `kPaired`, and the sums stay so until they are stored.
template <class T>
struct Outputs {
  static constexpr bool kPaired = false;
  static constexpr int kBits = 8 * sizeof(T);
  static void get(const unsigned char* row, int j, f32v (&v)[2]) {
    v[0] = load((const T*)row + j);
    v[1] = load((const T*)row + j + W);
  }
};
template <>
struct Outputs<bf16> {
  static constexpr bool kPaired = true;
  static constexpr int kBits = 16;
  static void get(const unsigned char* row, int j, f32v (&v)[2]) {
    u32v bits;
    __builtin_memcpy(&bits, row + 2 * j, sizeof bits);
    v[0] = (f32v)(bits << 16);
    v[1] = (f32v)(bits & 0xffff0000u);
  }
};
struct Int4 {};  // two codes a byte, without the group's scale and the - 8
template <>
struct Outputs<Int4> {
  static constexpr bool kPaired = true;
  static constexpr int kBits = 4;
  static void get(const unsigned char* row, int j, f32v (&v)[2]) {
    const i32v codes = load_codes(row + j / 2);
    v[0] = __builtin_convertvector(codes & 15, f32v);
    v[1] = __builtin_convertvector(codes >> 4, f32v);
  }
};

/// One pass: sums[m][j] += values[m][u] W[index[u]][j] over kActive inputs, for R rows of x. The
/// rows of the inputs at `next` are asked for meanwhile. int4: `scales` [out] of the group.
template <class T, int R>
void add_inputs(const MatmulArgs& a, const int32_t* index, const int32_t* next, const float* values,
                ptrdiff_t values_stride, const f16* scales, float* sums, bool prefetch) {
  using O = Outputs<T>;
  const unsigned char* rows[kActive];
  const unsigned char* ahead[kActive];
  for (int u = 0; u < kActive; ++u) {
    rows[u] = (const unsigned char*)a.w + index[u] * a.row_bytes;
    ahead[u] = (const unsigned char*)a.w + next[u] * a.row_bytes;
  }
  const ptrdiff_t stride = sums_stride(a);
  f32v offset[R] = {};
  if constexpr (O::kBits == 4)
    for (int m = 0; m < R; ++m) {
      float sum = 0;
      for (int u = 0; u < kActive; ++u) sum += values[m * values_stride + u];
      offset[m] = splat(-8.0f * sum);
    }
  const auto add = [&](const unsigned char* const(&from)[kActive], int j, int at) {
    f32v acc[R][2];
#pragma GCC unroll 4
    for (int m = 0; m < R; ++m) acc[m][0] = acc[m][1] = offset[m];
#pragma GCC unroll 8
    for (int u = 0; u < kActive; ++u) {
      f32v v[2];
      O::get(from[u], j, v);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) {
        const float x = values[m * values_stride + u];
        acc[m][0] += v[0] * x;
        acc[m][1] += v[1] * x;
      }
    }
    if constexpr (O::kBits == 4) {
      f16 part[2 * W] = {};
      const int n = a.out - at < 2 * W ? a.out - at : 2 * W;
      if (n < 2 * W) __builtin_memcpy(part, scales + at, (size_t)n * sizeof(f16));
      const f16* s = n < 2 * W ? part : scales + at;
      f32v even, odd;
      split_pairs(load(s), load(s + W), &even, &odd);
      for (int m = 0; m < R; ++m) acc[m][0] *= even, acc[m][1] *= odd;
    }
#pragma GCC unroll 4
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        float* to = sums + m * stride + at + h * W;
        store(to, load(to) + acc[m][h]);
      }
  };
  constexpr int kLine = 64 * 8 / O::kBits;  // outputs of a line
  int j = 0;
  for (; j + 2 * W <= a.out; j += 2 * W) {
    if (prefetch && j % kLine == 0)
#pragma GCC unroll 8
      for (int u = 0; u < kActive; ++u)
        for (int line = 0; line < 2 * W * O::kBits / 8; line += 64)
          __builtin_prefetch(ahead[u] + (ptrdiff_t)j * O::kBits / 8 + line, 0, 2);
    add(rows, j, j);
  }
  if (j < a.out) {
    unsigned char tail[kActive][2 * W * 4] = {};
    const unsigned char* tails[kActive];
    for (int u = 0; u < kActive; ++u) {
      __builtin_memcpy(tail[u], rows[u] + (ptrdiff_t)j * O::kBits / 8,
                       (size_t)((a.out - j) * O::kBits + 7) / 8);
      tails[u] = tail[u];
    }
    add(tails, 0, j);
  }
}

/// The inputs of a part that are to be read, in order, with their values; `places` of them with the
/// padding. A part of which most inputs count is read whole: its rows are then one stream.
struct InputList {
  int32_t* index;
  float* values;  ///< [rows][stride]
  ptrdiff_t stride;
  int places = 0, active = 0;

  InputList(const MatmulArgs& a, void* scratch)
      : index((int32_t*)scratch), values((float*)(index + list_size(a))), stride(list_size(a)) {}

  /// Adds inputs [begin, end); the last pass is filled up with the last input, times zero.
  void add(const MatmulArgs& a, int begin, int end, bool all) {
    const int before = places;
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
      for (; found != 0; found &= found - 1) index[places++] = i + __builtin_ctz(found);
    }
    for (int u = before; u < places; ++u) {
      const int i = index[u];
      const float scale = a.scales.in_scale ? a.scales.in_scale[i] : 1.0f;
      for (int m = 0; m < a.rows; ++m) values[m * stride + u] = a.x[m * a.x_stride + i] * scale;
    }
    active += places - before;
    for (; places % kActive != 0; ++places) {
      index[places] = index[places - 1];
      for (int m = 0; m < a.rows; ++m) values[m * stride + places] = 0.0f;
    }
  }
};

/// Of the inputs that are not zero, the number.
template <class T>
int add_part(const MatmulArgs& a, int begin, int end, float* sums, void* scratch) {
  InputList list(a, scratch);
  const ptrdiff_t stride = sums_stride(a);
  constexpr bool kGrouped = Outputs<T>::kBits == 4;
  const int step = kGrouped ? kInt4Group : end - begin;
  const auto fill = [&](bool all) {
    list.places = list.active = 0;
    for (int i = begin; i < end; i += step) list.add(a, i, end - i < step ? end : i + step, all);
  };
  fill(false);
  const int active = list.active;
  if ((float)active > kDenseShare * (float)(end - begin)) fill(true);
  for (ptrdiff_t j = 0; j < a.rows * stride; ++j) sums[j] = 0.0f;
  for (int p = 0; p < list.places; p += kActive) {
    const bool last = p + kActive >= list.places;
    const int32_t* next = list.index + (last ? p : p + kActive);
    const f16* scales = (const f16*)a.scales.group_scale;
    if (kGrouped) scales += (ptrdiff_t)(list.index[p] / kInt4Group) * a.out;
    for (int m = 0; m < a.rows; m += kSparseRows) {
      const float* values = list.values + m * list.stride + p;
      float* to = sums + m * stride;
      const bool prefetch = m == 0 && !last;
      switch (a.rows - m) {
        case 1:
          add_inputs<T, 1>(a, list.index + p, next, values, list.stride, scales, to, prefetch);
          break;
        case 2:
          add_inputs<T, 2>(a, list.index + p, next, values, list.stride, scales, to, prefetch);
          break;
        case 3:
          add_inputs<T, 3>(a, list.index + p, next, values, list.stride, scales, to, prefetch);
          break;
        default:
          add_inputs<T, 4>(a, list.index + p, next, values, list.stride, scales, to, prefetch);
      }
    }
  }
  return active;
}

int sparse_part(const MatmulArgs& a, int part, float* sums, void* scratch) {
  const int begin = part_begin(a, part), end = part_begin(a, part + 1);
  sums += (ptrdiff_t)part * a.rows * sums_stride(a);
  switch (a.type) {
    case kWeightF32:
      return add_part<float>(a, begin, end, sums, scratch);
    case kWeightF16:
      return add_part<f16>(a, begin, end, sums, scratch);
    case kWeightBF16:
      return add_part<bf16>(a, begin, end, sums, scratch);
    case kWeightI8:
      return add_part<int8_t>(a, begin, end, sums, scratch);
    case kWeightU8:
      return add_part<uint8_t>(a, begin, end, sums, scratch);
    default:
      return add_part<Int4>(a, begin, end, sums, scratch);
  }
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
