// Matrix products of the CUDA backend on the host shim, against float64: every kernel, every form
// of weights, ragged sizes, splits, epilogues, unaligned views.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/dtype.h"
#include "cuda/codec.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/pack.h"
#include "ops/ops.h"
#include "ops/quantize.h"
#include "shim/host_device.h"

namespace wkv {
namespace {

struct Shape {
  int rows, in, out;
};

std::vector<float> random_values(std::size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(generator);
  return v;
}

/// A step on the shim, with helpers that put things on the device and take them back.
class Bench {
 public:
  Bench()
      : backend_(cuda::open_device(0)),
        arena_([this](std::size_t n) { return backend_.allocate(n); }, false),
        step_{backend_, arena_, batch_, nullptr} {}

  void begin(int rows) {
    batch_.rows = rows;
    batch_.sequences = {{0, rows, nullptr, 0}};
    backend_.begin(batch_);
  }
  void begin_decode(int rows) {
    batch_.rows = rows;
    batch_.sequences.clear();
    for (int i = 0; i < rows; ++i) batch_.sequences.push_back({i, 1, nullptr, 0});
    backend_.begin(batch_);
  }
  Tensor tensor(const std::vector<float>& v, int rows, int cols) {
    Tensor t = step_.tensor(rows, cols);
    backend_.write(t.data, v.data(), v.size() * sizeof(float));
    return t;
  }
  Vector vector(const std::vector<float>& v) {
    Buffer b = backend_.allocate(v.size() * sizeof(float));
    backend_.write(b.data(), v.data(), v.size() * sizeof(float));
    keep_.push_back(std::make_shared<Buffer>(b));
    return {static_cast<const float*>(b.data()), static_cast<int>(v.size())};
  }
  Matrix matrix(const std::vector<float>& v, int out, int in, DType dtype,
                MatrixUse use = MatrixUse::linear) {
    HostTensor t;
    t.data = v.data();
    t.dtype = DType::f32;
    t.shape = {out, in};
    return backend_.adopt(t, dtype, use, "w", keep_, {});
  }
  std::vector<float> get(Tensor t) {
    std::vector<float> v(static_cast<std::size_t>(t.rows) * static_cast<std::size_t>(t.cols));
    backend_.read(v.data(), t.data, v.size() * sizeof(float));
    return v;
  }
  cuda::CudaBackend& backend() { return backend_; }
  Step& step() { return step_; }
  Arena& arena() { return arena_; }

 private:
  cuda::CudaBackend backend_;
  Arena arena_;
  Batch batch_;
  Step step_;
  std::vector<std::shared_ptr<const void>> keep_;
};

float rounded(float v, DType dtype) {
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(v));
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(v));
  return v;
}

/// What a matrix of that type stands for.
std::vector<float> stands_for(const std::vector<float>& w, int out, int in, DType dtype) {
  std::vector<float> values(w.size());
  if (!is_quantized(dtype)) {
    for (std::size_t i = 0; i < w.size(); ++i) values[i] = rounded(w[i], dtype);
    return values;
  }
  HostTensor t;
  t.data = w.data();
  t.shape = {out, in};
  Buffer memory;
  const Matrix codes = quantize::quantize(t, dtype, memory);
  for (int o = 0; o < out; ++o)
    quantize::decode_row(codes, o, values.data() + static_cast<std::ptrdiff_t>(o) * in);
  return values;
}

/// Largest error relative to the sum of magnitudes, which is what rounding is proportional to.
double product_error(const std::vector<float>& y, const std::vector<float>& x,
                     const std::vector<float>& w, Shape s, DType dtype) {
  double worst = 0.0;
  for (int r = 0; r < s.rows; ++r)
    for (int o = 0; o < s.out; ++o) {
      double sum = 0.0, magnitude = 1e-30;
      for (int i = 0; i < s.in; ++i) {
        const double p = static_cast<double>(x[static_cast<std::size_t>(r * s.in + i)]) *
                         rounded(w[static_cast<std::size_t>(o * s.in + i)], dtype);
        sum += p;
        magnitude += p * p;
      }
      const double got = y[static_cast<std::size_t>(r * s.out + o)];
      const double error = std::abs(got - sum) / std::sqrt(magnitude);
      worst = std::isnan(got) ? HUGE_VAL : std::max(worst, error);
    }
  return worst;
}

/// Activations are exact up to 8 rows (two halves), rounded to the weights' type beyond.
double tolerance(DType dtype, int rows) {
  if (dtype == DType::f32) return 1e-6;
  if (rows <= cuda::kSplitRows) return dtype == DType::f16 ? 2e-6 : 5e-5;
  return dtype == DType::f16 ? 2e-3 : 1.6e-2;
}

TEST_CASE("products agree with float64 for every kernel, type and awkward size") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const Shape s : {Shape{1, 64, 64},
                          {1, 96, 40},
                          {1, 7, 3},
                          {2, 1024, 33},
                          {3, 40, 16},
                          {4, 200, 65},
                          {5, 64, 24},
                          {8, 4200, 16},
                          {9, 64, 70},
                          {12, 200, 20},
                          {17, 96, 64},
                          {33, 130, 100},
                          {64, 1032, 64},
                          {65, 72, 129},
                          {130, 256, 24}}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(s.rows);
      CAPTURE(s.in);
      CAPTURE(s.out);
      Bench bench;
      const auto x = random_values(static_cast<std::size_t>(s.rows * s.in), 1);
      const auto w = random_values(static_cast<std::size_t>(s.out * s.in), 2);
      const Matrix m = bench.matrix(w, s.out, s.in, dtype);
      bench.begin(s.rows);
      const Tensor in = bench.tensor(x, s.rows, s.in);
      const Tensor y = linear(in, m);
      const auto got = bench.get(y);
      bench.backend().end();
      CHECK(product_error(got, x, w, s, dtype) < tolerance(dtype, s.rows));
    }
  CHECK(shim::fences_broken() == 0);
}

/// With everything; `into` too or not.
void check_epilogue(DType dtype, std::initializer_list<int> all_rows, bool with_into) {
  for (const int rows : all_rows) {
    CAPTURE(rows);
    constexpr int kIn = 64, kOut = 128;
    const auto n = static_cast<std::size_t>(rows * kOut);
    const auto x = random_values(static_cast<std::size_t>(rows * kIn), 1);
    const auto w = random_values(kOut * kIn, 2, 0.2f), b = random_values(kOut, 3);
    const auto gate = random_values(n, 4), add = random_values(n, 5), old = random_values(n, 6);
    const auto decoded = stands_for(w, kOut, kIn, dtype);
    Bench bench;
    const Matrix m = bench.matrix(w, kOut, kIn, dtype);
    const Vector bias = bench.vector(b);
    bench.begin(rows);
    const Tensor into = bench.tensor(old, rows, kOut);
    Epilogue e;
    e.act = Act::silu;
    e.bias = &bias;
    e.gate = bench.tensor(gate, rows, kOut);
    e.add = bench.tensor(add, rows, kOut);
    if (with_into) e.into = into;
    const Tensor y = linear(bench.tensor(x, rows, kIn), m, e);
    CHECK((y.data == into.data) == with_into);
    const auto got = bench.get(y);
    bench.backend().end();
    for (std::size_t i = 0; i < n; ++i) {
      double sum = b[i % kOut];
      for (std::size_t k = 0; k < kIn; ++k)
        sum += static_cast<double>(x[i / kOut * kIn + k]) * decoded[i % kOut * kIn + k];
      const double more = with_into ? old[i] : 0.0f;
      const double expected = sum / (1.0 + std::exp(-sum)) * gate[i] + add[i] + more;
      CHECK(got[i] == doctest::Approx(expected).epsilon(4e-3));
    }
  }
}

TEST_CASE("epilogues: bias, activation, gate, add, into") {
  check_epilogue(DType::f16, {1, 7, 20}, true);
  check_epilogue(DType::int8, {1, 70}, false);
}

TEST_CASE("products fit the shared memory of every architecture") {
  struct Device {
    const char* sm;
    int shared;
  };
  for (const Device device :
       {Device{"75", 64}, {"80", 163}, {"86", 99}, {"90", 227}, {"120", 99}}) {
    CAPTURE(device.sm);
    setenv("WKV_SHIM_SM", device.sm, 1);
    for (const DType dtype : {DType::f16, DType::bf16, DType::int8, DType::int4})
      for (const Shape s : {Shape{8, 5000, 16},
                            {16, 2100, 16},
                            {32, 2100, 16},
                            {40, 520, 70},
                            {64, 4000, 20},
                            {70, 300, 130}}) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(s.rows);
        Bench bench;  // the shim refuses a launch that does not fit
        const auto x = random_values(static_cast<std::size_t>(s.rows * s.in), 1);
        const auto w = random_values(static_cast<std::size_t>(s.out * s.in), 2);
        const Matrix m = bench.matrix(w, s.out, s.in, dtype);
        CHECK(m.dtype == (dtype == DType::bf16 && device.shared == 64 ? DType::f16 : dtype));
        bench.begin(s.rows);
        const auto got = bench.get(linear(bench.tensor(x, s.rows, s.in), m));
        bench.backend().end();
        const bool plain = dtype == DType::f16 || dtype == DType::bf16;
        if (plain) CHECK(product_error(got, x, w, s, m.dtype) < tolerance(m.dtype, s.rows));
      }
  }
  unsetenv("WKV_SHIM_SM");
}

TEST_CASE("a group of products of different sizes and types, from unaligned views") {
  for (const int rows : {1, 3, 11}) {
    CAPTURE(rows);
    Bench bench;
    const auto x = random_values(static_cast<std::size_t>(rows * 203), 1);
    const auto w0 = random_values(40 * 96, 2), w1 = random_values(24 * 101, 3),
               w2 = random_values(17 * 96, 4);
    const Matrix m0 = bench.matrix(w0, 40, 96, DType::f16),
                 m1 = bench.matrix(w1, 24, 101, DType::bf16),
                 m2 = bench.matrix(w2, 17, 96, DType::f16);
    bench.begin(rows);
    const Tensor in = bench.tensor(x, rows, 203);
    const auto [y0, y1, y2] =
        linears({{columns(in, 3, 96), m0}, {columns(in, 99, 101), m1}, {columns(in, 1, 96), m2}});
    const auto part = [&](int first, int n) {
      std::vector<float> v;
      for (int r = 0; r < rows; ++r)
        v.insert(v.end(), x.begin() + r * 203 + first, x.begin() + r * 203 + first + n);
      return v;
    };
    const auto g0 = bench.get(y0), g1 = bench.get(y1), g2 = bench.get(y2);
    bench.backend().end();
    CHECK(product_error(g0, part(3, 96), w0, {rows, 96, 40}, DType::f16) <
          tolerance(DType::f16, rows));
    CHECK(product_error(g1, part(99, 101), w1, {rows, 101, 24}, DType::bf16) <
          tolerance(DType::bf16, rows));
    CHECK(product_error(g2, part(1, 96), w2, {rows, 96, 17}, DType::f16) <
          tolerance(DType::f16, rows));
  }
}

TEST_CASE("quantised weights: the product is that of the weights that quantize() stands for") {
  for (const DType dtype : {DType::int8, DType::mm8, DType::int4})
    for (const Shape s : {Shape{1, 64, 32},
                          {3, 200, 24},
                          {6, 130, 17},
                          {1, 2112, 16},
                          {20, 200, 70},
                          {40, 520, 20}}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(s.rows);
      CAPTURE(s.in);
      Bench bench;
      const auto x = random_values(static_cast<std::size_t>(s.rows * s.in), 1);
      auto w = random_values(static_cast<std::size_t>(s.out * s.in), 2);
      for (int o = 0; o < s.out; ++o)
        w[static_cast<std::size_t>(o * s.in + 5)] *= 8.0f;  // an outlier
      const auto decoded = stands_for(w, s.out, s.in, dtype);
      const Matrix m = bench.matrix(w, s.out, s.in, dtype);
      CHECK(m.dtype == dtype);
      bench.begin(s.rows);
      const auto got = bench.get(linear(bench.tensor(x, s.rows, s.in), m));
      bench.backend().end();
      CHECK(product_error(got, x, decoded, s, DType::f32) <
            (s.rows <= cuda::kSplitRows ? 1e-5 : 4e-3));
    }
  CHECK(shim::fences_broken() == 0);
}

/// Rows at the edges of every tile, every form of weights; `expanded` bytes of codes at a time, if
/// a library multiplies.
void check_rows(int in, int out, std::initializer_list<int> all_rows,
                std::size_t expanded = 128 << 20) {
  for (const DType dtype : {DType::f16, DType::bf16, DType::int8, DType::mm8, DType::int4}) {
    const auto w = random_values(static_cast<std::size_t>(out * in), 2);
    const auto decoded = stands_for(w, out, in, dtype);
    Bench bench;
    bench.backend().expand_at_most(expanded);
    const Matrix m = bench.matrix(w, out, in, dtype);
    CHECK(m.dtype == dtype);
    for (const int rows : all_rows) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(rows);
      const auto x = random_values(static_cast<std::size_t>(rows * in), 1);
      bench.arena().reset();
      bench.begin(rows);
      const auto got = bench.get(linear(bench.tensor(x, rows, in), m));
      bench.backend().end();
      const bool exact = rows <= cuda::kSplitRows;
      const double most = is_quantized(dtype) ? (exact ? 1e-5 : 4e-3) : tolerance(dtype, rows);
      CHECK(product_error(got, x, decoded, {rows, in, out}, DType::f32) < most);
    }
  }
  CHECK(shim::fences_broken() == 0);
}

TEST_CASE("1 to 64 rows of every form, at the edges of every tile") {
  check_rows(328, 70, {1, 4, 5, 7, 8, 9, 16, 17, 32, 33, 63, 64, 65});
}

TEST_CASE(
    "few outputs of many inputs are shared by blocks, which are clusters where there are any") {
  for (const char* sm : {"80", "90"}) {
    CAPTURE(sm);
    setenv("WKV_SHIM_SM", sm, 1);
    check_rows(1100, 40, {1, 2, 4, 6, 9, 16, 17, 31, 33, 48, 64});
  }
  unsetenv("WKV_SHIM_SM");
}

TEST_CASE("many inputs on many processors: clusters of up to eight blocks") {
  setenv("WKV_SHIM_PROCESSORS", "132", 1);
  check_rows(4100, 40, {1, 7, 16, 24, 64});
  check_rows(4100, 600, {8, 40});
  unsetenv("WKV_SHIM_PROCESSORS");
}

/// A device with a library that takes every product of more than 8 rows while it lives.
struct Library {
  Library() { setenv("WKV_SHIM_LIBRARY", "1", 1); }
  ~Library() { unsetenv("WKV_SHIM_LIBRARY"); }
};

TEST_CASE("a library multiplies: quantised weights are expanded for it, in pieces") {
  const Library library;
  // Up to 512 outputs are rounded for the next product, which the library needs whole rows of.
  check_rows(328, 128, {8, 9, 48, 49, 64, 65, 130});
  check_rows(60, 523, {65});
  check_rows(328, 128, {49, 65}, 10 * 384 * 2);  // ten outputs at a time
  check_rows(60, 128, {65}, 1);                  // one
  for (const DType dtype : {DType::f16, DType::int8, DType::int4})
    for (const bool into : {false, true}) check_epilogue(dtype, {20, 70}, into);
}

TEST_CASE("a library multiplies: a channel mix, whose squares go on rounded") {
  const Library library;
  constexpr int kRows = 70, kIn = 64, kHidden = 256;
  const auto x = random_values(std::size_t{kRows} * kIn, 1);
  const auto old = random_values(std::size_t{kRows} * kIn, 2);
  const auto key = random_values(std::size_t{kHidden} * kIn, 3, 4.0f);  // squares of thousands
  const auto value = random_values(std::size_t{kIn} * kHidden, 4, 0.1f);
  for (const DType dtype : {DType::f16, DType::int8, DType::mm8, DType::int4}) {
    CAPTURE(dtype_name(dtype));
    Bench bench;
    const Matrix k = bench.matrix(key, kHidden, kIn, dtype);
    const Matrix v = bench.matrix(value, kIn, kHidden, dtype, MatrixUse::ffn_value);
    bench.begin(kRows);
    Epilogue squared, added;
    squared.act = Act::relu_squared;
    added.into = bench.tensor(old, kRows, kIn);
    const auto got = bench.get(linear(linear(bench.tensor(x, kRows, kIn), k, squared), v, added));
    bench.backend().end();
    const auto keys = stands_for(key, kHidden, kIn, dtype);
    const auto values = stands_for(value, kIn, kHidden, dtype);
    for (int r = 0; r < kRows; ++r) {
      std::vector<double> hidden(kHidden);
      for (int h = 0; h < kHidden; ++h) {
        double sum = 0.0;
        for (int i = 0; i < kIn; ++i)
          sum += static_cast<double>(x[static_cast<std::size_t>(r * kIn + i)]) *
                 keys[static_cast<std::size_t>(h * kIn + i)];
        hidden[static_cast<std::size_t>(h)] = std::max(sum, 0.0) * std::max(sum, 0.0);
      }
      for (int o = 0; o < kIn; ++o) {
        const auto at = static_cast<std::size_t>(r * kIn + o);
        double sum = old[at], squares = 0.0;
        for (int h = 0; h < kHidden; ++h) {
          const double p = hidden[static_cast<std::size_t>(h)] *
                           values[static_cast<std::size_t>(o * kHidden + h)];
          sum += p;
          squares += p * p;
        }
        CHECK(std::abs(got[at] - sum) < 5e-3 * std::sqrt(squares));
      }
    }
  }
}

TEST_CASE("expanded weights keep their bits, whatever their magnitude") {
  const Library library;
  constexpr Shape kShape = {70, 96, 128};
  const auto x = random_values(std::size_t{kShape.rows} * kShape.in, 1);
  for (const float magnitude : {1e-30f, 1e-6f, 1.0f, 1e6f})
    for (const DType dtype : {DType::int8, DType::mm8, DType::int4}) {
      if (dtype == DType::int4 && (magnitude < 1e-5f || magnitude > 1e5f)) continue;  // fp16 scales
      CAPTURE(magnitude);
      CAPTURE(dtype_name(dtype));
      const auto w = random_values(std::size_t{kShape.out} * kShape.in, 2, magnitude);
      const auto decoded = stands_for(w, kShape.out, kShape.in, dtype);
      Bench bench;
      const Matrix m = bench.matrix(w, kShape.out, kShape.in, dtype);
      bench.begin(kShape.rows);
      const auto got = bench.get(linear(bench.tensor(x, kShape.rows, kShape.in), m));
      bench.backend().end();
      CHECK(product_error(got, x, decoded, kShape, DType::f32) < 4e-3);
    }
}

TEST_CASE("packed codes decode to themselves") {
  constexpr int kIn = 150;
  std::vector<std::uint8_t> bytes(kIn), packed(192);
  for (int i = 0; i < kIn; ++i)
    bytes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(i * 7);
  cuda::pack_u8(packed.data(), bytes.data(), kIn, 128, 128);
  std::vector<std::uint32_t> words(256 / 8);
  cuda::pack_u4(words.data(), bytes.data(), kIn);
  for (int i = 0; i < kIn; ++i) {
    const int t = i % 32 / 8, j = i % 8;  // lane, and which of its values in the step
    const auto value = [&](const cuda::Pairs& pairs) {
      return f16_to_f32(static_cast<std::uint16_t>(pairs.p[j / 2] >> (16 * (j % 2))));
    };
    cuda::Vec16 q;
    std::memcpy(&q, packed.data() + i / 64 * 64 + t * 16, 16);
    const auto code = static_cast<std::uint8_t>(bytes[static_cast<std::size_t>(i)] + 128);
    CHECK(value(cuda::U8Codec::pairs(q, i % 64 / 32)) == static_cast<float>(code) - 128.0f);
    std::memcpy(&q, words.data() + i / 128 * 16 + t * 4, 16);
    const int nibble = bytes[static_cast<std::size_t>(i / 2)] >> (i % 2 * 4) & 15;
    CHECK(value(cuda::U4Codec::pairs(q, i % 128 / 32)) == static_cast<float>(nibble - 8));
  }
}

TEST_CASE("squares as input do not overflow fp16") {
  for (const int rows : {1, 16}) {
    constexpr int kIn = 128, kOut = 16;
    std::vector<float> x(static_cast<std::size_t>(rows * kIn), 0.0f);
    for (std::size_t i = 0; i < x.size(); i += 5) x[i] = 1.0e6f + static_cast<float>(i);
    const auto w = random_values(kOut * kIn, 2);
    Bench bench;
    const Matrix m = bench.matrix(w, kOut, kIn, DType::f16, MatrixUse::ffn_value);
    bench.begin(rows);
    const auto got = bench.get(linear(bench.tensor(x, rows, kIn), m));
    bench.backend().end();
    CHECK(product_error(got, x, w, {rows, kIn, kOut}, DType::f16) < tolerance(DType::f16, rows));
  }
}

TEST_CASE("equal decoding steps are replayed as a graph, with equal results") {
  Bench bench;
  const auto w = random_values(64 * 64, 2, 0.1f);
  const Matrix m = bench.matrix(w, 64, 64, DType::f16);
  std::vector<float> first;
  for (int round = 0; round < 4; ++round) {
    bench.arena().reset();
    bench.begin_decode(2);
    const auto x = random_values(2 * 64, 1);
    Tensor t = bench.tensor(x, 2, 64);
    for (int i = 0; i < 12; ++i) t = linear(t, m);
    const auto got = bench.get(t);
    bench.backend().end();
    if (round == 0) first = got;
    CHECK(got == first);
    CHECK(bench.backend().queue().replays() == static_cast<std::size_t>(round < 1 ? 0 : round));
  }
  CHECK(bench.backend().queue().graphs() == 1);
}

}  // namespace
}  // namespace wkv
