#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "text/philox.h"
#include "text/selection.h"
#include "text/vector_passes.h"
#include "wkv/text.hpp"

namespace wkv {
namespace detail {

struct SamplerImpl {
  explicit SamplerImpl(SamplingParams p) : params(std::move(p)) {}
  // A copy has the memory of the text but none of the scratch.
  SamplerImpl(const SamplerImpl& other)
      : params(other.params), counts(other.counts), draws(other.draws) {}
  SamplerImpl& operator=(const SamplerImpl&) = delete;

  SamplingParams params;                     // `uncounted` sorted
  std::unordered_map<Token, double> counts;  // of every token seen
  std::uint64_t draws = 0;

  std::vector<float> x;
  Selection selection;
};

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void check_params(const SamplingParams& p) {
  const auto check = [](bool ok, const char* name, double value, const char* range) {
    WKV_CHECK(ok, invalid_argument, "[sampler] ", name, " must be ", range, ", got ", value);
  };
  check(p.temperature >= 0 && p.temperature < 1e30, "temperature", p.temperature, "in [0, 1e30)");
  check(p.top_p >= 0, "top_p", p.top_p, "at least 0");
  check(p.top_k >= 0, "top_k", p.top_k, "at least 0");
  check(p.min_p >= 0 && p.min_p <= 1, "min_p", p.min_p, "in [0, 1]");
  check(p.typical >= 0, "typical", p.typical, "at least 0");
  check(p.top_a >= 0 && std::isfinite(p.top_a), "top_a", p.top_a, "at least 0");
  check(p.top_a_power >= 0 && std::isfinite(p.top_a_power), "top_a_power", p.top_a_power,
        "at least 0");
  check(p.top_p_x >= 0, "top_p_x", p.top_p_x, "at least 0");
  check(std::isfinite(p.presence_penalty), "presence_penalty", p.presence_penalty, "finite");
  check(std::isfinite(p.frequency_penalty), "frequency_penalty", p.frequency_penalty, "finite");
  check(p.penalty_decay >= 0 && p.penalty_decay <= 1, "penalty_decay", p.penalty_decay,
        "in [0, 1]");
  for (const auto& [token, value] : p.bias) {
    WKV_CHECK(value < double{kInf}, invalid_argument, "[sampler] the bias of token ", token,
              " must be a number or -infinity, got ", value);
  }
}

/// Writes the logits after step 1 to out[0 .. logits.size()).
void apply_adjustments(const SamplerImpl& s, std::span<const float> logits, float* out) {
  WKV_CHECK(!logits.empty(), invalid_argument, "[sampler] there are no logits");
  std::copy(logits.begin(), logits.end(), out);
  const auto at = [&](Token token, const char* what) -> float& {
    WKV_CHECK(token >= 0 && static_cast<std::size_t>(token) < logits.size(), invalid_argument,
              "[sampler] token ", token, " (", what, ") is outside the ", logits.size(), " logits");
    return out[token];
  };
  const SamplingParams& p = s.params;
  for (const auto& [token, value] : p.bias) at(token, "bias") += static_cast<float>(value);
  for (const Token token : p.ban) at(token, "ban") = -kInf;
  if (p.presence_penalty == 0 && p.frequency_penalty == 0) return;
  for (const auto& [token, count] : s.counts) {
    // One rounding of the penalty and one of the difference, as in the `rwkv` package.
    at(token, "seen") -= static_cast<float>(p.presence_penalty + count * p.frequency_penalty);
  }
}

/// Whether step 1 leaves logits as they are.
bool unadjusted(const SamplerImpl& s) noexcept {
  const SamplingParams& p = s.params;
  return p.bias.empty() && p.ban.empty() &&
         (s.counts.empty() || (p.presence_penalty == 0 && p.frequency_penalty == 0));
}

const Distribution& distribute(SamplerImpl& s, std::span<const float> logits) {
  if (!logits.empty() && logits.size() % kChunk == 0 && unadjusted(s))
    return s.selection.run(logits.data(), logits.size(), s.params);
  const std::size_t size = (logits.size() + kChunk - 1) / kChunk * kChunk;
  s.x.resize(size);
  std::fill(s.x.begin() + static_cast<std::ptrdiff_t>(logits.size()), s.x.end(), -kInf);
  apply_adjustments(s, logits, s.x.data());
  return s.selection.run(s.x.data(), logits.size(), s.params);
}

void check_size(std::span<const float> logits, std::span<float> out) {
  WKV_CHECK(out.size() == logits.size(), invalid_argument, "[sampler] ", logits.size(),
            " logits, but room for ", out.size(), " results");
}

}  // namespace
}  // namespace detail

Sampler::Sampler(SamplingParams params) {
  detail::check_params(params);
  std::sort(params.uncounted.begin(), params.uncounted.end());
  impl_ = std::make_unique<detail::SamplerImpl>(std::move(params));
}
Sampler::Sampler(const Sampler& other)
    : impl_(std::make_unique<detail::SamplerImpl>(*other.impl_)) {}
Sampler& Sampler::operator=(const Sampler& other) {
  if (this != &other) impl_ = std::make_unique<detail::SamplerImpl>(*other.impl_);
  return *this;
}
Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;
Sampler::~Sampler() = default;

Token Sampler::sample(std::span<const float> logits) {
  const detail::Distribution& d = detail::distribute(*impl_, logits);
  return d.pick(detail::uniform(impl_->params.seed, impl_->draws++) * d.total);
}

void Sampler::probabilities(std::span<const float> logits, std::span<float> out) {
  detail::check_size(logits, out);
  const detail::Distribution& d = detail::distribute(*impl_, logits);
  std::fill(out.begin(), out.end(), 0.0f);
  const std::size_t count = d.ids.empty() ? logits.size() : d.ids.size();
  for (std::size_t i = 0; i < count; ++i) {
    out[static_cast<std::size_t>(d.id(i))] = static_cast<float>(d.weights[i] / d.total);
  }
}

void Sampler::adjust(std::span<const float> logits, std::span<float> out) {
  detail::check_size(logits, out);
  detail::apply_adjustments(*impl_, logits, out.data());
}

void Sampler::accept(Token token, double weight) {
  const SamplingParams& p = impl_->params;
  if (p.presence_penalty == 0 && p.frequency_penalty == 0) return;
  for (auto& [seen, count] : impl_->counts) count *= p.penalty_decay;
  if (std::binary_search(p.uncounted.begin(), p.uncounted.end(), token)) weight = 0;
  impl_->counts[token] += weight;
}

void Sampler::reset() noexcept {
  impl_->counts.clear();
  impl_->draws = 0;
}

const SamplingParams& Sampler::params() const noexcept { return impl_->params; }
std::uint64_t Sampler::position() const noexcept { return impl_->draws; }
void Sampler::set_position(std::uint64_t draws) noexcept { impl_->draws = draws; }

}  // namespace wkv
