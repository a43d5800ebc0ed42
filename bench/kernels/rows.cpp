// Times what a token costs outside of matrix products: norms, token shift, recurrences.
//   bench_rows [--isa NAME] [--threads N] [--rows T] [--layers L] [--channels C] [--seconds S]
// Every layer has a state and weights of its own, as in a model, so memory traffic is real.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/check.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "ops/ops.h"

namespace wkv::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kHead = 64;

struct Settings {
  std::string isa;
  int threads = usable_cores();
  int rows = 1, layers = 24, channels = 2048;
  double seconds = 0.5;
};

class Bench {
 public:
  explicit Bench(const Settings& settings)
      : s_(settings),
        backend_(s_.threads, s_.isa.empty() ? cpu::select_isa() : cpu::select_isa(s_.isa.c_str())),
        arena_([this](std::size_t bytes) { return backend_.allocate(bytes); }, true),
        step_{backend_, arena_, batch_},
        slot_size_(std::int64_t{s_.channels} * (kHead + 4)),
        state_(filled(slot_size_ * s_.layers, 0.1f)),
        vectors_(filled(std::int64_t{s_.layers} * 16 * s_.channels, 0.5f)) {
    for (int l = 0; l < s_.layers; ++l)  // wkv4's decay is an exponent, below 0
      std::fill_n(floats(vectors_) + (vector(l, 6).data - floats(vectors_)), s_.channels, -0.5f);
    batch_.sequences.push_back({0, s_.rows, floats(state_), 0});
    batch_.rows = s_.rows;
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(0.55f, 0.99f);
    for (Tensor& t : inputs_) {
      t = step_.tensor(s_.rows, s_.channels);
      std::generate_n(t.row(0), static_cast<std::size_t>(s_.rows) * s_.channels,
                      [&] { return uniform(random); });
    }
  }

  void run() {
    std::printf("%s, %d layers of %d, %d rows; us per token\n", backend_.name().c_str(), s_.layers,
                s_.channels, s_.rows);
    const int heads = s_.channels / kHead;
    const auto& x = inputs_;
    double ln = time("layer_norm", [&](int l) { layer_norm(x[0], norm(l)); });
    double mix1 = time("shift_mix<1>", [&](int l) { shift_mix<1>(x[0], slot(l, 0, 1), mu<1>(l)); });
    double mix2 = time("shift_mix<2>", [&](int l) { shift_mix<2>(x[0], slot(l, 0, 1), mu<2>(l)); });
    double mix3 = time("shift_mix<3>", [&](int l) { shift_mix<3>(x[0], slot(l, 0, 1), mu<3>(l)); });
    double mix6 = time("shift_mix<6>", [&](int l) { shift_mix<6>(x[0], slot(l, 0, 1), mu<6>(l)); });
    double delta = time("shift_delta", [&](int l) { shift_delta(x[0], slot(l, 0, 1)); });
    double lerp1 = time("lerp<1>", [&](int l) { lerp<1>(x[0], x[1], mu<1>(l)); });
    double mul = time("multiply", [&](int) { x[0] * x[1]; });
    double w4 = time(
        "wkv4", [&](int l) { wkv4(x[0], x[1], x[2], vector(l, 6), vector(l, 7), slot(l, 1, 3)); });
    double w6 = time("wkv6 with norm and gate", [&](int l) {
      const Norm n = norm(l);
      wkv6(x[0], x[1], x[2], x[3], vector(l, 8), heads, {&n, x[4]}, slot(l, 4, kHead));
    });
    double w7 = time("wkv7 with everything", [&](int l) {
      const Norm n = norm(l);
      const Vector k_k = vector(l, 9), k_a = vector(l, 10), r_k = vector(l, 11);
      wkv7({.r = x[0],
            .w = x[1],
            .k = x[2],
            .v = x[3],
            .a = x[4],
            .v_first = x[5],
            .v_mix = x[6],
            .k_k = &k_k,
            .k_a = &k_a,
            .r_k = &r_k,
            .norm = &n,
            .gate = x[7]},
           heads, slot(l, 4, kHead));
    });
    std::printf("all of v4 %.1f, v6 %.1f, v7 %.1f\n", 2 * ln + mix3 + mix2 + mul + w4,
                2 * ln + mix2 + delta + 6 * lerp1 + w6, 2 * ln + mix6 + mix1 + w7);
  }

 private:
  static float* floats(const Buffer& buffer) { return static_cast<float*>(buffer.data()); }
  Buffer filled(std::int64_t n, float value) {
    Buffer buffer = backend_.allocate(static_cast<std::size_t>(n) * sizeof(float));
    std::fill_n(floats(buffer), n, value);
    return buffer;
  }
  Slot slot(int layer, int at, int size) const {
    return {layer * slot_size_ + std::int64_t{at} * s_.channels, std::int64_t{size} * s_.channels};
  }
  Vector vector(int layer, int i) const {
    const auto n = static_cast<std::size_t>(s_.channels);
    return {
        floats(vectors_) + (static_cast<std::size_t>(layer) * 16 + static_cast<std::size_t>(i)) * n,
        s_.channels};
  }
  Norm norm(int layer) const { return {vector(layer, 14), vector(layer, 15), 1e-5f}; }
  template <std::size_t G>
  std::array<Vector, G> mu(int layer) const {
    std::array<Vector, G> list;
    for (std::size_t g = 0; g < G; ++g) list[g] = vector(layer, static_cast<int>(g));
    return list;
  }

  /// us per token of `op` in all layers: the fastest repetition, which a busy machine disturbs
  /// least.
  double time(const char* name, const std::function<void(int layer)>& op) {
    std::vector<double> passes;
    const auto mark = arena_.mark();
    backend_.begin(batch_);
    for (const auto end = Clock::now() + std::chrono::duration<double>(s_.seconds);
         Clock::now() < end || passes.size() < 5;) {
      const auto start = Clock::now();
      for (int layer = 0; layer < s_.layers; ++layer) {
        op(layer);
        arena_.rewind(mark);
      }
      passes.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    backend_.end();
    const double us = *std::min_element(passes.begin(), passes.end()) / s_.rows;
    std::printf("  %-26s %9.2f\n", name, us);
    return us;
  }

  Settings s_;
  Batch batch_;
  cpu::CpuBackend backend_;
  Arena arena_;
  Step step_;
  std::int64_t slot_size_;
  Buffer state_, vectors_;
  std::array<Tensor, 8> inputs_;
};

int main_(int argc, char** argv) {
  Settings s;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    const char* value = argv[i + 1];
    if (option == "--isa")
      s.isa = value;
    else if (option == "--threads")
      s.threads = std::atoi(value);
    else if (option == "--rows")
      s.rows = std::atoi(value);
    else if (option == "--layers")
      s.layers = std::atoi(value);
    else if (option == "--channels")
      s.channels = std::atoi(value);
    else if (option == "--seconds")
      s.seconds = std::atof(value);
    else
      fail(ErrorCode::invalid_argument, "unknown option ", option);
  }
  WKV_CHECK(s.channels % kHead == 0 && s.rows > 0 && s.layers > 0, invalid_argument,
            "channels must be a multiple of ", kHead, ", rows and layers positive");
  Bench(s).run();
  return 0;
}

}  // namespace
}  // namespace wkv::bench

int main(int argc, char** argv) {
  try {
    return wkv::bench::main_(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_rows: %s\n", error.what());
    return 1;
  }
}
