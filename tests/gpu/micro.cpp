// The GPU's own figures, one kernel at a time, as JSON lines: memory bandwidth, cost of a launch,
// weight streaming, recurrence, matrix products. Run by tests/gpu/run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/dtype.h"
#include "cuda/cuda_backend.h"
#include "ops/ops.h"

namespace wkv {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<float> values(std::size_t n, unsigned seed) {
  std::vector<float> v(n);
  std::uint32_t s = seed * 2654435761u + 1;
  for (float& x : v) {
    s = s * 1664525u + 1013904223u;
    x = static_cast<float>(s >> 8) * 0x1p-23f - 1.0f;
  }
  return v;
}

class Micro {
 public:
  Micro()
      : backend_(cuda::open_device(0)),
        arena_([this](std::size_t n) { return filled(n); }, false),
        step_{backend_, arena_, batch_, nullptr} {}

  Matrix matrix(int out, int in, DType dtype, std::vector<std::shared_ptr<const void>>& keep) {
    const std::size_t n = static_cast<std::size_t>(out) * static_cast<std::size_t>(in);
    std::vector<std::uint16_t> half(n);
    std::uint32_t s = 1;
    for (auto& h : half) {  // magnitudes of about 2^-6, random signs and mantissas
      s = s * 1664525u + 1013904223u;
      h = static_cast<std::uint16_t>(dtype == DType::f16 ? 0x2400u | (s >> 16 & 0x83ffu)
                                                         : 0x3c80u | (s >> 16 & 0x807fu));
    }
    HostTensor t;
    t.data = half.data();
    t.dtype = dtype;
    t.shape = {out, in};
    return backend_.adopt(t, dtype, MatrixUse::linear, "w", keep);
  }

  /// Activations must not be zeros: those draw less power and run faster.
  Buffer filled(std::size_t bytes) {
    Buffer b = backend_.allocate(bytes);
    const auto v = values(1 << 20, 7);
    for (std::size_t at = 0; at < bytes; at += v.size() * 4)
      backend_.write(static_cast<char*>(b.data()) + at, v.data(),
                     std::min(v.size() * 4, bytes - at));
    return b;
  }

  /// Median seconds of `body` between begin and end; every sequence `rows` rows long.
  template <class F>
  double time(int sequences, int rows, float* state, int runs, F&& body) {
    batch_.rows = sequences * rows;
    batch_.sequences.clear();
    for (int i = 0; i < sequences; ++i) batch_.sequences.push_back({i * rows, rows, state, 0});
    batch_.tokens.assign(static_cast<std::size_t>(batch_.rows), 0);
    std::vector<double> times;
    for (int run = 0; run < runs + 3; ++run) {
      arena_.reset();
      backend_.begin(batch_);
      backend_.end();
      backend_.begin(batch_);
      const auto start = Clock::now();
      body();
      backend_.end();
      if (run >= 3) times.push_back(seconds_since(start));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void bandwidth() {
    for (const std::size_t mib : {64, 1024, 4096}) {
      const std::size_t bytes = mib << 20;
      const Buffer a = backend_.allocate(bytes), b = backend_.allocate(bytes);
      const auto v = values(1 << 20, 3);
      for (std::size_t at = 0; at < bytes; at += v.size() * 4)
        backend_.write(static_cast<char*>(a.data()) + at, v.data(), v.size() * 4);
      backend_.copy(b.data(), a.data(), bytes);
      const int n = 10;
      const auto start = Clock::now();
      for (int i = 0; i < n; ++i) backend_.copy(b.data(), a.data(), bytes);
      const double s = seconds_since(start) / n;
      std::printf("{\"table\":\"copy\",\"mib\":%zu,\"gb_s\":%.1f}\n", mib,
                  2.0 * static_cast<double>(bytes) / s * 1e-9);
    }
    std::vector<float> host(16 << 20);
    const Buffer a = backend_.allocate(host.size() * 4);
    for (const bool up : {true, false}) {
      const auto start = Clock::now();
      for (int i = 0; i < 5; ++i)
        up ? backend_.write(a.data(), host.data(), host.size() * 4)
           : backend_.read(host.data(), a.data(), host.size() * 4);
      std::printf("{\"table\":\"pcie\",\"way\":\"%s\",\"gb_s\":%.1f}\n", up ? "up" : "down",
                  5.0 * static_cast<double>(host.size()) * 4 / seconds_since(start) * 1e-9);
    }
  }

  void launches() {
    constexpr int kNodes = 1000;
    for (const int cols : {64, 2048}) {
      const auto chain = [&] {
        Tensor x = step_.tensor(1, cols);
        for (int i = 0; i < kNodes; ++i) backend_.add(x, x, x);
      };
      const double graph = time(1, 1, nullptr, 10, chain);
      const double eager = time(1, 2, nullptr, 10, chain);
      std::printf("{\"table\":\"launch\",\"cols\":%d,\"graph_us\":%.3f,\"eager_us\":%.3f}\n", cols,
                  graph / kNodes * 1e6, eager / kNodes * 1e6);
    }
  }

  void skinny() {
    struct Shape {
      const char* name;
      int out, in;
    };
    for (const Shape s : {Shape{"1.5B out", 2048, 2048},
                          {"1.5B key", 8192, 2048},
                          {"1.5B value", 2048, 8192},
                          {"1.5B head", 65536, 2048},
                          {"7.2B out", 4096, 4096},
                          {"7.2B key", 16384, 4096},
                          {"7.2B value", 4096, 16384},
                          {"1.5B lora up", 2048, 96}}) {
      // Enough matrices to make the L2 cache useless.
      const std::size_t bytes =
          std::size_t{2} * static_cast<std::size_t>(s.out) * static_cast<std::size_t>(s.in);
      const int n = static_cast<int>(std::clamp<std::size_t>((400u << 20) / bytes, 2, 64));
      std::vector<std::shared_ptr<const void>> keep;
      std::vector<Matrix> w;
      for (int i = 0; i < n; ++i) w.push_back(matrix(s.out, s.in, DType::f16, keep));
      for (const int rows : {1, 4, 8, 16, 32, 64}) {
        const int calls = std::max(n, 32);
        const double t = time(rows, 1, nullptr, 10, [&] {
          Tensor x = step_.tensor(rows, s.in), y = step_.tensor(rows, s.out);
          Epilogue e;
          e.out = y;
          for (int i = 0; i < calls; ++i) linear(x, w[static_cast<std::size_t>(i % n)], e);
        });
        std::printf(
            "{\"table\":\"skinny\",\"shape\":\"%s\",\"rows\":%d,\"us\":%.2f,\"gb_s\":%.0f}\n",
            s.name, rows, t / calls * 1e6, static_cast<double>(bytes) * calls / t * 1e-9);
      }
    }
  }

  void recurrence() {
    for (const int heads : {32, 64})
      for (const int sequences : {1, 8}) {
        const int C = heads * 64, T = 1024, rows = sequences * T;
        const Buffer state = backend_.allocate(static_cast<std::size_t>(C) * 64 * 4);
        const std::vector<float> zero(static_cast<std::size_t>(C) * 64);
        backend_.write(state.data(), zero.data(), zero.size() * 4);
        const auto v = values(static_cast<std::size_t>(C), 5);
        const Buffer vectors = backend_.allocate(static_cast<std::size_t>(C) * 4);
        backend_.write(vectors.data(), v.data(), static_cast<std::size_t>(C) * 4);
        const Vector c{static_cast<const float*>(vectors.data()), C};
        const Norm norm{c, c, 1e-3f};
        const double t = time(sequences, T, static_cast<float*>(state.data()), 5, [&] {
          Wkv7 in;
          for (Tensor* x : {&in.r, &in.w, &in.k, &in.v, &in.a, &in.gate})
            *x = step_.tensor(rows, C);
          in.k_k = in.k_a = in.r_k = &c;
          in.norm = &norm;
          wkv7(in, heads, Slot{0, static_cast<std::int64_t>(C) * 64});
        });
        std::printf("{\"table\":\"wkv7\",\"heads\":%d,\"sequences\":%d,\"us_per_token\":%.4f}\n",
                    heads, sequences, t / T * 1e6);
      }
  }

  void products() {
    struct Shape {
      int out, in;
    };
    for (const DType dtype : {DType::f16, DType::bf16})
      for (const Shape s : {Shape{2048, 2048}, {8192, 2048}, {2048, 8192}, {16384, 4096}}) {
        std::vector<std::shared_ptr<const void>> keep;
        const Matrix w = matrix(s.out, s.in, dtype, keep);
        for (const int rows : {128, 256, 512, 1024, 4096}) {
          constexpr int kCalls = 20;
          const double t = time(1, rows, nullptr, 5, [&] {
            Tensor x = step_.tensor(rows, s.in), y = step_.tensor(rows, s.out);
            Epilogue e;
            e.out = y;
            for (int i = 0; i < kCalls; ++i) linear(x, w, e);
          });
          std::printf(
              "{\"table\":\"gemm\",\"dtype\":\"%s\",\"out\":%d,\"in\":%d,\"rows\":%d,\"us\":%.1f,"
              "\"tflop_s\":%.1f}\n",
              std::string(dtype_name(dtype)).c_str(), s.out, s.in, rows, t / kCalls * 1e6,
              2.0 * rows * s.out * s.in * kCalls / t * 1e-12);
        }
      }
  }

 private:
  cuda::CudaBackend backend_;
  Arena arena_;
  Batch batch_;
  Step step_;
};

}  // namespace
}  // namespace wkv

int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "all";
  try {
    wkv::Micro micro;
    const auto on = [&](const char* name) { return which == "all" || which == name; };
    if (on("bandwidth")) micro.bandwidth();
    if (on("launch")) micro.launches();
    if (on("skinny")) micro.skinny();
    if (on("wkv")) micro.recurrence();
    if (on("gemm")) micro.products();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
