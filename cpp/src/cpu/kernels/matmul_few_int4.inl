// Products of few rows with int4 weights in strips. A code is a bf16 by itself and a tile has the
// inputs of a group, so the scale of a group can wait until its codes are multiplied: it is applied
// to the products of 16 outputs, a vector for every row of x, not to 512 weights, and W needs one
// part even in `exact`. gemv multiplies and adds for every row; the tiles of a prompt take W
// scaled, which costs as much as 60 rows of products (2048 x 2048, Granite Rapids).
#pragma once

#include "cpu/kernels/amx.inl"
#include "cpu/kernels/matmul_bf16.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

/// The codes of a group of a strip as pairs of bf16, a tile. Inputs i and i + 4 of a line are a
/// pair: they lie at the same place of the halves of a dword.
inline void codes_to_pairs(const unsigned char* codes, char* to) {
  // -8 to 7, twice: a word chooses by its low five bits, the fifth of which is of another code.
  alignas(64) static constexpr uint16_t kLevels[32] = {
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
      0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
      0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  const __m512i levels = _mm512_load_si512(kLevels);
  for (int line = 0; line < kLines4; ++line, codes += kLineBytes4) {
    const u32v dwords = (u32v)load_dwords(codes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, to += kRowBytes)
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16((__m512i)(dwords >> 4 * i), levels));
  }
}

/// 32 inputs of x in that order.
inline __m512i in_pairs(__m512i inputs) {
  alignas(64) static constexpr uint16_t kFrom[32] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,
                                                     13, 10, 14, 11, 15, 16, 20, 17, 21, 18, 22,
                                                     19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kFrom), inputs);
}

/// Groups on their way: W is expanded kLag groups before it is multiplied, the products are stored
/// kLag groups later and added up after as many again. What a tile stores or loads is not passed on
/// from one to the other before it has reached L1: one group after the other took twice as long.
constexpr int kLag = 4;

/// Slots of a page by turns. A load waits for an older store to the same place of another page, so
/// what is done with a group loads from its slots before it stores to them.
struct FewBuffers {
  alignas(4096) char w[2 * kLag][kTileBytes];
  float products[2 * kLag][kRows * W];
};

/// One after the other the groups of outputs [begin, end): those of a block of x, which stays in L1
/// while the strips pass, then those of the next block.
struct Groups {
  const MatmulArgs& a;
  const Layout& l;
  const char* packed;
  int begin, end;
  int block = 0, j = 0;
  int step = 0, steps = 0;  ///< of the block
  ptrdiff_t part_bytes = 0;
  // Where the strip has its block, and what is asked for meanwhile.
  const unsigned char *codes = nullptr, *ahead = nullptr;
  const f16 *scales = nullptr, *ahead_scales = nullptr;
  const char* x = nullptr;

  Groups(const MatmulArgs& args, const Layout& layout, const char* x_packed, int first, int last)
      : a(args), l(layout), packed(x_packed), begin(first), end(last) {
    enter(begin);
  }
  int count() const { return (end - begin + kStrip - 1) / kStrip * l.steps; }

  __attribute__((noinline)) void enter(int output) {
    j = output;
    step = 0;
    steps = l.block_steps(block);
    part_bytes = steps * kTileBytes;
    constexpr int kAhead = 2 * kStrip;
    const ptrdiff_t first = block << l.shift;
    const Strip now = strip_at(a, j / kStrip);
    const Strip then = j + kAhead < end ? strip_at(a, (j + kAhead) / kStrip) : now;
    codes = now.codes + first * kGroupBytes4;
    scales = now.scales + first * kStrip;
    ahead = then.codes + first * kGroupBytes4;
    ahead_scales = then.scales + first * kStrip;
    x = packed + l.at(0, block, 0);
  }
  /// Whether that was the last group of the block.
  bool next() { return ++step == steps; }
  void enter_next() {
    if (j + kStrip < end) return enter(j + kStrip);
    if (++block < l.blocks()) enter(begin);
  }
};

template <int I>
struct Turn {};

/// Family: of bf16 parts, not turned.
template <class Family>
struct FewInt4 {
  static constexpr int kRun = 128, kGroup = 512;  // outputs

  /// Blocks of 8 steps, whatever the parts: of two parts 16 KiB of x.
  static Layout layout(const MatmulArgs& a) {
    Layout l = layout_of<Family>(a);
    l.shift = 3;
    return l;
  }

  /// By blocks of inputs, so that threads share the rows.
  static int pack_units(const MatmulArgs& a) {
    const Layout l = layout(a);
    return l.tiles * l.blocks();
  }
  static void pack(const MatmulArgs& a, int begin, int end, void* packed) {
    const Layout l = layout(a);
    for (int unit = begin; unit < end; ++unit) {
      const int tile = unit / l.blocks(), m = tile * kRows, left = a.rows - m;
      const int n = left < kRows ? left : kRows;
      const TileOfX to = {a.x + m * a.x_stride, n, (char*)packed, 0, tile};
      Family::pack_block(a, l, to, unit % l.blocks(), in_pairs);
    }
    if (begin == 0) Family::pack_sums(a, a.x, a.rows, (FloatRow*)((char*)packed + l.chunk_bytes()));
  }

  static size_t scratch(const MatmulArgs&) { return (size_t)kGroup * kRows * sizeof(float); }

  /// Outputs [begin, end) of `rows` rows from `first` on, whose products wait [strip][..][kStrip].
  __attribute__((noinline)) static void finish_run(const MatmulArgs& a, const FloatRow* known,
                                                   int first, int rows, const float* waiting,
                                                   int strip_floats, int begin, int end) {
    alignas(64) float products[kRun];
    for (int m = 0; m < rows; ++m) {
      for (int j = 0; j < end - begin; j += kStrip)
        store(products + j, load(waiting + j / kStrip * strip_floats + m * kStrip));
      store_outputs(a, known[first + m].sums, products, first + m, begin, end);
    }
  }

  /// A tile of x of `rows` <= R rows. R and Parts decide how many cycles tiles take.
  template <int R, int Parts>
  static void multiply_tile(const MatmulArgs& a, const Layout& l, const char* packed, int tile,
                            int rows, int begin, int end, float* waiting) {
    const auto* known = (const FloatRow*)(packed + l.chunk_bytes());
    FewBuffers buffers;
    f32v sums[R] = {};
    Groups expanded{a, l, packed, begin, end}, multiplied = expanded, added = expanded;
    const int count = expanded.count();
    const auto expand = [&](char* to) __attribute__((always_inline)) {
      const ptrdiff_t at = expanded.step * kGroupBytes4;
      for (int line = 0; line < kLines4; ++line)
        __builtin_prefetch(expanded.ahead + at + line * kLineBytes4, 0, 2);
      __builtin_prefetch(expanded.ahead_scales + expanded.step * kStrip, 0, 2);
      codes_to_pairs(expanded.codes + at, to);
      if (expanded.next()) expanded.enter_next();
    };
    const auto group = [&]<int I>(Turn<I>, int g, int turn) __attribute__((always_inline)) {
      const int slot = I + kLag * turn, other = I + kLag * (1 - turn);
      constexpr int kW = 4 + I % 2;
      if (g >= 2 * kLag && g < count + 2 * kLag) {
        const f32v scale = load(added.scales + added.step * kStrip);
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) sums[m] += load(buffers.products[slot] + m * W) * scale;
        if (added.next()) {
          float* strip = waiting + (added.j - begin) * R;
#pragma GCC unroll 16
          for (int m = 0; m < R; ++m) store(strip + m * W, sums[m]);
          const int run = (added.j - begin) / kRun * kRun, stop = added.j + kStrip;
          if (added.block + 1 == l.blocks() && (stop >= end || stop - begin == run + kRun))
            finish_run(a, known, tile * kRows, rows, waiting + run * R, R * kStrip, begin + run,
                       stop < end ? stop : end);
          added.enter_next();
          strip = waiting + (added.j - begin) * R;
#pragma GCC unroll 16
          for (int m = 0; m < R; ++m) sums[m] = added.block > 0 ? load(strip + m * W) : f32v{};
        }
      }
      const char* x =
          multiplied.x + tile * Parts * multiplied.part_bytes + multiplied.step * kTileBytes;
      tile_load<kW>(buffers.w[slot], kRowBytes);
      if constexpr (Parts > 1) tile_load<6>(x + multiplied.part_bytes, kRowBytes);
      tile_load<7>(x, kRowBytes);
      tile_store<I>(buffers.products[other], kRowBytes);
      tile_zero<I>();
      if constexpr (Parts > 1) tile_dot_bf16<I, 6, kW>();
      tile_dot_bf16<I, 7, kW>();
      if (g + 1 < count && multiplied.next()) multiplied.enter_next();
      if (g + kLag < count) expand(buffers.w[other]);
    };
    for (int i = 0; i < kLag && i < count; ++i) expand(buffers.w[i]);
    tile_configure(kTileConfigOf<R>);
    for (int g = 0, turn = 0; g < count + 2 * kLag; g += kLag, turn = 1 - turn) {
      group(Turn<0>{}, g, turn);
      group(Turn<1>{}, g + 1, turn);
      group(Turn<2>{}, g + 2, turn);
      group(Turn<3>{}, g + 3, turn);
    }
    tile_release();
  }

  static void multiply(const MatmulArgs& a, const void* packed, int begin, int end, void* scratch) {
    constexpr decltype(&multiply_tile<4, 1>) kOf[2][3] = {
        {multiply_tile<4, 1>, multiply_tile<8, 1>, multiply_tile<16, 1>},
        {multiply_tile<4, 2>, multiply_tile<8, 2>, multiply_tile<16, 2>}};
    const Layout l = layout(a);
    // All tiles of some outputs before the next: L2 keeps W, 256 KiB of 2048 inputs.
    for (int j = begin; j < end; j += kGroup)
      for (int tile = 0; tile < l.tiles; ++tile) {
        const int left = a.rows - tile * kRows, rows = left < kRows ? left : kRows;
        kOf[l.parts - 1][rows <= 4   ? 0
                         : rows <= 8 ? 1
                                     : 2](a, l, (const char*)packed, tile, rows, j,
                                          end - j < kGroup ? end : j + kGroup, (float*)scratch);
      }
  }

  static constexpr GemmKernels kKernels = {
      tiles::packed_bytes<Family>, pack_units, pack, scratch, multiply, 4};
};

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
