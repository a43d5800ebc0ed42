// y = x W^T for up to 64 rows: what decoding is made of. Weights go from memory straight into
// tensor-core fragments, up to 16 loads of 16 bytes in flight per lane from before the kernel's
// start to its end: on an H200 a block that waits between tiles reads at half the bandwidth.
// Activations wait in shared memory, of up to 8 rows as two halves each (x = hi + lo, 22 bits),
// which use columns of the product that would be idle. A warp streams a part of the inputs of some
// tiles of 16 outputs; the sums of all warps meet in shared memory once, at the end. Blocks that
// share the inputs of a tile are a cluster, which adds up in shared memory too, or the last of them
// adds what all left in memory (before sm_90, and where so many clusters would not run at once).
#include "cuda/codec.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/kernels.h"

namespace wkv::cuda {
namespace {

constexpr int kStepInputs = 32;
constexpr int kTile = kSkinnyOutputs;
/// Floats between columns of a tile's sums: the stores of a fragment then hit 32 banks.
constexpr int kPitch = kTile + 4;

/// Bytes between rows of activations: an odd multiple of 64, so that the 16-byte reads of the two
/// rows that one phase touches fall into different banks.
WKV_HD int row_pitch(int inputs) {
  const int bytes = inputs * 2;
  return bytes % 128 == 0 ? bytes + 64 : bytes;
}

/// The same where each row must also hold the sums of `outputs`, of a cluster.
WKV_HD int pitch_of(int inputs, int outputs) {
  return row_pitch(inputs > 2 * outputs ? inputs : 2 * outputs);
}

/// Products of 8 columns: hi and lo of up to 4 rows side by side in one, of up to 8 in two; then
/// one for 8 rows each.
WKV_HD int products_of(int rows) { return rows <= 4 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8; }
/// Rows of halves in shared memory: whole products, whose last columns nobody stores.
WKV_HD int stored_rows(int rows) { return rows <= kSplitRows ? 2 * rows : (rows + 7) / 8 * 8; }
/// The sums of inputs that offsets need, before the activations.
WKV_HD int input_bytes(int rows) { return (rows * 3 + 3) / 4 * 16; }

/// What lo is stored times: as a plain half it would be denormal from |x| < 0.25 on and lose bits.
template <class Codec>
constexpr float kLoScale = Codec::kBf16 ? 1.0f : 2048.0f;

/// Pairs of loads (outputs g and g + 8) in flight per lane: what 128 registers hold; of int4 with
/// their scales.
template <class Codec>
WKV_HD constexpr int pairs_ahead(int products) {
  if (Codec::kGroups) return products <= 2 ? 4 : products == 4 ? 3 : 2;
  if (products == 8 || (Codec::kQuantised && products > 2)) return 4;
  return products == 1 ? 8 : 6;
}

/// Which activations a thread fetches: the warps are dealt out to rows, whose runs of 8 their lanes
/// take by turns. (Dividing by the number of runs for each takes longer than the copy.)
struct Share {
  int row, rows_apart, run, runs_apart;
};
template <int kWarps>
WKV_DEV Share share_of(int rows, int thread) {
  const int each = rows < kWarps ? kWarps / rows : 1;  // warps for a row
  const int warp = thread / 32, row = warp / each;
  return {row, kWarps / each, (warp - row * each) * 32 + thread % 32, each * 32};
}

/// x of inputs [inputs0, inputs0 + inputs) as halves: rows of hi, then rows of lo. The loads of
/// kBatch runs of 8 overlap.
template <class Codec, int kWarps, int kBatch>
WKV_DEV void split_inputs(const LinearJobParams& job, int rows, int inputs0, int inputs, int pitch,
                          unsigned char* to) {
  const int runs = inputs / 8;
  const bool aligned = (reinterpret_cast<std::uintptr_t>(job.x) % 16 == 0) && job.ldx % 4 == 0;
  const Share share = share_of<kWarps>(rows, static_cast<int>(threadIdx.x));
  const auto convert = [&](const float(&v)[8], int row, int run) {
    std::uint16_t hi[8], lo[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float x = v[j] * job.x_scale;
      if constexpr (Codec::kQuantised) {
        const int at = inputs0 + run * 8 + j;
        if (job.in_scale != nullptr && at < job.in) x *= job.in_scale[at];
      }
      hi[j] = round_activation<Codec>(x);
      lo[j] = round_activation<Codec>((x - widen_activation<Codec>(hi[j])) * kLoScale<Codec>);
    }
    *reinterpret_cast<Vec16*>(to + row * pitch + run * 16) = {
        pack(hi[0], hi[1]), pack(hi[2], hi[3]), pack(hi[4], hi[5]), pack(hi[6], hi[7])};
    *reinterpret_cast<Vec16*>(to + (rows + row) * pitch + run * 16) = {
        pack(lo[0], lo[1]), pack(lo[2], lo[3]), pack(lo[4], lo[5]), pack(lo[6], lo[7])};
  };
#pragma unroll 1
  for (int row = share.row; row < rows; row += share.rows_apart) {
    const float* x = job.x + static_cast<std::int64_t>(row) * job.ldx + inputs0;
#pragma unroll 1
    for (int first = share.run; first < runs; first += share.runs_apart * kBatch) {
      float v[kBatch][8];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int run = first + b * share.runs_apart, at = inputs0 + run * 8;
        const float* from = x + run * 8;
        if (run < runs && aligned && at + 8 <= job.in) {
          const float4 lower = reinterpret_cast<const float4*>(from)[0];
          const float4 upper = reinterpret_cast<const float4*>(from)[1];
          v[b][0] = lower.x, v[b][1] = lower.y, v[b][2] = lower.z, v[b][3] = lower.w;
          v[b][4] = upper.x, v[b][5] = upper.y, v[b][6] = upper.z, v[b][7] = upper.w;
        } else {
#pragma unroll
          for (int j = 0; j < 8; ++j) v[b][j] = run < runs && at + j < job.in ? from[j] : 0.0f;
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (first + b * share.runs_apart < runs) convert(v[b], row, first + b * share.runs_apart);
    }
  }
}

/// The same of rows that are rounded already, in the background.
template <int kWarps>
WKV_DEV void copy_inputs(const LinearJobParams& job, int rows, int inputs0, int inputs, int pitch,
                         unsigned char* to) {
  const int runs = inputs / 8;
  const std::int64_t padded = static_cast<std::int64_t>((job.in + 127) / 128) * 128;
  const auto* x = static_cast<const std::uint16_t*>(job.x16) + inputs0;
  const Share share = share_of<kWarps>(rows, static_cast<int>(threadIdx.x));
  for (int row = share.row; row < rows; row += share.rows_apart)
    for (int run = share.run; run < runs; run += share.runs_apart)
      copy_async(to + row * pitch + run * 16, x + row * padded + run * 8);
  copy_async_commit();
  copy_async_wait<0>();
}

/// kHalves: of an activation, 2 or 1; kProducts of 8 columns.
template <class Codec, int kHalves, int kProducts, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 16 / kWarps)
    skinny_kernel(const __grid_constant__ LinearParams p) {
  constexpr int kThreads = kWarps * 32;
  constexpr int kColumns = 8 * kProducts;
  constexpr int kLoadInputs = kStepInputs * Codec::kSteps;
  constexpr int kUnroll = pairs_ahead<Codec>(kProducts);
  constexpr bool kFetchTerms = kProducts < 4;  // or else they spill
  constexpr int kUnrolledSteps = Codec::kGroups && kProducts > 1 ? 1 : Codec::kSteps;
  WKV_SHARED(shared);
  __shared__ bool last;

  int block = static_cast<int>(blockIdx.x);
  const LinearJobParams& job = p.job[find_job(p, block)];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;

  // This block: tiles [tile0, tile_end) of the outputs, loads [load0, load_end) of the inputs. Its
  // warps: `parts` share the inputs of a tile, the rest of them have other tiles.
  const int split = block % job.splits, group = block / job.splits;
  const int tile_count = (job.out + kTile - 1) / kTile;
  const int tile0 = group << job.tile_bits;
  const int tile_end = min(tile0 + (1 << job.tile_bits), tile_count);
  const int loads = (job.in + kLoadInputs - 1) / kLoadInputs;
  const int per_split = (loads + job.splits - 1) / job.splits;
  const int load0 = min(split * per_split, loads);
  const int load_end = min(load0 + per_split, loads);
  const int part = warp % job.parts, stride = kWarps / job.parts;
  const int per_part = max((load_end - load0 + job.parts - 1) / job.parts, 1);
  const int first_load = load0 + part * per_part;
  const int end_load = min(first_load + per_part, load_end);
  const int length = max(end_load - first_load, 0);
  const int first_tile = tile0 + warp / job.parts;
  const int total =
      first_tile < tile_end ? (tile_end - first_tile + stride - 1) / stride * length : 0;

  // The stream of this warp: its loads of its first tile, of its second one, ... Outputs past the
  // edge read the last one's weights and are not stored.
  Vec16 lower[kUnroll], upper[kUnroll];
  Scales scales[Codec::kGroups ? kUnroll : 1];
  const int row_loads = job.row_bytes / 64;
  unsigned lower_at = 0, upper_at = 0;  // in loads from the first output's first; int4 has as many
  int fetch_tile = first_tile, fetch_load = 0, fetched = 0;  // scales, of 8 bytes
  const auto fetch = [&](int u) {
    if (fetched == total) return;
    if (fetch_load == 0) {
      const int edge = job.out - 1;
      const int a = min(fetch_tile * kTile + g, edge), b = min(a + 8, edge);
      lower_at = static_cast<unsigned>(a * row_loads + first_load);
      upper_at = static_cast<unsigned>(b * row_loads + first_load);
    }
    const auto* weights = static_cast<const unsigned char*>(job.w) + t * 16;
    lower[u] = load_stream(weights + std::size_t{lower_at} * 64);
    upper[u] = load_stream(weights + std::size_t{upper_at} * 64);
    if constexpr (Codec::kGroups) {
      const auto* from = reinterpret_cast<const uint2*>(job.group_scale);
      const uint2 of_lower = from[lower_at], of_upper = from[upper_at];
      scales[u] = {{of_lower.x, of_lower.y}, {of_upper.x, of_upper.y}};
    }
    ++lower_at;
    ++upper_at;
    ++fetched;
    if (++fetch_load == length) {
      fetch_load = 0;
      fetch_tile += stride;
    }
  };
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) fetch(u);  // weights: before the wait

  wait_for_previous_kernel();
  const int inputs0 = load0 * kLoadInputs, inputs = (load_end - load0) * kLoadInputs;
  const int output_bits = job.tile_bits + 4, results = p.rows << output_bits;
  const int pitch = pitch_of(per_split * kLoadInputs, p.clusters != 0 ? 1 << output_bits : 0);
  auto* input = reinterpret_cast<float*>(shared);  // of each row the InputSums
  unsigned char* rows = shared + input_bytes(p.rows);
  auto* sums = reinterpret_cast<float*>(rows + stored_rows(p.rows) * pitch);
  if constexpr (kHalves == 2)
    split_inputs<Codec, kWarps, kProducts>(job, p.rows, inputs0, inputs, pitch, rows);
  else
    copy_inputs<kWarps>(job, p.rows, inputs0, inputs, pitch, rows);

  // What the first output of this thread needs besides its sum is fetched meanwhile. Results of a
  // cluster are dealt out to its blocks.
  const auto row_of = [&](int i) { return i >> output_bits; };
  const auto output_of = [&](int i) { return tile0 * kTile + (i & ((1 << output_bits) - 1)); };
  const int mine = p.clusters != 0 ? split * kThreads + thread : thread;
  OutputTerms terms = {};
  if (kFetchTerms && mine < results && output_of(mine) < job.out)
    terms = load_terms(job, row_of(mine), output_of(mine));
  __syncthreads();
  if constexpr (Codec::kQuantised && kHalves == 2) {
    if (job.zero != 0.0f && warp < p.rows) {
      const int end = min(inputs0 + inputs, job.in);
      const InputSums of = input_sums(job.x + static_cast<std::int64_t>(warp) * job.ldx,
                                      job.in_scale, job.in_offset, inputs0, end, lane);
      input[warp * 3] = of.scaled;
      input[warp * 3 + 1] = of.plain;
      input[warp * 3 + 2] = of.offset;
    }
  } else if constexpr (Codec::kQuantised) {
    // Of all inputs: only the first split adds them.
    for (int i = thread; i < p.rows * 3; i += kThreads)
      input[i] = job.sums != nullptr && split == 0 ? job.sums[i] : 0.0f;
  }

  // Where this lane finds column g of each product, or null for a column that no row uses.
  const unsigned char* columns[kHalves == 2 ? kProducts : 1];
  const unsigned char* const first_column =
      rows + t * 16 + (first_load - load0) * Codec::kSteps * 64;
  if constexpr (kHalves == 2) {
#pragma unroll
    for (int n = 0; n < kProducts; ++n) {
      const int row = kProducts == 1 ? g % 4 : g, half = kProducts == 1 ? g / 4 : n;
      columns[n] = row < p.rows ? first_column + (half * p.rows + row) * pitch : nullptr;
    }
  } else {
    columns[0] = first_column + g * pitch;
  }

  float acc[kProducts][4] = {};
  int tile = first_tile, load = 0;
  for (int base = 0; base < total; base += kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (base + u >= total) break;
#pragma unroll kUnrolledSteps
      for (int s = 0; s < Codec::kSteps; ++s) {
        const Pairs a = Codec::pairs(lower[u], s), b = Codec::pairs(upper[u], s);
#pragma unroll
        for (int n = 0; n < kProducts; ++n) {
          Vec16 x = {0, 0, 0, 0};
          const int at = (load * Codec::kSteps + s) * 64;
          if constexpr (kHalves == 2) {
            if (columns[n] != nullptr) x = *reinterpret_cast<const Vec16*>(columns[n] + at);
          } else {
            if (kProducts > 2 && n * 8 >= p.rows) break;
            x = *reinterpret_cast<const Vec16*>(columns[0] + n * 8 * pitch + at);
          }
          if constexpr (Codec::kGroups) {
            float sum[4] = {};
            multiply<Codec>(sum, a, b, x);
            add_scaled(acc[n], sum, group_scale(scales[u].lower, s),
                       group_scale(scales[u].upper, s));
          } else {
            multiply<Codec>(acc[n], a, b, x);
          }
        }
      }
      fetch(u);
      if (++load < length) continue;
      float* to = sums + ((tile - tile0) * job.parts + part) * kColumns * kPitch;
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
        to[(n * 8 + 2 * t) * kPitch + g] = acc[n][0];
        to[(n * 8 + 2 * t + 1) * kPitch + g] = acc[n][1];
        to[(n * 8 + 2 * t) * kPitch + g + 8] = acc[n][2];
        to[(n * 8 + 2 * t + 1) * kPitch + g + 8] = acc[n][3];
#pragma unroll
        for (float& sum : acc[n]) sum = 0.0f;
      }
      load = 0;
      tile += stride;
    }
  }
  __syncthreads();

  const int parts = (load_end - load0 + per_part - 1) / per_part;  // that had any inputs
  const float scale = 1.0f / job.x_scale;                          // a power of two
  const auto finish = [&](int i, float sum) {
    store_output(job, row_of(i), output_of(i), sum,
                 kFetchTerms && i == mine ? terms : load_terms(job, row_of(i), output_of(i)));
  };
  float* partial = p.workspace + job.partial;
  auto* of_cluster = reinterpret_cast<float*>(rows);  // the activations are done with
  for (int i = thread; i < results; i += kThreads) {
    const int row = row_of(i), o = output_of(i), column = o - tile0 * kTile;
    if (o >= job.out) continue;
    const float* from =
        sums + (column / kTile * job.parts * kColumns + row) * kPitch + column % kTile;
    float sum = 0.0f, lo = 0.0f;
#pragma unroll 4
    for (int k = 0; k < parts; ++k) {
      sum += from[k * kColumns * kPitch];
      if constexpr (kHalves == 2) lo += from[(k * kColumns + kColumns / 2) * kPitch];
    }
    if constexpr (kHalves == 2) sum = fmaf(lo, 1.0f / kLoScale<Codec>, sum);
    sum *= scale;
    if constexpr (Codec::kQuantised)
      sum = dequantise(job, o, sum, {input[row * 3], input[row * 3 + 1], input[row * 3 + 2]});
    if (p.clusters != 0)
      of_cluster[i] = sum;
    else if (job.splits == 1)
      finish(i, sum);
    else
      partial[(static_cast<std::int64_t>(split) * p.rows + row) * job.out + o] = sum;
  }
  if (p.clusters != 0) {
    cluster_barrier();
    for (int i = mine; i < results; i += kThreads * job.splits) {
      if (output_of(i) >= job.out) continue;
      float sum = 0.0f;
#pragma unroll 4
      for (int s = 0; s < job.splits; ++s) sum += load_cluster(of_cluster + i, s);
      finish(i, sum);
    }
    cluster_barrier();  // nobody leaves while others read its sums
    return;
  }
  if (job.splits == 1) return;

  // The last block of a tile group adds the parts up, in their order whoever is last.
  __syncthreads();
  if (thread == 0) {
    unsigned* counter = p.tickets + job.first_ticket + group;
    last = take_ticket(counter) + 1 == static_cast<unsigned>(job.splits);
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  for (int i = thread; i < results; i += kThreads) {
    const int row = row_of(i), o = output_of(i);
    if (o >= job.out) continue;
    float sum = 0.0f;
#pragma unroll 4
    for (int s = 0; s < job.splits; ++s)
      sum += partial[(static_cast<std::int64_t>(s) * p.rows + row) * job.out + o];
    finish(i, sum);
  }
}

template <class Codec, int kWarps>
void choose(Launch& out, const LinearParams& p, int blocks, std::uint32_t shared_bytes) {
  const auto launch = [&](void (*kernel)(LinearParams)) {
    make_launch(out, kernel, static_cast<unsigned>(blocks), 1, 1, kWarps * 32, shared_bytes, p,
                used_bytes(p));
    if (p.clusters != 0) out.header.cluster = static_cast<std::uint8_t>(p.clusters);
  };
  if (p.rows <= 4) return launch(skinny_kernel<Codec, 2, 1, kWarps>);
  if (p.rows <= kSplitRows) return launch(skinny_kernel<Codec, 2, 2, kWarps>);
  if (p.rows <= 16) return launch(skinny_kernel<Codec, 1, 2, kWarps>);
  if (p.rows <= 32) return launch(skinny_kernel<Codec, 1, 4, 16>);
  launch(skinny_kernel<Codec, 1, 8, 16>);
}

template <class Codec>
void choose(Launch& out, const LinearParams& p, const SkinnyShape& shape) {
  if (shape.warps == 16)
    choose<Codec, 16>(out, p, shape.blocks, shape.shared_bytes);
  else
    choose<Codec, 8>(out, p, shape.blocks, shape.shared_bytes);
}

}  // namespace

std::uint32_t skinny_shared_bytes(int rows, int inputs_per_split, int sums, int cluster_outputs) {
  return static_cast<std::uint32_t>(
             input_bytes(rows) + stored_rows(rows) * pitch_of(inputs_per_split, cluster_outputs)) +
         static_cast<std::uint32_t>(sums * products_of(rows) * 8 * kPitch) * sizeof(float);
}

void skinny(Launch& out, Codec codec, const LinearParams& p, const SkinnyShape& shape) {
  switch (codec) {
    case Codec::bf16:
      return choose<Bf16Codec>(out, p, shape);
    case Codec::u8:
      return choose<U8Codec>(out, p, shape);
    case Codec::u4:
      return choose<U4Codec>(out, p, shape);
    default:
      return choose<F16Codec>(out, p, shape);
  }
}

}  // namespace wkv::cuda
