// y = x W^T for more than 64 rows, or fewer where skinny.cu finds no room. Operands travel through
// a ring of shared-memory stages (cp.async); fragments are read with 16-byte loads in the same
// order as in codec.cuh, so weights need no repacking. Products with few tiles are split over the
// inputs; the last block of a tile adds the parts up in their order.
#include <type_traits>

#include "cuda/codec.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/kernels.h"

namespace wkv::cuda {
namespace {

/// kWarpsOut x kWarpsRow warps, each kOut tiles of 16 outputs and kRow tiles of 8 rows.
template <int kWarpsOut_, int kWarpsRow_, int kOut_, int kRow_, int kStages_>
struct Tiling {
  static constexpr int kWarpsOut = kWarpsOut_, kWarpsRow = kWarpsRow_, kOut = kOut_, kRow = kRow_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kWarpsOut * kWarpsRow * 32;
  static constexpr int kOutTile = kWarpsOut * kOut * 16;
  static constexpr int kRowTile = kWarpsRow * kRow * 8;
};
// Rings of at most 60 KB, for the 64 KB that sm_75 has, and 96 KB for the large tiles.
using Small = Tiling<4, 1, 1, 8, 3>;  // 64 x 64
using Deep = Tiling<4, 1, 1, 8, 4>;   // of bytes: 4 KB of weights a stage
using Large = Tiling<4, 2, 2, 8, 3>;  // 128 x 128
using Wide = Tiling<4, 2, 2, 4, 3>;   // 128 x 64: scaled sums take twice the registers

template <class Codec>
using LargeOf = std::conditional_t<Codec::kGroups, Wide, Large>;
template <class Codec>
using SmallOf = std::conditional_t<Codec::kSteps == 2, Deep, Small>;

template <class Codec>
constexpr int kStageInputs = Codec::kSteps == 4 ? 128 : 64;

/// Blocks per processor that the registers must allow.
template <class Codec, class T>
constexpr int kBlocks = T::kThreads == 256                  ? 1
                        : Codec::kQuantised && T::kRow == 8 ? 2
                                                            : 3;

template <class Codec, class T>
struct Stage {
  static constexpr int kLoads = kStageInputs<Codec> / (32 * Codec::kSteps);  // 64-byte runs
  static constexpr int kWeightPitch = kLoads * 64;
  static constexpr int kRowPitch = kStageInputs<Codec> * 2;
  static constexpr int kWeightBytes = T::kOutTile * kWeightPitch;
  static constexpr int kBytes = kWeightBytes + T::kRowTile * kRowPitch;
};

/// Swaps the halves of every second row's 128 bytes: the two rows that one phase of 16-byte reads
/// touches then fall into different banks.
WKV_DEV int swizzle(int row, int chunk, int pitch) {
  return row * pitch + ((pitch >= 128 ? chunk ^ ((row & 1) << 2) : chunk) * 16);
}

template <class Codec, class T>
__global__ void __launch_bounds__(T::kThreads, (kBlocks<Codec, T>))
    gemm_kernel(const __grid_constant__ LinearParams p) {
  using S = Stage<Codec, T>;
  WKV_SHARED(shared);
  __shared__ bool last;

  int block = static_cast<int>(blockIdx.x);
  const LinearJobParams& job = p.job[find_job(p, block)];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;

  // Row tiles vary fastest: neighbouring blocks then share weights in L2.
  const int row_tiles = (p.rows + T::kRowTile - 1) / T::kRowTile;
  const int split = block % job.splits, tile = block / job.splits;
  const int row0 = tile % row_tiles * T::kRowTile, output0 = tile / row_tiles * T::kOutTile;
  const int stages = (job.in + kStageInputs<Codec> - 1) / kStageInputs<Codec>;
  const int per_split = (stages + job.splits - 1) / job.splits;
  const int first = split * per_split;
  const int count = first + per_split < stages ? per_split : stages - first;

  const auto* weights = static_cast<const unsigned char*>(job.w);
  const auto* x16 = static_cast<const unsigned char*>(job.x16);
  // Rows of x16 are padded to the largest kStageInputs, those of the weights only to their own
  // load: what lies beyond is met by zeros of x and read from the row's last load instead.
  const std::int64_t x_bytes = static_cast<std::int64_t>((job.in + 127) / 128) * 128 * 2;
  const int last_run = job.row_bytes / 64 - 1;

  const auto fetch_weights = [&](int stage) {
    unsigned char* to = shared + stage % T::kStages * S::kBytes;
    constexpr int kChunks = S::kLoads * 4;
    for (int i = thread; i < T::kOutTile * kChunks; i += T::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int output = output0 + row < job.out ? output0 + row : job.out - 1;
      int run = (first + stage) * S::kLoads + chunk / 4;
      run = run < last_run ? run : last_run;
      copy_async(
          to + swizzle(row, chunk, S::kWeightPitch),
          weights + static_cast<std::int64_t>(output) * job.row_bytes + run * 64 + chunk % 4 * 16);
    }
  };
  const auto fetch_rows = [&](int stage) {
    unsigned char* to = shared + stage % T::kStages * S::kBytes + S::kWeightBytes;
    constexpr int kChunks = S::kRowPitch / 16;
    for (int i = thread; i < T::kRowTile * kChunks; i += T::kThreads) {
      const int r = i / kChunks, chunk = i % kChunks;
      const int row = row0 + r < p.rows ? row0 + r : p.rows - 1;
      copy_async(to + swizzle(r, chunk, S::kRowPitch),
                 x16 + row * x_bytes + static_cast<std::int64_t>(first + stage) * S::kRowPitch +
                     chunk * 16);
    }
  };

  // Weights do not depend on the kernel before: they are under way while it ends.
#pragma unroll
  for (int s = 0; s < T::kStages - 1; ++s)
    if (s < count) fetch_weights(s);
  wait_for_previous_kernel();
#pragma unroll
  for (int s = 0; s < T::kStages - 1; ++s) {
    if (s < count) fetch_rows(s);
    copy_async_commit();
  }

  const int warp_out = warp % T::kWarpsOut * T::kOut * 16;
  const int warp_row = warp / T::kWarpsOut * T::kRow * 8;
  float acc[T::kOut][T::kRow][4] = {};
  for (int stage = 0; stage < count; ++stage) {
    copy_async_wait<T::kStages - 2>();
    __syncthreads();  // the stage has landed for all, and all have left the one refilled next
    if (stage + T::kStages - 1 < count) {
      fetch_weights(stage + T::kStages - 1);
      fetch_rows(stage + T::kStages - 1);
    }
    copy_async_commit();
    const unsigned char* w = shared + stage % T::kStages * S::kBytes;
    const unsigned char* x = w + S::kWeightBytes;
#pragma unroll
    for (int load = 0; load < S::kLoads; ++load) {
      Vec16 lower[T::kOut], upper[T::kOut];
#pragma unroll
      for (int m = 0; m < T::kOut; ++m) {
        const int row = warp_out + m * 16 + g;
        lower[m] = *reinterpret_cast<const Vec16*>(w + swizzle(row, load * 4 + t, S::kWeightPitch));
        upper[m] =
            *reinterpret_cast<const Vec16*>(w + swizzle(row + 8, load * 4 + t, S::kWeightPitch));
      }
      Scales scales[Codec::kGroups ? T::kOut : 1];
      if constexpr (Codec::kGroups) {
#pragma unroll
        for (int m = 0; m < T::kOut; ++m) {
          const int at = (first + stage) * S::kLoads + load;
          const int o0 = output0 + warp_out + m * 16 + g, edge = job.out - 1;
          const std::int64_t lo = o0 < edge ? o0 : edge, hi = o0 + 8 < edge ? o0 + 8 : edge;
          const uint2 a = reinterpret_cast<const uint2*>(job.group_scale + lo * job.groups)[at];
          const uint2 b = reinterpret_cast<const uint2*>(job.group_scale + hi * job.groups)[at];
          scales[m] = {{a.x, a.y}, {b.x, b.y}};
        }
      }
#pragma unroll
      for (int s = 0; s < Codec::kSteps; ++s) {
        Pairs a[T::kOut], b[T::kOut];
#pragma unroll
        for (int m = 0; m < T::kOut; ++m) {
          a[m] = Codec::pairs(lower[m], s);
          b[m] = Codec::pairs(upper[m], s);
        }
#pragma unroll
        for (int n = 0; n < T::kRow; ++n) {
          const int chunk = (load * Codec::kSteps + s) * 4 + t;
          const Vec16 column = *reinterpret_cast<const Vec16*>(
              x + swizzle(warp_row + n * 8 + g, chunk, S::kRowPitch));
#pragma unroll
          for (int m = 0; m < T::kOut; ++m) {
            if constexpr (Codec::kGroups) {
              float part[4] = {};
              multiply<Codec>(part, a[m], b[m], column);
              add_scaled(acc[m][n], part, group_scale(scales[m].lower, s),
                         group_scale(scales[m].upper, s));
            } else {
              multiply<Codec>(acc[m][n], a[m], b[m], column);
            }
          }
        }
      }
    }
  }

  // The sums go through shared memory, so that the rest is written once, for one element, and
  // neighbouring threads store neighbouring outputs.
  copy_async_wait<0>();
  __syncthreads();
  constexpr int kPitch = T::kOutTile + 4;  // lanes then write to 32 different banks
  auto* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < T::kOut; ++m)
#pragma unroll
    for (int n = 0; n < T::kRow; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[(warp_row + n * 8 + 2 * t + i % 2) * kPitch + warp_out + m * 16 + g + i / 2 * 8] =
            acc[m][n][i];
  __syncthreads();

  // Four neighbouring outputs of a row at a time, kBatch of them together: on an H200 the sums of
  // one element after the other, each waiting for L2, took 17 us of a 2048 x 2048 product of 32
  // rows.
  constexpr int kFours = T::kOutTile / 4, kItems = kFours * T::kRowTile / T::kThreads;
  constexpr int kBatch = kItems < 4 ? kItems : 4;
  static_assert(kItems % kBatch == 0);
  constexpr std::int64_t kTileFloats = T::kOutTile * T::kRowTile;
  float4* partial = reinterpret_cast<float4*>(p.workspace + job.partial +
                                              std::int64_t{tile} * job.splits * kTileFloats);
  const auto at_sums = [&](int i) {
    return reinterpret_cast<const float4*>(sums + i / kFours * kPitch + i % kFours * 4);
  };
  if (job.splits > 1) {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int i = thread + k * T::kThreads;
      partial[split * (kTileFloats / 4) + i] = *at_sums(i);
    }
    __syncthreads();
    if (thread == 0) {
      unsigned* counter = p.tickets + job.first_ticket + tile;
      last = take_ticket(counter) + 1 == static_cast<unsigned>(job.splits);
      if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return;
  }
  const bool vector = aligned_epilogue(job);
  const float scale = 1.0f / job.x_scale;
  for (int k0 = 0; k0 < kItems; k0 += kBatch) {
    float sum[kBatch][4];
    OutputTerms4 terms[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = thread + (k0 + k) * T::kThreads;
      const int output = output0 + i % kFours * 4, row = row0 + i / kFours;
      if (row < p.rows && output < job.out)
        terms[k] = load_terms4(job, row, output, job.out - output, vector);
      const float4 part = job.splits == 1 ? *at_sums(i) : partial[i];
      sum[k][0] = part.x, sum[k][1] = part.y, sum[k][2] = part.z, sum[k][3] = part.w;
    }
#pragma unroll 2
    for (int s = 1; s < job.splits; ++s)
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const float4 part = partial[s * (kTileFloats / 4) + thread + (k0 + k) * T::kThreads];
        sum[k][0] += part.x, sum[k][1] += part.y, sum[k][2] += part.z, sum[k][3] += part.w;
      }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = thread + (k0 + k) * T::kThreads;
      const int output = output0 + i % kFours * 4, row = row0 + i / kFours;
      if (row >= p.rows || output >= job.out) continue;
#pragma unroll
      for (float& v : sum[k]) v *= scale;
      if constexpr (Codec::kQuantised) {
        InputSums of = {0.0f, 0.0f, 0.0f};
        if (job.sums != nullptr)
          of = {job.sums[row * 3], job.sums[row * 3 + 1], job.sums[row * 3 + 2]};
        for (int j = 0; j < 4; ++j)
          if (output + j < job.out) sum[k][j] = dequantise(job, output + j, sum[k][j], of);
      }
      store_outputs4(job, row, output, job.out - output, vector, sum[k], terms[k]);
    }
  }
}

/// The ring, or the sums that take its place.
template <class Codec, class T>
constexpr unsigned kSharedBytes = T::kStages * Stage<Codec, T>::kBytes >
                                          (T::kOutTile + 4) * T::kRowTile * 4
                                      ? T::kStages* Stage<Codec, T>::kBytes
                                      : (T::kOutTile + 4) * T::kRowTile * 4;

constexpr unsigned kStaticBytes = 16;  // `last`

/// use(codec, tiling) of the one that fits the rows and the shared memory of a block.
template <class Codec, class F>
auto with_tiling(int rows, int shared_bytes, F&& use) {
  constexpr auto kNeeded = static_cast<int>(kSharedBytes<Codec, LargeOf<Codec>> + kStaticBytes);
  if (rows <= Small::kRowTile || shared_bytes < kNeeded) return use(Codec{}, SmallOf<Codec>{});
  return use(Codec{}, LargeOf<Codec>{});
}
template <class F>
auto with_form(Codec codec, int rows, int shared_bytes, F&& use) {
  switch (codec) {
    case Codec::bf16:
      return with_tiling<Bf16Codec>(rows, shared_bytes, use);
    case Codec::u8:
      return with_tiling<U8Codec>(rows, shared_bytes, use);
    case Codec::u4:
      return with_tiling<U4Codec>(rows, shared_bytes, use);
    default:
      return with_tiling<F16Codec>(rows, shared_bytes, use);
  }
}

}  // namespace

GemmShape gemm_shape(Codec codec, int rows, int shared_bytes) {
  return with_form(codec, rows, shared_bytes, []<class C, class T>(C, T) {
    return GemmShape{T::kOutTile, T::kRowTile, kStageInputs<C>};
  });
}

void gemm(Launch& out, Codec codec, const LinearParams& p, int blocks, int shared_bytes) {
  with_form(codec, p.rows, shared_bytes, [&]<class C, class T>(C, T) {
    make_launch(out, gemm_kernel<C, T>, static_cast<unsigned>(blocks), 1, 1,
                static_cast<unsigned>(T::kThreads), kSharedBytes<C, T>, p, used_bytes(p));
  });
}

}  // namespace wkv::cuda
