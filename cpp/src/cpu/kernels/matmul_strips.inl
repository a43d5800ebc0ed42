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

/// The part of W that the next panels come from, asked for while the present ones are used: of
/// kAtOnce rows by turns.
struct PanelAhead {
  static constexpr int kAtOnce = 4;
  const char* row = nullptr;
  ptrdiff_t stride = 0, bytes = 0, offset = 0;
  int rows = 0, turn = 0;

  static PanelAhead of(const MatmulArgs& a, int j, int columns, int k, int depth) {
    constexpr int kBits[] = {32, 16, 16, 8, 8, 4};
    const int bits = kBits[a.type];
    PanelAhead next;
    if (a.type == kWeightI4 && !a.input_major) {  // a strip is a row
      j /= kStrip, columns = (columns + kStrip - 1) / kStrip;
      next.stride = kStrip * a.row_bytes;
      next.rows = columns;
      next.bytes = (ptrdiff_t)depth * kStrip / 2;
      next.row = (const char*)a.w + j * next.stride + (ptrdiff_t)k * kStrip / 2;
      return next;
    }
    next.stride = a.row_bytes;
    next.rows = a.input_major ? depth : columns;
    next.bytes = (ptrdiff_t)(a.input_major ? columns : depth) * bits / 8;
    next.row = (const char*)a.w + (a.input_major ? k : j) * a.row_bytes +
               (ptrdiff_t)(a.input_major ? j : k) * bits / 8;
    return next;
  }
  int lines() const { return rows * (int)((bytes + 63) / 64); }
  void ask(int n) {
    for (; n > 0 && rows > 0; --n) {
      __builtin_prefetch(row + turn * stride + offset, 0, 2);
      if (++turn < kAtOnce && turn < rows) continue;
      turn = 0;
      offset += 64;
      if (offset >= bytes) row += kAtOnce * stride, offset = 0, rows -= kAtOnce;
    }
  }
};

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
