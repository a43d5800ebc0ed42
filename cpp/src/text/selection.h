// From adjusted logits to the tokens that may be drawn and their weights: steps 2 to 4 of
// SamplingParams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "text/crossing.h"
#include "text/vector_passes.h"
#include "wkv/text.hpp"

namespace wkv::detail {

/// The tokens that may be drawn. `ids` ascend, or are empty when every token is there in its place.
struct Distribution {
  std::vector<std::uint32_t> ids;
  std::vector<float> weights;  ///< in whole chunks (vector_passes.h), padded with zeros
  std::vector<double> sums;    ///< of the weights, per chunk
  double total = 0;

  Token id(std::size_t i) const noexcept { return static_cast<Token>(ids.empty() ? i : ids[i]); }
  /// The token whose share of [0, total) holds `target`, the weights laid end to end.
  Token pick(double target) const noexcept;
};

/// One computation at a time; holds memory between them.
class Selection {
 public:
  /// `x` are `vocab` logits and -infinity up to whole chunks. The result lives until the next call.
  /// Throws Error(invalid_argument) for NaN, +infinity, or nothing above -infinity.
  const Distribution& run(const float* x, std::size_t vocab, const SamplingParams& p);

 private:
  /// Of the tokens that equal a cutoff, in ascending order: which stay. By default all.
  struct Ties {
    std::size_t skip = 0;
    std::size_t keep = std::numeric_limits<std::size_t>::max();
    bool take() noexcept {
      if (skip > 0) {
        --skip;
        return false;
      }
      return keep > 0 && keep-- > 0;
    }
  };

  /// Survivors given by a value of each token rather than by a list.
  struct Range {
    const float* keys;
    float low;
  };
  /// What to put in place of the e of the tokens at the cutoff (variant v7).
  struct Trim {
    float e;
    double instead;
  };

  void find_max();
  void take_greedy();
  void compute_total();
  void compute_exp();
  void raise(double share);
  void cut_top_k(std::size_t k, SamplerVariant variant);
  bool few_above(float bound) const noexcept;
  void list_above_bound();
  float likely() const noexcept;
  bool many_likely() const;
  bool list_likely();
  void cut_typical(double mass, bool last);
  void cut_top_p(const SamplingParams& p);
  double mass_left() const noexcept;
  Crossing cross(const float* keys, double bound, bool strict);
  template <class Keep>
  void keep_if(const Keep& keep);
  void weigh(double temperature);
  void weigh_list(double temperature);

  const VectorPasses& passes_ = vector_passes();
  // Of the call in progress.
  const float* x_ = nullptr;
  std::size_t vocab_ = 0;
  float max_ = 0;
  float scale_ = 1;             ///< of the logits in step 2
  std::vector<float> maxima_;   ///< of x, per chunk
  bool has_total_ = false;      ///< whether sums_ and total_ are computed
  bool has_exp_ = false;        ///< whether e_ is computed, of the survivors at least
  std::vector<float> e_;        ///< exp((x - max) scale): probabilities up to a factor
  std::vector<double> sums_;    ///< of e_, per chunk
  double total_ = 0;            ///< of e_, of all tokens
  float bound_ = 0;             ///< logits below are cut
  Ties ties_;                   ///< which of those that equal it stay
  bool listed_ = false;         ///< whether ids_ holds the survivors; otherwise those above
  std::optional<Range> range_;  ///< the bound are left, after the last step with keys >= low
  std::vector<std::uint32_t> ids_;
  std::vector<float> nearness_;  ///< of the tokens' information to the entropy
  std::optional<Trim> trim_;
  std::vector<std::uint32_t> scratch_, narrowed_;
  Distribution result_;
};

}  // namespace wkv::detail
