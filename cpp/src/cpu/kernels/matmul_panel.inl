// Panels of W for gemm: kCols outputs by up to kDepth inputs as fp32 [input][output].
#pragma once

#include "cpu/kernels/matmul_codes.inl"

namespace wkv::cpu {
namespace {

/// With AVX-512 a core of Ice Lake does two multiply-adds a cycle and 1.1 loads: 6 rows of x by 4
/// vectors of outputs, which load 10 vectors for 24 products, are 1.08 times as fast as 12 by 2.
#if defined(__AVX512F__)
constexpr int kCols = 4 * W;
#else
constexpr int kCols = 2 * W;
#endif
constexpr int kDepth = 128;  // 256 are 1 % faster and lose up to twice as much in sums of one sign

/// v[i][j] <-> v[j][i]
inline __attribute__((always_inline)) void transpose(f32v (&v)[W]) {
#if defined(__AVX512F__)
  f32v t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = (f32v)_mm512_unpacklo_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]);
    t[2 * i + 1] = (f32v)_mm512_unpackhi_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[4 * i] = (f32v)_mm512_unpacklo_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    v[4 * i + 1] = (f32v)_mm512_unpackhi_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    v[4 * i + 2] = (f32v)_mm512_unpacklo_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
    v[4 * i + 3] = (f32v)_mm512_unpackhi_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = (f32v)_mm512_shuffle_f32x4((__m512)v[i], (__m512)v[4 + i], 0x88);
    t[4 + i] = (f32v)_mm512_shuffle_f32x4((__m512)v[i], (__m512)v[4 + i], 0xdd);
    t[8 + i] = (f32v)_mm512_shuffle_f32x4((__m512)v[8 + i], (__m512)v[12 + i], 0x88);
    t[12 + i] = (f32v)_mm512_shuffle_f32x4((__m512)v[8 + i], (__m512)v[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = (f32v)_mm512_shuffle_f32x4((__m512)t[i], (__m512)t[8 + i], 0x88);
    v[8 + i] = (f32v)_mm512_shuffle_f32x4((__m512)t[i], (__m512)t[8 + i], 0xdd);
    v[4 + i] = (f32v)_mm512_shuffle_f32x4((__m512)t[4 + i], (__m512)t[12 + i], 0x88);
    v[12 + i] = (f32v)_mm512_shuffle_f32x4((__m512)t[4 + i], (__m512)t[12 + i], 0xdd);
  }
#elif defined(__AVX2__)
  f32v t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = (f32v)_mm256_unpacklo_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
    t[2 * i + 1] = (f32v)_mm256_unpackhi_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    v[4 * i] = (f32v)_mm256_unpacklo_pd((__m256d)t[4 * i], (__m256d)t[4 * i + 2]);
    v[4 * i + 1] = (f32v)_mm256_unpackhi_pd((__m256d)t[4 * i], (__m256d)t[4 * i + 2]);
    v[4 * i + 2] = (f32v)_mm256_unpacklo_pd((__m256d)t[4 * i + 1], (__m256d)t[4 * i + 3]);
    v[4 * i + 3] = (f32v)_mm256_unpackhi_pd((__m256d)t[4 * i + 1], (__m256d)t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = (f32v)_mm256_permute2f128_ps((__m256)v[i], (__m256)v[4 + i], 0x20);
    t[4 + i] = (f32v)_mm256_permute2f128_ps((__m256)v[i], (__m256)v[4 + i], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = t[i];
#else
  float t[W][W];
  for (int i = 0; i < W; ++i) store(t[i], v[i]);
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < W; ++j) v[i][j] = t[j][i];
#endif
}

/// Unpackers: kInputs consecutive inputs come in a lane of 32 bits (fp16 is widened while loading);
/// value() makes input i of it fp32. begin() is called at every W lanes, with the input they start
/// at.

struct UnpackF32 {
  static constexpr int kInputs = 1, kBytes = 4;
  UnpackF32(const MatmulArgs&, int, int) {}
  void begin(int, int) {}
  static f32v lanes(const unsigned char* p) { return load((const float*)p); }
  static f32v value(f32v v, int, int) { return v; }
};

struct UnpackF16 {
  static constexpr int kInputs = 1, kBytes = 2;
  UnpackF16(const MatmulArgs&, int, int) {}
  void begin(int, int) {}
  static f32v lanes(const unsigned char* p) { return load((const f16*)p); }
  static f32v value(f32v v, int, int) { return v; }
};

struct UnpackBF16 {
  static constexpr int kInputs = 2, kBytes = 4;
  UnpackBF16(const MatmulArgs&, int, int) {}
  void begin(int, int) {}
  static f32v lanes(const unsigned char* p) { return load((const float*)p); }
  static f32v value(f32v v, int, int i) {
    return (f32v)(i == 0 ? (u32v)v << 16 : (u32v)v & 0xffff0000u);
  }
};

struct UnpackI8 {
  static constexpr int kInputs = 4, kBytes = 4;
  UnpackI8(const MatmulArgs&, int, int) {}
  void begin(int, int) {}
  static f32v lanes(const unsigned char* p) { return load((const float*)p); }
  static f32v value(f32v v, int, int i) {
    return __builtin_convertvector((i32v)v << (24 - 8 * i) >> 24, f32v);
  }
};

struct UnpackU8 {
  static constexpr int kInputs = 4, kBytes = 4;
  UnpackU8(const MatmulArgs&, int, int) {}
  void begin(int, int) {}
  static f32v lanes(const unsigned char* p) { return load((const float*)p); }
  static f32v value(f32v v, int, int i) {
    return __builtin_convertvector((i32v)((u32v)v >> 8 * i & 0xffu), f32v);
  }
};

/// Inputs [k0, k0 + depth) of outputs [j, j + n), n <= W, to columns of the panel; absent ones
/// zero.
template <class U, int Cols>
void expand_columns(const MatmulArgs& a, int j, int n, int k0, int depth, float* panel) {
  constexpr int kInputs = U::kInputs, kSquare = W * kInputs;
  if (n <= 0) {
    for (int k = 0; k < depth; ++k) store(panel + k * Cols, f32v{});
    return;
  }
  U unpack(a, j, n);
  const unsigned char* w =
      (const unsigned char*)a.w + j * a.row_bytes + (ptrdiff_t)k0 / kInputs * U::kBytes;
  for (int k = 0; k < depth; k += kSquare, w += W * U::kBytes, panel += kSquare * Cols) {
    const int inputs = depth - k < kSquare ? depth - k : kSquare;
    unpack.begin(k0 + k, inputs);
    f32v v[W];
    if (n == W && inputs == kSquare) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = U::lanes(w + i * a.row_bytes);
    } else {
      const size_t bytes = (size_t)((inputs * U::kBytes + kInputs - 1) / kInputs);
      for (int i = 0; i < W; ++i) {
        unsigned char part[W * U::kBytes] = {};
        if (i < n) __builtin_memcpy(part, w + i * a.row_bytes, bytes);
        v[i] = U::lanes(part);
      }
    }
    transpose(v);
    if (inputs == kSquare) {
#pragma GCC unroll 16
      for (int d = 0; d < W; ++d)
#pragma GCC unroll 8
        for (int i = 0; i < kInputs; ++i)
          store(panel + (d * kInputs + i) * Cols, unpack.value(v[d], d, i));
    } else {
      for (int d = 0; d < W; ++d)
        for (int i = 0; i < kInputs && d * kInputs + i < inputs; ++i)
          store(panel + (d * kInputs + i) * Cols, unpack.value(v[d], d, i));
    }
  }
}

/// Panel [depth][Cols] of outputs [j, j + columns), columns <= Cols, and inputs from k0 on.
template <class U, int Cols = kCols>
struct OutputMajor {
  static void expand(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel) {
    for (int half = 0; half < Cols; half += W)
      expand_columns<U, Cols>(a, j + half, columns - half < W ? columns - half : W, k0, depth,
                              panel + half);
  }
};

template <class T, int Cols = kCols>
struct InputMajor {
  static void expand(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel) {
    for (int k = 0; k < depth; ++k, panel += Cols) {
      const T* row = (const T*)((const unsigned char*)a.w + (k0 + k) * a.row_bytes) + j;
      T part[Cols];
      if (columns < Cols) {
        __builtin_memset(part, 0, sizeof part);
        __builtin_memcpy(part, row, (size_t)columns * sizeof(T));
        row = part;
      }
      for (int v = 0; v < Cols; v += W) store(panel + v, load(row + v));
    }
  }
};

template <int Cols = kCols>
struct InputMajorI4 {
  static void expand(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel) {
    for (int k = 0; k < depth; ++k, panel += Cols) {
      const unsigned char* row = (const unsigned char*)a.w + (k0 + k) * a.row_bytes;
      const f16* scales =
          (const f16*)a.scales.group_scale + (ptrdiff_t)((k0 + k) / kInt4Group) * a.out;
      for (int v = 0; v < Cols; v += 2 * W)
        pairs(row + (j + v) / 2, scales + j + v, columns - v, panel + v);
    }
  }

  /// 2 W outputs of an input, of which `columns` are there.
  static void pairs(const unsigned char* row, const f16* scales, int columns, float* panel) {
    unsigned char codes[W] = {};
    f16 part[2 * W] = {};
    if (columns < 2 * W) {
      if (columns > 0) {
        __builtin_memcpy(codes, row, (size_t)(columns + 1) / 2);
        __builtin_memcpy(part, scales, (size_t)columns * sizeof(f16));
      }
      row = codes;
      scales = part;
    }
    const i32v both = load_codes(row);
    const f32v even = __builtin_convertvector(both & 15, f32v) - 8.0f;
    const f32v odd = __builtin_convertvector(both >> 4, f32v) - 8.0f;
    f32v low, high;
    join_pairs(even, odd, &low, &high);
    store(panel, low * load(scales));
    store(panel + W, high * load(scales + W));
  }
};

}  // namespace
}  // namespace wkv::cpu
