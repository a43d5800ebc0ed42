#include "io/hf.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "io/bytes.h"

namespace wkv {
namespace {

using Shape = std::vector<std::int64_t>;
using NamePair = std::pair<std::string_view, std::string_view>;

// fla's order of the five mixes is r w k v g, the official one w k v r g: official group j is fla's
// group kFlaGroup[j].
constexpr std::array<std::int64_t, 5> kFlaGroup{1, 2, 3, 0, 4};
constexpr std::string_view kFlaMixes = "rwkvg";
constexpr std::string_view kFusedMixes = "rwkvag";  // attn.x_x of early v7 files

// How an official tensor is made of a stored one.
enum class Change : std::uint8_t {
  none,
  row_vector,  // [C] -> [1, 1, C]
  transpose,   // [a, b] -> [b, a]
  slice,       // row `index` of the first dimension, as [1, 1, C]
  mix_down,    // x_proj.0.linear [5D, C] -> time_maa_w1 [C, 5D]
  mix_up,      // x_proj.2 [C, 5D] -> time_maa_w2 [5, D, C]
};

struct Rule {
  std::string name;  // official
  Change change = Change::none;
  int index = 0;
};

template <std::size_t n>
std::optional<std::string_view> look_up(const std::array<NamePair, n>& table,
                                        std::string_view key) {
  for (const auto& [from, to] : table)
    if (from == key) return to;
  return std::nullopt;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

constexpr std::array<NamePair, 7> kTopLevel{{
    {"embeddings.weight", "emb.weight"},
    {"head.weight", "head.weight"},
    {"lm_head.weight", "head.weight"},
    {"ln_out.weight", "ln_out.weight"},
    {"ln_out.bias", "ln_out.bias"},
    {"norm.weight", "ln_out.weight"},
    {"norm.bias", "ln_out.bias"},
}};

constexpr std::array<NamePair, 5> kNorms{{
    {"pre_ln", "ln0"},
    {"pre_norm", "ln0"},
    {"attn_norm", "ln1"},
    {"ffn_norm", "ln2"},
    {"g_norm", "ln_x"},
}};

// Weights and mixes of both sub-blocks, v4 to v7.
constexpr std::array<NamePair, 18> kRenamed{{
    {"time_mix_key", "time_mix_k"},
    {"time_mix_value", "time_mix_v"},
    {"time_mix_receptance", "time_mix_r"},
    {"time_mix_gate", "time_mix_g"},
    {"r_proj.weight", "receptance.weight"},
    {"k_proj.weight", "key.weight"},
    {"v_proj.weight", "value.weight"},
    {"g_proj.weight", "gate.weight"},
    {"o_proj.weight", "output.weight"},
    {"r_proj.linear.weight", "receptance.weight"},
    {"k_proj.linear.weight", "key.weight"},
    {"v_proj.linear.weight", "value.weight"},
    {"g_proj.linear.weight", "gate.weight"},
    {"key.linear.weight", "key.weight"},
    {"receptance.linear.weight", "receptance.weight"},
    {"bonus", "time_faaaa"},
    {"g_norm.weight", "ln_x.weight"},
    {"g_norm.bias", "ln_x.bias"},
}};

// Vectors that the official code keeps as [1, 1, C] and fla as [C].
constexpr std::array<NamePair, 15> kVectors{{
    {"x_proj.0.mu", "time_maa_x"},
    {"w_proj.linear.lora.2.bias", "time_decay"},
    {"key.mu", "time_maa_k"},
    {"receptance.mu", "time_maa_r"},
    {"w_lora.lora.2.bias", "w0"},
    {"a_lora.lora.2.bias", "a0"},
    {"v_lora.lora.2.bias", "v0"},
    {"k_k", "k_k"},
    {"k_a", "k_a"},
    {"x_r", "x_r"},
    {"x_w", "x_w"},
    {"x_k", "x_k"},
    {"x_v", "x_v"},
    {"x_a", "x_a"},
    {"x_g", "x_g"},
}};

constexpr std::array<NamePair, 10> kTransposed{{
    {"w_proj.linear.lora.0.weight", "time_decay_w1"},
    {"w_proj.linear.lora.2.weight", "time_decay_w2"},
    {"w_lora.lora.0.weight", "w1"},
    {"w_lora.lora.2.weight", "w2"},
    {"a_lora.lora.0.weight", "a1"},
    {"a_lora.lora.2.weight", "a2"},
    {"v_lora.lora.0.weight", "v1"},
    {"v_lora.lora.2.weight", "v2"},
    {"g_lora.lora.0.weight", "g1"},
    {"g_lora.lora.2.weight", "g2"},
}};

// What becomes of a tensor of a sub-block; `leaf` is the name behind "blocks.3.att.".
std::vector<Rule> sub_block_rules(const std::string& prefix, std::string_view leaf) {
  const auto rule = [&](std::string_view name, Change change) {
    return std::vector<Rule>{{prefix + std::string(name), change}};
  };
  // One stored tensor holds a mixing vector per letter.
  const auto slices = [&](std::string_view stem, std::string_view letters) {
    std::vector<Rule> rules;
    rules.reserve(letters.size());
    for (std::size_t i = 0; i < letters.size(); ++i)
      rules.push_back(
          {prefix + std::string(stem) + letters[i], Change::slice, static_cast<int>(i)});
    return rules;
  };
  if (leaf == "x_proj.0.linear.weight") return rule("time_maa_w1", Change::mix_down);
  if (leaf == "x_proj.2.weight") return rule("time_maa_w2", Change::mix_up);
  if (leaf == "x_bias") return slices("time_maa_", kFlaMixes);
  if (leaf == "x_x") return slices("x_", kFusedMixes);
  if (const auto name = look_up(kVectors, leaf)) return rule(*name, Change::row_vector);
  if (const auto name = look_up(kTransposed, leaf)) return rule(*name, Change::transpose);
  if (const auto name = look_up(kRenamed, leaf)) return rule(*name, Change::none);
  return rule(leaf, Change::none);
}

// The official tensors that a stored one holds.
std::vector<Rule> rules_of(const std::string& stored) {
  std::vector<Rule> as_it_is{{stored, Change::none}};
  std::string_view rest = stored;
  if (!take(rest, "rwkv.")) take(rest, "model.");
  if (const auto name = look_up(kTopLevel, rest)) return {{std::string(*name), Change::none}};
  if (take(rest, "pre_ln.")) return {{"blocks.0.ln0." + std::string(rest), Change::none}};
  if (!take(rest, "blocks.") && !take(rest, "layers.")) return as_it_is;
  int layer = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  const auto digits = static_cast<std::size_t>(end - rest.data());
  if (error != std::errc() || digits >= rest.size() || rest[digits] != '.') return as_it_is;
  const std::string block = "blocks." + std::string(rest.substr(0, digits + 1));
  rest.remove_prefix(digits + 1);
  if (take(rest, "attention.") || take(rest, "attn.")) return sub_block_rules(block + "att.", rest);
  if (take(rest, "feed_forward.") || take(rest, "ffn."))
    return sub_block_rules(block + "ffn.", rest);
  const std::size_t dot = std::min(rest.find('.'), rest.size());
  const auto norm = look_up(kNorms, rest.substr(0, dot));
  return {{block + std::string(norm.value_or(rest.substr(0, dot))) + std::string(rest.substr(dot)),
           Change::none}};
}

struct Entry {
  std::string stored;
  Change change = Change::none;
  int index = 0;
  Shape shape;
};

// out[i][j][k] = in[i * stride[0] + j * stride[1] + k * stride[2]], one of the axes taken in fla's
// order of groups.
struct Gather {
  std::array<std::int64_t, 3> size;
  std::array<std::int64_t, 3> stride;
  int grouped = -1;  // which axis

  std::int64_t offset(int axis, std::int64_t i) const {
    const std::int64_t from = axis == grouped ? kFlaGroup[static_cast<std::size_t>(i)] : i;
    return from * stride[static_cast<std::size_t>(axis)];
  }
};

Gather gather_of(const Entry& entry) {
  const Shape& s = entry.shape;
  if (entry.change == Change::transpose) return {{1, s[0], s[1]}, {0, 1, s[0]}, -1};
  if (entry.change == Change::mix_up) return {{5, s[1], s[2]}, {s[1], 1, 5 * s[1]}, 0};
  const std::int64_t rank = s[1] / 5;  // mix_down
  return {{s[0], 5, rank}, {1, rank * s[0], s[0]}, 1};
}

void copy(const Gather& gather, std::size_t element, const std::byte* from, std::byte* to) {
  // [2^40, 0] would spin through its rows.
  if (std::find(gather.size.begin(), gather.size.end(), 0) != gather.size.end()) return;
  for (std::int64_t i = 0; i < gather.size[0]; ++i)
    for (std::int64_t j = 0; j < gather.size[1]; ++j)
      for (std::int64_t k = 0; k < gather.size[2]; ++k, to += element) {
        const std::int64_t at = gather.offset(0, i) + gather.offset(1, j) + gather.offset(2, k);
        std::memcpy(to, from + static_cast<std::size_t>(at) * element, element);
      }
}

class HfSource final : public TensorSource {
 public:
  explicit HfSource(std::shared_ptr<const TensorSource> source) : source_(std::move(source)) {
    for (const std::string& stored : source_->names())
      for (const Rule& rule : rules_of(stored)) add(stored, rule);
    // Tied embeddings are stored once.
    const auto emb = entries_.find("emb.weight");
    if (emb != entries_.end() && !entries_.contains("head.weight")) {
      const Entry head = emb->second;
      entries_.emplace("head.weight", head);
      names_.emplace_back("head.weight");
    }
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override {
    return entries_.find(name) != entries_.end();
  }
  Shape shape(std::string_view name) const override { return find(name).shape; }
  DType dtype(std::string_view name) const override { return source_->dtype(find(name).stored); }
  std::string metadata(std::string_view key) const override { return source_->metadata(key); }
  std::string description() const override { return source_->description(); }

  HostTensor get(std::string_view name) const override {
    const Entry& entry = find(name);
    HostTensor tensor = source_->get(entry.stored);
    tensor.shape = entry.shape;
    const std::size_t element = dtype_size(tensor.dtype);
    const auto* from = static_cast<const std::byte*>(tensor.data);
    switch (entry.change) {
      case Change::none:
      case Change::row_vector:
        break;
      case Change::slice:
        tensor.data = from + static_cast<std::size_t>(entry.index * tensor.numel()) * element;
        break;
      case Change::transpose:
      case Change::mix_down:
      case Change::mix_up: {
        auto data = std::make_shared<const Buffer>(
            allocate_host(static_cast<std::size_t>(tensor.numel()) * element));
        copy(gather_of(entry), element, from, static_cast<std::byte*>(data->data()));
        tensor.data = data->data();
        tensor.owner = std::move(data);
        tensor.mapped = false;
        break;
      }
    }
    return tensor;
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const noexcept {
      return std::hash<std::string_view>()(s);
    }
  };

  void add(const std::string& stored, const Rule& rule) {
    Entry entry{stored, rule.change, rule.index, source_->shape(stored)};
    Shape& s = entry.shape;
    std::int64_t numel = 1;
    for (const std::int64_t d : s) numel *= d;
    const auto require = [&](bool fits, const char* what) {
      WKV_CHECK(fits, bad_model, "[", source_->description(), "] tensor ", quote(stored),
                " has shape ", shape_str(s), ", wants ", what);
    };
    switch (rule.change) {
      case Change::none:
        break;
      case Change::row_vector:
        s = {1, 1, numel};
        break;
      case Change::transpose:
        require(s.size() == 2, "two dimensions");
        std::swap(s[0], s[1]);
        break;
      case Change::slice: {
        const auto rows = static_cast<std::int64_t>(stored.ends_with("x_x") ? kFusedMixes.size()
                                                                            : kFlaMixes.size());
        require(!s.empty() && s[0] == rows, rows == 6 ? "[6, C]" : "[5, C]");
        s = {1, 1, numel / rows};
        break;
      }
      case Change::mix_down:
        require(s.size() == 2 && s[0] % 5 == 0, "[5 D, C]");
        std::swap(s[0], s[1]);
        break;
      case Change::mix_up:
        require(s.size() == 2 && s[1] % 5 == 0, "[C, 5 D]");
        s = {5, s[1] / 5, s[0]};
        break;
    }
    WKV_CHECK(entries_.emplace(rule.name, std::move(entry)).second, bad_model, "[",
              source_->description(), "] two tensors stand for ", quote(rule.name));
    names_.push_back(rule.name);
  }

  const Entry& find(std::string_view name) const {
    const auto found = entries_.find(name);
    WKV_CHECK(found != entries_.end(), bad_model, "[", source_->description(), "] has no tensor ",
              quote(name));
    return found->second;
  }

  std::shared_ptr<const TensorSource> source_;
  std::unordered_map<std::string, Entry, Hash, std::equal_to<>> entries_;
  std::vector<std::string> names_;
};

}  // namespace

bool is_hf(const TensorSource& source) {
  constexpr std::array<std::string_view, 3> kEmbeddings{
      "rwkv.embeddings.weight", "model.embeddings.weight", "embeddings.weight"};
  return std::any_of(kEmbeddings.begin(), kEmbeddings.end(),
                     [&](std::string_view name) { return source.contains(name); });
}

std::string official_name(const std::string& stored) {
  const std::vector<Rule> rules = rules_of(stored);
  return rules.size() == 1 && rules[0].change == Change::none ? rules[0].name : stored;
}

std::shared_ptr<const TensorSource> open_hf(std::shared_ptr<const TensorSource> source) {
  return std::make_shared<const HfSource>(std::move(source));
}

}  // namespace wkv
