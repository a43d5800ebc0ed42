// Int4 weights in strips of kStrip outputs: [strip][group of 32 inputs][line of 8 inputs][output],
// a dword for every output, whose nibble i belongs to input i of the line; scales are
// [strip][group][output]. A strip is one stream and lanes are outputs.
#pragma once

#include "cpu/kernels/matmul_panel.inl"

namespace wkv::cpu {
namespace {

constexpr int kLines4 = kInt4Group / 8;
constexpr int kLineBytes4 = 4 * kStrip;
constexpr int kGroupBytes4 = kLines4 * kLineBytes4;

struct Strip {
  const unsigned char* codes;
  const f16* scales;
};

inline int groups_of(const MatmulArgs& a) { return (a.in + kInt4Group - 1) / kInt4Group; }

inline Strip strip_at(const MatmulArgs& a, int strip) {
  const ptrdiff_t groups = groups_of(a);
  return {(const unsigned char*)a.w + strip * groups * kGroupBytes4,
          (const f16*)a.scales.group_scale + strip * groups * kStrip};
}

inline i32v load_dwords(const unsigned char* p) {
  i32v v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

/// Panels of gemm, see matmul_panel.inl.
struct StripsI4 {
  static void expand(const MatmulArgs& a, int j, int columns, int k0, int depth, float* panel) {
    for (int v = 0; v < kCols; v += W) {
      if (v >= columns) {
        for (int k = 0; k < depth; ++k) store(panel + k * kCols + v, f32v{});
        continue;
      }
      const Strip strip = strip_at(a, (j + v) / kStrip);
      const int lane = (j + v) % kStrip;
      for (int k = 0; k < depth; k += 8) {
        const int g = (k0 + k) / kInt4Group, line = (k0 + k) % kInt4Group / 8;
        const unsigned char* at =
            strip.codes + (ptrdiff_t)g * kGroupBytes4 + line * kLineBytes4 + 4 * lane;
        const u32v dwords = (u32v)load_dwords(at);
        const f32v scale = load(strip.scales + (ptrdiff_t)g * kStrip + lane);
        for (int i = 0; i < 8 && k + i < depth; ++i)
          store(panel + (k + i) * kCols + v,
                __builtin_convertvector((i32v)(dwords >> 4 * i & 15u) - 8, f32v) * scale);
      }
    }
  }
};

}  // namespace
}  // namespace wkv::cpu
