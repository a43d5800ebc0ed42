#include "text/trie.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "core/check.h"

namespace wkv::detail {

// Places nodes breadth first. Free units form a list in ascending order; a node goes to the first
// base at which the units of all its children are free and that no other node has.
class Trie::Builder {
 public:
  /// A token. Tokens of up to 8 bytes are in the order of `head`: their first bytes, big-endian.
  struct Leaf {
    std::uint64_t head;
    std::string_view bytes;
    Token id;

    Leaf(Token token, std::string_view s) : head(0), bytes(s), id(token) {
      for (std::size_t i = 0; i < 8; ++i) {
        head = head << 8 | (i < s.size() ? static_cast<unsigned char>(s[i]) : 0u);
      }
    }
    bool operator<(const Leaf& other) const {
      return head != other.head ? head < other.head : bytes < other.bytes;
    }
  };

  Builder(const std::vector<Leaf>& sorted, std::vector<Unit>& units)
      : entries_(sorted), units_(units) {
    grow();
  }

  /// Returns the root's base.
  std::uint32_t build() {
    // Bases below 256 stay unused: 0 marks a leaf, and what a leaf finds at 0 + byte is free.
    const std::uint32_t root = place({0, entries_.size(), 0, 0});
    for (std::size_t next = 0; next < queue_.size(); ++next) {
      const Node node = queue_[next];
      if (const std::uint32_t base = place(node)) units_[node.unit].link |= base << 9;
    }
    units_.resize(top_ + 256, Unit{kFree, -1});
    units_.shrink_to_fit();
    return root;
  }

 private:
  struct Node {
    std::size_t begin, end;  ///< the entries with this prefix
    std::size_t depth;       ///< its length
    std::uint32_t unit;
  };
  struct Child {
    unsigned char label;
    std::size_t begin, end;
  };
  static constexpr std::uint32_t kMaxBase = 1u << 23;  // 23 bits of link
  static constexpr int kPatience = 64;  // tries before a search starts further up next time

  // Takes the next 4096 units into the list of free ones.
  void grow() {
    const auto first = static_cast<std::uint32_t>(units_.size());
    units_.resize(first + 4096, Unit{kFree, -1});
    used_base_.resize(units_.size(), false);
    // One entry more than units: the list's end has a predecessor, which the next grow() keeps.
    next_.resize(units_.size() + 1);
    previous_.resize(units_.size() + 1);
    for (std::uint32_t i = first; i < units_.size(); ++i) {
      next_[i] = i + 1;
      previous_[i + 1] = i;
    }
    if (first == 0) first_free_ = 512;  // a base is at least 256, a label at most 255
  }

  void take(std::uint32_t unit) {
    if (unit == first_free_) {
      first_free_ = next_[unit];
    } else {
      next_[previous_[unit]] = next_[unit];
    }
    previous_[next_[unit]] = previous_[unit];
    top_ = std::max<std::size_t>(top_, unit + 1);
  }

  bool fits(std::uint32_t base) {
    if (used_base_[base]) return false;
    for (const Child& child : children_) {
      const std::uint32_t unit = base + child.label;
      if (unit < units_.size() && units_[unit].link != kFree) return false;
    }
    return true;
  }

  std::uint32_t find_base() {
    int tries = 0;
    for (std::uint32_t unit = first_free_;; unit = next_[unit]) {
      while (unit >= units_.size()) grow();
      const std::uint32_t base = unit - children_.front().label;
      if (fits(base)) {
        // Units that many nodes could not use are left for good: a fifth of the array at most.
        if (tries > kPatience) first_free_ = unit;
        return base;
      }
      ++tries;
    }
  }

  // Gives the node's children their units and queues them. Returns their base, 0 without children.
  std::uint32_t place(const Node& node) {
    children_.clear();
    std::size_t i = node.begin;
    if (i < node.end && entries_[i].bytes.size() == node.depth) ++i;  // the node's own token
    while (i < node.end) {
      const auto label = static_cast<unsigned char>(entries_[i].bytes[node.depth]);
      const std::size_t begin = i;
      while (i < node.end && static_cast<unsigned char>(entries_[i].bytes[node.depth]) == label)
        ++i;
      children_.push_back({label, begin, i});
    }
    if (children_.empty()) return 0;
    const std::uint32_t base = find_base();
    WKV_CHECK(base < kMaxBase, unsupported, "[tokenizer] the vocabulary needs more than ", kMaxBase,
              " trie units");
    used_base_[base] = true;
    while (base + 256 > units_.size()) grow();
    for (const Child& child : children_) {
      const std::uint32_t unit = base + child.label;
      take(unit);
      const Leaf& first = entries_[child.begin];
      units_[unit] = {child.label, first.bytes.size() == node.depth + 1 ? first.id : -1};
      queue_.push_back({child.begin, child.end, node.depth + 1, unit});
    }
    return base;
  }

  const std::vector<Leaf>& entries_;
  std::vector<Unit>& units_;
  std::vector<Node> queue_;
  std::vector<Child> children_;
  std::vector<bool> used_base_;
  std::vector<std::uint32_t> next_, previous_;
  std::uint32_t first_free_ = 0;
  std::size_t top_ = 0;
};

Trie::Trie(std::vector<Entry> entries, std::string_view place) : pairs_(65536 / 64) {
  WKV_CHECK(!entries.empty(), bad_model, place, " has no tokens");
  const auto by_id = [](const Entry& a, const Entry& b) { return a.id < b.id; };
  if (!std::is_sorted(entries.begin(), entries.end(), by_id)) {
    std::sort(entries.begin(), entries.end(), by_id);
  }
  std::size_t total = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    // Ids index a table; 2^24 is a hundred times any vocabulary, and 64 MB of offsets.
    WKV_CHECK(entry.id >= 0 && entry.id < (1 << 24), bad_model, place, " has the id ", entry.id,
              "; ids must be in [0, 16777216)");
    WKV_CHECK(i == 0 || entries[i - 1].id != entry.id, bad_model, place, " has the id ", entry.id,
              " twice");
    WKV_CHECK(!entry.bytes.empty(), bad_model, place, " has no bytes for id ", entry.id);
    total += entry.bytes.size();
  }
  WKV_CHECK(total < (std::size_t{1} << 31), bad_model, place, " has ", total, " bytes of tokens");

  bytes_.reserve(total + kReadable);
  offsets_.reserve(static_cast<std::size_t>(entries.back().id) + 2);
  for (const Entry& entry : entries) {
    const auto begin = static_cast<std::uint32_t>(bytes_.size());
    offsets_.resize(static_cast<std::size_t>(entry.id) + 1, begin);  // unused ids are empty
    bytes_ += entry.bytes;
    for (std::size_t i = 1; i < entry.bytes.size(); ++i) {
      const unsigned index = static_cast<unsigned char>(entry.bytes[i - 1]) * 256u +
                             static_cast<unsigned char>(entry.bytes[i]);
      pairs_[index / 64] |= std::uint64_t{1} << (index % 64);
    }
  }
  offsets_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  bytes_.append(kReadable, '\0');

  std::vector<Builder::Leaf> leaves;
  leaves.reserve(entries.size());
  for (const Entry& entry : entries) leaves.emplace_back(entry.id, entry.bytes);
  std::sort(leaves.begin(), leaves.end());
  for (std::size_t i = 1; i < leaves.size(); ++i) {
    WKV_CHECK(leaves[i - 1].bytes != leaves[i].bytes, bad_model, place, " has the ids ",
              leaves[i - 1].id, " and ", leaves[i].id, " for the same bytes");
  }
  root_ = Builder(leaves, units_).build();
}

void Trie::encode(std::string_view text, std::vector<Token>& out) const {
  const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* const end = begin + text.size();
  const Unit* const units = units_.data();
  const std::uint32_t root = root_;
  out.reserve(out.size() + text.size() / 4);

  // Ids pass through a small buffer: push_back's test for capacity costs a tenth of the time.
  std::array<Token, 1024> buffer;
  std::size_t count = 0;
  const unsigned char* p = begin;
  while (p < end) {
    Token best = -1;
    const unsigned char* next = p;
    std::uint32_t base = root;
    for (const unsigned char* q = p; q < end;) {
      const Unit unit = units[base + *q];
      if ((unit.link & 511) != *q) break;
      ++q;
      if (unit.id >= 0) {
        best = unit.id;
        next = q;
      }
      base = unit.link >> 9;
    }
    WKV_CHECK(best >= 0, invalid_argument, "[tokenizer] no token begins with byte ", int{*p},
              " (offset ", p - begin, " of ", text.size(), ")");
    p = next;
    buffer[count++] = best;
    if (count == buffer.size()) {
      out.insert(out.end(), buffer.begin(), buffer.end());
      count = 0;
    }
  }
  out.insert(out.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace wkv::detail
