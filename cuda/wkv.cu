// The recurrences. wkv4 runs one thread per channel. wkv6 and wkv7 share a row-split kernel: a
// block is one head of one sequence, a warp owns 8 value columns of its state S [key][value], a
// lane 2 of them for a share of the keys, in registers for the whole sequence. Tokens are prepared
// in chunks of one token per warp: operands of the next chunk are loaded before the serial part of
// this one.
#include "cuda/kernels.h"
#include "cuda/math.cuh"
#include "cuda/platform.cuh"

namespace wkv::cuda {
namespace {

constexpr int kParts = 8;          // lanes that share a value column, each a part of the keys
constexpr int kValuesPerWarp = 8;  // 32 lanes / kParts * 2
constexpr int kMaxChunk = 8;       // tokens prepared at once
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

/// Offsets in shared memory, in floats. Per token: operands of kKeys floats each, then the scalar.
template <int kVersion, int kKeysPerLane>
struct Layout {
  static constexpr int kKeys = kKeysPerLane * kParts;  // head size, rounded up
  static constexpr int kR = 0, kW = kKeys, kK = 2 * kKeys, kV = 3 * kKeys;
  [[maybe_unused]] static constexpr int kA = 4 * kKeys;  // v7: -kk
  [[maybe_unused]] static constexpr int kB = 5 * kKeys;  // v7: a kk
  static constexpr int kOperands = kVersion == 7 ? 6 : 4;
  static constexpr int kBonus = kOperands * kKeys;
  static constexpr int kToken = kBonus + 4;
  static constexpr int kFloats = 2 * kMaxChunk * (kToken + kKeys);  // and the outputs y
};

/// Key `i` of a lane: groups of 4 neighbours, 32 apart, so that 16-byte reads of eight lanes of a
/// warp fall into different banks.
WKV_DEV int key_of(int part, int i) { return 32 * (i / 4) + 4 * part + i % 4; }

/// Blocks per processor that the registers must allow: 512 threads of 128 each. Without a bound
/// ptxas aims at more blocks and spills.
template <int kKeysPerLane>
constexpr int kBlocks = 16 / kKeysPerLane;

template <int kVersion, int kKeysPerLane>
__global__ void __launch_bounds__(kKeysPerLane * 32, kBlocks<kKeysPerLane>)
    wkv_kernel(const __grid_constant__ WkvParams p) {
  using L = Layout<kVersion, kKeysPerLane>;
  constexpr int kPerLane = L::kKeys / 32;  // elements of a row that a lane of a whole warp handles
  constexpr bool kAhead = kKeysPerLane < 16;  // operands of the next chunk wait in registers
  WKV_SHARED(shared);
  float* tokens = reinterpret_cast<float*>(shared);
  float* outputs = tokens + 2 * kMaxChunk * L::kToken;

  const int head = static_cast<int>(blockIdx.x), seq = static_cast<int>(blockIdx.y);
  const int N = p.head_size;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int chunk = warps < kMaxChunk ? warps : kMaxChunk;
  const int part = lane % kParts;
  const int value = warp * kValuesPerWarp + lane / kParts * 2;  // this lane's first value column
  const std::int64_t channel0 = static_cast<std::int64_t>(head) * N;

  wait_for_previous_kernel();
  const std::int64_t row0 = p.batch.seq_row[seq];
  const int rows = p.batch.seq_rows[seq];
  float* state = p.batch.state[seq] + p.slot + channel0 * N;

  float s0[kKeysPerLane], s1[kKeysPerLane];
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) {
    const int key = key_of(part, i);
    const bool in = key < N;
    s0[i] = in && value < N ? state[static_cast<std::int64_t>(key) * N + value] : 0.0f;
    s1[i] = in && value + 1 < N ? state[static_cast<std::int64_t>(key) * N + value + 1] : 0.0f;
  }

  // The raw operands of the token that this warp prepares next.
  float r[kPerLane], w[kPerLane], k[kPerLane], v[kPerLane], a[kPerLane];
  const auto load = [&](int t) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane + 32 * i;
      const bool in = warp < chunk && t < rows && j < N;
      const std::int64_t row = row0 + t, c = channel0 + j;
      r[i] = in ? p.r[row * p.ldr + c] : 0.0f;
      w[i] = in ? p.w[row * p.ldw + c] : 0.0f;
      k[i] = in ? p.k[row * p.ldk + c] : 0.0f;
      v[i] = in ? p.v[row * p.ldv + c] : 0.0f;
      a[i] = 0.0f;
      if constexpr (kVersion == 7) {
        a[i] = in ? p.a[row * p.lda + c] : 0.0f;
        if (in && p.v_mix != nullptr)
          v[i] = fmaf(p.v_first[row * p.ldv_first + c] - v[i], p.v_mix[row * p.ldv_mix + c], v[i]);
      }
    }
  };
  const auto prepare = [&](int buffer) {
    if (warp >= chunk) return;
    float* token = tokens + (buffer * kMaxChunk + warp) * L::kToken;
    float bonus = 0.0f, squares = 0.0f, kk[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane + 32 * i;
      const bool in = j < N;
      const std::int64_t c = channel0 + j;
      kk[i] = 0.0f;
      if constexpr (kVersion == 7) {
        if (in && p.k_k != nullptr) kk[i] = k[i] * p.k_k[c];
        squares = fmaf(kk[i], kk[i], squares);
        if (in && p.k_a != nullptr) k[i] *= 1.0f + (a[i] - 1.0f) * p.k_a[c];
      }
      if (in && p.r_k != nullptr) bonus = fmaf(r[i] * k[i], p.r_k[c], bonus);
      token[L::kR + j] = r[i];
      token[L::kW + j] = w[i];
      token[L::kK + j] = k[i];
      token[L::kV + j] = v[i];
    }
    bonus = warp_sum(bonus);
    if (lane == 0) token[L::kBonus] = bonus;
    if constexpr (kVersion == 7) {
      const float norm = 1.0f / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int j = lane + 32 * i;
        token[L::kA + j] = -kk[i] * norm;
        token[L::kB + j] = kk[i] * norm * a[i];
      }
    }
  };
  const auto read = [&](const float* from, int i, float(&to)[4]) {
    const float4 q = *reinterpret_cast<const float4*>(from + key_of(part, i));
    to[0] = q.x;
    to[1] = q.y;
    to[2] = q.z;
    to[3] = q.w;
  };
  const auto sum_parts = [](float x) {
    for (int mask = kParts / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
  };
  // GroupNorm, bonus and gate of one token, by a whole warp.
  const auto finish = [&](int t, int buffer) {
    if (warp >= chunk || t >= rows) return;
    const float* token = tokens + (buffer * kMaxChunk + warp) * L::kToken;
    const float* y = outputs + (buffer * kMaxChunk + warp) * L::kKeys;
    float sum = 0.0f, squares = 0.0f, mean = 0.0f, scale = 1.0f;
    if (p.norm_weight != nullptr) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i)
        if (lane + 32 * i < N) sum += y[lane + 32 * i];
      mean = warp_sum(sum) / static_cast<float>(N);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i)
        if (lane + 32 * i < N) {
          const float d = y[lane + 32 * i] - mean;
          squares = fmaf(d, d, squares);
        }
      scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(N) + p.eps);
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane + 32 * i;
      if (j >= N) break;
      const std::int64_t c = channel0 + j, row = row0 + t;
      float out = y[j];
      if (p.norm_weight != nullptr)
        out = fmaf((out - mean) * scale, p.norm_weight[c], p.norm_bias[c]);
      if constexpr (kVersion == 7) out = fmaf(token[L::kBonus], token[L::kV + j], out);
      if (p.gate != nullptr) out *= p.gate[row * p.ldgate + c];
      p.y[row * p.ldy + c] = out;
    }
  };

  load(warp);
  prepare(0);
  __syncthreads();
  for (int t0 = 0, buffer = 0; t0 < rows; t0 += chunk, buffer ^= 1) {
    if constexpr (kAhead) load(t0 + chunk + warp);
    const int n = rows - t0 < chunk ? rows - t0 : chunk;
    for (int t = 0; t < n; ++t) {
      const float* token = tokens + (buffer * kMaxChunk + t) * L::kToken;
      float removed0 = 0.0f, removed1 = 0.0f, y0 = 0.0f, y1 = 0.0f;
      const float v0 = token[L::kV + value], v1 = token[L::kV + value + 1];
      if constexpr (kVersion == 7) {
#pragma unroll
        for (int i = 0; i < kKeysPerLane; i += 4) {
          float a4[4];
          read(token + L::kA, i, a4);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            removed0 = fmaf(s0[i + j], a4[j], removed0);
            removed1 = fmaf(s1[i + j], a4[j], removed1);
          }
        }
        removed0 = sum_parts(removed0);
        removed1 = sum_parts(removed1);
      }
      // Four keys at a time: the operands of all would take 64 registers more.
#pragma unroll
      for (int i = 0; i < kKeysPerLane; i += 4) {
        float r4[4], decay[4], key[4], b4[4];
        read(token + L::kR, i, r4);
        read(token + L::kW, i, decay);
        read(token + L::kK, i, key);
        if constexpr (kVersion == 7) read(token + L::kB, i, b4);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float &a0 = s0[i + j], &a1 = s1[i + j];
          if constexpr (kVersion == 7) {
            a0 = fmaf(a0, decay[j], fmaf(removed0, b4[j], key[j] * v0));
            a1 = fmaf(a1, decay[j], fmaf(removed1, b4[j], key[j] * v1));
          }
          y0 = fmaf(a0, r4[j], y0);
          y1 = fmaf(a1, r4[j], y1);
          if constexpr (kVersion == 6) {
            a0 = fmaf(a0, decay[j], key[j] * v0);
            a1 = fmaf(a1, decay[j], key[j] * v1);
          }
        }
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
    if constexpr (!kAhead) load(t0 + chunk + warp);
    prepare(buffer ^ 1);
    __syncthreads();
  }

  const int n = forget(N);  // or the addresses of all keys wait in registers since they were read
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) {
    const int key = key_of(part, i);
    if (key >= n) continue;
    if (value < n) state[static_cast<std::int64_t>(key) * n + value] = s0[i];
    if (value + 1 < n) state[static_cast<std::int64_t>(key) * n + value + 1] = s1[i];
  }
}

template <int kVersion, int kKeysPerLane>
void launch_wkv(Launch& out, const WkvParams& p) {
  const int warps = (p.head_size + kValuesPerWarp - 1) / kValuesPerWarp;
  make_launch(out, wkv_kernel<kVersion, kKeysPerLane>, static_cast<unsigned>(p.heads),
              static_cast<unsigned>(p.sequences), 1, static_cast<unsigned>(warps) * 32,
              static_cast<unsigned>(Layout<kVersion, kKeysPerLane>::kFloats * sizeof(float)), p);
}

template <int kVersion>
void choose_wkv(Launch& out, const WkvParams& p) {
  if (p.head_size <= 32)
    launch_wkv<kVersion, 4>(out, p);
  else if (p.head_size <= 64)
    launch_wkv<kVersion, 8>(out, p);
  else
    launch_wkv<kVersion, 16>(out, p);
}

}  // namespace

void wkv4(Launch& out, const Wkv4Params& p) {
  make_launch(out, wkv4_kernel, static_cast<unsigned>((p.cols + kWkv4Threads - 1) / kWkv4Threads),
              static_cast<unsigned>(p.sequences), 1, kWkv4Threads, 0, p);
}

void wkv(Launch& out, const WkvParams& p) {
  if (p.version == 7)
    choose_wkv<7>(out, p);
  else
    choose_wkv<6>(out, p);
}

}  // namespace wkv::cuda
