#include "ops/quantize.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/quantised_parts.h"
#include "ops/round_int4.h"

namespace wkv::quantize {
namespace {

using Floats = std::vector<float>;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

/// Rows of a float matrix as fp32.
class Rows {
 public:
  /// `drop`: pages of a mapped file are dropped behind the reader.
  Rows(const HostTensor& w, bool drop)
      : data_(static_cast<const unsigned char*>(w.data)),
        dtype_(w.dtype),
        drop_(drop && w.mapped),
        out(static_cast<int>(w.shape[0])),
        in(static_cast<int>(w.shape[1])) {}

  void read(int o, float* to) const {
    const unsigned char* from = data_ + size(o) * size(in) * dtype_size(dtype_);
    switch (dtype_) {
      case DType::f32:
        std::memcpy(to, from, size(in) * sizeof(float));
        return;
      case DType::bf16:
        for (int i = 0; i < in; ++i) {
          std::uint16_t bits;
          std::memcpy(&bits, from + 2 * size(i), sizeof bits);
          to[i] = bf16_to_f32(bits);
        }
        return;
      default:
        for (int i = 0; i < in; ++i) to[i] = element_as_f32(from, dtype_, size(i));
    }
  }

  /// Rows [begin, end) have been read.
  void leave(int begin, int end) const noexcept {
    const std::size_t row = size(in) * dtype_size(dtype_);
    if (drop_) drop_pages(data_ + size(begin) * row, size(end - begin) * row);
  }

 private:
  const unsigned char* data_;
  DType dtype_;
  bool drop_;

 public:
  const int out, in;
};

/// Calls row(o, values [in], columns [in]) for every row. Each part of the rows has columns of its
/// own, from `identity`, which are merged into `columns` by merge(column, part) at its end; min and
/// max do not care for the order.
template <class Row, class Merge>
void for_rows(const Rows& w, const Parallel& parallel, Floats& columns, float identity, Row row,
              Merge merge) {
  columns.assign(size(w.in), identity);
  std::mutex mutex;
  parallel(w.out, [&](int begin, int end) {
    Floats values(size(w.in)), mine(size(w.in), identity);
    for (int o = begin; o < end; ++o) {
      w.read(o, values.data());
      row(o, values.data(), mine.data());
    }
    w.leave(begin, end);
    const std::lock_guard lock(mutex);
    for (int i = 0; i < w.in; ++i) columns[size(i)] = merge(columns[size(i)], mine[size(i)]);
  });
}

float larger(float a, float b) { return a > b ? a : b; }
float smaller(float a, float b) { return a < b ? a : b; }

double sum_of_squares(const Floats& v) {
  double sum = 0;
  for (const float x : v) sum += double{x} * x;
  return sum;
}

/// 0 for what has no finite inverse: zero, and weights below 1e-38, which become zero.
float inverse(float x) { return x >= std::numeric_limits<float>::min() ? 1 / x : 0.0f; }

/// Where a matrix's codes are made: all in the block, or `rows` of them at a time, which `sink`
/// takes.
struct Pieces {
  int rows = 0;
  CodeSink sink{};
};

/// A quantised matrix in one block of memory: codes, then vectors, each 64-byte aligned.
struct Block {
  Matrix matrix;
  const Pieces& pieces;
  unsigned char* codes;
  std::size_t code_row;
  int first = 0;  ///< row of the first codes
  float *in_scale = nullptr, *out_scale = nullptr, *in_offset = nullptr, *out_offset = nullptr;
  std::uint16_t* group_scale = nullptr;

  Block(const Rows& w, DType dtype, Buffer& memory,
        const std::function<Buffer(std::size_t)>& allocate, const Pieces& by)
      : pieces(by), code_row(row_bytes(dtype, w.in)) {
    const auto aligned = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
    const int kept = by.sink ? std::min(by.rows, w.out) : w.out;
    const std::size_t code_bytes = aligned(size(kept) * code_row);
    const std::size_t in_bytes = aligned(size(w.in) * sizeof(float));
    const std::size_t out_bytes = aligned(size(w.out) * sizeof(float));
    const int groups = (w.in + kGroup - 1) / kGroup;
    const std::size_t group_bytes = aligned(size(w.out) * size(groups) * 2);
    const std::size_t vectors = dtype == DType::int4  ? group_bytes
                                : dtype == DType::mm8 ? 2 * (in_bytes + out_bytes)
                                                      : in_bytes + out_bytes;
    memory = allocate(code_bytes + vectors);
    codes = static_cast<unsigned char*>(memory.data());
    unsigned char* at = codes + code_bytes;
    const auto take = [&at](auto*& pointer, std::size_t bytes) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
      at += bytes;
    };
    if (dtype == DType::int4) {
      take(group_scale, group_bytes);
    } else {
      take(in_scale, in_bytes);
      take(out_scale, out_bytes);
      if (dtype == DType::mm8) {
        take(in_offset, in_bytes);
        take(out_offset, out_bytes);
      }
    }
    matrix.data = codes;
    matrix.out = w.out;
    matrix.in = w.in;
    matrix.dtype = dtype;
    matrix.zero = dtype == DType::mm8 ? -0.5f : 0.0f;
    matrix.in_scale = in_scale;
    matrix.out_scale = out_scale;
    matrix.in_offset = in_offset;
    matrix.out_offset = out_offset;
    matrix.group_scale = group_scale;
    matrix.bytes = static_cast<std::int64_t>(code_bytes + vectors);
    if (by.sink) matrix.data = nullptr;
  }

  unsigned char* codes_of(int o) { return codes + size(o - first) * code_row; }

  /// make(begin, end) writes the codes of these rows.
  template <class F>
  void make_codes(const Rows& w, const Parallel& parallel, F make) {
    if (!pieces.sink) return parallel(w.out, make);
    for (first = 0; first < w.out; first += std::min(pieces.rows, w.out - first)) {
      const int n = std::min(pieces.rows, w.out - first);
      parallel(n, [&](int begin, int end) {
        make(first + begin, first + end);
        w.leave(first + begin, first + end);
      });
      pieces.sink(first, n, codes);
    }
  }
};

/// in_scale a and out_scale b (times 127) for int8. The error of an output is that of rounding,
/// uniform in steps of a_i b_o, times an input of unit size, so sum(a^2) sum(b^2) is to be small
/// under a_i b_o >= |W[o][i]|. Each of a and b in turn is made as small as the other allows, from
/// two beginnings: a = 1, and a = sqrt(largest weight of the input), which takes outliers out of
/// the rows at once. The better end is taken.
void scale_int8(const Rows& w, const Parallel& parallel, Floats& a, Floats& b) {
  Floats a1, b1(size(w.out)), largest, b2(size(w.out));
  for_rows(
      w, parallel, largest, 0.0f,
      [&](int o, const float* v, float* columns) {
        float row = 0;
        for (int i = 0; i < w.in; ++i) {
          const float m = std::fabs(v[i]);
          row = larger(row, m);
          columns[i] = larger(columns[i], m);
        }
        b1[size(o)] = row;
      },
      larger);
  const auto shrink_b = [&](const Floats& by, Floats& to, Floats& next) {
    Floats inverse_by(size(w.in));
    for (int i = 0; i < w.in; ++i) inverse_by[size(i)] = inverse(by[size(i)]);
    for_rows(
        w, parallel, next, 0.0f,
        [&](int o, const float* v, float* columns) {
          float row = 0;
          for (int i = 0; i < w.in; ++i) row = larger(row, std::fabs(v[i]) * inverse_by[size(i)]);
          to[size(o)] = row;
          const float inverse_row = inverse(row);
          for (int i = 0; i < w.in; ++i)
            columns[i] = larger(columns[i], std::fabs(v[i]) * inverse_row);
        },
        larger);
  };
  Floats ones(size(w.in), 1.0f), roots(size(w.in)), a2;
  for (int i = 0; i < w.in; ++i) roots[size(i)] = std::sqrt(largest[size(i)]);
  shrink_b(ones, b1, a1);
  shrink_b(roots, b2, a2);
  const bool second =
      sum_of_squares(a2) * sum_of_squares(b2) < sum_of_squares(a1) * sum_of_squares(b1);
  a = second ? a2 : a1;
  b = second ? b2 : b1;
  Floats unused;
  shrink_b(a, b, unused);
}

void quantize_int8(const Rows& w, Block& block, const Parallel& parallel) {
  Floats a, b;
  scale_int8(w, parallel, a, b);
  Floats inverse_a(size(w.in));
  for (int i = 0; i < w.in; ++i) {
    block.in_scale[i] = a[size(i)];
    inverse_a[size(i)] = inverse(a[size(i)]);
  }
  block.make_codes(w, parallel, [&](int begin, int end) {
    Floats v(size(w.in));
    for (int o = begin; o < end; ++o) {
      w.read(o, v.data());
      const float to_code = 127 * inverse(b[size(o)]);
      auto* codes = reinterpret_cast<std::int8_t*>(block.codes_of(o));
      double along = 0, square = 0;  // the factor that fits the codes best
      for (int i = 0; i < w.in; ++i) {
        const float code = std::nearbyint(v[size(i)] * inverse_a[size(i)] * to_code);
        const float clipped = std::min(127.0f, std::max(-127.0f, code));
        codes[i] = static_cast<std::int8_t>(clipped);
        const double basis = double{clipped} * a[size(i)];
        along += basis * v[size(i)];
        square += basis * basis;
      }
      block.out_scale[o] = square > 0 ? static_cast<float>(along / square) : 0.0f;
    }
  });
}

/// The steps of the `rwkv` package in fp32, in its order: minima out (of the longer side first),
/// then maxima, then 256 levels.
void quantize_mm8(const Rows& w, Block& block, const Parallel& parallel) {
  Floats my(size(w.in)), mx(size(w.out)), rx(size(w.out)), ry, unused;
  const bool inputs_first = w.in > w.out;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto subtract_inputs = [&](float* v) {
    for (int i = 0; i < w.in; ++i) v[i] -= my[size(i)];
  };
  const auto row_minimum = [&](const float* v) {
    float least = kInfinity;
    for (int i = 0; i < w.in; ++i) least = smaller(least, v[i]);
    return least;
  };
  const auto column_minima = [&](const float* v, float* columns) {
    for (int i = 0; i < w.in; ++i) columns[i] = smaller(columns[i], v[i]);
  };
  if (inputs_first) {
    for_rows(
        w, parallel, my, kInfinity,
        [&](int, float* v, float* columns) { column_minima(v, columns); }, smaller);
    for_rows(
        w, parallel, unused, 0.0f,
        [&](int o, float* v, float*) {
          subtract_inputs(v);
          mx[size(o)] = row_minimum(v);
        },
        larger);
  } else {
    for_rows(
        w, parallel, my, kInfinity,
        [&](int o, float* v, float* columns) {
          mx[size(o)] = row_minimum(v);
          for (int i = 0; i < w.in; ++i) v[i] -= mx[size(o)];
          column_minima(v, columns);
        },
        smaller);
  }
  /// w - my - mx or w - mx - my
  const auto remove_offsets = [&](int o, float* v) {
    if (inputs_first) subtract_inputs(v);
    for (int i = 0; i < w.in; ++i) v[i] -= mx[size(o)];
    if (!inputs_first) subtract_inputs(v);
  };
  const auto divisor = [](float x) { return x > 0 ? x : 1.0f; };  // constant rows stay zero
  for_rows(
      w, parallel, ry, 0.0f,
      [&](int o, float* v, float* columns) {
        remove_offsets(o, v);
        float most = 0;
        for (int i = 0; i < w.in; ++i) most = larger(most, v[i]);
        rx[size(o)] = most;
        const float d = divisor(most);
        for (int i = 0; i < w.in; ++i) columns[i] = larger(columns[i], v[i] / d);
      },
      larger);
  block.make_codes(w, parallel, [&](int begin, int end) {
    Floats v(size(w.in));
    for (int o = begin; o < end; ++o) {
      w.read(o, v.data());
      remove_offsets(o, v.data());
      const float d = divisor(rx[size(o)]);
      unsigned char* codes = block.codes_of(o);
      for (int i = 0; i < w.in; ++i) {
        const float level = std::floor(v[size(i)] / d / divisor(ry[size(i)]) * 256.0f);
        codes[i] = static_cast<unsigned char>(std::min(255.0f, std::max(0.0f, level)));
      }
    }
  });
  for (int i = 0; i < w.in; ++i) {
    block.in_offset[i] = my[size(i)];
    block.in_scale[i] = ry[size(i)] / 16;
  }
  for (int o = 0; o < w.out; ++o) {
    block.out_offset[o] = mx[size(o)];
    block.out_scale[o] = rx[size(o)] / 16;
  }
}

void quantize_int4(const Rows& w, Block& block, const Parallel& parallel) {
  const int groups = (w.in + kGroup - 1) / kGroup;
  block.make_codes(w, parallel, [&](int begin, int end) {
    Floats v(size(groups * kGroup), 0.0f);
    for (int o = begin; o < end; ++o) {
      w.read(o, v.data());
      unsigned char* codes = block.codes_of(o);
      for (int g = 0; g < groups; ++g) {
        const Int4Group group(v.data() + g * kGroup);
        const std::uint16_t stored = f32_to_f16(group.scale());
        block.group_scale[size(o) * size(groups) + size(g)] = stored;
        group.pack(f16_to_f32(stored), codes + g * kGroup / 2);
      }
    }
  });
}

/// The largest weight a format takes: int4's scales are fp16; elsewhere a code times a scale must
/// be finite.
float largest_weight(DType dtype) { return dtype == DType::int4 ? 5 * 65504.0f : 1e36f; }

void check_range(const Rows& w, DType want, const Parallel& parallel) {
  const float limit = largest_weight(want);
  std::atomic<bool> finite{true}, small{true};
  parallel(w.out, [&](int begin, int end) {
    Floats v(size(w.in));
    for (int o = begin; o < end; ++o) {
      w.read(o, v.data());
      float sum = 0, largest = 0;  // the sum stays zero unless something is infinite or NaN
      for (int i = 0; i < w.in; ++i) {
        sum += v[size(i)] * 0.0f;
        largest = larger(largest, std::fabs(v[size(i)]));
      }
      if (sum != 0) finite.store(false);
      if (largest > limit) small.store(false);
    }
    w.leave(begin, end);
  });
  WKV_CHECK(finite.load(), bad_model, "[quantize] a weight of [", w.out, ", ", w.in,
            "] holds infinities or NaN, which have no quantised form; load it as fp16 or bf16");
  WKV_CHECK(small.load(), bad_model, "[quantize] a weight of [", w.out, ", ", w.in,
            "] holds elements beyond ", limit, ", the most that ", dtype_name(want),
            " takes; load it as bf16");
}

/// to[c][r] = from[r][c], in blocks that stay in L1: a plain double loop misses on every store.
template <class T>
void turn(void* to, const void* from, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kTile = 32;
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (std::int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (std::int64_t c = c0; c < std::min(c0 + kTile, cols); ++c)
        for (std::int64_t r = r0; r < std::min(r0 + kTile, rows); ++r)
          std::memcpy(static_cast<T*>(to) + c * rows + r,
                      static_cast<const T*>(from) + r * cols + c, sizeof(T));
}

HostTensor decode(const Matrix& m, const Parallel& parallel) {
  auto memory = std::make_shared<Buffer>(
      allocate_host(std::max<std::size_t>(size(m.out) * size(m.in) * sizeof(float), 1)));
  auto* values = static_cast<float*>(memory->data());
  parallel(m.out, [&](int begin, int end) {
    for (int o = begin; o < end; ++o) decode_row(m, o, values + size(o) * size(m.in));
  });
  return {values, DType::f32, {m.out, m.in}, std::move(memory)};
}

}  // namespace

DType type_of(DType want, MatrixUse use) noexcept {
  if (!is_quantized(want)) return want;
  if (use == MatrixUse::embedding) return DType::automatic;
  if (use == MatrixUse::lora && want == DType::mm8) return DType::automatic;
  const bool wide = use == MatrixUse::lora || use == MatrixUse::head;
  return wide && want == DType::int4 ? DType::int8 : want;
}

std::size_t row_bytes(DType dtype, int in) noexcept { return row_size(dtype, in); }

Parallel polled(Parallel parallel, std::function<void()> poll, std::int64_t in) {
  if (!poll) return parallel;
  constexpr std::int64_t kPiece = std::int64_t{1} << 20;
  const int rows =
      static_cast<int>(std::max<std::int64_t>(1, kPiece / std::max<std::int64_t>(in, 1)));
  return [parallel = std::move(parallel), poll = std::move(poll), rows](int n, const auto& work) {
    for (int first = 0; first < n; first += std::min(rows, n - first)) {
      poll();
      parallel(std::min(rows, n - first),
               [&work, first](int begin, int end) { work(first + begin, first + end); });
    }
  };
}

void serial(int n, const std::function<void(int begin, int end)>& work) { work(0, n); }

namespace {

Matrix quantize_by(const HostTensor& w, DType want, Buffer& memory, const Parallel& parallel,
                   const std::function<Buffer(std::size_t)>& allocate, const Pieces& pieces) {
  WKV_CHECK(w.shape.size() == 2 && is_float(w.dtype) && is_quantized(want), internal, "[quantize] ",
            dtype_name(w.dtype), ' ', shape_str(w.shape), " to ", dtype_name(want));
  const Rows rows(w, static_cast<bool>(pieces.sink));
  check_range(rows, want, parallel);
  Block block(rows, want, memory, allocate, pieces);
  if (want == DType::int8)
    quantize_int8(rows, block, parallel);
  else if (want == DType::mm8)
    quantize_mm8(rows, block, parallel);
  else
    quantize_int4(rows, block, parallel);
  return block.matrix;
}

}  // namespace

Matrix quantize(const HostTensor& w, DType want, Buffer& memory, const Parallel& parallel,
                const std::function<Buffer(std::size_t)>& allocate) {
  return quantize_by(w, want, memory, parallel, allocate, {});
}

Matrix quantize_in_pieces(const HostTensor& w, DType want, Buffer& memory, int rows,
                          const CodeSink& sink, const Parallel& parallel) {
  return quantize_by(w, want, memory, parallel, allocate_host, {rows, sink});
}

Matrix view(const HostTensor& tensor, Buffer& memory) {
  const std::vector<PartInfo> wanted = quantised_parts(tensor.dtype, tensor.shape);
  bool fits = tensor.shape.size() == 2 && tensor.parts.size() == wanted.size();
  for (std::size_t i = 0; fits && i < wanted.size(); ++i)
    fits = tensor.parts[i].dtype == wanted[i].dtype && tensor.parts[i].shape == wanted[i].shape;
  WKV_CHECK(fits, bad_model, "[quantize] a tensor of ", dtype_name(tensor.dtype), ' ',
            shape_str(tensor.shape), " without the scales of its format (docs/weights.md)");
  Matrix m;
  m.data = tensor.data;
  m.dtype = tensor.dtype;
  m.out = static_cast<int>(tensor.shape[0]);
  m.in = static_cast<int>(tensor.shape[1]);
  m.zero = m.dtype == DType::mm8 ? -0.5f : 0.0f;
  m.bytes = stored_size(m.dtype, tensor.shape);
  for (const HostTensor& part : tensor.parts) m.bytes += stored_size(part.dtype, part.shape);
  if (m.dtype == DType::int4 &&
      reinterpret_cast<std::uintptr_t>(tensor.parts[0].data) % alignof(std::uint16_t) == 0) {
    m.group_scale = tensor.parts[0].data;
    return m;
  }
  std::size_t bytes = 0;
  const auto aligned = [](std::int64_t n) { return (static_cast<std::size_t>(n) + 63) / 64 * 64; };
  for (const HostTensor& part : tensor.parts) bytes += aligned(stored_size(part.dtype, part.shape));
  memory = allocate_host(bytes);
  auto* at = static_cast<unsigned char*>(memory.data());
  std::array<const void*, 4> placed{};
  for (std::size_t i = 0; i < tensor.parts.size(); ++i) {
    const std::int64_t n = stored_size(tensor.parts[i].dtype, tensor.parts[i].shape);
    std::memcpy(at, tensor.parts[i].data, static_cast<std::size_t>(n));
    placed[i] = at;
    at += aligned(n);
  }
  if (m.dtype == DType::int4) {
    m.group_scale = placed[0];
  } else {
    m.out_scale = static_cast<const float*>(placed[0]);
    m.in_scale = static_cast<const float*>(placed[1]);
    m.out_offset = static_cast<const float*>(placed[2]);
    m.in_offset = static_cast<const float*>(placed[3]);
  }
  return m;
}

HostTensor transpose(const HostTensor& w, const std::function<Buffer(std::size_t)>& allocate) {
  const std::size_t element = is_quantized(w.dtype) ? 1 : dtype_size(w.dtype);
  auto memory = std::make_shared<Buffer>(
      allocate(std::max<std::size_t>(static_cast<std::size_t>(w.numel()) * element, 1)));
  const auto turn_elements = element == 1   ? turn<std::uint8_t>
                             : element == 2 ? turn<std::uint16_t>
                             : element == 4 ? turn<std::uint32_t>
                                            : turn<std::uint64_t>;
  turn_elements(memory->data(), w.data, w.shape[0], w.shape[1]);
  HostTensor turned{memory->data(), w.dtype, {w.shape[1], w.shape[0]}, memory};
  if (w.dtype == DType::int8) turned.parts = {w.parts.at(1), w.parts.at(0)};
  return turned;
}

HostTensor dequantize(const HostTensor& tensor, const Parallel& parallel) {
  if (!is_quantized(tensor.dtype)) return tensor;
  Buffer vectors;
  return decode(view(tensor, vectors), parallel);
}

HostTensor rounded(const HostTensor& w, DType want, const Parallel& parallel) {
  Buffer memory;
  return decode(quantize(w, want, memory, parallel), parallel);
}

void decode_row(const Matrix& w, int o, float* to) {
  const auto* data = static_cast<const unsigned char*>(w.data);
  const auto at = [](const float* v, int i, float absent) { return v != nullptr ? v[i] : absent; };
  const std::size_t groups = size((w.in + kGroup - 1) / kGroup), bytes = row_bytes(w);
  const bool turned = w.layout == Layout::input_major;
  for (int i = 0; i < w.in; ++i) {
    const unsigned char* row = data + size(turned ? i : o) * bytes;
    const int col = turned ? o : i;
    if (w.dtype == DType::int4) {
      const int codes = row[size(col / 2)];
      const std::size_t group = size(i / kGroup);
      const std::size_t scale = turned ? group * size(w.out) + size(o) : size(o) * groups + group;
      to[i] = static_cast<float>((codes >> (col % 2 * 4) & 15) - 8) *
              f16_to_f32(static_cast<const std::uint16_t*>(w.group_scale)[scale]);
      continue;
    }
    const float code = w.dtype == DType::int8
                           ? static_cast<float>(static_cast<std::int8_t>(row[size(col)]))
                       : w.dtype == DType::mm8 ? static_cast<float>(row[size(col)])
                                               : element_as_f32(row, w.dtype, size(col));
    to[i] = (code - w.zero) * at(w.out_scale, o, 1) * at(w.in_scale, i, 1) +
            at(w.out_offset, o, 0) + at(w.in_offset, i, 0);
  }
}

}  // namespace wkv::quantize
