// The recurrences. wkv4 runs one thread per channel. wkv6 and wkv7 share a row-split kernel: a
// block is one head of one sequence, a warp owns 8 value columns of its state S [key][value], a
// lane 2 of them for a share of the keys, in registers for the whole sequence. Tokens are prepared
// in chunks of one token per warp: operands of the next chunk are loaded before the serial part of
// this one.
#include "cuda/wkv.cuh"

namespace wkv::cuda {
namespace {

constexpr int kWkv4Threads = 64;

__global__ void __launch_bounds__(kWkv4Threads) wkv4_kernel(const Wkv4Params p) {
  wait_for_previous_kernel();
  const int c = static_cast<int>(blockIdx.x * kWkv4Threads + threadIdx.x);
  if (c >= p.cols) return;
  const int seq = static_cast<int>(blockIdx.y);
  const std::int64_t row = p.batch.seq_row[seq];
  const int rows = p.batch.seq_rows[seq];
  float* state = p.batch.state[seq] + p.slot + c;
  float aa = state[0], bb = state[p.cols], pp = state[2 * static_cast<std::int64_t>(p.cols)];
  const float decay = p.decay[c], bonus = p.bonus[c];
  const float* r = p.r + row * p.ldr + c;
  const float* k = p.k + row * p.ldk + c;
  const float* v = p.v + row * p.ldv + c;
  float* y = p.y + row * p.ldy + c;
#pragma unroll 4
  for (int t = 0; t < rows; ++t) {
    const float kt = k[t * p.ldk], vt = v[t * p.ldv], rt = r[t * p.ldr];
    float q = fmaxf(pp, bonus + kt);
    const float e1 = expf(pp - q), e2 = expf(bonus + kt - q);
    y[t * p.ldy] = rt * (e1 * aa + e2 * vt) / (e1 * bb + e2);
    q = fmaxf(pp + decay, kt);
    const float f1 = expf(pp + decay - q), f2 = expf(kt - q);
    aa = f1 * aa + f2 * vt;
    bb = f1 * bb + f2;
    pp = q;
  }
  state[0] = aa;
  state[p.cols] = bb;
  state[2 * static_cast<std::int64_t>(p.cols)] = pp;
}

/// Blocks per processor that the registers must allow: 512 threads of 128 each. Without a bound
/// ptxas aims at more blocks and spills. Where there are more blocks than those, of one token each,
/// half as many again hide better that each waits for its state.
template <int kKeysPerLane, bool kCrowded>
constexpr int kBlocks = (kCrowded ? 24 : 16) / kKeysPerLane;

/// Tokens of two chunks and their outputs y, in floats.
template <class L>
constexpr int kSharedFloats = 2 * kMaxChunk * (L::kToken + L::kKeys);

template <int kVersion, int kKeysPerLane, bool kCrowded>
__global__ void __launch_bounds__(kKeysPerLane * 32, (kBlocks<kKeysPerLane, kCrowded>))
    wkv_kernel(const __grid_constant__ WkvParams p) {
  using L = TokenLayout<kVersion, kKeysPerLane>;
  constexpr int kPerLane = L::kPerLane;
  // Weights, gates and the operands of the next chunk wait in registers.
  constexpr bool kAhead = kKeysPerLane < 16 && !kCrowded;
  WKV_SHARED(shared);
  float* tokens = reinterpret_cast<float*>(shared);
  float* outputs = tokens + 2 * kMaxChunk * L::kToken;

  const int head = static_cast<int>(blockIdx.x), seq = static_cast<int>(blockIdx.y);
  const int N = p.head_size;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int chunk = kCrowded ? 1 : warps < kMaxChunk ? warps : kMaxChunk;
  const int part = lane % kParts;
  const int value = warp * kValuesPerWarp + lane / kParts * 2;  // this lane's first value column
  const std::int64_t channel0 = static_cast<std::int64_t>(head) * N;

  // Nothing that still runs writes the batch's arrays, nor this state: its last writer was this
  // layer a step ago.
  const std::int64_t row0 = p.batch.seq_row[seq];
  const int rows = kCrowded ? 1 : p.batch.seq_rows[seq];
  float* state = p.batch.state[seq] + p.slot + channel0 * N;
  float s0[kKeysPerLane], s1[kKeysPerLane];
  load_state(state, N, part, value, s0, s1);
  HeadWeights<kPerLane> weights;
  if constexpr (kAhead) weights.load(p, channel0, lane);
  wait_for_previous_kernel();

  RawToken<kVersion, kPerLane> raw;  // of the token that this warp prepares next
  const auto load = [&](int t) { raw.load(p, row0 + t, channel0, lane, warp < chunk && t < rows); };
  const auto token_at = [&](int buffer, int t) {
    return tokens + (buffer * kMaxChunk + t) * L::kToken;
  };
  const auto prepare = [&](int buffer) {
    if (warp >= chunk) return;
    if constexpr (!kAhead) weights.load(p, channel0, lane);
    raw.template prepare<L>(weights, lane, token_at(buffer, warp));
  };
  float gate[kPerLane];
  const auto finish = [&](int t, int buffer) {
    if (warp >= chunk || t >= rows) return;
    if constexpr (!kAhead) {
      weights.load(p, channel0, lane);
      load_gate(p, row0 + t, channel0, lane, true, gate);
    }
    const float* token = token_at(buffer, warp);
    const float* from = outputs + (buffer * kMaxChunk + warp) * L::kKeys;
    float y[kPerLane], v[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      y[i] = from[lane + 32 * i];
      v[i] = token[L::kV + lane + 32 * i];
    }
    finish_head<kVersion, kPerLane>(p, weights, row0 + t, channel0, lane, y, v, token[L::kBonus],
                                    gate);
  };

  load(warp);
  prepare(0);
  __syncthreads();
  for (int t0 = 0, buffer = 0; t0 < rows; t0 += chunk, buffer ^= 1) {
    if constexpr (kAhead) {
      load_gate(p, row0 + t0 + warp, channel0, lane, warp < chunk && t0 + warp < rows, gate);
      load(t0 + chunk + warp);
    }
    const int n = rows - t0 < chunk ? rows - t0 : chunk;
    for (int t = 0; t < n; ++t) {
      const float* token = token_at(buffer, t);
      const float v0 = token[L::kV + value], v1 = token[L::kV + value + 1];
      float removed0 = 0.0f, removed1 = 0.0f, y0 = 0.0f, y1 = 0.0f;
      if constexpr (kVersion == 7) {
        float a[kKeysPerLane];
#pragma unroll
        for (int i = 0; i < kKeysPerLane; i += 4) read_keys(token + L::kA, part, i, a + i);
        removed_share(a, s0, s1, removed0, removed1);
        removed0 = sum_parts(removed0);
        removed1 = sum_parts(removed1);
      }
      // Four keys at a time: the operands of all would take 64 registers more.
#pragma unroll
      for (int i = 0; i < kKeysPerLane; i += 4) {
        float r4[4], decay[4], key[4], b4[4];
        read_keys(token + L::kR, part, i, r4);
        read_keys(token + L::kW, part, i, decay);
        read_keys(token + L::kK, part, i, key);
        if constexpr (kVersion == 7) read_keys(token + L::kB, part, i, b4);
        step_four<kVersion>(r4, decay, key, b4, v0, v1, removed0, removed1, s0 + i, s1 + i, y0, y1);
      }
      y0 = sum_parts(y0);
      y1 = sum_parts(y1);
      if constexpr (kVersion == 6) {
        y0 = fmaf(token[L::kBonus], v0, y0);
        y1 = fmaf(token[L::kBonus], v1, y1);
      }
      if (part == 0) {
        float* y = outputs + (buffer * kMaxChunk + t) * L::kKeys;
        y[value] = y0;
        y[value + 1] = y1;
      }
    }
    __syncthreads();
    finish(t0 + warp, buffer);
    if (t0 + chunk >= rows) break;
    if constexpr (!kAhead) load(t0 + chunk + warp);
    prepare(buffer ^ 1);
    __syncthreads();
  }
  store_state(state, N, part, value, s0, s1);
}

template <int kVersion, int kKeysPerLane>
void launch_wkv(Launch& out, const WkvParams& p) {
  const int warps = (p.head_size + kValuesPerWarp - 1) / kValuesPerWarp;
  constexpr bool kCrowded = kKeysPerLane < 16;  // the state of larger heads needs the registers
  make_launch(
      out,
      kCrowded && p.crowded != 0 ? wkv_kernel<kVersion, kKeysPerLane, kCrowded>
                                 : wkv_kernel<kVersion, kKeysPerLane, false>,
      static_cast<unsigned>(p.heads), static_cast<unsigned>(p.sequences), 1,
      static_cast<unsigned>(warps) * 32,
      static_cast<unsigned>(kSharedFloats<TokenLayout<kVersion, kKeysPerLane>> * sizeof(float)), p);
}

}  // namespace

void wkv4(Launch& out, const Wkv4Params& p) {
  make_launch(out, wkv4_kernel, static_cast<unsigned>((p.cols + kWkv4Threads - 1) / kWkv4Threads),
              static_cast<unsigned>(p.sequences), 1, kWkv4Threads, 0, p);
}

void wkv(Launch& out, const WkvParams& p) {
  with_keys_per_lane(p.head_size, [&](auto keys) {
    p.version == 7 ? launch_wkv<7, keys()>(out, p) : launch_wkv<6, keys()>(out, p);
  });
}

}  // namespace wkv::cuda
