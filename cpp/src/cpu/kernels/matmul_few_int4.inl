// Products of few rows with int4 weights. A code is a bf16 by itself and a tile has the inputs of a
// group, so the scale of a group can wait until its codes are multiplied: it is applied to the
// products of 16 outputs, a vector for every row of x, not to 512 weights, and W needs one part
// even in `exact`. gemv multiplies and adds for every row; the tiles of a prompt take W scaled:
// 2048 x 2048 and 15 rows by gemv 514 us, 16 by those tiles 318, so 196 and 164 (Granite Rapids).
#pragma once

#include "cpu/kernels/amx.inl"
#include "cpu/kernels/matmul_bf16.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

/// What codes stand for, chosen by the low four bits of every word.
inline __m512i levels_of(__m512i codes) {
  // -8 to 7, twice: a word chooses by five bits, the fifth of which is of another code.
  alignas(64) static constexpr uint16_t kLevels[32] = {
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
      0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
      0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  return _mm512_permutexvar_epi16(codes, _mm512_load_si512(kLevels));
}

/// 32 inputs of x in the order of tiles: inputs i and i + 4 of eight are a pair.
inline __m512i in_pairs(__m512i inputs) {
  alignas(64) static constexpr uint16_t kFrom[32] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,
                                                     13, 10, 14, 11, 15, 16, 20, 17, 21, 18, 22,
                                                     19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kFrom), inputs);
}

/// Int4 in strips: 16 outputs are one.
struct InStrips {
  static constexpr int kUnit = kStrip;

  /// Where a strip has its groups from one on, and what is asked for meanwhile.
  struct Place {
    const unsigned char *codes, *ahead;
    const f16 *scales, *ahead_scales;
  };
  static Place at(const MatmulArgs& a, int j, int group, int /*begin*/, int end,
                  int /*next_group*/) {
    constexpr int kAhead = 2 * kStrip;
    const Strip now = strip_at(a, j / kStrip);
    const Strip then = j + kAhead < end ? strip_at(a, (j + kAhead) / kStrip) : now;
    return {now.codes + group * kGroupBytes4, then.codes + group * kGroupBytes4,
            now.scales + group * kStrip, then.scales + group * kStrip};
  }

  /// Codes of group `step` as pairs of bf16: those lie at the same place of the halves of a dword.
  static inline __attribute__((always_inline)) void expand(const MatmulArgs&, const Place& p,
                                                           int step, char* to) {
    const ptrdiff_t at = step * kGroupBytes4;
    __builtin_prefetch(p.ahead_scales + step * kStrip, 0, 2);
    for (int line = 0; line < kLines4; ++line) {
      __builtin_prefetch(p.ahead + at + line * kLineBytes4, 0, 2);
      const u32v dwords = (u32v)load_dwords(p.codes + at + line * kLineBytes4);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, to += kRowBytes)
        _mm512_storeu_si512(to, levels_of((__m512i)(dwords >> 4 * i)));
    }
  }
  static f32v scale(const MatmulArgs&, const Place& p, int step) {
    return load(p.scales + step * kStrip);
  }
};

/// Int4 input-major: of 32 outputs the even ones, then the odd ones.
struct InRows4 {
  static constexpr int kUnit = 2 * kStrip;
  static constexpr int kSet = 128;  // outputs of a line

  struct Place {
    const unsigned char *codes, *ahead;
    const f16 *scales, *ahead_scales;
    int inputs;  ///< that exist
    int strip;   ///< of the set
    __mmask16 bytes;
    __mmask32 outputs;
  };
  static Place at(const MatmulArgs& a, int j, int group, int begin, int end, int next_group) {
    const auto* w = (const unsigned char*)a.w;
    const f16* scales = (const f16*)a.scales.group_scale;
    const int unit = j / kUnit * kUnit, left = a.out - unit;
    const auto codes_of = [&](int g, int k) { return w + g * kInt4Group * a.row_bytes + k / 2; };
    const auto scales_of = [&](int g, int k) { return scales + (ptrdiff_t)g * a.out + k; };
    int set = j / kSet * kSet + kSet, then = group;
    if (set >= end) set = begin, then = next_group;
    return {codes_of(group, unit),
            codes_of(then, set),
            scales_of(group, unit),
            scales_of(then, set),
            a.in - group * kInt4Group,
            j % kSet / kStrip,
            left >= kUnit ? (__mmask16)0xffff : (__mmask16)((1u << (left + 1) / 2) - 1),
            left >= kUnit ? 0xffffffffu : (1u << left) - 1};
  }

  static inline __attribute__((always_inline)) void expand(const MatmulArgs& a, const Place& p,
                                                           int step, char* to) {
    // Of the next line of 128 outputs an eighth.
    const unsigned char* ahead = p.ahead + (step * kInt4Group + 4 * p.strip) * a.row_bytes;
    for (int i = 0; i < 4; ++i, ahead += a.row_bytes) __builtin_prefetch(ahead, 0, 2);
    if (p.strip < 4)
      __builtin_prefetch(p.ahead_scales + (ptrdiff_t)step * a.out + p.strip * 32, 0, 2);
    const __m128i odd = _mm_cvtsi32_si128(p.strip % 2 * 4);
    const unsigned char* row = p.codes + step * kInt4Group * a.row_bytes;
    const int left = p.inputs - step * kInt4Group;
    if (left < kInt4Group || p.bytes != 0xffff) return expand_part(a, p, row, left, odd, to);
    for (int line = 0; line < kInt4Group; line += 8, row += 4 * a.row_bytes)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, row += a.row_bytes, to += kRowBytes)
        store_pair(_mm_loadu_si128((const __m128i*)row),
                   _mm_loadu_si128((const __m128i*)(row + 4 * a.row_bytes)), odd, to);
  }
  /// Of rows or outputs that do not all exist.
  __attribute__((noinline)) static void expand_part(const MatmulArgs& a, const Place& p,
                                                    const unsigned char* row, int rows, __m128i odd,
                                                    char* to) {
    const auto codes = [&](int i) {
      return _mm_maskz_loadu_epi8(i < rows ? p.bytes : 0, row + (i < rows ? i : 0) * a.row_bytes);
    };
    for (int line = 0; line < kInt4Group; line += 8)
      for (int i = line; i < line + 4; ++i, to += kRowBytes)
        store_pair(codes(i), codes(i + 4), odd, to);
  }
  static void store_pair(__m128i first, __m128i second, __m128i odd, char* to) {
    const __m512i pair = _mm512_or_si512(_mm512_cvtepu8_epi32(first),
                                         _mm512_slli_epi32(_mm512_cvtepu8_epi32(second), 16));
    _mm512_storeu_si512(to, levels_of(_mm512_srl_epi32(pair, odd)));
  }
  static f32v scale(const MatmulArgs& a, const Place& p, int step) {
    const f16* at = p.scales + (ptrdiff_t)step * a.out;
    const __m512i both = _mm512_maskz_loadu_epi16(p.outputs, at);
    const __m512i one = p.strip % 2 == 0 ? both : _mm512_srli_epi32(both, 16);
    return (f32v)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(one));
  }
};

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
template <class Codes>
struct Groups {
  const MatmulArgs& a;
  const Layout& l;
  const char* packed;
  int begin, end;
  int block = 0, j = 0;
  int step = 0, steps = 0;  ///< of the block
  ptrdiff_t part_bytes = 0;
  typename Codes::Place place{};
  const char* x = nullptr;

  Groups(const MatmulArgs& args, const Layout& layout, const char* x_packed, int first, int last)
      : a(args),
        l(layout),
        packed(x_packed),
        begin(first),
        end(first + (int)round_up((size_t)(last - first), Codes::kUnit)) {
    enter(begin);
  }
  int count() const { return (end - begin) / kStrip * l.steps; }

  __attribute__((noinline)) void enter(int output) {
    j = output;
    step = 0;
    steps = l.block_steps(block);
    part_bytes = steps * kTileBytes;
    const int then = block + 1 < l.blocks() ? block + 1 : block;
    place = Codes::at(a, j, block << l.shift, begin, end, then << l.shift);
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

/// Family: of bf16 parts, not turned. Codes: how W lies.
template <class Family, class Codes>
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
      for (int j = 0; j < end - begin; j += Codes::kUnit) {
        const float* from = waiting + j / kStrip * strip_floats + m * kStrip;
        f32v v[2] = {load(from), Codes::kUnit > kStrip ? load(from + strip_floats) : f32v{}};
        if constexpr (Codes::kUnit > kStrip) {
          join_pairs(v[0], v[1], &v[0], &v[1]);
          store(products + j + W, v[1]);
        }
        store(products + j, v[0]);
      }
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
    Groups<Codes> expanded{a, l, packed, begin, end}, multiplied = expanded, added = expanded;
    const int count = expanded.count();
    const auto expand = [&](char* to) __attribute__((always_inline)) {
      Codes::expand(a, expanded.place, expanded.step, to);
      if (expanded.next()) expanded.enter_next();
    };
    const auto group = [&]<int I>(Turn<I>, int g, int turn) __attribute__((always_inline)) {
      const int slot = I + kLag * turn, other = I + kLag * (1 - turn);
      constexpr int kW = 4 + I % 2;
      if (g >= 2 * kLag && g < count + 2 * kLag) {
        const f32v scale = Codes::scale(a, added.place, added.step);
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) sums[m] += load(buffers.products[slot] + m * W) * scale;
        if (added.next()) {
          float* strip = waiting + (added.j - begin) * R;
#pragma GCC unroll 16
          for (int m = 0; m < R; ++m) store(strip + m * W, sums[m]);
          const int run = (added.j - begin) / kRun * kRun, stop = added.j + kStrip;
          if (added.block + 1 == l.blocks() && (stop == added.end || stop - begin == run + kRun))
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
        const int size = rows <= 4 ? 0 : rows <= 8 ? 1 : 2;
        kOf[l.parts - 1][size](a, l, (const char*)packed, tile, rows, j,
                               end - j < kGroup ? end : j + kGroup, (float*)scratch);
      }
  }

  static constexpr GemmKernels kKernels = {
      tiles::packed_bytes<Family>, pack_units, pack, scratch, multiply, 4};
};

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
