// Products of many rows with codes of W in integers of 16 bits, of which an instruction multiplies
// twice as many as a fused multiply-add does floats. The largest of kDepth inputs of a row of x
// becomes 2^15 - 1, and sums are exact until they meet the scales:
//
//   y[o] = sum over blocks of x (scale of x) (sum over groups of W (scale of W)[o] (sum of X code))
//
// AVX2 adds in an instruction of its own: 1.6 times the rate of floats on Zen 3, not twice. AVX-512
// with VNNI (vpdpwssd) does not; there codes of a byte have matmul_int8.inl. The loops are those of
// gemm.
#pragma once

#include "cpu/kernels/matmul_gemm.inl"

namespace wkv::cpu {
namespace {
namespace words {

constexpr int kCols = 2 * W;  // as many sums again take the scales of groups
#if defined(__AVX512F__)
constexpr bool kBytes = false;  // whether weights of a byte are computed here
#else
constexpr bool kBytes = true;
#endif
constexpr int kGroups = kDepth / kInt4Group;  // of a panel
constexpr int kPairs = kInt4Group / 2;        // of a group: dwords of two inputs
constexpr int kMinRows = 16;                  // fewer rows are computed in fp32
constexpr float kLargest = 32767;             // 128 inputs of 128 * 2^15 stay in 32 bits
/// Blocks of smaller numbers have the scale of this: the inverse of theirs might be infinite.
constexpr float kLeast = 0x1p-100f;

typedef int16_t i16v __attribute__((vector_size(kVectorBytes)));

// nearest(); multiply_add(), a b + c rounded once: left to the compiler, that depends on a row's
// place in its block; add_products(), to each lane the two products of words; words_of(), 2 W
// integers as words in the order of pairs.
#if defined(__AVX512F__)
inline i32v nearest(f32v v) { return (i32v)_mm512_cvtps_epi32((__m512)v); }
inline f32v multiply_add(f32v a, f32v b, f32v c) {
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline i32v add_products(i32v sum, i32v x, i32v w) {
  return (i32v)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
inline i32v words_of(i32v first, i32v second, int) {  // pairs are four apart
  const __m128i four = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  __m256i words[2] = {_mm512_cvtepi32_epi16((__m512i)first),
                      _mm512_cvtepi32_epi16((__m512i)second)};
  i32v v;
  for (__m256i& half : words) half = _mm256_shuffle_epi8(half, _mm256_broadcastsi128_si256(four));
  __builtin_memcpy(&v, words, sizeof v);
  return v;
}
#else
inline i32v nearest(f32v v) { return (i32v)_mm256_cvtps_epi32((__m256)v); }
inline f32v multiply_add(f32v a, f32v b, f32v c) {
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline i32v add_products(i32v sum, i32v x, i32v w) {
  return sum + (i32v)_mm256_madd_epi16((__m256i)x, (__m256i)w);
}
inline i32v words_of(i32v first, i32v second, int apart) {
  const __m256i both = _mm256_packs_epi32((__m256i)first, (__m256i)second);
  const __m256i words = _mm256_permute4x64_epi64(both, 0xd8);
  const __m128i two = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m128i four = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  return (i32v)_mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(apart == 2 ? two : four));
}
#endif

/// How many inputs lie between the two of a pair, which one mask takes out of a dword of codes.
inline int apart(const MatmulArgs& a) { return a.type == kWeightI4 ? 4 : 2; }

/// The first input of pair p.
inline int first_of(int p, int apart) { return p / apart * 2 * apart + p % apart; }

inline int padded(int inputs) { return (int)round_up((size_t)inputs, kInt4Group); }

/// Packed x: [chunk][depth][block of rows][pair][row], then the scales [chunk][depth][row], then
/// the sums of every row.
struct Layout {
  RowPlan p;
  int in, depths;

  explicit Layout(const MatmulArgs& a)
      : p(plan_rows(a.rows)), in(a.in), depths(cpu::depths(a.in)) {}
  int rows() const { return p.rows(); }
  ptrdiff_t dwords() const { return (ptrdiff_t)rows() * (padded(in) / 2); }  // of a chunk
  /// Of the first pair of a block of rows.
  ptrdiff_t at(int chunk, int k0, int pairs, int block) const {
    return chunk * dwords() + (ptrdiff_t)k0 / 2 * rows() + (ptrdiff_t)p.first(block) * pairs;
  }
  ptrdiff_t scale_at(int chunk, int k0) const {
    return p.chunks * dwords() + ((ptrdiff_t)chunk * depths + k0 / kDepth) * rows();
  }
  ptrdiff_t sums_at() const { return scale_at(p.chunks, 0); }
};

size_t packed_bytes(const MatmulArgs& a) {
  return (size_t)Layout(a).sums_at() * 4 + (size_t)a.rows * sizeof(RowSums);
}

/// `depth` inputs of a row as pairs of integers, zeros up to a whole group; returns their scale.
/// Infinities and NaN make it NaN.
inline float to_words(const MatmulArgs& a, const float* x, int k0, int depth, int32_t* to) {
  const float* scale = a.scales.in_scale ? a.scales.in_scale + k0 : nullptr;
  f32v v[kDepth / W], most{}, poison{};
  const int vectors = padded(depth) / W;
  for (int i = 0; i < vectors; ++i) {
    const int k = i * W, n = depth - k;
    const auto get = [&](const float* p) {
      return n >= W ? load(p + k) : n > 0 ? load_part(p + k, n) : f32v{};
    };
    v[i] = scale ? get(x + k0) * get(scale) : get(x + k0);
    poison += v[i] * 0.0f;
    most = max(max(v[i], -v[i]), most);
  }
  float largest = kLeast;
  for (int i = 0; i < W; ++i) largest = most[i] > largest ? most[i] : largest;
  const f32v inverse = splat(kLargest / largest);
  for (int i = 0; i < vectors; i += 2, to += W)
    store((float*)to,
          (f32v)words_of(nearest(v[i] * inverse), nearest(v[i + 1] * inverse), apart(a)));
  return largest / kLargest + sum(poison);
}

void pack(const MatmulArgs& a, int begin, int end, void* packed) {
  const Layout l(a);
  const RowPlan& p = l.p;
  int32_t* dwords = (int32_t*)packed;
  float* scales = (float*)packed;
  RowSums* sums = (RowSums*)(dwords + l.sums_at());
  const MatmulScales known = without_middle(a).scales;
  for (int unit = begin; unit < end; ++unit) {
    const int chunk = unit / p.blocks, block = unit % p.blocks;
    const int before = p.first(block), size = p.size(block);
    const int first = chunk * p.chunk_rows + before;
    const int past = (chunk + 1) * p.chunk_rows < a.rows ? (chunk + 1) * p.chunk_rows : a.rows;
    for (int r = 0; r < size; ++r) {
      const int m = first + r;
      const float* x = a.x + m * a.x_stride;
      for (int k0 = 0; k0 < a.in; k0 += kDepth) {
        const int depth = a.in - k0 < kDepth ? a.in - k0 : kDepth;
        const int pairs = padded(depth) / 2;
        int32_t* to = dwords + l.at(chunk, k0, pairs, block) + r;
        int32_t ints[kDepth / 2];
        float scale = 0;
        if (m < past)
          scale = to_words(a, x, k0, depth, ints);
        else
          __builtin_memset(ints, 0, sizeof ints);
        scales[l.scale_at(chunk, k0) + before + r] = scale;
        for (int i = 0; i < pairs; ++i) to[i * size] = ints[i];
      }
      if (m < past) sums[m] = needs_sums(known) ? row_sums(known, x, a.in) : RowSums{};
    }
  }
}

/// A panel: dwords [pair][kCols], and the scales [group][kCols] of int4.
struct Panel {
  int32_t dwords[kDepth / 2 * kCols];
  float scales[kGroups * kCols];
};

inline void put(Panel* to, int pair, int col, i32v v) {
  store((float*)to->dwords + pair * kCols + col, (f32v)v);
}

/// What makes bytes of 0 to 255 signed words: a pair at a time.
inline i32v less_128(i32v pairs) { return (i32v)((i16v)pairs - (i16v)(i32v{} + 0x00800080)); }

/// Bytes of outputs [j, j + n), n <= W, to columns `col` of the panel; `flip` makes signed codes
/// code + 128.
inline void expand_bytes(const MatmulArgs& a, int j, int n, int col, int k0, int depth,
                         uint32_t flip, Panel* to) {
  constexpr int kSquare = 4 * W;
  const unsigned char* w = (const unsigned char*)a.w + j * a.row_bytes + k0;
  for (int k = 0; k < padded(depth); k += kSquare, w += kSquare) {
    f32v v[W];
    if (n >= W && depth - k >= kSquare) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = load((const float*)(w + i * a.row_bytes));
    } else {
      const int bytes = depth - k < kSquare ? depth - k : kSquare;
      for (int i = 0; i < W; ++i) {
        unsigned char part[kSquare] = {};
        if (i < n && bytes > 0) __builtin_memcpy(part, w + i * a.row_bytes, (size_t)bytes);
        v[i] = load((const float*)part);
      }
    }
    transpose(v);
#pragma GCC unroll 16
    for (int d = 0; d < W; ++d) {
      if (k + 4 * d >= padded(depth)) break;
      const i32v bytes = (i32v)((u32v)v[d] ^ flip);
      put(to, k / 2 + 2 * d, col, less_128(bytes & 0x00ff00ff));
      put(to, k / 2 + 2 * d + 1, col, less_128((i32v)((u32v)bytes >> 8) & 0x00ff00ff));
    }
  }
}

/// Codes of outputs [j, j + columns) of input k, W input-major, as integers.
struct CodesOfInput {
  i32v v[2] = {};

  CodesOfInput(const MatmulArgs& a, int j, int columns, int k) {
    if (k >= a.in) return;
    const unsigned char* row = (const unsigned char*)a.w + k * a.row_bytes;
    unsigned char part[kCols] = {};
    if (a.type == kWeightI4) {
      row += j / 2;
      if (columns < kCols) {
        __builtin_memcpy(part, row, (size_t)(columns + 1) / 2);
        row = part;
      }
      const i32v both = load_codes(row);
      f32v low, high;
      join_pairs((f32v)((both & 15) - 8), (f32v)((both >> 4) - 8), &low, &high);
      v[0] = (i32v)low, v[1] = (i32v)high;
      return;
    }
    row += j;
    if (columns < kCols) {
      __builtin_memcpy(part, row, (size_t)columns);
      row = part;
    }
    const int flip = a.type == kWeightI8 ? 0x80 : 0;
    for (int half = 0; half < 2; ++half) v[half] = (load_codes(row + half * W) ^ flip) - 128;
  }
};

inline void expand_input_major(const MatmulArgs& a, int j, int columns, int k0, int depth,
                               Panel* to) {
  const int distance = apart(a);
  for (int pair = 0; pair < padded(depth) / 2; ++pair) {
    const int k = k0 + first_of(pair, distance);
    const CodesOfInput first(a, j, columns, k), second(a, j, columns, k + distance);
    for (int half = 0; half < 2; ++half)
      put(to, pair, half * W, (first.v[half] & 0xffff) | (second.v[half] << 16));
  }
}

/// Strips of int4: pair i of a line is what lies under the mask after i steps of a nibble.
inline void expand_strips(const MatmulArgs& a, int j, int columns, int k0, int depth, Panel* to) {
  const i16v eight = (i16v)(i32v{} + 0x00080008);
  for (int col = 0; col < kCols; col += W) {
    const bool absent = col >= columns;
    const Strip strip = strip_at(a, absent ? 0 : (j + col) / kStrip);
    const int lane = absent ? 0 : (j + col) % kStrip;
    const unsigned char* at = strip.codes + (ptrdiff_t)(k0 / kInt4Group) * kGroupBytes4 + 4 * lane;
    for (int line = 0; line < padded(depth) / 8; ++line, at += kLineBytes4) {
      const u32v dwords = absent ? u32v{} : (u32v)load_dwords(at);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        put(to, 4 * line + i, col, (i32v)((i16v)(dwords >> 4 * i & 0x000f000fu) - eight));
    }
  }
}

inline void group_scales(const MatmulArgs& a, int j, int columns, int k0, int depth, Panel* to) {
  const ptrdiff_t groups = groups_of(a);
  for (int g = 0; g < padded(depth) / kInt4Group; ++g)
    for (int col = 0; col < kCols; col += W) {
      const f16* scales = (const f16*)a.scales.group_scale;
      const ptrdiff_t group = k0 / kInt4Group + g;
      scales += a.input_major ? group * a.out + j + col
                              : ((j + col) / kStrip * groups + group) * kStrip + (j + col) % kStrip;
      const int n = columns - col;
      f16 part[W] = {};
      if (n < W) {
        if (n > 0) __builtin_memcpy(part, scales, (size_t)n * sizeof(f16));
        scales = part;
      }
      store(to->scales + g * kCols + col, load(scales));
    }
}

inline void expand(const MatmulArgs& a, int j, int columns, int k0, int depth, Panel* to) {
  if (columns > kCols) columns = kCols;
  if (a.type == kWeightI4) group_scales(a, j, columns, k0, depth, to);
  if (a.input_major) {
    expand_input_major(a, j, columns, k0, depth, to);
  } else if (a.type == kWeightI4) {
    expand_strips(a, j, columns, k0, depth, to);
  } else if constexpr (kBytes) {
    const uint32_t flip = a.type == kWeightI8 ? 0x80808080u : 0;
    expand_bytes(a, j, columns, 0, k0, depth, flip, to);
    expand_bytes(a, j + W, columns - W, W, k0, depth, flip, to);
  }
}

/// c [R][kCols] (+)= scales of x times x [pair][R] * panel; rows of c are kGroup apart.
template <int R, bool kGrouped>
__attribute__((noinline)) void micro_kernel(const int32_t* x, const float* x_scale,
                                            const Panel* panel, int pairs, float* c, bool add) {
  const int32_t* w = panel->dwords;
  const float* w_scale = panel->scales;
  f32v totals[R][2] = {};
  const int step = kGrouped ? kPairs : pairs;
  for (int p = 0; p < pairs; p += step, w_scale += kCols) {
    i32v acc[R][2] = {};
#pragma GCC unroll 8
    for (int i = 0; i < step; ++i, x += R, w += kCols) {
      const i32v w0 = (i32v)load((const float*)w), w1 = (i32v)load((const float*)w + W);
#pragma GCC unroll 12
      for (int m = 0; m < R; ++m) {
        const i32v xm = x[m] - i32v{};
        acc[m][0] = add_products(acc[m][0], xm, w0);
        acc[m][1] = add_products(acc[m][1], xm, w1);
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const f32v v = __builtin_convertvector(acc[m][half], f32v);
        f32v& total = totals[m][half];
        total = kGrouped ? multiply_add(v, load(w_scale + half * W), total) : v;
      }
  }
#pragma GCC unroll 12
  for (int m = 0; m < R; ++m)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* at = c + m * kGroup + half * W;
      store(at, multiply_add(totals[m][half], splat(x_scale[m]), add ? load(at) : f32v{}));
    }
}

using MicroKernel = void (*)(const int32_t* x, const float* x_scale, const Panel* panel, int pairs,
                             float* c, bool add);

template <bool kGrouped>
MicroKernel micro_kernel_of(int block) {
  switch (block) {
    case 3:
      return micro_kernel<3, kGrouped>;
    case 4:
      return micro_kernel<4, kGrouped>;
    case 5:
      return micro_kernel<5, kGrouped>;
    default:
      return micro_kernel<kTileRows, kGrouped>;
  }
}

constexpr ptrdiff_t kPanels = kGroup / kCols;

size_t scratch(const MatmulArgs& a) {
  return kPanels * sizeof(Panel) + (size_t)(Layout(a).rows() * kGroup) * sizeof(float);
}

void multiply(const MatmulArgs& a, const void* packed, int begin, int end, void* scratch) {
  const Layout l(a);
  const RowPlan& p = l.p;
  MicroKernel micro[2];
  for (int i = 0; i < 2; ++i)
    micro[i] = !kBytes || a.type == kWeightI4 ? micro_kernel_of<true>(p.block - i)
                                              : micro_kernel_of<!kBytes>(p.block - i);
  const int32_t* dwords = (const int32_t*)packed;
  const float* scales = (const float*)packed;
  const RowSums* sums = (const RowSums*)(dwords + l.sums_at());
  const MatmulArgs at_the_end = without_middle(a);
  Panel* panels = (Panel*)scratch;
  float* c = (float*)(panels + kPanels);  // [rows][kGroup]
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int first = chunk * p.chunk_rows;
    const int rows = a.rows - first < p.chunk_rows ? a.rows - first : p.chunk_rows;
    for (int j = begin; j < end; j += kGroup) {
      const int columns = end - j < kGroup ? end - j : kGroup;
      for (int k0 = 0; k0 < a.in; k0 += kDepth) {
        const int depth = a.in - k0 < kDepth ? a.in - k0 : kDepth;
        const int pairs = padded(depth) / 2;
        for (int n = 0; n < columns; n += kCols)
          expand(a, j + n, columns - n, k0, depth, panels + n / kCols);
        PanelAhead ahead = next_panels(a, j, columns, end, k0 + depth);
        const int ask = ahead.lines() / (p.blocks * (int)kPanels) + 1;
        for (int n = 0; n < columns; n += kCols)
          for (int block = 0; block < p.blocks; ++block) {
            const int before = p.first(block);
            micro[block >= p.large](dwords + l.at(chunk, k0, pairs, block),
                                    scales + l.scale_at(chunk, k0) + before, panels + n / kCols,
                                    pairs, c + (ptrdiff_t)before * kGroup + n, k0 > 0);
            ahead.ask(ask);
          }
      }
      for (int m = 0; m < rows; ++m)
        store_outputs(at_the_end, sums[first + m], c + (ptrdiff_t)m * kGroup, first + m, j,
                      j + columns);
    }
  }
}

constexpr GemmKernels kKernels = {packed_bytes, pack_units, pack, scratch, multiply, 2};

/// mm8 promises the logits of its fp32 arithmetic to 1e-5, which 16 bits do not keep. Floats of W
/// would have to become codes first: 2 to 15 % faster than fp32, and slower at 32 rows.
inline bool takes(const MatmulArgs& a) {
  if (a.rows < kMinRows || a.precision == kPrecisionExact) return false;
  if (a.type == kWeightI4) return true;
  return kBytes && (a.type == kWeightI8 || (a.type == kWeightU8 && a.precision != kPrecisionAuto));
}

}  // namespace words

inline const GemmKernels* words_gemm(const MatmulArgs& a) {
  return words::takes(a) ? &words::kKernels : nullptr;
}

}  // namespace
}  // namespace wkv::cpu
