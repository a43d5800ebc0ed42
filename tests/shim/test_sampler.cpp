// The CUDA sampler on the host shim against the CPU's: the same choices, token after token.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda/device_sampler.h"
#include "ops/ops.h"
#include "text/scalar_math.h"
#include "text/vector_passes.h"
#include "wkv/text.hpp"

namespace wkv {
namespace {

/// Logits like a model's: a few likely tokens, a long tail, and some equal values.
std::vector<float> some_logits(int vocab, unsigned seed, float spread) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> v(static_cast<std::size_t>(vocab));
  for (float& x : v) x = normal(generator);
  for (std::size_t i = 0; i + 7 < v.size(); i += 31) v[i + 7] = v[i];
  return v;
}

/// Both sample `steps` tokens of each stream; the number of choices that differ.
int differences(int vocab, int steps, float spread, const std::vector<SamplingParams>& streams) {
  const int rows = static_cast<int>(streams.size());
  cuda::CudaBackend backend(cuda::open_device(0));
  cuda::DeviceSampler device(backend, rows, vocab);
  std::vector<Sampler> host;
  for (int i = 0; i < rows; ++i) {
    const SamplingParams& p = streams[static_cast<std::size_t>(i)];
    device.start(i, p, 5);
    host.emplace_back(p);
    host.back().set_position(5);
  }
  Buffer memory = backend.allocate(static_cast<std::size_t>(rows * vocab) * sizeof(float));
  Batch batch;
  batch.rows = rows;
  for (int i = 0; i < rows; ++i) batch.sequences.push_back({i, 1, nullptr, 0});
  int wrong = 0;
  for (int step = 0; step < steps; ++step) {
    const auto logits =
        some_logits(rows * vocab, static_cast<unsigned>(100 * step + vocab), spread);
    backend.begin(batch);
    backend.write(memory.data(), logits.data(), logits.size() * sizeof(float));
    device.sample({nullptr, memory.data(), rows, vocab, vocab, DType::f32});
    backend.end();
    const std::vector<Token> got = device.tokens();
    for (int i = 0; i < rows; ++i) {
      Sampler& sampler = host[static_cast<std::size_t>(i)];
      const auto first = static_cast<std::size_t>(i) * static_cast<std::size_t>(vocab);
      const Token want =
          sampler.sample(std::span(logits).subspan(first, static_cast<std::size_t>(vocab)));
      sampler.accept(want);
      wrong += got[static_cast<std::size_t>(i)] != want ? 1 : 0;
    }
  }
  return wrong;
}

std::vector<SamplingParams> variety() {
  std::vector<SamplingParams> all;
  std::uint64_t seed = 1;
  for (const double temperature : {0.0, 0.7, 1.0, 1.8})
    for (const double top_p : {1.0, 0.9, 0.3, 0.0})
      for (const int top_k : {0, 1, 40, 300}) {
        SamplingParams p;
        p.temperature = temperature;
        p.top_p = top_p;
        p.top_k = top_k;
        p.seed = ++seed;
        if (seed % 3 == 0) p.presence_penalty = 0.6;
        if (seed % 2 == 0) p.frequency_penalty = 0.3;
        all.push_back(p);
      }
  return all;
}

TEST_CASE("the device's sampler chooses what the CPU's chooses") {
  CHECK(differences(97, 12, 2.0f, variety()) == 0);
  CHECK(differences(700, 6, 1.0f, variety()) == 0);
  CHECK(differences(5003, 3, 4.0f, variety()) == 0);
}

TEST_CASE("flat and steep vocabularies of full size") {
  std::vector<SamplingParams> streams(2);
  streams[0].top_p = 0.8;
  streams[0].temperature = 1.2;
  streams[0].seed = 7;
  streams[1].top_p = 0.95;
  streams[1].top_k = 20000;
  streams[1].seed = 8;
  for (const float spread : {0.01f, 1.0f, 6.0f}) CHECK(differences(65536, 2, spread, streams) == 0);
}

TEST_CASE("one number of exp is the vector pass's") {
  std::vector<float> x(1 << 16), y(x.size());
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-100.0f, 0.0f);
  for (float& v : x) v = uniform(generator);
  x[0] = 0.0f;
  x[1] = -std::numeric_limits<float>::infinity();
  std::vector<double> sums(x.size() / detail::kChunk);
  detail::vector_passes().exp(x.data(), x.size(), 0.0f, 1.0f, y.data(), sums.data());
  int wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += y[i] != detail::exp_nonpositive(x[i]) ? 1 : 0;
  CHECK(wrong == 0);
}

TEST_CASE("what cannot be sampled is said") {
  cuda::CudaBackend backend(cuda::open_device(0));
  cuda::DeviceSampler device(backend, 1, 300);
  SamplingParams params;
  params.min_p = 0.1;
  CHECK_FALSE(cuda::DeviceSampler::supports(params));
  CHECK_THROWS_AS(device.start(0, params), Error);
  device.start(0, {});
  Batch batch;
  batch.rows = 1;
  batch.sequences = {{0, 1, nullptr, 0}};
  const Buffer memory = backend.allocate(300 * sizeof(float));
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits(300, 0.0f);
    logits[270] = bad;
    backend.begin(batch);
    backend.write(memory.data(), logits.data(), logits.size() * sizeof(float));
    device.sample({nullptr, memory.data(), 1, 300, 300, DType::f32});
    backend.end();
    CHECK_THROWS_AS(device.tokens(), Error);
  }
}

}  // namespace
}  // namespace wkv
