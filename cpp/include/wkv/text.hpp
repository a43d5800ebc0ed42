// Text in and out: the World tokenizer and the sampler. They need no model.
//
//   auto tokenizer = wkv::WorldTokenizer::builtin();
//   wkv::Sampler sampler({.temperature = 1.0, .top_p = 0.85, .seed = 1});
//   std::vector<wkv::Token> ids = tokenizer.encode("Hello");
//   model.forward(ids, state, logits);
//   wkv::Token next = sampler.sample(logits);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wkv/export.h"
#include "wkv/types.h"

namespace wkv {

namespace detail {
class Trie;
struct SamplerImpl;
}  // namespace detail

/// The tokenizer of the World models: at each position the longest token that matches. It works on
/// bytes, so any input is fine, invalid UTF-8 included, and decode(encode(x)) == x. Id 0, the end
/// of text, stands for no bytes: append it by hand between documents. A value that shares an
/// immutable table: copies are cheap, every method is thread-safe.
class WKV_API WorldTokenizer {
 public:
  /// The vocabulary compiled into the library. Throws Error(unsupported) in a build without it.
  static WorldTokenizer builtin();
  static bool has_builtin() noexcept;
  /// A vocabulary in the World's format: lines `id literal length`, the literal being a Python str
  /// or bytes literal (read, never evaluated). LF or CRLF. Throws Error: io, bad_model (with the
  /// number of the line).
  static WorldTokenizer from_file(const std::filesystem::path& path);

  /// The ids of a text. Texts over a megabyte are shared out to `threads` threads; 0: as many as
  /// the process has cores. Throws Error(invalid_argument) if a vocabulary of from_file() has no
  /// token for a byte; the World's has one for each.
  std::vector<Token> encode(std::string_view text, int threads = 1) const;
  /// The ids of each text, in order. threads 0: as many as the process has cores.
  std::vector<std::vector<Token>> encode_batch(std::span<const std::string_view> texts,
                                               int threads = 0) const;
  /// The bytes of the tokens. Ids without bytes (0, those the vocabulary leaves unused, negative
  /// ones) add none, so every sequence decodes.
  std::string decode(std::span<const Token> ids) const;
  /// The bytes of one token; empty for ids without. Lives as long as any copy of the tokenizer.
  std::string_view token_bytes(Token id) const noexcept;
  /// Ids that a model has: 65536 for the World (ids up to 65529 have bytes), the last id plus one
  /// for other vocabularies.
  int size() const noexcept;

 private:
  explicit WorldTokenizer(std::shared_ptr<const detail::Trie> trie);
  std::shared_ptr<const detail::Trie> trie_;
};

/// Whose rules settle the order of the steps and what happens at the borders. docs/sampling.md
/// has them side by side.
enum class SamplerVariant : std::uint8_t {
  /// The `rwkv` package: cutoffs on the probabilities at temperature 1, then p^(1/T). Top-p keeps
  /// tokens by value: the one that reaches top_p and all that equal it. Of tokens that equal the
  /// k-th, top-k keeps the higher ids, as the package's sort does (for few; beyond, it is random).
  pip,
  /// RWKV-v1 (and most other software): temperature first, then top-a and top-k, then top-p by rank
  /// on what is left, renormalised. Top-k keeps all tokens that equal the k-th.
  v1,
  /// RWKV-v2 to v4: as pip, but the kept mass must exceed top_p rather than reach it.
  v2,
  /// The v7 demos: as pip, but the tokens equal to the cutoff share what is missing to top_p.
  v7,
};

/// What to do with a vector of logits. Steps, in this order:
///
///  1. `bias` is added, `ban` sets -infinity, penalties are subtracted from each token seen:
///     presence_penalty + count * frequency_penalty.
///  2. p = softmax(logits); v1: softmax(logits / temperature).
///  3. Cutoffs, each on what the ones before left (p is not renormalised between them, except
///     before top-p in v1): top_k, top_a, min_p, typical, top_p with top_p_x. All but typical
///     leave the most probable token. Of equal tokens the lower ids go first.
///  4. p^(1/temperature) (not v1), renormalise, draw.
///
/// Temperature 0 is greedy: after step 1 the token with the largest logit, the lowest id among
/// equals; no cutoff matters. Every default is "off".
struct SamplingParams {
  double temperature = 1.0;  ///< >= 0
  double top_p = 1.0;        ///< >= 1: off; 0: the most probable token and those equal to it
  int top_k = 0;             ///< 0: off
  double min_p = 0.0;        ///< drop p < min_p * max(p)
  double typical = 1.0;  ///< locally typical sampling: the mass of what is left to keep; >= 1: off
  double top_a = 0.0;    ///< drop p < top_a * max(p)^top_a_power; 0: off, 0.2 as proposed
  double top_a_power = 2.0;
  double top_p_x = 0.0;  ///< top-p also keeps every p > top_p_x; 0: off, 0.01 as proposed
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  double penalty_decay = 0.996;       ///< counts are multiplied by it at every token
  std::vector<Token> uncounted = {};  ///< seen, but never counted: the package's rule for digits
  std::vector<std::pair<Token, double>> bias = {};
  std::vector<Token> ban = {};
  std::uint64_t seed = 0;
  SamplerVariant variant = SamplerVariant::pip;
};

/// Draws tokens for one stream: parameters, the tokens seen so far, a random stream.
///
/// The n-th draw of a seed is the same number everywhere (Philox4x32-10, counter n), and the
/// arithmetic uses only operations that IEEE 754 rounds in one way: equal logits give equal tokens
/// on every machine. A value: copies go separate ways from equal states. Not thread-safe.
class WKV_API Sampler {
 public:
  /// Throws Error(invalid_argument) naming the parameter that is out of range.
  explicit Sampler(SamplingParams params = {});
  Sampler(const Sampler&);
  Sampler& operator=(const Sampler&);
  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;
  ~Sampler();

  /// Draws a token; `logits` [V] stay as they are. Does not count the token: see accept().
  /// Throws Error(invalid_argument): no logits, NaN or +infinity among them, every token ruled
  /// out, a bias or a ban outside the vocabulary.
  Token sample(std::span<const float> logits);
  /// The probabilities [V] that sample() would draw with. Draws nothing.
  void probabilities(std::span<const float> logits, std::span<float> out);
  /// The logits [V] after step 1.
  void adjust(std::span<const float> logits, std::span<float> out);

  /// Tells the penalties that `token` is part of the text: counts decay, then the token's count
  /// grows by `weight` (by 0 if it is one of `uncounted`).
  void accept(Token token, double weight = 1.0);
  /// Forgets the tokens seen and starts the random stream anew.
  void reset() noexcept;

  const SamplingParams& params() const noexcept;
  /// Draws so far: the position in the random stream, which may be set to continue one.
  std::uint64_t position() const noexcept;
  void set_position(std::uint64_t draws) noexcept;

 private:
  std::unique_ptr<detail::SamplerImpl> impl_;
};

}  // namespace wkv
