// The GPU's own figures, one kernel at a time, as JSON lines: memory bandwidth, cost of a launch,
// weight streaming, recurrence, matrix products. Run by tests/gpu/run. `--small`: the same calls
// with small sizes, to see that they run; built with the host shim, all but the probes do so
// anywhere.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/dtype.h"
#include "cuda/cuda_backend.h"
#include "gpu/probes.h"
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
  explicit Micro(bool small)
      : small_(small),
        backend_(cuda::open_device(0)),
        arena_([this](std::size_t n) { return filled(n); }, false),
        step_{backend_, arena_, batch_, nullptr} {}

  Matrix matrix(int out, int in, DType dtype, std::vector<std::shared_ptr<const void>>& keep) {
    const std::size_t n = static_cast<std::size_t>(out) * static_cast<std::size_t>(in);
    half_.resize(n);
    const bool bf16 = dtype == DType::bf16;
    std::uint32_t s = 1;
    for (auto& h : half_) {  // magnitudes of about 2^-6, random signs and mantissas
      s = s * 1664525u + 1013904223u;
      h = static_cast<std::uint16_t>(bf16 ? 0x3c80u | (s >> 16 & 0x807fu)
                                          : 0x2400u | (s >> 16 & 0x83ffu));
    }
    HostTensor t;
    t.data = half_.data();
    t.dtype = bf16 ? DType::bf16 : DType::f16;
    t.shape = {out, in};
    return backend_.adopt(t, dtype, MatrixUse::linear, "w", keep, {});
  }

  /// The same weights in other memory.
  Matrix twin(const Matrix& w, std::vector<std::shared_ptr<const void>>& keep) {
    const auto bytes = static_cast<std::size_t>(w.bytes);
    auto memory = std::make_shared<Buffer>(backend_.allocate(bytes));
    backend_.copy(memory->data(), w.data, bytes);
    Matrix other = w;
    other.data = memory->data();
    const auto move = [&](const float*& part) {  // scales and offsets lie in the same block
      if (part != nullptr)
        part = reinterpret_cast<const float*>(
            static_cast<const char*>(memory->data()) +
            (reinterpret_cast<const char*>(part) - static_cast<const char*>(w.data)));
    };
    move(other.out_scale);
    move(other.in_scale);
    move(other.out_offset);
    move(other.in_offset);
    keep.push_back(std::move(memory));
    return other;
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
    if (small_) runs = 1;
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
    const std::vector<std::size_t> sizes =
        small_ ? std::vector<std::size_t>{4} : std::vector<std::size_t>{64, 256, 1024, 4096};
    for (const std::size_t mib : sizes) {
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
#if !defined(WKV_SHIM)
      std::printf("{\"table\":\"read\",\"mib\":%zu,\"gb_s\":%.1f}\n", mib,
                  static_cast<double>(bytes) / probes::read(a.data(), bytes) * 1e-9);
#endif
    }
    std::vector<float> host(small_ ? 1 << 20 : 16 << 20);
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
    const int nodes = small_ ? 10 : 1000;
    for (const int cols : {64, 2048}) {
      const auto chain = [&] {
        Tensor x = step_.tensor(1, cols);
        for (int i = 0; i < nodes; ++i) backend_.add(x, x, x);
      };
      const double graph = time(1, 1, nullptr, 10, chain);
      const double eager = time(1, 2, nullptr, 10, chain);
      std::printf("{\"table\":\"launch\",\"cols\":%d,\"graph_us\":%.3f,\"eager_us\":%.3f}\n", cols,
                  graph / nodes * 1e6, eager / nodes * 1e6);
    }
#if !defined(WKV_SHIM)
    std::printf("{\"table\":\"barrier\",\"grid_us\":%.3f,\"cluster_launch_us\":%.3f}\n",
                probes::grid_barrier() * 1e6, probes::cluster_launch() * 1e6);
#endif
  }

  void skinny() {
    struct Shape {
      const char* name;
      int out, in;
    };
    const std::vector<Shape> shapes = {
        {"1.5B out", 2048, 2048},   {"1.5B key", 8192, 2048},      {"1.5B value", 2048, 8192},
        {"1.5B head", 65536, 2048}, {"1.5B lora down", 96, 2048},  {"1.5B lora up", 2048, 96},
        {"7.2B out", 4096, 4096},   {"7.2B key", 16384, 4096},     {"7.2B value", 4096, 16384},
        {"7.2B head", 65536, 4096}, {"7.2B lora down", 128, 4096}, {"7.2B lora up", 4096, 128}};
    for (const DType dtype : {DType::f16, DType::int8, DType::int4})
      for (Shape s : small_ ? std::vector<Shape>{{"small", 128, 128}} : shapes) {
        if (dtype != DType::f16 && !small_ && std::min(s.out, s.in) < 2048) continue;  // fp16
        std::vector<std::shared_ptr<const void>> keep;
        std::vector<Matrix> w = {matrix(s.out, s.in, dtype, keep)};
        const auto bytes = static_cast<std::size_t>(w[0].bytes);
        // Enough matrices to make the L2 cache useless.
        const int n = static_cast<int>(std::clamp<std::size_t>((200u << 20) / bytes, 2, 64));
        while (static_cast<int>(w.size()) < (small_ ? 2 : n)) w.push_back(twin(w[0], keep));
        for (const int rows : {1, 4, 8, 16, 32, 64}) {
          const int calls = small_ ? 2 : std::max(n, 32);
          const double t = time(rows, 1, nullptr, 10, [&] {
            Tensor x = step_.tensor(rows, s.in), y = step_.tensor(rows, s.out);
            Epilogue e;
            e.out = y;
            for (int i = 0; i < calls; ++i) linear(x, w[static_cast<std::size_t>(i) % w.size()], e);
          });
          std::printf(
              "{\"table\":\"skinny\",\"dtype\":\"%s\",\"shape\":\"%s\",\"rows\":%d,"
              "\"us\":%.2f,\"gb_s\":%.0f}\n",
              std::string(dtype_name(dtype)).c_str(), s.name, rows, t / calls * 1e6,
              static_cast<double>(bytes) * calls / t * 1e-9);
        }
      }
  }

  void recurrence() {
    const int T = small_ ? 3 : 1024;
    for (const int heads : small_ ? std::vector<int>{1} : std::vector<int>{32, 64})
      for (const int sequences : {1, 8}) {
        const int C = heads * 64, rows = sequences * T;
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
      for (const Shape s :
           small_ ? std::vector<Shape>{{16, 64}}
                  : std::vector<Shape>{{2048, 2048}, {8192, 2048}, {2048, 8192}, {16384, 4096}}) {
        std::vector<std::shared_ptr<const void>> keep;
        const Matrix w = matrix(s.out, s.in, dtype, keep);
        for (const int rows :
             small_ ? std::vector<int>{128} : std::vector<int>{128, 256, 512, 1024, 4096}) {
          const int calls = small_ ? 1 : 20;
          const double t = time(1, rows, nullptr, 5, [&] {
            Tensor x = step_.tensor(rows, s.in), y = step_.tensor(rows, s.out);
            Epilogue e;
            e.out = y;
            for (int i = 0; i < calls; ++i) linear(x, w, e);
          });
          std::printf(
              "{\"table\":\"gemm\",\"dtype\":\"%s\",\"out\":%d,\"in\":%d,\"rows\":%d,\"us\":%.1f,"
              "\"tflop_s\":%.1f}\n",
              std::string(dtype_name(dtype)).c_str(), s.out, s.in, rows, t / calls * 1e6,
              2.0 * rows * s.out * s.in * calls / t * 1e-12);
        }
      }
  }

 private:
  bool small_;
  std::vector<std::uint16_t> half_;
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
    wkv::Micro micro(argc > 2 && std::string(argv[2]) == "--small");
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
