// The sampler and its parts against short slow versions of themselves.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "text/crossing.h"
#include "text/philox.h"
#include "text/scalar_math.h"
#include "text/vector_passes.h"
#include "wkv/text.hpp"

namespace {

using wkv::Sampler;
using wkv::SamplerVariant;
using wkv::SamplingParams;
using wkv::Token;

constexpr double kInf = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("Philox4x32-10: the known answers of its authors") {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(wkv::detail::philox({0, 0, 0, 0}, {0, 0}) ==
        Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(wkv::detail::philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(wkv::detail::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                            {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("exp and log in double") {
  for (double x = 1e-300; x < 1e300; x *= 1.7) {
    CHECK(wkv::detail::log_double(x) == doctest::Approx(std::log(x)).epsilon(1e-15));
  }
  CHECK(wkv::detail::log_double(1) == 0);
  CHECK(wkv::detail::exp_double(0) == 1);
  for (double x = -690; x < 0; x += 0.37) {
    CHECK(wkv::detail::exp_double(x) == doctest::Approx(std::exp(x)).epsilon(1e-14));
  }
  CHECK(wkv::detail::exp_double(-kInf) == 0);
}

TEST_CASE("find_crossing equals sorting") {
  std::mt19937 random(3);
  std::vector<std::uint32_t> scratch;
  for (int round = 0; round < 300; ++round) {
    const std::size_t n = 1 + random() % 200;
    std::vector<std::uint32_t> keys(n);
    std::vector<double> masses(n);
    for (std::size_t i = 0; i < n; ++i) {
      keys[i] = round % 3 == 0 ? static_cast<std::uint32_t>(random())
                               : static_cast<std::uint32_t>(0x3f000000 + random() % 9);
      masses[i] = static_cast<double>(random() % 5);
    }
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return keys[a] < keys[b]; });
    const double total = std::accumulate(masses.begin(), masses.end(), 0.0);
    const bool strict = round % 2 == 0;
    const double bound = std::floor(total * (round % 7) / 6);
    double sum = 0;
    const auto crossing = std::find_if(order.begin(), order.end(), [&](std::size_t i) {
      sum += masses[i];
      if (masses[i] == 0) return false;
      return strict ? sum > bound : sum >= bound;
    });
    const auto found = wkv::detail::find_crossing(
        n, [&](std::size_t i) { return keys[i]; }, [&](std::size_t i) { return masses[i]; }, bound,
        strict, scratch);
    REQUIRE(found.found == (crossing != order.end()));
    if (!found.found) continue;
    CHECK(found.key == keys[*crossing]);
    double before = 0;
    for (std::size_t i = 0; i < n; ++i) before += keys[i] < found.key ? masses[i] : 0;
    CHECK(found.before == before);
  }
}

TEST_CASE("find_crossing_dense equals find_crossing") {
  std::mt19937 random(4);
  std::vector<std::uint32_t> ids, scratch;
  constexpr std::size_t kSize = 3 * wkv::detail::kChunk;
  for (int round = 0; round < 300; ++round) {
    std::vector<float> keys(kSize), masses(kSize);
    const int spread = 1 << (round % 8);
    for (std::size_t i = 0; i < kSize; ++i) {
      // Few or many octaves, few or many values, some without mass.
      const double octave = std::floor(static_cast<double>(random() % 1024) / 1024 * spread);
      const double step = static_cast<double>(random() % (round % 3 == 0 ? 2 : 1u << 20));
      keys[i] = static_cast<float>(std::exp2(-octave) * (1 - step * 0x1p-22));
      masses[i] = static_cast<float>(random() % 4);  // sums are exact
    }
    const double total = std::accumulate(masses.begin(), masses.end(), 0.0);
    const bool strict = round % 2 == 0;
    for (const double bound :
         {0.0, 1.0, std::floor(total * 0.3), std::floor(total * 0.9), total, total + 1}) {
      const auto want = wkv::detail::find_crossing(
          kSize, [&](std::size_t i) { return wkv::detail::descending_key(keys[i]); },
          [&](std::size_t i) { return double{masses[i]}; }, bound, strict, scratch);
      const auto got =
          wkv::detail::find_crossing_dense(wkv::detail::vector_passes(), keys.data(), masses.data(),
                                           kSize, bound, strict, ids, scratch);
      CHECK(got.found == want.found);
      CHECK(got.key == want.key);
      CHECK(got.before == want.before);
      CHECK(got.at == want.at);
    }
  }
}

namespace {

/// Steps 2 to 4 of SamplingParams, sorted and in double.
std::vector<double> slow_probabilities(std::vector<double> logits, const SamplingParams& p) {
  const std::size_t n = logits.size();
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> q(n, 0.0);
  if (p.temperature == 0) {
    q[static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())] =
        1;
    return q;
  }
  const bool v1 = p.variant == SamplerVariant::v1;
  double total = 0;
  for (std::size_t i = 0; i < n; ++i) {
    q[i] = std::exp((logits[i] - max) / (v1 ? p.temperature : 1));
    total += q[i];
  }
  for (double& x : q) x /= total;
  const double top = 1 / total;

  std::vector<std::size_t> left(n);
  std::iota(left.begin(), left.end(), 0);
  const auto sort_by = [&](const std::vector<double>& key) {
    std::stable_sort(left.begin(), left.end(),
                     [&](std::size_t a, std::size_t b) { return key[a] > key[b]; });
  };
  const auto drop_if = [&](auto drop) { std::erase_if(left, drop); };
  sort_by(q);
  if (p.top_k > 0 && static_cast<std::size_t>(p.top_k) < n) {
    std::size_t k = static_cast<std::size_t>(p.top_k);
    if (p.variant == SamplerVariant::pip) {
      std::sort(left.begin(), left.end(), std::greater<>());
      std::stable_sort(left.begin(), left.end(),
                       [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    }
    while (v1 && k < n && logits[left[k]] == logits[left[k - 1]]) ++k;
    left.resize(k);
    std::sort(left.begin(), left.end());
    sort_by(q);
  }
  if (p.top_a > 0) {
    const double limit = std::min(p.top_a * std::pow(top, p.top_a_power), top);
    drop_if([&](std::size_t i) { return q[i] < limit; });
  }
  drop_if([&](std::size_t i) { return q[i] < p.min_p * top; });
  if (p.typical < 1) {
    double mass = 0;
    for (const std::size_t i : left) mass += q[i];
    double entropy = 0;
    for (const std::size_t i : left) entropy -= q[i] / mass * std::log(q[i] / mass);
    std::vector<double> nearness(n);
    for (const std::size_t i : left) nearness[i] = -std::abs(-std::log(q[i] / mass) - entropy);
    sort_by(nearness);
    double sum = 0;
    std::size_t kept = 0;
    while (kept < left.size() && sum < p.typical * mass) sum += q[left[kept++]];
    while (kept > 0 && kept < left.size() && nearness[left[kept]] == nearness[left[kept - 1]])
      ++kept;
    left.resize(kept);
    std::sort(left.begin(), left.end());
    sort_by(q);
  }
  double cutoff = -1;
  if (p.top_p < 1) {
    const bool strict = v1 || p.variant == SamplerVariant::v2;
    double whole = 1;
    if (v1) {
      whole = 0;
      for (const std::size_t i : left) whole += q[i];
    }
    double sum = 0;
    std::size_t rank = 0;
    for (; rank < left.size(); ++rank) {
      sum += q[left[rank]];
      if (strict ? sum > p.top_p * whole : sum >= p.top_p * whole) break;
    }
    if (rank < left.size()) {
      cutoff = q[left[rank]];
      std::vector<std::size_t> kept;
      for (std::size_t i = 0; i < left.size(); ++i) {
        const double x = q[left[i]];
        if ((v1 ? i <= rank : x >= cutoff) || (p.top_p_x > 0 && x > p.top_p_x * whole)) {
          kept.push_back(left[i]);
        }
      }
      left = kept;
    }
  }
  if (p.variant == SamplerVariant::v7 && p.top_p > 0 && p.top_p < 1 && p.top_p_x == 0 &&
      cutoff >= 0) {
    double sum = 0;
    double at = 0;
    for (const std::size_t i : left) {
      sum += q[i];
      at += q[i] == cutoff ? 1 : 0;
    }
    for (const std::size_t i : left) {
      if (q[i] == cutoff) q[i] += (p.top_p - sum) / at;
    }
  }
  std::vector<double> result(n, 0.0);
  total = 0;
  for (const std::size_t i : left) {
    result[i] = v1 ? q[i] : std::pow(q[i], 1 / p.temperature);
    total += result[i];
  }
  for (double& x : result) x /= total;
  return result;
}

}  // namespace

TEST_CASE("Sampler: probabilities equal the slow definition") {
  std::mt19937 random(11);
  // Sixteenths, so that there are many equal logits, or a continuum; few or many; flat or peaked.
  for (int round = 0; round < 1500; ++round) {
    // Few of many tokens are likely, which is another way through; one in 500 may be too few for
    // top_p, which is a third. Whole chunks are read where they lie.
    const bool peaked = round % 10 == 5;
    const std::size_t n = peaked            ? (round % 4 == 1 ? 5120 : 5000)
                          : round % 10 == 0 ? 1500
                                            : 2 + random() % 60;
    std::normal_distribution<double> normal(0, round % 3 == 0 ? 1 : 4);
    std::vector<float> logits(n);
    for (float& x : logits) {
      x = static_cast<float>(normal(random));
      if (round % 2 == 0) x = std::round(x * 16) / 16;
    }
    const std::size_t every = round % 7 < 3 ? 40 : 500;
    for (std::size_t i = 0; peaked && i < n; ++i)
      if (i % every != 7) logits[i] -= 8;
    const auto one_of = [&](std::initializer_list<double> values) {
      return values.begin()[random() % values.size()];
    };
    SamplingParams p;
    p.variant = static_cast<SamplerVariant>(random() % 4);
    p.temperature = one_of({0, 0.3, 0.7, 1, 1, 2});
    p.top_p = one_of({0, 0.3003, 0.8502, 0.9501, 1, 1});
    p.top_k = static_cast<int>(one_of({0, 0, 1, 5, 40}));
    p.min_p = one_of({0, 0, 0.0203, 0.3001});
    p.typical = one_of({1, 1, 1, 0.5003, 0.9001});
    p.top_a = one_of({0, 0, 0.02003, 0.2001});
    p.top_a_power = one_of({2, 2, 1, 2.5});
    p.top_p_x = one_of({0, 0, 0.01001, 0.0503});
    Sampler sampler(p);
    std::vector<float> got(n);
    sampler.probabilities(logits, got);
    const auto want = slow_probabilities(std::vector<double>(logits.begin(), logits.end()), p);
    double worst = 0;
    for (std::size_t i = 0; i < n; ++i) {
      // v7's share of the cutoff is what is missing to top_p: a difference, so its error of 1e-7
      // is one of the whole.
      const double least = p.variant == SamplerVariant::v7 ? 0.01 : 1e-6;
      worst = std::max(worst, std::abs(got[i] - want[i]) / (least + want[i]));
    }
    CAPTURE(round);
    CAPTURE(n);
    CAPTURE(static_cast<int>(p.variant));
    CAPTURE(p.temperature);
    CAPTURE(p.top_p);
    CAPTURE(p.top_k);
    CAPTURE(p.min_p);
    CAPTURE(p.typical);
    CAPTURE(p.top_a);
    CAPTURE(p.top_a_power);
    CAPTURE(p.top_p_x);
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("Sampler: draws follow the probabilities, one token per number of the seed") {
  const std::vector<float> logits{1.0f, 3.0f, -2.0f, 2.0f, 0.0f, 1.5f};
  Sampler sampler({.temperature = 1.3, .top_p = 0.95, .seed = 5});
  std::vector<float> p(logits.size());
  sampler.probabilities(logits, p);
  constexpr int kDraws = 200000;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<std::size_t>(sampler.sample(logits))];
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double sigma = std::sqrt(p[i] * (1 - p[i]) / kDraws);
    CHECK(std::abs(counts[i] / double{kDraws} - p[i]) <= 4.5 * sigma);
  }

  // The position is the whole memory of the random stream.
  CHECK(sampler.position() == kDraws);
  sampler.set_position(17);
  Sampler other = sampler;
  std::vector<Token> first, second;
  for (int i = 0; i < 50; ++i) first.push_back(sampler.sample(logits));
  for (int i = 0; i < 50; ++i) second.push_back(other.sample(logits));
  CHECK(first == second);
  double u = wkv::detail::uniform(5, 17);
  Token token = 0;
  while ((u -= p[static_cast<std::size_t>(token)]) >= 0) ++token;
  CHECK(first[0] == token);
}

TEST_CASE("Sampler: the same tokens on every machine") {
  // Written down once; any difference in rounding or in the random stream shows here.
  std::vector<float> logits(65536);
  std::uint32_t x = 1;
  for (float& logit : logits) {
    x = x * 1664525u + 1013904223u;
    logit = static_cast<float>(x >> 8) * 0x1p-24f * 14.0f;
  }
  const auto draw = [&](SamplingParams p) {
    p.seed = 42;
    Sampler sampler(p);
    std::vector<Token> ids;
    for (int i = 0; i < 5; ++i) ids.push_back(sampler.sample(logits));
    return ids;
  };
  CHECK(draw({}) == std::vector<Token>{30401, 21445, 42936, 43630, 55021});
  CHECK(draw({.temperature = 0.7, .top_p = 0.85}) ==
        std::vector<Token>{30279, 21467, 42795, 43536, 54937});
  CHECK(draw({.temperature = 0.9, .top_k = 50, .variant = SamplerVariant::v1}) ==
        std::vector<Token>{24389, 11482, 37387, 37724, 49411});
  CHECK(draw({.temperature = 1.2, .typical = 0.9}) ==
        std::vector<Token>{30392, 21481, 42861, 43583, 55005});
}

TEST_CASE("Vector passes: the same bits whatever the width") {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2")) return;
  const auto& narrow = wkv::detail::kGenericPasses;
  std::vector<const wkv::detail::VectorPasses*> all_wide{&wkv::detail::kAvx2Passes};
  if (__builtin_cpu_supports("avx512f")) all_wide.push_back(&wkv::detail::kAvx512Passes);
  constexpr std::size_t kSize = 8 * wkv::detail::kChunk;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(-20, 20);
  std::vector<float> x(kSize);
  for (float& value : x) value = std::min(normal(random), 0.0f);
  x[3] = -std::numeric_limits<float>::infinity();
  struct Result {
    std::vector<float> maxima = std::vector<float>(8), e, nearness, kept;
    std::vector<double> sums = std::vector<double>(8), moments = sums, kept_sums = sums,
                        sums_alone = sums;
    double above[4];
    std::vector<std::uint32_t> ids, first_ids;
  };
  const auto run = [&](const wkv::detail::VectorPasses& passes) {
    Result r;
    r.e = r.nearness = x;
    CHECK(passes.chunk_maxima(x.data(), kSize, r.maxima.data()));
    passes.exp(x.data(), kSize, 0.5f, 1.3f, r.e.data(), r.sums.data());
    passes.exp_sums(x.data(), kSize, 0.5f, 1.3f, r.sums_alone.data());
    passes.moment(r.e.data(), x.data(), kSize, 0.5f, r.moments.data());
    passes.nearness(x.data(), kSize, -1.3f, 0.7f, r.nearness.data());
    r.kept = r.e;
    passes.keep_above(r.kept.data(), x.data(), kSize, -9.0f, r.kept_sums.data());
    passes.mass_above(x.data(), r.e.data(), kSize, {-1.0f, -9.0f, -20.0f, -90.0f}, r.above);
    r.ids.resize(kSize);
    r.ids.resize(passes.collect(x.data(), kSize, -9.0f, -8.5f, kSize, r.ids.data()));
    constexpr std::size_t kMost = 20;
    r.first_ids.resize(kMost + 16);
    r.first_ids.resize(passes.collect(x.data(), kSize, -9.0f, -1.0f, kMost, r.first_ids.data()));
    CHECK(r.first_ids.size() > kMost);
    return r;
  };
  const Result r = run(narrow);
  CHECK(r.sums_alone == r.sums);
  for (const auto* wide : all_wide) {
    const Result w = run(*wide);
    CHECK(r.maxima == w.maxima);
    CHECK(r.e == w.e);
    CHECK(r.nearness == w.nearness);
    CHECK(r.ids == w.ids);
    CHECK(r.first_ids == w.first_ids);
    CHECK(std::equal(r.above, r.above + 4, w.above));
    CHECK(r.kept == w.kept);
    CHECK(r.sums == w.sums);
    CHECK(r.sums == w.sums_alone);
    CHECK(r.moments == w.moments);
    CHECK(r.kept_sums == w.kept_sums);
  }
  for (std::size_t i = 0; i < kSize; ++i) {
    const double a = static_cast<double>((x[i] - 0.5f) * 1.3f);
    CHECK(std::abs(r.e[i] - std::exp(a)) <= (a > -87 ? 2e-7 * std::exp(a) : 2e-38));
    CHECK(r.kept[i] == (x[i] >= -9 ? r.e[i] : 0));
    const auto listed = std::find(r.ids.begin(), r.ids.end(), i);
    CHECK((listed != r.ids.end()) == (x[i] >= -9 && x[i] < -8.5f));
  }
  CHECK(r.above[1] == doctest::Approx(std::accumulate(r.kept.begin(), r.kept.end(), 0.0)));
  CHECK(std::is_sorted(r.ids.begin(), r.ids.end()));
  std::vector<std::uint32_t> wanted;
  for (std::uint32_t i = 0; i < kSize && wanted.size() < r.first_ids.size(); ++i)
    if (x[i] >= -9 && x[i] < -1) wanted.push_back(i);
  CHECK(r.first_ids == wanted);
  x[2000] = std::numeric_limits<float>::quiet_NaN();
  all_wide.push_back(&narrow);
  for (const auto* passes : all_wide) {
    std::vector<float> maxima(8);
    CHECK_FALSE(passes->chunk_maxima(x.data(), kSize, maxima.data()));
  }
#endif
}

TEST_CASE("Sampler: greedy takes the lowest id of the largest") {
  std::vector<float> logits(1000, 1.0f);
  logits[700] = logits[300] = 2.0f;
  Sampler sampler({.temperature = 0, .top_p = 0.5, .top_k = 1});
  CHECK(sampler.sample(logits) == 300);
}

TEST_CASE("Sampler: penalties, bias and bans") {
  std::vector<float> logits(8, 0.0f), adjusted(8);
  SamplingParams p;
  p.presence_penalty = 0.5;
  p.frequency_penalty = 0.25;
  p.penalty_decay = 0.5;
  p.uncounted = {6, 3};
  p.bias = {{1, 2.0}, {2, -kInf}};
  p.ban = {7};
  Sampler sampler(p);
  sampler.accept(3);
  sampler.accept(4);
  sampler.accept(4);
  sampler.accept(5, 2.0);
  sampler.adjust(logits, adjusted);
  const float inf = std::numeric_limits<float>::infinity();
  // Token 4: ((1 * 0.5) + 1) * 0.5 = 0.75.
  CHECK(adjusted == std::vector<float>{0, 2, -inf, -0.5f, -0.5f - 0.1875f, -1.0f, 0, -inf});
  Sampler copy = sampler;
  sampler.reset();
  sampler.adjust(logits, adjusted);
  CHECK(adjusted[4] == 0);
  copy.adjust(logits, adjusted);
  CHECK(adjusted[4] == -0.6875f);
}

TEST_CASE("Sampler: what cannot be sampled is an error") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  Sampler sampler;
  CHECK_THROWS_AS(sampler.sample({}), wkv::Error);
  for (const float bad : {nan, inf}) {
    for (const std::size_t at : {0, 5, 700, 999}) {
      std::vector<float> logits(1000, 0.0f);
      logits[at] = bad;
      CHECK_THROWS_AS(sampler.sample(logits), wkv::Error);
    }
  }
  CHECK_THROWS_AS(sampler.sample(std::vector<float>(3, -inf)), wkv::Error);
  const std::vector<float> three(3, 0.0f);
  CHECK_THROWS_AS(Sampler({.ban = {3}}).sample(three), wkv::Error);
  CHECK_THROWS_AS(Sampler({.bias = {{-1, 1.0}}}).sample(three), wkv::Error);
  CHECK_THROWS_AS(Sampler({.ban = {0, 1, 2}}).sample(three), wkv::Error);
  std::vector<float> two(2);
  CHECK_THROWS_AS(sampler.probabilities(three, two), wkv::Error);
  for (const SamplingParams& bad :
       {SamplingParams{.temperature = -1}, SamplingParams{.temperature = std::nan("")},
        SamplingParams{.top_p = -0.1}, SamplingParams{.top_k = -1}, SamplingParams{.min_p = 1.5},
        SamplingParams{.top_a = kInf}, SamplingParams{.penalty_decay = 2},
        SamplingParams{.presence_penalty = kInf}, SamplingParams{.bias = {{0, kInf}}}}) {
    CHECK_THROWS_AS(Sampler{bad}, wkv::Error);
  }
}
