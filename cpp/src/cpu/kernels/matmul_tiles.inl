// Products of many rows whose operands are cut into tiles of 1 KiB: 16 rows of x by 64 bytes of
// inputs, against panels of W of 32 outputs in which the inputs of a dword lie together. This is
// the order of the tile registers of AMX; the dot products of AVX-512 VNNI read it as well.
//
// Loops, outermost first: up to kChunkRows rows of x; a group of outputs, whose sums wait in L2;
// kSteps tiles of inputs, for which the panels of the group are expanded once; pairs of tiles of x,
// which stay in L1; the panels.
//
// A family says what the tiles hold: how x is packed, how W is expanded, what the sums mean.
#pragma once

#include "cpu/kernels/matmul_codes.inl"
#include "cpu/kernels/matmul_epilogue.inl"
#include "cpu/kernels/matmul_strips.inl"

namespace wkv::cpu {
namespace {
namespace tiles {

constexpr int kRows = 16;  // of x in a tile
constexpr int kRowBytes = 64;
constexpr ptrdiff_t kTileBytes = kRows * kRowBytes;
constexpr int kPanelCols = 32;
constexpr ptrdiff_t kPanelRowBytes = kPanelCols * 4;  // a dword of inputs of every output
constexpr int kSteps = 8;
constexpr ptrdiff_t kPanelBytes = kSteps * kRows * kPanelRowBytes;  // 16 KiB
constexpr int kChunkRows = 256;
constexpr int kMinRows = 16;  // fewer rows are computed in fp32

/// How x lies packed: [chunk][block of kSteps steps][tile of rows][part][step], each one tile; then
/// what is known of every row. The last block may have fewer steps.
struct Layout {
  int chunks, chunk_rows, tiles, parts, steps;
  ptrdiff_t chunk_bytes() const { return (ptrdiff_t)tiles * parts * steps * kTileBytes; }
  int block_steps(int block) const {
    return steps - block * kSteps < kSteps ? steps - block * kSteps : kSteps;
  }
  /// Of the first part and step of a tile.
  ptrdiff_t at(int chunk, int block, int tile) const {
    const ptrdiff_t before = (ptrdiff_t)block * kSteps * tiles + tile * block_steps(block);
    return chunk * chunk_bytes() + before * parts * kTileBytes;
  }
};

template <class Family>
Layout layout_of(const MatmulArgs& a) {
  Layout l;
  l.chunks = (a.rows + kChunkRows - 1) / kChunkRows;
  l.chunk_rows = (int)round_up((size_t)((a.rows + l.chunks - 1) / l.chunks), kRows);
  l.tiles = l.chunk_rows / kRows;
  l.parts = Family::x_parts(a);
  l.steps = (a.in + Family::kInputs - 1) / Family::kInputs;
  return l;
}

template <class Family>
size_t packed_bytes(const MatmulArgs& a) {
  const Layout l = layout_of<Family>(a);
  return (size_t)(l.chunks * l.chunk_bytes()) + (size_t)a.rows * sizeof(typename Family::Row);
}

template <class Family>
int pack_units(const MatmulArgs& a) {
  const Layout l = layout_of<Family>(a);
  return l.chunks * l.tiles;
}

/// Sixteen inputs of a row as they enter the product; zero from the end of the row on.
inline f32v input(const MatmulArgs& a, const float* x, int k) {
  const float* scale = a.scales.in_scale;
  const int n = a.in - k;
  if (n >= W) return scale ? load(x + k) * load(scale + k) : load(x + k);
  if (n <= 0) return f32v{};
  return scale ? load_part(x + k, n) * load_part(scale + k, n) : load_part(x + k, n);
}

/// Where the parts of a row of x go.
struct PackedRow {
  const Layout& l;
  char* packed;
  int chunk, tile, row;
  char* at(int step) const {  ///< the first part
    return packed + l.at(chunk, step / kSteps, tile) + step % kSteps * kTileBytes + row * kRowBytes;
  }
  ptrdiff_t part_bytes(int step) const { return l.block_steps(step / kSteps) * kTileBytes; }
};

template <class Family>
void pack(const MatmulArgs& a, int begin, int end, void* packed) {
  const Layout l = layout_of<Family>(a);
  auto* rows = (typename Family::Row*)((char*)packed + l.chunks * l.chunk_bytes());
  for (int unit = begin; unit < end; ++unit) {
    const int chunk = unit / l.tiles, tile = unit % l.tiles;
    for (int r = 0; r < kRows; ++r) {
      const PackedRow to = {l, (char*)packed, chunk, tile, r};
      const int m = chunk * l.chunk_rows + tile * kRows + r;
      if (m < a.rows) {
        rows[m] = Family::pack_row(a, a.x + m * a.x_stride, to);
        continue;
      }
      for (int step = 0; step < l.steps; ++step)
        for (int part = 0; part < l.parts; ++part)
          __builtin_memset(to.at(step) + part * to.part_bytes(step), 0, kRowBytes);
    }
  }
}

/// One of the products that a sum is made of.
struct Sweep {
  const char* x;
  const char* w;
};

/// What a thread needs of its scratch memory.
struct Plan {
  Layout l;
  int w_parts, sum_tiles, group;

  size_t panel_bytes() const { return (size_t)(group / kPanelCols * w_parts) * kPanelBytes; }
  size_t sum_bytes() const { return (size_t)(sum_tiles * kRows * group) * 4; }
};

template <class Family>
Plan plan_of(const MatmulArgs& a) {
  Plan p;
  p.l = layout_of<Family>(a);
  p.w_parts = Family::w_parts(a);
  p.sum_tiles = Family::kSumsPerPart ? p.l.tiles * p.l.parts : p.l.tiles;
  // Sums of 256 rows and 256 outputs are 256 KiB, which L2 holds beside the panels and x.
  p.group = p.sum_tiles > kChunkRows / kRows ? 128 : 256;
  return p;
}

template <class Family>
size_t scratch(const MatmulArgs& a) {
  const Plan p = plan_of<Family>(a);
  return p.panel_bytes() + p.sum_bytes() + Family::kSpareBytes;
}

/// Outputs [begin, end). Sums of a group: [panel][row][kPanelCols].
template <class Family>
void multiply(const MatmulArgs& a, const void* packed, int begin, int end, void* scratch) {
  const Plan p = plan_of<Family>(a);
  const Layout& l = p.l;
  const auto* known =
      (const typename Family::Row*)((const char*)packed + l.chunks * l.chunk_bytes());
  char* panels = (char*)scratch;
  char* sums = panels + p.panel_bytes();
  char* spare = sums + p.sum_bytes();
  const int blocks = (l.steps + kSteps - 1) / kSteps;
  constexpr int kBlockInputs = kSteps * Family::kInputs;
  const auto depth_of = [&](int block) {
    return a.in - block * kBlockInputs < kBlockInputs ? a.in - block * kBlockInputs : kBlockInputs;
  };
  const MatmulArgs at_the_end = Family::at_the_end(a);
  Family::Unit::begin();
  for (int chunk = 0; chunk < l.chunks; ++chunk) {
    const int first = chunk * l.chunk_rows;
    const int rows = a.rows - first < l.chunk_rows ? a.rows - first : l.chunk_rows;
    const int row_tiles = (rows + kRows - 1) / kRows;
    const int sum_tiles = Family::kSumsPerPart ? row_tiles * l.parts : row_tiles;
    const int next_tile = Family::kSumsPerPart ? 1 : l.parts;  // in parts
    const ptrdiff_t panel_sums = (ptrdiff_t)p.sum_tiles * kRows * kPanelRowBytes;
    for (int j = begin; j < end; j += p.group) {
      const int columns = end - j < p.group ? end - j : p.group;
      const int n_panels = (columns + kPanelCols - 1) / kPanelCols;
      Family::start(a, spare);
      for (int block = 0; block < blocks; ++block) {
        const int steps = l.block_steps(block);
        const ptrdiff_t part_bytes = steps * kTileBytes;
        for (int n = 0; n < n_panels; ++n) {
          const int here = columns - n * kPanelCols;
          Family::expand(a, j, n, here < kPanelCols ? here : kPanelCols, block * kBlockInputs,
                         depth_of(block), steps, panels + n * p.w_parts * kPanelBytes, spare);
        }
        PanelAhead ahead;
        if (block + 1 < blocks) {
          ahead = PanelAhead::of(a, j, columns, (block + 1) * kBlockInputs, depth_of(block + 1));
        } else if (j + p.group < end) {
          const int after = end - j - p.group;
          ahead = PanelAhead::of(a, j + p.group, after < p.group ? after : p.group, 0, depth_of(0));
        }
        const int ask = ahead.lines() / ((sum_tiles + 1) / 2 * n_panels) + 1;
        const char* x = (const char*)packed + l.at(chunk, block, 0);
        for (int t = 0; t < sum_tiles; t += 2) {
          for (int n = 0; n < n_panels; ++n) {
            Sweep sweeps[3];
            const int count =
                Family::sweeps(l.parts, p.w_parts, x + t * next_tile * part_bytes, part_bytes,
                               panels + n * p.w_parts * kPanelBytes, sweeps);
            Family::Unit::run(sweeps, count, steps, next_tile * part_bytes,
                              sum_tiles - t < 2 ? 1 : 2,
                              sums + n * panel_sums + t * kRows * kPanelRowBytes, block > 0);
            ahead.ask(ask);
          }
        }
      }
      for (int m = 0; m < rows; ++m)
        for (int n = 0; n < n_panels; ++n) {
          const int here = j + n * kPanelCols;
          Family::finish(at_the_end, known[first + m], sums + n * panel_sums, l.parts, m, first + m,
                         here, here + kPanelCols < end ? here + kPanelCols : end, n, spare);
        }
    }
  }
  Family::Unit::end();
}

template <class Family>
constexpr GemmKernels kKernels = {packed_bytes<Family>, pack_units<Family>, pack<Family>,
                                  scratch<Family>, multiply<Family>};

/// Rows [j, j + n) of W as dwords of consecutive inputs: to a half panel, the dwords of an input
/// group beside each other. From byte `from` of each row; `bytes` of them, the rest of `steps`
/// tiles and absent rows are `fill`; every dword is then changed by `flip`.
inline void turn_dwords(const MatmulArgs& a, int j, int n, ptrdiff_t from, ptrdiff_t bytes,
                        int steps, int fill, uint32_t flip, char* panel) {
  const unsigned char* w = (const unsigned char*)a.w + j * a.row_bytes + from;
  for (int step = 0; step < steps; ++step, bytes -= kRowBytes, w += kRowBytes) {
    f32v v[W];
    if (n >= W && bytes >= kRowBytes) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = load((const float*)(w + i * a.row_bytes));
    } else {
      for (int i = 0; i < W; ++i) {
        unsigned char part[kRowBytes];
        __builtin_memset(part, fill, sizeof part);
        const ptrdiff_t here = bytes < kRowBytes ? bytes : kRowBytes;
        if (i < n && here > 0) __builtin_memcpy(part, w + i * a.row_bytes, (size_t)here);
        v[i] = load((const float*)part);
      }
    }
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i, panel += kPanelRowBytes)
      store((float*)panel, (f32v)((u32v)v[i] ^ flip));
  }
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
