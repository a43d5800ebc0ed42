// Many rows. Loops, outermost first: up to kMaxRows rows of x; kGroup outputs; kDepth inputs, for
// which a panel of W is expanded to fp32 [kDepth][kCols] in L2; blocks of kTileRows rows, whose
// packed x stays in L1. The products of a group wait in scratch, so y is touched once.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"
#include "cpu/kernels/matmul_strips.inl"

namespace wkv::cpu {
namespace {

#if defined(__AVX2__)
constexpr int kTileRows = 6;  // with kCols, all but 4 (AVX-512: 7) of the registers are sums
#else
constexpr int kTileRows = 4;
#endif
constexpr int kGroup = 128;
constexpr int kMaxRows = 264;  // a multiple of 12 that holds a step of 256

/// How rows are cut: chunks of at most kMaxRows, those into `large` blocks of `block` rows and
/// others of one row less, without padding: 32 rows are 6 + 6 + 5 + 5 + 5 + 5. Few rows are one
/// block that may be partly padding, and the last chunk may be shorter than the others.
struct RowPlan {
  int chunks, chunk_rows, block, blocks, large;

  int first(int b) const { return b * block - (b > large ? b - large : 0); }
  int size(int b) const { return b < large ? block : block - 1; }
  int rows() const { return first(blocks); }  ///< of a chunk, with padding
};

inline RowPlan plan_rows(int rows) {
  RowPlan p;
  p.chunks = (rows + kMaxRows - 1) / kMaxRows;
  p.chunk_rows = (rows + p.chunks - 1) / p.chunks;
  p.blocks = (p.chunk_rows + kTileRows - 1) / kTileRows;
  p.block = (p.chunk_rows + p.blocks - 1) / p.blocks;
  if (p.block < kTileRows / 2) p.block = kTileRows / 2;  // there is one, then
  p.large = p.blocks > 1 ? p.blocks - (p.blocks * p.block - p.chunk_rows) : 1;
  return p;
}

inline int depths(int in) { return (in + kDepth - 1) / kDepth; }

/// Packed x times in_scale: [chunk][depth][block][kDepth][block rows], the last depth shorter, then
/// the sums of every row.
inline size_t packed_floats(const MatmulArgs& a, const RowPlan& p) {
  return (size_t)p.chunks * (size_t)p.rows() * (size_t)a.in;
}

size_t packed_bytes(const MatmulArgs& a) {
  return packed_floats(a, plan_rows(a.rows)) * sizeof(float) + (size_t)a.rows * sizeof(RowSums);
}

int pack_units(const MatmulArgs& a) {
  const RowPlan p = plan_rows(a.rows);
  return p.chunks * p.blocks;
}

/// to[k][m] = x[m][k] scale[k] for `rows` rows, zero for the others up to `block`.
inline void pack_block(const float* x, ptrdiff_t x_stride, const float* scale, int rows, int block,
                       int depth, float* to) {
  for (int m = 0; m < block; ++m) {
    const float* row = x + m * x_stride;
    if (m >= rows)
      for (int k = 0; k < depth; ++k) to[k * block + m] = 0.0f;
    else if (scale)
      for (int k = 0; k < depth; ++k) to[k * block + m] = row[k] * scale[k];
    else
      for (int k = 0; k < depth; ++k) to[k * block + m] = row[k];
  }
}

void pack(const MatmulArgs& a, int begin, int end, void* packed) {
  const RowPlan p = plan_rows(a.rows);
  RowSums* sums = (RowSums*)((float*)packed + packed_floats(a, p));
  for (int unit = begin; unit < end; ++unit) {
    const int chunk = unit / p.blocks, block = unit % p.blocks;
    const int before = p.first(block), size = p.size(block);
    const int row = chunk * p.chunk_rows + before;
    int stop = (chunk + 1) * p.chunk_rows < a.rows ? (chunk + 1) * p.chunk_rows : a.rows;
    if (stop > row + size) stop = row + size;
    float* base = (float*)packed + (ptrdiff_t)chunk * p.rows() * a.in;
    const float* x = a.x + row * a.x_stride;
    for (int k0 = 0; k0 < a.in; k0 += kDepth) {
      const int depth = a.in - k0 < kDepth ? a.in - k0 : kDepth;
      pack_block(x + k0, a.x_stride, a.scales.in_scale ? a.scales.in_scale + k0 : nullptr,
                 stop - row, size, depth,
                 base + (ptrdiff_t)k0 * p.rows() + (ptrdiff_t)before * depth);
    }
    for (int m = row; m < stop; ++m)
      sums[m] = needs_sums(a.scales) ? row_sums(a.scales, a.x + m * a.x_stride, a.in) : RowSums{};
  }
}

/// c [R][kCols] (+)= x [depth][R] * panel [depth][kCols]; rows of c are kGroup apart.
template <int R>
void micro_kernel(const float* x, const float* panel, int depth, float* c, bool add) {
  constexpr int kVectors = kCols / W;
  f32v acc[R][kVectors] = {};
#pragma GCC unroll 8
  for (int k = 0; k < depth; ++k, x += R, panel += kCols) {
    f32v b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * W);
#pragma GCC unroll 6
    for (int m = 0; m < R; ++m) {
      const f32v xm = splat(x[m]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m][v] += xm * b[v];
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < R; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      // Partial sums of kDepth terms are added up apart: a chain over all inputs would lose as many
      // times more.
      float* to = c + m * kGroup + v * W;
      store(to, add ? load(to) + acc[m][v] : acc[m][v]);
    }
}

using MicroKernel = void (*)(const float* x, const float* panel, int depth, float* c, bool add);

inline MicroKernel micro_kernel_of(int block) {
  switch (block) {
#if defined(__AVX2__)
    case 3:
      return micro_kernel<3>;
    case 4:
      return micro_kernel<4>;
    case 5:
      return micro_kernel<5>;
#else
    case 2:
      return micro_kernel<2>;
    case 3:
      return micro_kernel<3>;
#endif
    default:
      return micro_kernel<kTileRows>;
  }
}

/// What is expanded when inputs up to `k` of outputs [j, j + columns) are done.
inline PanelAhead next_panels(const MatmulArgs& a, int j, int columns, int end, int k) {
  if (k >= a.in) {
    j += columns, k = 0;
    columns = end - j < kGroup ? end - j : kGroup;
  }
  return columns <= 0 ? PanelAhead()
                      : PanelAhead::of(a, j, columns, k, a.in - k < kDepth ? a.in - k : kDepth);
}

template <class Order>
void gemm_typed(const MatmulArgs& a, const float* packed, int begin, int end, float* scratch) {
  const RowPlan p = plan_rows(a.rows);
  const MicroKernel micro[] = {micro_kernel_of(p.block), micro_kernel_of(p.block - 1)};
  const RowSums* sums = (const RowSums*)(packed + packed_floats(a, p));
  float* panels = scratch;               // [kGroup / kCols][kDepth][kCols]
  float* c = scratch + kGroup * kDepth;  // [rows][kGroup]
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int first = chunk * p.chunk_rows;
    const int rows = a.rows - first < p.chunk_rows ? a.rows - first : p.chunk_rows;
    const float* x = packed + (ptrdiff_t)chunk * p.rows() * a.in;
    for (int j = begin; j < end; j += kGroup) {
      const int columns = end - j < kGroup ? end - j : kGroup;
      for (int k0 = 0; k0 < a.in; k0 += kDepth) {
        const int depth = a.in - k0 < kDepth ? a.in - k0 : kDepth;
        for (int n = 0; n < columns; n += kCols)
          Order::expand(a, j + n, columns - n < kCols ? columns - n : kCols, k0, depth,
                        panels + n * kDepth);
        const float* xk = x + (ptrdiff_t)k0 * p.rows();
        PanelAhead ahead = next_panels(a, j, columns, end, k0 + depth);
        const int ask = ahead.lines() / (p.blocks * (kGroup / kCols)) + 1;
        for (int block = 0; block < p.blocks; ++block)
          for (int n = 0; n < columns; n += kCols) {
            micro[block >= p.large](xk + (ptrdiff_t)p.first(block) * depth, panels + n * kDepth,
                                    depth, c + (ptrdiff_t)p.first(block) * kGroup + n, k0 > 0);
            ahead.ask(ask);
          }
      }
      for (int m = 0; m < rows; ++m)
        store_outputs(a, sums[first + m], c + (ptrdiff_t)m * kGroup, first + m, j, j + columns);
    }
  }
}

size_t gemm_scratch(const MatmulArgs& a) {
  const RowPlan p = plan_rows(a.rows);
  return ((size_t)kGroup * kDepth + (size_t)p.rows() * kGroup) * sizeof(float);
}

using Gemm = void (*)(const MatmulArgs& a, const float* packed, int begin, int end, float* scratch);

inline Gemm gemm_of(const MatmulArgs& a) {
  switch (a.type) {
    case kWeightF32:
      return a.input_major ? gemm_typed<InputMajor<float>> : gemm_typed<OutputMajor<UnpackF32>>;
    case kWeightF16:
      return a.input_major ? gemm_typed<InputMajor<f16>> : gemm_typed<OutputMajor<UnpackF16>>;
    case kWeightBF16:
      return a.input_major ? gemm_typed<InputMajor<bf16>> : gemm_typed<OutputMajor<UnpackBF16>>;
    case kWeightI8:
      return a.input_major ? gemm_typed<InputMajor<int8_t>> : gemm_typed<OutputMajor<UnpackI8>>;
    case kWeightU8:
      return a.input_major ? gemm_typed<InputMajor<uint8_t>> : gemm_typed<OutputMajor<UnpackU8>>;
    default:
      return a.input_major ? gemm_typed<InputMajorI4<>> : gemm_typed<StripsI4>;
  }
}

void gemm(const MatmulArgs& a, const void* packed, int begin, int end, void* scratch) {
  gemm_of(a)(a, (const float*)packed, begin, end, (float*)scratch);
}

}  // namespace
}  // namespace wkv::cpu
