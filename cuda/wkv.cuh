// What the kernels of wkv6 and wkv7 share. Their results must be equal bits: a sequence may be in a
// long call one day and come token by token another.
#pragma once

#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/math.cuh"
#include "cuda/platform.cuh"

namespace wkv::cuda {

constexpr int kParts = 8;          // lanes that share a value column, each a part of the keys
constexpr int kValuesPerWarp = 8;  // 32 lanes / kParts * 2
constexpr int kMaxChunk = 8;       // tokens prepared at once

/// Of a token in shared memory, in floats: operands of kKeys floats each, then the bonus.
template <int kVersion, int kKeysPerLane>
struct TokenLayout {
  static constexpr int kKeys = kKeysPerLane * kParts;  // head size, rounded up
  static constexpr int kPerLane = kKeys / 32;  // elements that a lane of a whole warp handles
  static constexpr int kR = 0, kW = kKeys, kK = 2 * kKeys, kV = 3 * kKeys;
  [[maybe_unused]] static constexpr int kA = 4 * kKeys;  // v7: -kk
  [[maybe_unused]] static constexpr int kB = 5 * kKeys;  // v7: a kk
  static constexpr int kOperands = kVersion == 7 ? 6 : 4;
  static constexpr int kBonus = kOperands * kKeys;
  static constexpr int kToken = kBonus + 4;
};

/// Key `i` of a lane: groups of 4 neighbours, 32 apart, so that 16-byte reads of eight lanes of a
/// warp fall into different banks.
WKV_DEV int key_of(int part, int i) { return 32 * (i / 4) + 4 * part + i % 4; }

WKV_DEV void read_keys(const float* from, int part, int i, float* to) {
  const float4 q = *reinterpret_cast<const float4*>(from + key_of(part, i));
  to[0] = q.x;
  to[1] = q.y;
  to[2] = q.z;
  to[3] = q.w;
}

WKV_DEV float sum_parts(float x) {
  for (int mask = kParts / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

/// A head's weights, element lane + 32 i in each lane of a warp.
template <int kPerLane>
struct HeadWeights {
  float k_k[kPerLane], k_a[kPerLane], r_k[kPerLane], norm[kPerLane], bias[kPerLane];

  WKV_DEV void load(const WkvParams& p, std::int64_t channel0, int lane) {
    const auto at = [&](const float* w, int i) {
      return w != nullptr && lane + 32 * i < p.head_size ? w[channel0 + lane + 32 * i] : 0.0f;
    };
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      k_k[i] = at(p.k_k, i);
      k_a[i] = at(p.k_a, i);
      r_k[i] = at(p.r_k, i);
      norm[i] = at(p.norm_weight, i);
      bias[i] = at(p.norm_bias, i);
    }
  }
};

/// The operands of one token of a head, likewise. load() only loads: nothing waits for memory
/// before the values are used.
template <int kVersion, int kPerLane>
struct RawToken {
  static constexpr int kSecond = kVersion == 7 ? kPerLane : 1;
  float r[kPerLane], w[kPerLane], k[kPerLane], v[kPerLane];
  float a[kSecond], v_first[kSecond], v_mix[kSecond];

  WKV_DEV void load(const WkvParams& p, std::int64_t row, std::int64_t channel0, int lane,
                    bool wanted) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane + 32 * i;
      const bool in = wanted && j < p.head_size;
      const std::int64_t c = channel0 + j;
      r[i] = in ? p.r[row * p.ldr + c] : 0.0f;
      w[i] = in ? p.w[row * p.ldw + c] : 0.0f;
      k[i] = in ? p.k[row * p.ldk + c] : 0.0f;
      v[i] = in ? p.v[row * p.ldv + c] : 0.0f;
      if constexpr (kVersion == 7) {
        const bool mixed = in && p.v_mix != nullptr;
        a[i] = in ? p.a[row * p.lda + c] : 0.0f;
        v_first[i] = mixed ? p.v_first[row * p.ldv_first + c] : 0.0f;
        v_mix[i] = mixed ? p.v_mix[row * p.ldv_mix + c] : 0.0f;
      }
    }
  }

  /// k and v become what the state takes in; kk is not yet normalised. Returns this lane's share of
  /// the bonus.
  WKV_DEV float finish_keys(const HeadWeights<kPerLane>& head, float (&kk)[kPerLane],
                            float& squares) {
    float bonus = 0.0f;
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if constexpr (kVersion == 7) {
        v[i] = fmaf(v_first[i] - v[i], v_mix[i], v[i]);
        kk[i] = k[i] * head.k_k[i];
        squares = fmaf(kk[i], kk[i], squares);
        k[i] *= fmaf(a[i] - 1.0f, head.k_a[i], 1.0f);
      }
      bonus = fmaf(r[i] * k[i], head.r_k[i], bonus);
    }
    return bonus;
  }

  template <class Layout>
  WKV_DEV void prepare(const HeadWeights<kPerLane>& head, int lane, float* token) {
    float kk[kPerLane], squares;
    const float bonus = warp_sum(finish_keys(head, kk, squares));
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane + 32 * i;
      token[Layout::kR + j] = r[i];
      token[Layout::kW + j] = w[i];
      token[Layout::kK + j] = k[i];
      token[Layout::kV + j] = v[i];
    }
    if (lane == 0) token[Layout::kBonus] = bonus;
    if constexpr (kVersion == 7) {
      const float norm = 1.0f / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int j = lane + 32 * i;
        token[Layout::kA + j] = -kk[i] * norm;
        token[Layout::kB + j] = kk[i] * norm * a[i];
      }
    }
  }
};

template <int kPerLane>
WKV_DEV void load_gate(const WkvParams& p, std::int64_t row, std::int64_t channel0, int lane,
                       bool wanted, float (&gate)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    gate[i] = wanted && p.gate != nullptr && lane + 32 * i < p.head_size
                  ? p.gate[row * p.ldgate + channel0 + lane + 32 * i]
                  : 1.0f;
}

/// GroupNorm, bonus and gate of one token, by a whole warp that holds its raw y, and v of wkv7.
template <int kVersion, int kPerLane>
WKV_DEV void finish_head(const WkvParams& p, const HeadWeights<kPerLane>& head, std::int64_t row,
                         std::int64_t channel0, int lane, const float (&y)[kPerLane],
                         const float (&v)[kPerLane], float bonus, const float (&gate)[kPerLane]) {
  const int N = p.head_size;
  float sum = 0.0f, squares = 0.0f, mean = 0.0f, scale = 1.0f;
  if (p.norm_weight != nullptr) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (lane + 32 * i < N) sum += y[i];
    mean = warp_sum(sum) / static_cast<float>(N);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (lane + 32 * i < N) squares = fmaf(y[i] - mean, y[i] - mean, squares);
    scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(N) + p.eps);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int j = lane + 32 * i;
    if (j >= N) break;
    float out = y[i];
    if (p.norm_weight != nullptr) out = fmaf((out - mean) * scale, head.norm[i], head.bias[i]);
    if constexpr (kVersion == 7) out = fmaf(bonus, v[i], out);
    out *= gate[i];
    p.y[row * p.ldy + channel0 + j] = out;
    if (p.y16 != nullptr)
      static_cast<std::uint16_t*>(p.y16)[row * p.heads * N + channel0 + j] =
          round_half(out, p.bf16);
  }
}

/// wkv7: this lane's share of what the state holds under kk, of its two value columns. In groups of
/// four keys, so that the chain of sums is short.
template <int kKeysPerLane>
WKV_DEV void removed_share(const float (&a)[kKeysPerLane], const float (&s0)[kKeysPerLane],
                           const float (&s1)[kKeysPerLane], float& removed0, float& removed1) {
  removed0 = removed1 = 0.0f;
#pragma unroll
  for (int i = 0; i < kKeysPerLane; i += 4) {
    float part0 = s0[i] * a[i], part1 = s1[i] * a[i];
#pragma unroll
    for (int j = 1; j < 4; ++j) {
      part0 = fmaf(s0[i + j], a[i + j], part0);
      part1 = fmaf(s1[i + j], a[i + j], part1);
    }
    removed0 = i == 0 ? part0 : removed0 + part0;
    removed1 = i == 0 ? part1 : removed1 + part1;
  }
}

/// Four keys of a token's step; y0, y1: this lane's share (v6: without the bonus).
template <int kVersion>
WKV_DEV void step_four(const float* r, const float* decay, const float* key, const float* b,
                       float v0, float v1, float removed0, float removed1, float* s0, float* s1,
                       float& y0, float& y1) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float kept0 = fmaf(s0[j], decay[j], key[j] * v0);
    const float kept1 = fmaf(s1[j], decay[j], key[j] * v1);
    if constexpr (kVersion == 7) {
      s0[j] = fmaf(removed0, b[j], kept0);
      s1[j] = fmaf(removed1, b[j], kept1);
    }
    y0 = fmaf(s0[j], r[j], y0);
    y1 = fmaf(s1[j], r[j], y1);
    if constexpr (kVersion == 6) {
      s0[j] = kept0;
      s1[j] = kept1;
    }
  }
}

/// use(keys of a lane) for heads of this size, at compile time: 4, 8 or 16.
template <class F>
void with_keys_per_lane(int head_size, F&& use) {
  if (head_size <= 32)
    use(std::integral_constant<int, 4>{});
  else if (head_size <= 64)
    use(std::integral_constant<int, 8>{});
  else
    use(std::integral_constant<int, 16>{});
}

/// Whether both columns of a lane can be read at once.
WKV_DEV bool in_pairs(const float* state, int N) {
  return N % 2 == 0 && reinterpret_cast<std::uintptr_t>(state) % sizeof(float2) == 0;
}
/// The state of this lane's columns between registers and memory.
template <int kKeysPerLane>
WKV_DEV void load_state(const float* state, int N, int part, int value, float (&s0)[kKeysPerLane],
                        float (&s1)[kKeysPerLane]) {
  const bool pairs = in_pairs(state, N);
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) {
    const int key = key_of(part, i);
    const float* from = state + static_cast<std::int64_t>(key) * N + value;
    float2 both = {0.0f, 0.0f};
    if (pairs && key < N && value < N) {
      both = *reinterpret_cast<const float2*>(from);
    } else if (key < N && value < N) {
      both.x = from[0];
      if (value + 1 < N) both.y = from[1];
    }
    s0[i] = both.x;
    s1[i] = both.y;
  }
}
template <int kKeysPerLane>
WKV_DEV void store_state(float* state, int N, int part, int value, const float (&s0)[kKeysPerLane],
                         const float (&s1)[kKeysPerLane]) {
  const int n = forget(N);  // or the addresses of all keys wait in registers since they were read
  const bool pairs = in_pairs(state, n);
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) {
    const int key = key_of(part, i);
    if (key >= n || value >= n) continue;
    float* to = state + static_cast<std::int64_t>(key) * n + value;
    if (pairs) {
      *reinterpret_cast<float2*>(to) = make_float2(s0[i], s1[i]);
    } else {
      to[0] = s0[i];
      if (value + 1 < n) to[1] = s1[i];
    }
  }
}

}  // namespace wkv::cuda
