// wkv6 and wkv7 of long sequences, a head's value columns split over several blocks: one sequence
// of a model with 32 heads otherwise keeps 32 processors busy, each bound by its shared memory (all
// warps of a head read all operands of a token). Some warps of a block are in the recurrence, the
// others prepare the tokens of the next chunk. What needs a whole head's y (GroupNorm, bonus, gate)
// is a kernel of its own.
#include "cuda/wkv.cuh"

namespace wkv::cuda {
namespace {

constexpr int kPreparers = 4;  // warps
constexpr int kTokensEach = kMaxChunk / kPreparers;
constexpr int kHeadsPerBlock = 4;  // of the finishing kernel, a warp each

template <int kVersion, int kKeysPerLane>
__global__ void __launch_bounds__((kKeysPerLane / 2 + kPreparers) * 32)
    wkv_split_kernel(const __grid_constant__ WkvParams p) {
  using L = TokenLayout<kVersion, kKeysPerLane>;
  WKV_SHARED(shared);
  float* tokens = reinterpret_cast<float*>(shared);

  const int head = static_cast<int>(blockIdx.x) / p.split;
  const int seq = static_cast<int>(blockIdx.y), N = p.head_size;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int workers = static_cast<int>(blockDim.x) / 32 - kPreparers;
  const int part = lane % kParts;
  const int first_warp = static_cast<int>(blockIdx.x) % p.split * workers;
  const int value = (first_warp + warp) * kValuesPerWarp + lane / kParts * 2;
  const std::int64_t channel0 = static_cast<std::int64_t>(head) * N;

  // Weights, and what nothing that still runs writes: the batch's arrays, and this state, whose
  // last writer was this layer a step ago.
  const std::int64_t row0 = p.batch.seq_row[seq];
  const int rows = p.batch.seq_rows[seq];
  float* state = p.batch.state[seq] + p.slot + channel0 * N;
  if (warp >= workers) {
    const int mine = warp - workers;
    HeadWeights<L::kPerLane> weights;
    weights.load(p, channel0, lane);
    wait_for_previous_kernel();
    RawToken<kVersion, L::kPerLane> raw[kTokensEach];
    const auto load = [&](int t0) {
#pragma unroll
      for (int i = 0; i < kTokensEach; ++i) {
        const int t = t0 + mine + i * kPreparers;
        raw[i].load(p, row0 + t, channel0, lane, t < rows);
      }
    };
    const auto prepare = [&](int buffer) {
#pragma unroll
      for (int i = 0; i < kTokensEach; ++i)
        raw[i].template prepare<L>(
            weights, lane, tokens + (buffer * kMaxChunk + mine + i * kPreparers) * L::kToken);
    };
    load(0);
    prepare(0);
    load(kMaxChunk);
    __syncthreads();
    for (int t0 = 0, buffer = 0; t0 < rows; t0 += kMaxChunk, buffer ^= 1) {
      prepare(buffer ^ 1);
      load(t0 + 2 * kMaxChunk);
      __syncthreads();
    }
    return;
  }

  float s0[kKeysPerLane], s1[kKeysPerLane];
  load_state(state, N, part, value, s0, s1);
  wait_for_previous_kernel();
  __syncthreads();
  for (int t0 = 0, buffer = 0; t0 < rows; t0 += kMaxChunk, buffer ^= 1) {
    const float* chunk = tokens + buffer * kMaxChunk * L::kToken;
    const int n = rows - t0;
    float y0[kMaxChunk], y1[kMaxChunk];
    // -kk is first in the chain from state to state: it is read a token ahead, and all the rest
    // while the lanes add up what it removes.
    float a[kKeysPerLane];
    const auto read_a = [&](int t) {
      if constexpr (kVersion == 7)
#pragma unroll
        for (int i = 0; i < kKeysPerLane; i += 4)
          read_keys(chunk + t * L::kToken + L::kA, part, i, a + i);
    };
    read_a(0);
#pragma unroll
    for (int t = 0; t < kMaxChunk; ++t) {
      y0[t] = y1[t] = 0.0f;
      if (t >= n) continue;
      const float* token = chunk + t * L::kToken;
      const float v0 = token[L::kV + value], v1 = token[L::kV + value + 1];
      float removed0 = 0.0f, removed1 = 0.0f;
      float r[kKeysPerLane], decay[kKeysPerLane], key[kKeysPerLane], b[kKeysPerLane];
      const auto read_rest = [&](int i) {
        read_keys(token + L::kR, part, i, r + i);
        read_keys(token + L::kW, part, i, decay + i);
        read_keys(token + L::kK, part, i, key + i);
        if constexpr (kVersion == 7) read_keys(token + L::kB, part, i, b + i);
      };
      constexpr bool kEarly = kKeysPerLane <= 8;  // or else registers run out
      if constexpr (kEarly)
#pragma unroll
        for (int i = 0; i < kKeysPerLane; i += 4) read_rest(i);
      if constexpr (kVersion == 7) {
        removed_share(a, s0, s1, removed0, removed1);
        if (t + 1 < kMaxChunk) read_a(t + 1);
        removed0 = sum_parts(removed0);
        removed1 = sum_parts(removed1);
      }
#pragma unroll
      for (int i = 0; i < kKeysPerLane; i += 4) {
        if constexpr (!kEarly) read_rest(i);
        step_four<kVersion>(r + i, decay + i, key + i, b + i, v0, v1, removed0, removed1, s0 + i,
                            s1 + i, y0[t], y1[t]);
      }
    }
    // The sums over the lanes of a column, of all tokens at once: each exchange halves the tokens
    // that a lane is left with, in the end its own one.
#pragma unroll
    for (int mask = kParts / 2, left = kMaxChunk / 2; mask > 0; mask /= 2, left /= 2) {
      const bool upper = (part & mask) != 0;
#pragma unroll
      for (int t = 0; t < kMaxChunk / 2; ++t) {
        if (t >= left) break;
        const float give0 = upper ? y0[t] : y0[t + left], give1 = upper ? y1[t] : y1[t + left];
        y0[t] = (upper ? y0[t + left] : y0[t]) + shuffle_xor(give0, mask);
        y1[t] = (upper ? y1[t + left] : y1[t]) + shuffle_xor(give1, mask);
      }
    }
    if (part < n) {
      const float* token = chunk + part * L::kToken;
      if constexpr (kVersion == 6) {
        y0[0] = fmaf(token[L::kBonus], token[L::kV + value], y0[0]);
        y1[0] = fmaf(token[L::kBonus], token[L::kV + value + 1], y1[0]);
      }
      float* y = p.y + (row0 + t0 + part) * p.ldy + channel0 + value;
      if (value < N) y[0] = y0[0];
      if (value + 1 < N) y[1] = y1[0];
    }
    __syncthreads();
  }
  store_state(state, N, part, value, s0, s1);
}

template <int kVersion, int kPerLane>
__global__ void __launch_bounds__(kHeadsPerBlock * 32)
    wkv_finish_kernel(const __grid_constant__ WkvParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head =
      static_cast<int>(blockIdx.x) * kHeadsPerBlock + static_cast<int>(threadIdx.x) / 32;
  const bool wanted = head < p.heads;
  const std::int64_t row = blockIdx.y, channel0 = static_cast<std::int64_t>(head) * p.head_size;
  HeadWeights<kPerLane> weights = {};
  if (wanted) weights.load(p, channel0, lane);
  wait_for_previous_kernel();
  if (!wanted) return;
  float y[kPerLane], gate[kPerLane], bonus = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int j = lane + 32 * i;
    y[i] = j < p.head_size ? p.y[row * p.ldy + channel0 + j] : 0.0f;
  }
  load_gate(p, row, channel0, lane, true, gate);
  RawToken<kVersion, kPerLane> raw = {};
  if constexpr (kVersion == 7) {
    raw.load(p, row, channel0, lane, true);
    float kk[kPerLane], squares;
    bonus = warp_sum(raw.finish_keys(weights, kk, squares));
  }
  finish_head<kVersion, kPerLane>(p, weights, row, channel0, lane, y, raw.v, bonus, gate);
}

template <int kVersion, int kKeysPerLane>
void launch_split(Launch& out, const WkvParams& p) {
  using L = TokenLayout<kVersion, kKeysPerLane>;
  const int warps = (p.head_size + kValuesPerWarp - 1) / kValuesPerWarp;
  const int workers = (warps + p.split - 1) / p.split;
  make_launch(out, wkv_split_kernel<kVersion, kKeysPerLane>,
              static_cast<unsigned>(p.heads * p.split), static_cast<unsigned>(p.sequences), 1,
              static_cast<unsigned>(workers + kPreparers) * 32,
              static_cast<unsigned>(2 * kMaxChunk * L::kToken * sizeof(float)), p);
}

template <int kVersion, int kKeysPerLane>
void launch_finish(Launch& out, const WkvParams& p) {
  make_launch(out, wkv_finish_kernel<kVersion, TokenLayout<kVersion, kKeysPerLane>::kPerLane>,
              static_cast<unsigned>((p.heads + kHeadsPerBlock - 1) / kHeadsPerBlock),
              static_cast<unsigned>(p.rows), 1, kHeadsPerBlock * 32, 0, p);
}

}  // namespace

void wkv_split(Launch& out, const WkvParams& p) {
  with_keys_per_lane(p.head_size, [&](auto keys) {
    p.version == 7 ? launch_split<7, keys()>(out, p) : launch_split<6, keys()>(out, p);
  });
}

void wkv_finish(Launch& out, const WkvParams& p) {
  with_keys_per_lane(p.head_size, [&](auto keys) {
    p.version == 7 ? launch_finish<7, keys()>(out, p) : launch_finish<6, keys()>(out, p);
  });
}

}  // namespace wkv::cuda
