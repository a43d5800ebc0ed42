// Products of many rows whose operands are cut into tiles of 1 KiB: 16 rows of x by 64 bytes of
// inputs, against panels of W of 32 outputs in which the inputs of a dword lie together. This is
// the order of the tile registers of AMX; the dot products of AVX-512 read it as well.
//
// The work goes in stages: a panel of W and a block of inputs, for a chunk of up to kChunkRows rows
// of x. The panel is expanded into L1, where pairs of tiles of x pass it from L2; W of the next
// panel is asked for meanwhile. If W is input-major, the panels that have a line of an input, or
// two, are expanded together and wait in L2. The blocks of a band of inputs follow each other: its
// x stays in L2 for all panels, and W is read in runs of 2 KiB, 1 KiB of int8.
//
// A family says what the tiles hold: how x is packed, how W is expanded, what the sums mean. Its
// unit multiplies them, a block of 2^kShift steps at most. A unit is `turned` if its tiles of x,
// not those of W, have the inputs of a dword together: then W in rows needs no transposition, and
// every square of 16 x 16 sums is one of outputs by rows.
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
constexpr ptrdiff_t kPanelRowBytes = kPanelCols * 4;      // a dword of inputs of every output
constexpr ptrdiff_t kStepBytes = kRows * kPanelRowBytes;  // of a panel
constexpr int kChunkRows = 256;
constexpr int kBandSteps = 32;  // of all parts: of 256 rows 512 KiB; 64 are up to 8 % slower
constexpr int kMinRows = 16;    // fewer rows are computed in fp32, or as `exact` says

/// How x lies packed: [chunk][block of 2^shift steps][tile of rows][part][step], each one tile;
/// then what is known of every row. The last block may have fewer steps.
struct Layout {
  int chunks, chunk_rows, tiles, parts, steps, shift;
  int blocks() const { return (steps + (1 << shift) - 1) >> shift; }
  ptrdiff_t chunk_bytes() const { return (ptrdiff_t)tiles * parts * steps * kTileBytes; }
  int block_steps(int block) const {
    const int left = steps - (block << shift), whole = 1 << shift;
    return left < whole ? left : whole;
  }
  /// Blocks whose x stays in L2 while panels pass.
  int band_blocks() const {
    const int blocks = kBandSteps / parts >> shift;
    return blocks > 1 ? blocks : 1;
  }
  int bands() const { return (blocks() + band_blocks() - 1) / band_blocks(); }
  int band_begin(int band) const { return band * band_blocks(); }
  int band_end(int band) const {
    const int end = (band + 1) * band_blocks();
    return end < blocks() ? end : blocks();
  }
  int band_steps(int band) const {
    const int end = band_end(band) << shift;
    return (end < steps ? end : steps) - (band_begin(band) << shift);
  }
  /// Of the first part and step of a tile.
  ptrdiff_t at(int chunk, int block, int tile) const {
    const ptrdiff_t before = (ptrdiff_t)(block << shift) * tiles + tile * block_steps(block);
    return chunk * chunk_bytes() + before * parts * kTileBytes;
  }
};

/// Whether each row of W is read from end to end, or 64 lines of it, and multiplied with both parts
/// of the one tile of x at once: nothing is left in a panel, since nobody comes back to it. bf16 of
/// 7 to 15 rows 1.1 to 1.2 times as fast (Granite Rapids), three bytes of x 0.9 to 1.2. A sum of
/// several parts has another order then, so rows that could be any of a prompt's have one.
template <class Family>
bool reads_rows_once(const MatmulArgs& a) {
  if (!Family::in_place(a) || a.rows > kRows) return false;
  const int parts = Family::x_parts(a);
  return parts == 1 || (parts == 2 && (Family::kSumsPerPart || a.rows < kMinRows));
}

template <class Family>
Layout layout_of(const MatmulArgs& a) {
  Layout l;
  l.chunks = (a.rows + kChunkRows - 1) / kChunkRows;
  l.chunk_rows = (int)round_up((size_t)((a.rows + l.chunks - 1) / l.chunks), kRows);
  l.tiles = l.chunk_rows / kRows;
  l.parts = Family::x_parts(a);
  l.steps = (a.in + Family::kInputs - 1) / Family::kInputs;
  // 16 steps of a panel are 32 KiB, which L1 holds; of a panel of two parts, 8 steps.
  l.shift = Family::kSumsPerPart || l.parts == 1 ? Family::Unit::kShift : 3;
  if (reads_rows_once<Family>(a)) l.shift = 6;
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

/// Rows of x and the tile they go to.
struct TileOfX {
  const float* x;
  int rows;  ///< that exist
  char* packed;
  int chunk, tile;
};

/// 16 rows of 64 bytes as a tile, turned: dwords of rows and columns exchanged.
template <bool kTurned>
void store_tile(f32v (&v)[W], char* to) {
  if constexpr (kTurned) transpose(v);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) store((float*)(to + i * kRowBytes), v[i]);
}

/// A tile goes from x to where it stays by way of registers or L1. Row by row, turned at the end,
/// it went to L2 and back, bf16 at 0.5 to 0.8 of the speed.
template <class Family>
void pack(const MatmulArgs& a, int begin, int end, void* packed) {
  const Layout l = layout_of<Family>(a);
  auto* rows = (typename Family::Row*)((char*)packed + l.chunks * l.chunk_bytes());
  for (int unit = begin; unit < end; ++unit) {
    const int chunk = unit / l.tiles, tile = unit % l.tiles;
    const int m = chunk * l.chunk_rows + tile * kRows, left = a.rows - m;
    const int n = left < 0 ? 0 : left < kRows ? left : kRows;
    Family::pack_tile(a, l, {a.x + m * a.x_stride, n, (char*)packed, chunk, tile}, rows + m);
  }
}

/// One of the products that a sum is made of. If `rows` is not null, the panel is still empty: the
/// block of W lies there, in rows `row_bytes` apart, and the unit leaves it in the panel.
struct Sweep {
  const char* x;
  char* panel;
  const char* rows = nullptr;
  ptrdiff_t row_bytes = 0;
};

/// Rows of W as they lie, and what they are multiplied with at once: one tile of x, all parts.
struct RowsOfW {
  const char* x;
  ptrdiff_t part_bytes;
  int parts;
  const char* rows;
  ptrdiff_t row_bytes;
  int steps;
};

/// Where the parts of a panel go.
struct PanelTo {
  char* at;
  ptrdiff_t part_bytes;
};

/// What a thread needs of its scratch memory: panels [panel][block of the band], sums
/// [panel][row][kPanelCols] of a group, what the family keeps.
struct Plan {
  Layout l;
  int panels;  ///< expanded at once
  int w_parts;
  int sums_per_tile;  ///< of rows of x
  int products;       ///< of parts, that a sum is made of

  ptrdiff_t part_bytes() const { return kStepBytes << l.shift; }
  ptrdiff_t panel_bytes() const { return w_parts * part_bytes(); }
  ptrdiff_t panels_bytes() const {
    return (panels > 1 ? panels * l.band_blocks() : 1) * panel_bytes();
  }
  ptrdiff_t panel_sums() const { return l.tiles * sums_per_tile * kStepBytes; }
  ptrdiff_t sum_bytes(int group) const { return group / kPanelCols * panel_sums(); }
};

template <class Family>
Plan plan_of(const MatmulArgs& a) {
  Plan p;
  p.l = layout_of<Family>(a);
  // A row of memory has all outputs of an input: lines, or more of floats, are read at once.
  p.panels = !a.input_major ? 1 : a.type <= kWeightBF16 ? 2 : 4;
  p.w_parts = Family::w_parts(a);
  p.sums_per_tile = Family::kSumsPerPart ? p.l.parts : 1;
  p.products = Family::kSumsPerPart ? 1 : p.l.parts + p.w_parts - 1;
  return p;
}

/// How many of `outputs` wait in L2 for the next band with their sums: of 256 rows 256 KiB. If x of
/// all bands does not stay there meanwhile, more, so that fewer groups bring it from L3. The most
/// is that of one output.
template <class Family>
int group_of(const Layout& l, int outputs) {
  constexpr int kLeast = 256, kMost = Family::Unit::kMaxGroup;
  constexpr ptrdiff_t kStays = 512 << 10;
  if (l.chunk_rows < 128 || l.chunk_bytes() <= kStays) return kLeast;
  const int group = outputs <= kMost || l.chunk_bytes() > 2 * kStays ? kMost : kMost / 2;
  return group > kLeast ? group : kLeast;
}

template <class Family>
size_t scratch(const MatmulArgs& a) {
  const Plan p = plan_of<Family>(a);
  return (size_t)(p.panels_bytes() + p.sum_bytes(group_of<Family>(p.l, 1))) + Family::kSpareBytes;
}

/// A panel of outputs and a block of inputs.
struct Stage {
  int chunk, group, band, panel, block;  ///< group counts over all chunks, panel within the group
  int j, columns;                        ///< outputs
  int k0, depth, steps;                  ///< inputs
};

/// The stages of outputs [begin, end).
template <class Family>
struct Stages {
  const MatmulArgs& a;
  const Layout& l;
  int group_outputs, begin, end;

  /// The panels of the outputs behind `end` follow the last chunk: this thread is likely to take
  /// them next. No columns where there are none.
  Stage stage(int chunk, int group, int band, int panel, int block) const {
    Stage s = {chunk, group, band, panel, block, 0, 0, 0, 0, 0};
    const bool inside = chunk < l.chunks;
    s.j = (inside ? begin + group % groups() * group_outputs : end) + panel * kPanelCols;
    const int left = (inside ? end : a.out) - s.j;
    s.columns = left < 0 ? 0 : left < kPanelCols ? left : kPanelCols;
    s.k0 = (block << l.shift) * Family::kInputs;
    s.steps = l.block_steps(block);
    s.depth = depth_of(s.k0, s.steps);
    return s;
  }
  int depth_of(int k0, int steps) const {
    const int most = steps * Family::kInputs;
    return a.in - k0 < most ? a.in - k0 : most;
  }
  Stage after(const Stage& s) const {
    if (s.block + 1 == l.band_end(s.band)) return panel_after(s);
    return stage(s.chunk, s.group, s.band, s.panel, s.block + 1);
  }
  bool ends_group(const Stage& s) const {
    return (s.panel + 1) * kPanelCols == group_outputs || s.j + kPanelCols >= end;
  }
  /// The first block of the next panel.
  Stage panel_after(const Stage& s) const {
    const int first = l.band_begin(s.band);
    if (!ends_group(s) || s.chunk == l.chunks)
      return stage(s.chunk, s.group, s.band, s.panel + 1, first);
    if (s.band + 1 < l.bands())
      return stage(s.chunk, s.group, s.band + 1, 0, l.band_begin(s.band + 1));
    return stage((s.group + 1) / groups(), s.group + 1, 0, 0, 0);
  }
  /// The first stage after the `panels` that begin with that of s.
  Stage panels_after(const Stage& s, int panels) const {
    Stage last = s;
    last.panel += panels - 1;
    last.j += (panels - 1) * kPanelCols;
    return panel_after(last);
  }
  /// W of `panels` from that of s on, the inputs of their band.
  PanelAhead ahead(const Stage& s, int panels) const {
    const int first = l.band_begin(s.band), steps = l.band_steps(s.band);
    const int k0 = (first << l.shift) * Family::kInputs;
    const int left = (s.chunk < l.chunks ? end : a.out) - s.j, most = panels * kPanelCols;
    const int columns = left < 0 ? 0 : left < most ? left : most;
    return PanelAhead::of(a, s.j, columns, k0, depth_of(k0, steps));
  }
  int groups() const { return (end - begin + group_outputs - 1) / group_outputs; }
};

/// For lane i of a square the value that belongs to its lane, or the one of all of its lanes. Lanes
/// are rows of x if the unit is turned, else outputs.
template <bool PerLane, class V, class T>
V lanes(const T* values, int i) {
  V v;
  if constexpr (PerLane)
    __builtin_memcpy(&v, values, sizeof v);
  else
    v = V{} + values[i];
  return v;
}

/// Sums of a tile of rows and of 16 outputs, from `output` of the group on; those of the next part
/// kStepBytes further.
struct Square {
  const char* sums;
  int parts, output, in;
  const void* spare;
};

/// The products of a tile of rows and of 16 outputs, a row of x after the other.
template <class Family>
void products_of(const typename Family::TileRows& rows, const Square& square, float* to,
                 ptrdiff_t row_floats) {
  f32v v[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) v[i] = Family::products(square, rows, i);
  if constexpr (Family::Unit::kTurned) transpose(v);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store(to + i * row_floats, v[i]);
}

/// The outputs of a group, whose sums are complete: by tiles of rows, each row in runs of 512
/// bytes, which the processor's prefetcher follows. y of a prompt has left L2; panel by panel, in
/// runs of two lines, it held up a bf16 product of 256 rows for a fifth of its time (Granite
/// Rapids). Nor are squares written to y as they are: their lines lie so far apart that all want
/// the same place in L1.
template <class Family>
void finish_group(const MatmulArgs& a, const typename Family::Row* known, const Plan& p,
                  const Stage& last, int first, int rows, const char* sums, const void* spare) {
  constexpr int kRun = 128;
  alignas(64) float products[kRows][kRun + W];
  const int group = last.j - last.panel * kPanelCols, end = last.j + last.columns;
  for (int begin = 0; begin < rows; begin += kRows, sums += p.sums_per_tile * kStepBytes) {
    const int n = rows - begin < kRows ? rows - begin : kRows, row = first + begin;
    const typename Family::TileRows of(known + row, n, p.l.parts);
    for (int j = group; j < end; j += kRun) {
      const int run = end - j < kRun ? end - j : kRun;
      for (int i = 0; i < run; i += W) {
        const int output = j - group + i;
        const char* at = sums + output / kPanelCols * p.panel_sums() + output % kPanelCols * 4;
        products_of<Family>(of, {at, p.l.parts, output, a.in, spare}, products[0] + i, kRun + W);
      }
      for (int i = 0; i < n; ++i)
        store_outputs(a, Family::sums_of(known[row + i]), products[i], row + i, j, j + run);
    }
  }
}

/// The panels from that of `first` on, all blocks of the band. Of one step after the other, so that
/// what they have of an input is read in one run.
template <class Family>
void expand_panels(const MatmulArgs& a, const Plan& p, const Stages<Family>& stages,
                   const Stage& first, char* to, void* spare) {
  const int begin = p.l.band_begin(first.band), end = p.l.band_end(first.band);
  for (int block = begin; block < end; ++block, to += p.panel_bytes())
    for (int step = 0; step < p.l.block_steps(block); ++step)
      for (int i = 0; i < p.panels; ++i) {
        Stage s = stages.stage(first.chunk, first.group, first.band, first.panel + i, block);
        if (s.columns == 0) break;
        s.k0 += step * Family::kInputs;
        s.depth = stages.depth_of(s.k0, 1);
        s.steps = 1;
        char* at = to + i * p.l.band_blocks() * p.panel_bytes() + step * kStepBytes;
        Family::expand(a, s, {at, p.part_bytes()}, spare);
      }
}

template <class Family>
void multiply(const MatmulArgs& a, const void* packed, int begin, int end, void* scratch) {
  const Plan p = plan_of<Family>(a);
  const Layout& l = p.l;
  char* panels = (char*)scratch;
  char* sums = panels + p.panels_bytes();
  char* spare = sums + p.sum_bytes(group_of<Family>(l, 1));
  const int group = group_of<Family>(l, end - begin);
  const MatmulArgs at_the_end = Family::at_the_end(a);
  const int next_tile = Family::kSumsPerPart ? 1 : l.parts;  // in parts
  const Stages<Family> stages = {a, l, group, begin, end};
  const bool in_place = Family::in_place(a), once = reads_rows_once<Family>(a);
  const auto* known =
      (const typename Family::Row*)((const char*)packed + l.chunks * l.chunk_bytes());
  PanelAhead ahead;
  int lines = 0;  // to ask for per step of a product
  Family::Unit::begin();
  for (Stage s = stages.stage(0, 0, 0, 0, 0); s.chunk < l.chunks; s = stages.after(s)) {
    const int first = s.chunk * l.chunk_rows;
    const int rows = a.rows - first < l.chunk_rows ? a.rows - first : l.chunk_rows;
    const int sum_tiles = (rows + kRows - 1) / kRows * p.sums_per_tile;
    const ptrdiff_t part_bytes = s.steps * kTileBytes;
    const char* x = (const char*)packed + l.at(s.chunk, s.block, 0);
    char* panel_sums = sums + s.panel * p.panel_sums();
    const char* next_sums = sums + stages.after(s).panel * p.panel_sums();
    const int block = s.block - l.band_begin(s.band), turn = s.panel % p.panels;
    if (block == 0 && turn == 0) {
      ahead = stages.ahead(stages.panels_after(s, p.panels), p.panels);
      // Of each row a quarter, the prefetcher brings the rest: lines from memory take the buffers
      // that x needs on its way from L2. Half of it costs 64 to 256 rows 7 to 15 %.
      if (in_place) ahead.bytes /= 4;
      const int passes = once ? 1 : (sum_tiles + 1) / 2 * p.products * p.panels;
      const int steps = passes * l.band_steps(s.band);
      lines = (ahead.lines() + steps - 1) / steps;
      if (p.panels > 1) expand_panels(a, p, stages, s, panels, spare);
    }
    char* panel = panels + (p.panels > 1 ? turn * l.band_blocks() + block : 0) * p.panel_bytes();
    const bool whole = s.columns == kPanelCols && s.depth == s.steps * Family::kInputs;
    const bool in_rows = in_place && whole;
    const char* w = (const char*)a.w + s.j * a.row_bytes + s.k0 / Family::kInputs * kRowBytes;
    if (!in_rows && p.panels == 1) Family::expand(a, s, {panel, p.part_bytes()}, spare);
    int t = 0;
    if constexpr (Family::Unit::kTurned)
      if (in_rows && once) {
        const RowsOfW of = {x, part_bytes, l.parts, w, a.row_bytes, s.steps};
        Family::Unit::template run_once<Family::kSumsPerPart>(of, panel_sums, s.block > 0, ahead,
                                                              lines);
        t = sum_tiles;
      }
    for (; t < sum_tiles; t += 2) {
      const int two = sum_tiles - t < 2 ? 1 : 2;
      Sweep sweeps[3];
      Family::sweeps(l.parts, p.w_parts, x + t * next_tile * part_bytes, part_bytes, panel,
                     p.part_bytes(), sweeps);
      if (in_rows && t == 0) {
        sweeps[0].rows = w;
        sweeps[0].row_bytes = a.row_bytes;
      }
      char* at = panel_sums + t * kStepBytes;
      Family::Unit::run(sweeps, p.products, s.steps, next_tile * part_bytes, two, at,
                        t + 2 < sum_tiles ? at + 2 * kStepBytes : next_sums, s.block > 0, ahead,
                        lines);
    }
    if (s.block + 1 == l.blocks() && stages.ends_group(s))
      finish_group<Family>(at_the_end, known, p, s, first, rows, sums, spare);
  }
  Family::Unit::end();
}

template <class Family>
constexpr GemmKernels kKernels = {packed_bytes<Family>, pack_units<Family>, pack<Family>,
                                  scratch<Family>,      multiply<Family>,   Family::Unit::kParts};

/// A line of inputs of W from byte `from` of row j on, of which `bytes` exist; the rest and absent
/// rows are bytes `fill`.
inline f32v line_of(const MatmulArgs& a, int j, bool exists, ptrdiff_t from, ptrdiff_t bytes,
                    int fill) {
  const unsigned char* w = (const unsigned char*)a.w + j * a.row_bytes + from;
  if (exists && bytes >= kRowBytes) return load((const float*)w);
  unsigned char part[kRowBytes];
  __builtin_memset(part, fill, sizeof part);
  if (exists && bytes > 0) __builtin_memcpy(part, w, (size_t)bytes);
  return load((const float*)part);
}

inline f32v flipped(f32v line, int flip) {
  return (f32v)((u32v)line ^ 0x01010101u * (uint32_t)flip);
}

/// The block of W of a stage in rows, elements of `size` bytes, every byte changed by `flip`; 0
/// where there is none. Step by step: row by row, whose lines lie 2 KiB apart in the panel, takes
/// twice as long.
inline void copy_panel(const MatmulArgs& a, const Stage& s, int size, int flip, char* panel) {
  const ptrdiff_t from = (ptrdiff_t)s.k0 * size, bytes = (ptrdiff_t)s.depth * size;
  for (int step = 0; step < s.steps; ++step, panel += kStepBytes) {
    const ptrdiff_t at = from + step * kRowBytes, left = bytes - step * kRowBytes;
    const bool whole = s.columns == kPanelCols && left >= kRowBytes;
    const unsigned char* w = (const unsigned char*)a.w + s.j * a.row_bytes + at;
    for (int i = 0; i < kPanelCols; ++i, w += a.row_bytes) {
      const f32v v =
          whole ? load((const float*)w) : line_of(a, s.j + i, i < s.columns, at, left, flip);
      store((float*)(panel + i % W * kPanelRowBytes + i / W * kRowBytes), flipped(v, flip));
    }
  }
}

/// The same as dwords of consecutive inputs, those of a row one below the other.
inline void turn_panel(const MatmulArgs& a, const Stage& s, int size, int flip, char* panel) {
  const ptrdiff_t from = (ptrdiff_t)s.k0 * size, bytes = (ptrdiff_t)s.depth * size;
  for (int step = 0; step < s.steps; ++step, panel += kStepBytes)
    for (int half = 0; half < 2; ++half) {
      const ptrdiff_t at = from + step * kRowBytes, left = bytes - step * kRowBytes;
      const int j = s.j + half * W, n = s.columns - half * W;
      f32v v[W];
      if (n >= W && left >= kRowBytes) {
        const unsigned char* w = (const unsigned char*)a.w + j * a.row_bytes + at;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) v[i] = load((const float*)(w + i * a.row_bytes));
      } else {
        for (int i = 0; i < W; ++i) v[i] = line_of(a, j + i, i < n, at, left, flip);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        store((float*)(panel + half * kRowBytes + i * kPanelRowBytes), flipped(v[i], flip));
    }
}

}  // namespace tiles
}  // namespace
}  // namespace wkv::cpu
