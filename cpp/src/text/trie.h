// Longest-match lookup in a fixed set of byte strings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "wkv/types.h"

namespace wkv::detail {

/// A vocabulary and the double-array trie over it. Immutable after construction.
///
/// The children of a node lie at units[base + byte]. No two nodes have the same base, so a unit
/// belongs to the node that asks exactly if its label is the byte that was asked for: one 8-byte
/// load and one compare per byte of text. The World's 127k nodes take about 1 MB, of which English
/// text touches what fits L1 and L2.
class Trie {
 public:
  struct Entry {
    Token id;
    std::string bytes;
  };

  /// Takes tokens with distinct ids and distinct, non-empty bytes; otherwise throws
  /// Error(bad_model), beginning with `place`.
  Trie(std::vector<Entry> entries, std::string_view place);

  /// Appends the ids of `text` to `out`. Throws Error(invalid_argument) at a byte that begins no
  /// token.
  void encode(std::string_view text, std::vector<Token>& out) const;

  /// True if no token has `a` followed by `b` in it: between the two is a border whatever lies
  /// around them, because greedy matching from a border on does not look back.
  bool separates(unsigned char a, unsigned char b) const noexcept {
    const unsigned index = a * 256u + b;
    return (pairs_[index / 64] >> (index % 64) & 1) == 0;
  }

  /// From the start of any token's bytes, so many may be read.
  static constexpr std::size_t kReadable = 16;

  std::string_view bytes(Token id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    if (id < 0 || i + 1 >= offsets_.size()) return {bytes_.data(), 0};
    return {bytes_.data() + offsets_[i], offsets_[i + 1] - offsets_[i]};
  }

  /// The largest id plus one.
  int end_id() const noexcept { return static_cast<int>(offsets_.size()) - 1; }

 private:
  struct Unit {
    std::uint32_t link;  ///< base of the children << 9 | label; kFree
    Token id;            ///< of the token that ends here, or -1
  };
  static constexpr std::uint32_t kFree = 0xffffffff;  // its label, 511, equals no byte
  class Builder;

  std::vector<Unit> units_;
  std::vector<std::uint64_t> pairs_;  ///< bit a * 256 + b: some token has a followed by b
  std::string bytes_;                 ///< all tokens in the order of their ids, and kReadable more
  std::vector<std::uint32_t> offsets_;
  std::uint32_t root_ = 0;
};

}  // namespace wkv::detail
