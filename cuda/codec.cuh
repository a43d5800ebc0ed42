// How stored weights become tensor-core fragments. One 16-byte load of lane t of a quad covers
// kSteps * 8 inputs of one output; a step is 32 inputs, of which lane t has inputs 8t .. 8t+7, i.e.
// the fragments of two m16n8k16 products. Which inputs sit where inside a product does not matter
// as long as weights and activations agree, so plain row-major rows need no repacking.
#pragma once

#include "cuda/platform.cuh"

namespace wkv::cuda {

/// Pairs 0..3 of step `s`: inputs (0, 1), (2, 3), (4, 5), (6, 7) of this lane.
struct Pairs {
  std::uint32_t p[4];
};

struct F16Codec {
  static constexpr int kSteps = 1;
  static constexpr bool kGroups = false;
  static constexpr bool kBf16 = false;
  static constexpr bool kQuantised = false;
  WKV_DEV static Pairs pairs(const Vec16& q, int) { return {{q.x, q.y, q.z, q.w}}; }
};

struct Bf16Codec {
  static constexpr int kSteps = 1;
  static constexpr bool kGroups = false;
  static constexpr bool kBf16 = true;
  static constexpr bool kQuantised = false;
  WKV_DEV static Pairs pairs(const Vec16& q, int) { return {{q.x, q.y, q.z, q.w}}; }
};

/// Bytes 0..255 as q - 128, exactly: 0x6400 | q is the half 1024 + q. Byte s * 8 + i of lane t is
/// input 32 s + 8 t + i of the block of 64.
struct U8Codec {
  static constexpr int kSteps = 2;
  static constexpr bool kGroups = false;
  static constexpr bool kBf16 = false;
  static constexpr bool kQuantised = true;
  WKV_DEV static Pairs pairs(const Vec16& q, int s) {
    const std::uint32_t lo = s == 0 ? q.x : q.z, hi = s == 0 ? q.y : q.w;
    constexpr std::uint32_t kExponent = 0x64646464u, kOffset = 0x64806480u;  // 1024 + 128
    return {{sub_f16x2(byte_perm(lo, kExponent, 0x4140), kOffset),
             sub_f16x2(byte_perm(lo, kExponent, 0x4342), kOffset),
             sub_f16x2(byte_perm(hi, kExponent, 0x4140), kOffset),
             sub_f16x2(byte_perm(hi, kExponent, 0x4342), kOffset)}};
  }
};

/// Nibbles 0..15 as q - 8, times the group's scale: a step is a group of 32 inputs. Word s of lane
/// t has inputs 32 s + 8 t + i of the block of 128; input 2j sits at bit 4j, input 2j + 1 at bit 16
/// + 4j, so that a pair lands 16 bits apart.
struct U4Codec {
  static constexpr int kSteps = 4;
  static constexpr bool kGroups = true;
  static constexpr bool kBf16 = false;
  static constexpr bool kQuantised = true;
  WKV_DEV static Pairs pairs(const Vec16& q, int s) {
    const std::uint32_t u = s == 0 ? q.x : s == 1 ? q.y : s == 2 ? q.z : q.w;
    constexpr std::uint32_t kExponent = 0x64006400u, kOffset = 0x64086408u;  // 1024 + 8
    return {{sub_f16x2((u & 0x000f000fu) | kExponent, kOffset),
             sub_f16x2(((u >> 4) & 0x000f000fu) | kExponent, kOffset),
             sub_f16x2(((u >> 8) & 0x000f000fu) | kExponent, kOffset),
             sub_f16x2(((u >> 12) & 0x000f000fu) | kExponent, kOffset)}};
  }
};

/// acc += (16 outputs x 32 inputs) (32 inputs x 8 rows): `lower` are the weights of output g,
/// `upper` of output g + 8, `x` the 8 activations of row g that belong to this lane's inputs.
template <class Codec>
WKV_DEV void multiply(float (&acc)[4], const Pairs& lower, const Pairs& upper, const Vec16& x) {
  if constexpr (Codec::kBf16) {
    mma_bf16(acc, lower.p[0], upper.p[0], lower.p[1], upper.p[1], x.x, x.y);
    mma_bf16(acc, lower.p[2], upper.p[2], lower.p[3], upper.p[3], x.z, x.w);
  } else {
    mma_f16(acc, lower.p[0], upper.p[0], lower.p[1], upper.p[1], x.x, x.y);
    mma_f16(acc, lower.p[2], upper.p[2], lower.p[3], upper.p[3], x.z, x.w);
  }
}

/// Scales of the four groups of one load, for outputs g and g + 8.
struct Scales {
  std::uint32_t lower[2], upper[2];
};
WKV_DEV float group_scale(const std::uint32_t (&scales)[2], int s) {
  const std::uint32_t pair = s < 2 ? scales[0] : scales[1];
  return from_f16(static_cast<std::uint16_t>(s % 2 == 0 ? pair : pair >> 16));
}
/// acc += part, rows g and g + 8 each times its scale.
WKV_DEV void add_scaled(float (&acc)[4], const float (&part)[4], float lower, float upper) {
  acc[0] = fmaf(part[0], lower, acc[0]);
  acc[1] = fmaf(part[1], lower, acc[1]);
  acc[2] = fmaf(part[2], upper, acc[2]);
  acc[3] = fmaf(part[3], upper, acc[3]);
}

template <class Codec>
WKV_DEV std::uint16_t round_activation(float v) {
  if constexpr (Codec::kBf16) return to_bf16(v);
  return to_f16(v);
}
template <class Codec>
WKV_DEV float widen_activation(std::uint16_t bits) {
  if constexpr (Codec::kBf16) return from_bf16(bits);
  return from_f16(bits);
}

}  // namespace wkv::cuda
