// Checks the products of CpuBackend::linear against float64, then times them beside the roofs of
// this machine:  bench_matmul [--isa NAME] [--threads N] [--dtype NAME] [--rows A,B,..]
//                [--shape OUTxIN] [--precision NAME] [--density D] [--check] [--seconds S]
// With a density the matrix is that of a channel mix and all inputs but that share are zero; GB/s
// are still those of the whole matrix. Memory traffic is real: every repetition uses another of
// enough matrices to overflow the caches.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "footprint.h"
#include "kernels/roof.h"
#include "ops/quantize.h"

namespace wkv::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string isa;
  int threads = usable_cores();
  std::vector<DType> dtypes = {DType::f32, DType::f16, DType::bf16};
  std::vector<int> rows = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256};
  int out = 2048, in = 2048;
  MatmulPrecision precision = MatmulPrecision::automatic;
  double density = 0;  ///< of x, if the matrix is one whose rows may be left out
  bool check_only = false;
  double seconds = 0.3;
};

/// Equal matrices of one shape and dtype with random elements: one that a backend adopts and copies
/// of what a product reads of it, `bytes` of them or one.
class Weights {
 public:
  Weights(cpu::CpuBackend& backend, int out, int in, DType dtype, std::size_t bytes,
          MatrixUse use = MatrixUse::linear)
      : stored_(dtype_size(dtype) == 0 ? DType::bf16 : dtype) {
    const auto size = [](int i) { return static_cast<std::size_t>(i); };
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const std::size_t n = size(out) * size(in);
    elements_ = allocate_host(n * dtype_size(stored_));
    for (std::size_t i = 0; i < n; ++i) {
      const float value = uniform(random) / std::sqrt(static_cast<float>(in));
      if (stored_ == DType::f32)
        static_cast<float*>(elements_.data())[i] = value;
      else
        static_cast<std::uint16_t*>(elements_.data())[i] =
            stored_ == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    }
    HostTensor tensor{elements_.data(), stored_, {out, in}, std::make_shared<Buffer>(elements_)};
    const Matrix first = backend.adopt(tensor, dtype, use, "w", keep_, {});
    const std::size_t outputs = size((out + cpu::kStrip - 1) / cpu::kStrip * cpu::kStrip),
                      groups = size((in + kInt4Group - 1) / kInt4Group);
    const bool turned = first.layout == Layout::input_major;
    const std::size_t codes = first.layout == Layout::packed
                                  ? outputs * groups * kInt4Group / 2
                                  : size(turned ? in : out) * quantize::row_bytes(first);
    const std::size_t scales = groups * (turned ? size(out) : outputs) * sizeof(std::uint16_t);
    matrices.push_back(first);
    while (matrices.size() * codes < bytes) {
      Matrix& w = matrices.emplace_back(first);
      w.data = copy(first.data, codes);
      if (w.group_scale != nullptr) w.group_scale = copy(first.group_scale, scales);
    }
    if (matrices.size() > 1) settle(codes);
  }

  float element(std::size_t i) const { return element_as_f32(elements_.data(), stored_, i); }

  std::vector<Matrix> matrices;

 private:
  const void* copy(const void* from, std::size_t bytes) {
    const Buffer to = memory_.allocate(bytes);
    std::memcpy(to.data(), from, bytes);
    keep_.push_back(std::make_shared<Buffer>(to));
    return to.data();
  }

  /// Reads the codes that were written. Until then every line that is read drives one out of the
  /// last cache that is still to be written to memory: with 480 MB of cache one row of int8 took a
  /// thread 1.4 times as long.
  void settle(std::size_t bytes) const {
    unsigned sum = 0;
    for (const Matrix& w : matrices)
      for (std::size_t i = 0; i < bytes; i += 64)
        sum += static_cast<const unsigned char*>(w.data)[i];
    asm volatile("" ::"r"(sum));
  }

  Buffer elements_;
  DType stored_;
  HugePages memory_;
  std::vector<std::shared_ptr<const void>> keep_;
};

std::vector<float> random_floats(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> v(n);
  for (float& x : v) x = uniform(random);
  return v;
}

Tensor view(std::vector<float>& data, int rows, int cols) {
  return {nullptr, data.data(), rows, cols, cols, DType::f32};
}

/// The largest |error| / (eps sum |w x|) over all outputs; eps is that of fp32.
double check(cpu::CpuBackend& backend, int out, int in, int rows, DType dtype) {
  const Weights weights(backend, out, in, dtype, 1);
  auto x = random_floats(static_cast<std::size_t>(rows) * static_cast<std::size_t>(in), 2);
  std::vector<float> y(static_cast<std::size_t>(rows) * static_cast<std::size_t>(out), NAN);
  const LinearJob job{view(y, rows, out), view(x, rows, in), weights.matrices.data(), {}};
  backend.linear({&job, 1});
  double worst = 0;
  for (int m = 0; m < rows; ++m)
    for (int j = 0; j < out; ++j) {
      double exact = 0, magnitude = 1e-30;
      for (int k = 0; k < in; ++k) {
        const double term = static_cast<double>(weights.element(static_cast<std::size_t>(j) *
                                                                    static_cast<std::size_t>(in) +
                                                                static_cast<std::size_t>(k))) *
                            x[static_cast<std::size_t>(m * in + k)];
        exact += term;
        magnitude += std::abs(term);
      }
      const double error = std::abs(y[static_cast<std::size_t>(m * out + j)] - exact);
      worst = std::max(worst, error / (magnitude * 0x1p-24));
      if (!(error >= 0)) return INFINITY;
    }
  return worst;
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Median seconds of one product over the samples of 4 ms that no other process disturbed (all
/// threads had 97 % of a CPU), and how many of them there were; the fastest tenth if there were
/// none.
std::pair<double, int> time_linear(cpu::CpuBackend& backend, const Weights& weights, int rows,
                                   const Settings& s) {
  const Matrix& w = weights.matrices[0];
  // With zeros, other inputs each time: branches learn what comes again.
  const std::size_t inputs = s.density > 0 ? 16 : 1,
                    size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(w.in);
  auto values = random_floats(inputs * size, 3);
  if (s.density > 0) {
    std::mt19937 random(4);
    std::bernoulli_distribution zero(1 - s.density);
    for (float& x : values)
      if (zero(random)) x = 0;
  }
  const Buffer x = allocate_host(values.size() * sizeof(float));
  std::memcpy(x.data(), values.data(), x.bytes());
  const Buffer y = allocate_host(static_cast<std::size_t>(rows) * static_cast<std::size_t>(w.out) *
                                 sizeof(float));
  std::vector<double> clean, all;
  std::size_t next = 0;
  const auto start = Clock::now();
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  while (all.size() < 5 || since(start) < s.seconds) {
    const auto begin = Clock::now();
    const double cpu = cpu_seconds();
    double elapsed = 0;
    int n = 0;
    for (; elapsed < 0.004; elapsed = since(begin), ++n) {
      const LinearJob job{{nullptr, y.data(), rows, w.out, w.out, DType::f32},
                          {nullptr, static_cast<float*>(x.data()) + next % inputs * size, rows,
                           w.in, w.in, DType::f32},
                          &weights.matrices[next++ % weights.matrices.size()],
                          {}};
      backend.linear({&job, 1});
    }
    all.push_back(elapsed / n);
    if (cpu_seconds() - cpu > 0.97 * elapsed * s.threads) clean.push_back(elapsed / n);
  }
  const int undisturbed = static_cast<int>(clean.size());
  std::vector<double>& samples = clean.empty() ? all : clean;
  std::sort(samples.begin(), samples.end());
  return {samples[clean.empty() ? samples.size() / 10 : samples.size() / 2], undisturbed};
}

double weight_bytes(const Matrix& w) {
  if (w.bytes > 0) return static_cast<double>(w.bytes);
  return static_cast<double>(w.out) * w.in * static_cast<double>(dtype_size(w.dtype));
}

/// The units whose peaks the products of an ISA are compared with.
std::vector<std::string> units_of(const std::string& isa) {
  if (isa == "avx2") return {"avx2", "avx2 int16"};
  if (isa == "avx512") return {"avx512", "avx512 int8", "avx512 int16"};
  if (isa == "avx512_bf16") return {"avx512", "avx512 int8", "avx512 bf16"};
  if (isa == "amx") return {"avx512", "avx512 int8", "amx bf16", "amx int8"};
  return {isa};
}

/// What computes a product, as its kernels answer: see docs/design/0010. A mode of several products
/// for each useful one reaches as many times less.
std::string unit_of(const cpu::KernelTable& kernels, const Settings& s, DType dtype, int rows) {
  const std::map<DType, cpu::WeightType> types{
      {DType::f32, cpu::kWeightF32}, {DType::f16, cpu::kWeightF16}, {DType::bf16, cpu::kWeightBF16},
      {DType::int8, cpu::kWeightI8}, {DType::mm8, cpu::kWeightU8},  {DType::int4, cpu::kWeightI4}};
  cpu::MatmulArgs args{};
  args.type = types.at(dtype);
  args.rows = rows;
  args.out = s.out;
  args.in = s.in;
  args.precision = static_cast<int>(s.precision);
  const std::string isa = kernels.isa;
  if (kernels.matmul.narrow(args) == nullptr) return units_of(isa).front();
  if (isa == "avx2") return "avx2 int16";
  const std::string cores = isa == "amx" ? "amx" : "avx512";
  if (dtype == DType::int8 || dtype == DType::mm8) return cores + " int8";
  return cores + (isa == "avx512" ? " int16" : " bf16");
}

void run(const Settings& s) {
  const cpu::KernelTable& kernels = cpu::select_isa(s.isa.c_str());
  const bool skips = s.density > 0;
  cpu::CpuBackend backend(s.threads, kernels, skips ? SkipZeros::on : SkipZeros::off, s.precision);
  std::printf("%s\n", backend.name().c_str());
  for (const DType dtype : s.dtypes) {
    if (quantize::is_quantized(dtype)) continue;  // tests/ops/test_quantize.py checks those
    double worst = 0;
    for (const auto& [out, in] : {std::pair{256, s.in}, {67, 131}, {5, 33}, {33, 768}, {1, 1}})
      for (const int rows : {1, 2, 3, 5, 7, 11, 17, 33})
        worst = std::max(worst, check(backend, out, in, rows, dtype));
    std::printf("%s: largest error %.2f eps sum|w x|\n", std::string(dtype_name(dtype)).c_str(),
                worst);
  }
  if (s.check_only) return;

  const double bandwidth = read_bandwidth(s.threads, s.seconds * 2);
  std::printf("roofs: read %.2f GB/s", bandwidth / 1e9);
  std::map<std::string, double> peaks;
  for (const std::string& unit : units_of(kernels.isa)) {
    peaks[unit] = arithmetic_peak(unit, s.threads, s.seconds);
    std::printf(", %s %.0f GFLOP/s", unit.c_str(), peaks[unit] / 1e9);
  }
  std::printf("\n");
  std::printf("%-6s %5s %9s %8s %6s %9s %6s %7s\n", "dtype", "rows", "us", "GB/s", "share",
              "GFLOP/s", "share", "samples");
  for (const DType dtype : s.dtypes) {
    const Weights weights(backend, s.out, s.in, dtype, footprint_bytes(),
                          skips ? MatrixUse::ffn_value : MatrixUse::linear);
    for (const int rows : s.rows) {
      const auto [t, samples] = time_linear(backend, weights, rows, s);
      const double gbs = weight_bytes(weights.matrices[0]) / t;
      const double flops = 2.0 * rows * s.out * s.in / t;
      const double peak = peaks.at(unit_of(kernels, s, dtype, rows));
      std::printf("%-6s %5d %9.1f %8.2f %5.1f%% %9.1f %5.1f%% %7d\n",
                  std::string(dtype_name(dtype)).c_str(), rows, t * 1e6, gbs / 1e9,
                  100 * gbs / bandwidth, flops / 1e9, 100 * flops / peak, samples);
      std::fflush(stdout);
    }
  }
  std::printf("roofs again: read %.2f GB/s\n", read_bandwidth(s.threads, s.seconds) / 1e9);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--check") {
      s.check_only = true;
      continue;
    }
    WKV_CHECK(i + 1 < argc, invalid_argument, option, " wants a value");
    const std::string value = argv[++i];
    if (option == "--isa") {
      s.isa = value;
    } else if (option == "--threads") {
      s.threads = std::atoi(value.c_str());
    } else if (option == "--dtype") {
      s.dtypes = {parse_dtype(value)};
    } else if (option == "--precision") {
      s.precision = parse_matmul_precision(value);
    } else if (option == "--density") {
      s.density = std::atof(value.c_str());
    } else if (option == "--seconds") {
      s.seconds = std::atof(value.c_str());
    } else if (option == "--shape") {
      WKV_CHECK(std::sscanf(value.c_str(), "%dx%d", &s.out, &s.in) == 2, invalid_argument,
                "--shape wants OUTxIN");
    } else if (option == "--rows") {
      s.rows.clear();
      std::stringstream list(value);
      for (std::string item; std::getline(list, item, ',');)
        s.rows.push_back(std::atoi(item.c_str()));
    } else {
      fail(ErrorCode::invalid_argument, "unknown option ", option);
    }
  }
  return s;
}

}  // namespace
}  // namespace wkv::bench

int main(int argc, char** argv) {
  try {
    wkv::bench::run(wkv::bench::parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_matmul: %s\n", e.what());
    return 1;
  }
}
