// y = x W^T for up to 8 rows: what decoding is made of. A block streams tiles of 16 outputs; its 8
// warps share the inputs of a tile. Weights go from memory straight into tensor-core fragments;
// activations wait in shared memory as two halves each (x = hi + lo, 22 bits), which use columns of
// the product that would be idle.
#include "cuda/codec.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/kernels.h"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStepInputs = 32;
constexpr int kTile = kSkinnyOutputs;

/// Bytes between rows of activations: an odd multiple of 64, so that the 16-byte reads of the two
/// rows that one phase touches fall into different banks.
WKV_HD int row_pitch(int inputs) {
  const int bytes = inputs * 2;
  return bytes % 128 == 0 ? bytes + 64 : bytes;
}

/// kTiles products of 8 columns: 1 for up to 4 rows (hi in columns 0..3, lo in 4..7), else 2.
/// kUnroll loads are in flight per output and lane.
template <class Codec, int kTiles, int kUnroll>
__global__ void __launch_bounds__(kThreads, 2)
    skinny_kernel(const __grid_constant__ LinearParams p) {
  constexpr int kColumns = 8 * kTiles;
  constexpr int kLoadInputs = kStepInputs * Codec::kSteps;
  WKV_SHARED(shared);
  __shared__ float sums[kWarps][kTile][kColumns];
  __shared__ float input[kSkinnyRows][3];
  __shared__ bool last;

  int block = static_cast<int>(blockIdx.x);
  const LinearJobParams& job = p.job[find_job(p, block)];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;

  // This block: tiles [tile0, tile_end) of the outputs, loads [load0, load_end) of the inputs.
  const int split = block % job.splits, group = block / job.splits;
  const int tile_count = (job.out + kTile - 1) / kTile;
  const int tile0 = group * job.tiles;
  const int tile_end = tile0 + job.tiles < tile_count ? tile0 + job.tiles : tile_count;
  const int loads = (job.in + kLoadInputs - 1) / kLoadInputs;
  const int per_split = (loads + job.splits - 1) / job.splits;
  const int load0 = split * per_split;
  const int load_end = load0 + per_split < loads ? load0 + per_split : loads;
  const int per_warp = (per_split + kWarps - 1) / kWarps;
  const int warp0 = load0 + warp * per_warp;
  const int warp_end = warp0 + per_warp < load_end ? warp0 + per_warp : load_end;

  // Outputs past the edge read the last one's weights and are not stored.
  struct Rows {
    const unsigned char *lower, *upper;
    const std::uint16_t *lower_scale, *upper_scale;
  };
  const auto rows_of = [&](int tile) {
    const int edge = job.out - 1;
    const std::int64_t first = tile * kTile + g < edge ? tile * kTile + g : edge;
    const std::int64_t second = first + 8 < edge ? first + 8 : edge;
    const auto* weights = static_cast<const unsigned char*>(job.w) + t * 16;
    Rows rows = {weights + first * job.row_bytes, weights + second * job.row_bytes, nullptr,
                 nullptr};
    if constexpr (Codec::kGroups) {
      rows.lower_scale = job.group_scale + first * job.groups;
      rows.upper_scale = job.group_scale + second * job.groups;
    }
    return rows;
  };
  Vec16 lower[kUnroll], upper[kUnroll];
  Scales scales[Codec::kGroups ? kUnroll : 1];
  const auto fetch = [&](int u, const Rows& from, int load) {
    if (load >= warp_end) return;
    lower[u] = load_stream(from.lower + static_cast<std::int64_t>(load) * 64);
    upper[u] = load_stream(from.upper + static_cast<std::int64_t>(load) * 64);
    if constexpr (Codec::kGroups) {
      const uint2 a = reinterpret_cast<const uint2*>(from.lower_scale)[load];
      const uint2 b = reinterpret_cast<const uint2*>(from.upper_scale)[load];
      scales[u] = {{a.x, a.y}, {b.x, b.y}};
    }
  };
  Rows rows = rows_of(tile0);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) fetch(u, rows, warp0 + u);  // weights: before the wait

  wait_for_previous_kernel();
  const int inputs0 = load0 * kLoadInputs, inputs = (load_end - load0) * kLoadInputs;
  const int pitch = row_pitch(per_split * kLoadInputs);
  for (int i = thread; i < p.rows * inputs / 8; i += kThreads) {
    const int row = i / (inputs / 8), first = i % (inputs / 8) * 8;
    const float* from = job.x + static_cast<std::int64_t>(row) * job.ldx + inputs0 + first;
    std::uint16_t hi[8], lo[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float v = inputs0 + first + j < job.in ? from[j] * job.x_scale : 0.0f;
      if constexpr (Codec::kQuantised)
        if (job.in_scale != nullptr && inputs0 + first + j < job.in)
          v *= job.in_scale[inputs0 + first + j];
      hi[j] = round_activation<Codec>(v);
      lo[j] = round_activation<Codec>(v - widen_activation<Codec>(hi[j]));
    }
    *reinterpret_cast<Vec16*>(shared + row * pitch + first * 2) = {
        pack(hi[0], hi[1]), pack(hi[2], hi[3]), pack(hi[4], hi[5]), pack(hi[6], hi[7])};
    *reinterpret_cast<Vec16*>(shared + (p.rows + row) * pitch + first * 2) = {
        pack(lo[0], lo[1]), pack(lo[2], lo[3]), pack(lo[4], lo[5]), pack(lo[6], lo[7])};
  }
  if constexpr (Codec::kQuantised) {
    if (job.zero != 0.0f && warp < p.rows) {
      const int end = inputs0 + inputs < job.in ? inputs0 + inputs : job.in;
      const InputSums sums = input_sums(job.x + static_cast<std::int64_t>(warp) * job.ldx,
                                        job.in_scale, job.in_offset, inputs0, end, lane);
      input[warp][0] = sums.scaled;
      input[warp][1] = sums.plain;
      input[warp][2] = sums.offset;
    }
  }
  __syncthreads();

  // Where this lane finds column g of each product, or null for a column that no row uses.
  const unsigned char* columns[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int row = kTiles == 1 ? g % 4 : g, half = kTiles == 1 ? g / 4 : n;
    columns[n] = row < p.rows ? shared + (half * p.rows + row) * pitch + t * 16 : nullptr;
  }

  float* partial = p.workspace + job.partial;
  for (int tile = tile0; tile < tile_end; ++tile) {
    float acc[kTiles][4] = {};
    for (int base = warp0; base < warp0 + per_warp; base += kUnroll) {
      const bool more = base + kUnroll < warp0 + per_warp;
      if (!more) rows = rows_of(tile + 1);
      const int next = more ? base + kUnroll : tile + 1 < tile_end ? warp0 : warp_end;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (base + u < warp_end) {
#pragma unroll
          for (int s = 0; s < Codec::kSteps; ++s) {
            const Pairs a = Codec::pairs(lower[u], s), b = Codec::pairs(upper[u], s);
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              Vec16 x = {0, 0, 0, 0};
              if (columns[n] != nullptr)
                x = *reinterpret_cast<const Vec16*>(columns[n] +
                                                    ((base + u - load0) * Codec::kSteps + s) * 64);
              if constexpr (Codec::kGroups) {
                float part[4] = {};
                multiply<Codec>(part, a, b, x);
                add_scaled(acc[n], part, group_scale(scales[u].lower, s),
                           group_scale(scales[u].upper, s));
              } else {
                multiply<Codec>(acc[n], a, b, x);
              }
            }
          }
        }
        fetch(u, rows, next + u);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      sums[warp][g][n * 8 + 2 * t] = acc[n][0];
      sums[warp][g][n * 8 + 2 * t + 1] = acc[n][1];
      sums[warp][g + 8][n * 8 + 2 * t] = acc[n][2];
      sums[warp][g + 8][n * 8 + 2 * t + 1] = acc[n][3];
    }
    __syncthreads();
    for (int i = thread; i < kTile * p.rows; i += kThreads) {
      const int output = i % kTile, row = i / kTile;
      float hi = 0.0f, lo = 0.0f;
      for (int w = 0; w < kWarps; ++w) {
        hi += sums[w][output][row];
        lo += sums[w][output][row + kColumns / 2];
      }
      float sum = (hi + lo) / job.x_scale;
      const int o = tile * kTile + output;
      if constexpr (Codec::kQuantised)
        if (o < job.out)
          sum = dequantise(job, o, sum, {input[row][0], input[row][1], input[row][2]});
      if (job.splits == 1) {
        if (o < job.out) store_output(job, row, o, sum);
      } else {
        partial[(static_cast<std::int64_t>(split) * tile_count + tile) * kTile * p.rows + i] = sum;
      }
    }
    __syncthreads();
  }
  if (job.splits == 1) return;

  // The last block of a tile group adds the parts up, in their order whoever is last.
  if (thread == 0) {
    unsigned* counter = p.tickets + job.first_ticket + group;
    last = take_ticket(counter) + 1 == static_cast<unsigned>(job.splits);
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  const int per_tile = kTile * p.rows;
  for (int i = thread; i < (tile_end - tile0) * per_tile; i += kThreads) {
    const int tile = tile0 + i / per_tile, output = i % kTile, row = i % per_tile / kTile;
    float sum = 0.0f;
    for (int s = 0; s < job.splits; ++s)
      sum += partial[(static_cast<std::int64_t>(s) * tile_count + tile) * per_tile + i % per_tile];
    if (tile * kTile + output < job.out) store_output(job, row, tile * kTile + output, sum);
  }
}

template <class Codec>
void choose(Launch& out, const LinearParams& p, int blocks, std::uint32_t shared_bytes) {
  const auto grid = static_cast<unsigned>(blocks);
  constexpr int kUnroll = Codec::kGroups ? 2 : 4;  // the scales of more loads would spill
  if (p.rows <= 4)
    make_launch(out, skinny_kernel<Codec, 1, 4>, grid, 1, 1, kThreads, shared_bytes, p);
  else
    make_launch(out, skinny_kernel<Codec, 2, kUnroll>, grid, 1, 1, kThreads, shared_bytes, p);
}

}  // namespace

std::uint32_t skinny_shared_bytes(int rows, int inputs_per_split) {
  return static_cast<std::uint32_t>(2 * rows * row_pitch(inputs_per_split));
}

int skinny_inputs(int rows, int shared_bytes) {
  constexpr int kStatic = 9 * 1024;  // sums, input, last
  constexpr int kPadding = 64;       // of a row: row_pitch()
  return ((shared_bytes - kStatic) / (2 * rows) - kPadding) / 2;
}

void skinny(Launch& out, Codec codec, const LinearParams& p, int blocks,
            std::uint32_t shared_bytes) {
  switch (codec) {
    case Codec::bf16:
      return choose<Bf16Codec>(out, p, blocks, shared_bytes);
    case Codec::u8:
      return choose<U8Codec>(out, p, blocks, shared_bytes);
    case Codec::u4:
      return choose<U4Codec>(out, p, blocks, shared_bytes);
    default:
      return choose<F16Codec>(out, p, blocks, shared_bytes);
  }
}

}  // namespace wkv::cuda
