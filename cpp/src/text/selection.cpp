#include "text/selection.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "text/crossing.h"
#include "text/scalar_math.h"
#include "text/vector_passes.h"

namespace wkv::detail {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::size_t whole_chunks(std::size_t n) noexcept { return (n + kChunk - 1) / kChunk * kChunk; }

}  // namespace

Token Distribution::pick(double target) const noexcept {
  std::size_t chunk = 0;
  while (chunk + 1 < sums.size() && target >= sums[chunk]) target -= sums[chunk++];
  for (std::size_t i = chunk * kChunk; i < weights.size(); ++i) {
    target -= weights[i];
    if (target < 0) return id(i);
  }
  // The sums' rounding left a grain beyond the last token.
  std::size_t i = weights.size() - 1;
  while (i > 0 && weights[i] <= 0) --i;
  return id(i);
}

const Distribution& Selection::run(const float* x, std::size_t vocab, const SamplingParams& p) {
  x_ = x;
  vocab_ = vocab;
  has_total_ = has_exp_ = false;
  listed_ = false;
  range_.reset();
  trim_.reset();
  find_max();
  if (p.temperature == 0) {
    take_greedy();
    return result_;
  }
  const bool v1 = p.variant == SamplerVariant::v1;
  // Beyond 1e30 only the largest logit counts, and infinity times 0 would be NaN.
  scale_ = v1 ? static_cast<float>(std::min(1 / p.temperature, 1e30)) : 1.0f;
  bound_ = -kInf;
  ties_ = {};

  const bool has_top_k = p.top_k > 0 && static_cast<std::size_t>(p.top_k) < vocab;
  if (has_top_k) cut_top_k(static_cast<std::size_t>(p.top_k), p.variant);
  if (p.top_a > 0) {
    // p_max = 1 / total, and p < limit means e < limit * total.
    compute_total();
    raise(p.top_a * exp_double(-p.top_a_power * log_double(total_)) * total_);
  }
  if (p.min_p > 0) raise(p.min_p);
  // Top-p measures by the sum of all tokens, in v1 of those left.
  if (p.top_p < 1 && !v1) compute_total();
  // Where many stay and the steps to come are the same for a vector as for a list, a bound on the
  // vector does: listing half of 65536 takes 0.3 ms, and masking them 0.01.
  const bool needs_list = v1 || p.typical < 1 || p.variant == SamplerVariant::v7 || has_top_k;
  if (bound_ > -kInf && (needs_list || few_above(bound_))) list_above_bound();
  if (p.typical < 1) {
    compute_exp();
    cut_typical(p.typical, p.top_p >= 1);
  }
  if (p.top_p < 1) cut_top_p(p);
  weigh(p.temperature);
  return result_;
}

void Selection::find_max() {
  const std::size_t size = whole_chunks(vocab_);
  maxima_.resize(size / kChunk);
  const bool ordered = passes_.chunk_maxima(x_, size, maxima_.data());
  WKV_CHECK(ordered, invalid_argument, "[sampler] NaN among the ", vocab_, " logits");
  max_ = *std::max_element(maxima_.begin(), maxima_.end());
  WKV_CHECK(max_ < kInf, invalid_argument, "[sampler] infinity among the ", vocab_, " logits");
  WKV_CHECK(max_ > -kInf, invalid_argument, "[sampler] none of the ", vocab_,
            " tokens may be drawn: each has logit -infinity, or is banned");
}

void Selection::take_greedy() {
  std::size_t chunk = 0;
  while (maxima_[chunk] != max_) ++chunk;
  std::size_t i = chunk * kChunk;
  while (x_[i] != max_) ++i;
  result_.ids.assign(1, static_cast<std::uint32_t>(i));
  result_.weights.assign(kChunk, 0.0f);
  result_.weights[0] = 1;
  result_.sums.assign(1, 1.0);
  result_.total = 1;
}

// What most text draws from: above e^-8 of the largest are few of 65536 tokens.
float Selection::likely() const noexcept { return static_cast<float>(max_ - 8 / scale_); }

// Whether a sixteenth of the tokens or more are likely, by a sixteenth of the chunks.
bool Selection::many_likely() const {
  std::array<std::uint32_t, kChunk> ids;
  std::size_t seen = 0, hits = 0;
  for (std::size_t chunk = 0; chunk < maxima_.size(); chunk += 16) {
    seen += kChunk;
    if (maxima_[chunk] < likely()) continue;
    hits += passes_.collect(x_ + chunk * kChunk, kChunk, likely(), kInf, kChunk, ids.data());
  }
  return hits * 16 > seen;
}

// The sum of e of all tokens, and e itself if cut_top_p() will want that of all. What is not stored
// need not come from memory, where reading weights has left it.
void Selection::compute_total() {
  if (has_total_) return;
  if (many_likely()) return compute_exp();
  has_total_ = true;
  const std::size_t size = whole_chunks(vocab_);
  sums_.resize(size / kChunk);
  passes_.exp_sums(x_, size, max_, scale_, sums_.data());
  total_ = std::accumulate(sums_.begin(), sums_.end(), 0.0);
}

// Computes e of all tokens, or of those left if a list has them already.
void Selection::compute_exp() {
  if (has_exp_) return;
  has_exp_ = true;
  const std::size_t size = whole_chunks(vocab_);
  e_.resize(size);
  if (listed_) {
    const std::size_t few = whole_chunks(ids_.size());
    result_.weights.assign(few, -kInf);
    result_.sums.resize(few / kChunk);
    for (std::size_t i = 0; i < ids_.size(); ++i) result_.weights[i] = x_[ids_[i]];
    passes_.exp(result_.weights.data(), few, max_, scale_, result_.weights.data(),
                result_.sums.data());
    for (std::size_t i = 0; i < ids_.size(); ++i) e_[ids_[i]] = result_.weights[i];
    return;
  }
  has_total_ = true;
  sums_.resize(size / kChunk);
  passes_.exp(x_, size, max_, scale_, e_.data(), sums_.data());
  total_ = std::accumulate(sums_.begin(), sums_.end(), 0.0);
}

// Raises the bound to the logits whose e is `share`; the largest logit always stays.
void Selection::raise(double share) {
  if (share < 1e-300) return;
  const double bound = share < 1 ? max_ + log_double(share) / scale_ : max_;
  if (static_cast<float>(bound) > bound_) {
    bound_ = static_cast<float>(bound);
    ties_ = {};
  }
}

void Selection::cut_top_k(std::size_t k, SamplerVariant variant) {
  const auto one = [](std::size_t) { return 1.0; };
  const auto bound = static_cast<double>(k);
  Crossing found;
  if (k <= maxima_.size()) {
    // The k-th largest of the chunks' maxima has k logits at or above it: the k largest are there.
    std::vector<float> sorted = maxima_;
    const auto nth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), nth, sorted.end(), std::greater<>());
    bound_ = *nth;
    if (bound_ > -kInf) {
      list_above_bound();
      const auto key = [this](std::size_t i) { return descending_key(x_[ids_[i]]); };
      found = find_crossing(ids_.size(), key, one, bound, false, scratch_);
      listed_ = false;
    }
  } else {
    const auto key = [this](std::size_t i) { return descending_key(x_[i]); };
    found = find_crossing(vocab_, key, one, bound, false, scratch_);
  }
  bound_ = found.found ? from_descending_key(found.key) : -kInf;
  if (!found.found || variant == SamplerVariant::v1) return;  // v1 keeps all that equal the k-th
  ties_.keep = k - static_cast<std::size_t>(found.before);
  if (variant == SamplerVariant::pip) ties_.skip = static_cast<std::size_t>(found.at) - ties_.keep;
}

void Selection::list_above_bound() {
  ids_.clear();
  Ties ties = ties_;
  for (std::size_t chunk = 0; chunk < maxima_.size(); ++chunk) {
    if (maxima_[chunk] < bound_) continue;
    const std::size_t end = std::min((chunk + 1) * kChunk, vocab_);
    for (std::size_t i = chunk * kChunk; i < end; ++i) {
      if (x_[i] < bound_) continue;
      if (x_[i] == bound_ && !ties.take()) continue;
      ids_.push_back(static_cast<std::uint32_t>(i));
    }
  }
  listed_ = true;
}

// Lists the likely ones of the survivors, unless they are more than a sixteenth of all.
bool Selection::list_likely() {
  const std::size_t size = whole_chunks(vocab_), most = vocab_ / 16;
  ids_.resize(std::min(most + 16, size));
  const std::size_t count =
      passes_.collect(x_, size, std::max(bound_, likely()), kInf, most, ids_.data());
  listed_ = count <= most;
  if (listed_) ids_.resize(count);
  return listed_;
}

double Selection::mass_left() const noexcept {
  if (!listed_) return total_;
  double sum = 0;
  for (const std::uint32_t i : ids_) sum += e_[i];
  return sum;
}

// Where the mass e of the survivors crosses the bound, the largest of keys[id] in [0, 1] first.
Crossing Selection::cross(const float* keys, double bound, bool strict) {
  const float* const e = e_.data();
  if (!listed_) {
    return find_crossing_dense(passes_, keys, e, whole_chunks(vocab_), bound, strict, narrowed_,
                               scratch_);
  }
  const std::uint32_t* const ids = ids_.data();
  return find_crossing(
      ids_.size(), [=](std::size_t i) { return descending_key(keys[ids[i]]); },
      [=](std::size_t i) { return double{e[ids[i]]}; }, bound, strict, scratch_);
}

// Whether at most a quarter of the chunks have a logit that is not below the bound.
bool Selection::few_above(float bound) const noexcept {
  const auto hits = std::count_if(maxima_.begin(), maxima_.end(),
                                  [bound](float maximum) { return maximum >= bound; });
  return static_cast<std::size_t>(hits) * 4 <= maxima_.size();
}

// Leaves the survivors for which keep(id) is true; asked in ascending order of ids.
template <class Keep>
void Selection::keep_if(const Keep& keep) {
  if (listed_) {
    std::erase_if(ids_, [&](std::uint32_t i) { return !keep(i); });
    return;
  }
  ids_.resize(vocab_);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < vocab_; ++i) {
    ids_[kept] = static_cast<std::uint32_t>(i);
    kept += keep(i) ? 1 : 0;
  }
  ids_.resize(kept);
  listed_ = true;
}

// Keeps the tokens whose information -log p is nearest to its mean, the entropy (Meister et al.,
// "Locally typical sampling", 2022), until they have `mass` of what is left; by value.
void Selection::cut_typical(double mass, bool last) {
  const std::size_t size = whole_chunks(vocab_);
  const double left = mass_left();
  double moment = 0;  // the sum of e (x - max)
  if (listed_) {
    for (const std::uint32_t i : ids_) {
      if (e_[i] > 0) moment += double{e_[i]} * (double{x_[i]} - max_);
    }
  } else {
    result_.sums.resize(size / kChunk);
    passes_.moment(e_.data(), x_, size, max_, result_.sums.data());
    for (const double sum : result_.sums) moment += sum;
  }
  // Information is log(left) - (x - max) scale, so the logarithm leaves the difference.
  const double shift = (moment / left + max_) * scale_;
  nearness_.resize(size);
  passes_.nearness(x_, size, -scale_, static_cast<float>(shift), nearness_.data());
  const Crossing found = cross(nearness_.data(), mass * left, false);
  if (!found.found) return;
  const Range range{nearness_.data(), from_descending_key(found.key)};
  if (last && !listed_) {
    range_ = range;
  } else {
    keep_if([&](std::size_t i) { return range.keys[i] >= range.low; });
  }
}

void Selection::cut_top_p(const SamplingParams& p) {
  const bool v1 = p.variant == SamplerVariant::v1;
  const bool strict = v1 || p.variant == SamplerVariant::v2;
  if (listed_)
    compute_exp();
  else
    compute_total();
  const double whole = v1 ? mass_left() : total_;
  const double bound = p.top_p * whole;
  // Keep e > x_limit; as a float, e >= x_least.
  const double x_limit = p.top_p_x > 0 ? p.top_p_x * whole : double{kInf};
  auto x_least = static_cast<float>(x_limit);
  if (x_least <= x_limit) x_least = std::nextafter(x_least, kInf);

  Crossing found;
  if (!listed_ && !has_exp_ && x_limit > 4e-4 && list_likely()) {
    compute_exp();
    found = cross(e_.data(), bound, strict);
    listed_ = has_exp_ = found.found;
  }
  if (!found.found) {
    compute_exp();
    found = cross(e_.data(), bound, strict);
  }
  if (!found.found) return;
  const float* const e = e_.data();

  const float cutoff = from_descending_key(found.key);
  const bool trims = p.variant == SamplerVariant::v7 && p.top_p > 0 && p.top_p_x == 0;
  if (!listed_ && !v1 && !trims) {
    range_ = Range{e, std::min(cutoff, x_least)};
    return;
  }
  Ties ties;
  if (v1) {
    // Rank among equals: as many as it takes to exceed the bound.
    ties.keep = static_cast<std::size_t>(std::max((bound - found.before) / cutoff, 0.0)) + 1;
  }
  keep_if([&](std::size_t i) {
    return e[i] > cutoff || (e[i] == cutoff && ties.take()) || e[i] >= x_least;
  });
  if (trims) {
    const double equal = std::round(found.at / cutoff);
    trim_ = Trim{cutoff, (bound - found.before) / equal};
  }
}

// Step 4, from the survivors' logits: (e^x)^(1/T) = e^(x/T).
void Selection::weigh(double temperature) {
  if (listed_) return weigh_list(temperature);
  const auto scale = static_cast<float>(std::min(1 / temperature, 1e30));
  const std::size_t size = whole_chunks(vocab_);
  result_.ids.clear();
  if (has_exp_ && scale == scale_) {
    std::swap(result_.weights, e_);  // the last that needs them, but for keys of range_
    result_.sums = sums_;
  } else {
    result_.weights.resize(size);
    result_.sums.resize(size / kChunk);
    passes_.exp(x_, size, max_, scale, result_.weights.data(), result_.sums.data());
  }
  if (bound_ > -kInf) {
    passes_.keep_above(result_.weights.data(), x_, size, bound_, result_.sums.data());
  }
  if (range_) {
    passes_.keep_above(result_.weights.data(), range_->keys, size, range_->low,
                       result_.sums.data());
  }
  result_.total = 0;
  for (const double sum : result_.sums) result_.total += sum;
  if (result_.total < 1e-20) {
    // Typical sampling has cut the maximum, and a low temperature the rest to nothing beside it.
    keep_if([this](std::size_t i) { return range_->keys[i] >= range_->low; });
    weigh_list(temperature);
  }
}

void Selection::weigh_list(double temperature) {
  const auto scale = static_cast<float>(std::min(1 / temperature, 1e30));
  const std::size_t size = whole_chunks(ids_.size());
  result_.ids = ids_;
  result_.weights.assign(size, -kInf);
  result_.sums.resize(size / kChunk);
  float largest = -kInf;
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    result_.weights[i] = x_[ids_[i]];
    largest = std::max(largest, result_.weights[i]);
  }
  passes_.exp(result_.weights.data(), size, largest, scale, result_.weights.data(),
              result_.sums.data());
  if (trim_) {
    const double log_instead = log_double(trim_->instead) - (largest - max_);
    const auto instead = static_cast<float>(exp_double(log_instead / temperature));
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      if (e_[ids_[i]] != trim_->e) continue;
      result_.sums[i / kChunk] += double{instead} - result_.weights[i];
      result_.weights[i] = instead;
    }
  }
  result_.total = 0;
  for (const double sum : result_.sums) result_.total += sum;
}

}  // namespace wkv::detail
