#include "models/detect.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv {
namespace {

using Shape = std::vector<std::int64_t>;

/// Looks tensors up by what follows "blocks.N.": block 0 may lack a part (ffnPre, v7's v0), so the
/// first block that has it answers.
class Names {
 public:
  explicit Names(const TensorSource& source) : source_(source) {
    for (const std::string& name : source.names()) {
      std::string_view rest = name;
      if (!rest.starts_with("blocks.")) continue;
      rest.remove_prefix(7);
      int index = -1;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
      if (error != std::errc() || index < 0 || end == rest.data() + rest.size() || *end != '.')
        continue;
      WKV_CHECK(index < kMaxLayers, bad_model, source.description(), ": block index ", index,
                " in '", name, "' is absurd");
      layers_ = std::max(layers_, index + 1);
    }
  }

  int layers() const { return layers_; }
  bool has(std::string_view name) const { return source_.contains(name); }
  Shape shape(std::string_view name) const { return source_.shape(name); }

  std::optional<Shape> in_blocks(const std::string& part) const {
    for (int i = 0; i < layers_; ++i) {
      const std::string name = "blocks." + std::to_string(i) + "." + part;
      if (source_.contains(name)) return source_.shape(name);
    }
    return std::nullopt;
  }
  bool any(const std::string& part) const { return in_blocks(part).has_value(); }

  /// Extent `axis` of a tensor that must be there with `rank` axes.
  int extent(const std::string& part, std::size_t axis, std::size_t rank = 2) const {
    const std::optional<Shape> found =
        source_.contains(part) ? source_.shape(part) : in_blocks(part);
    WKV_CHECK(found.has_value(), bad_model, source_.description(), ": no tensor '", part,
              "'; this is not a complete RWKV checkpoint");
    WKV_CHECK(found->size() == rank, bad_model, source_.description(), ": '", part, "' is ",
              shape_str(*found), ", expected ", rank, " axes");
    const std::int64_t n = (*found)[axis];
    WKV_CHECK(n > 0 && n <= kMaxExtent, bad_model, source_.description(), ": '", part, "' is ",
              shape_str(*found), "; the size ", n, " is absurd");
    return static_cast<int>(n);
  }

 private:
  static constexpr int kMaxLayers = 4096;
  static constexpr std::int64_t kMaxExtent = 1 << 24;
  const TensorSource& source_;
  int layers_ = 0;
};

[[noreturn]] void not_run(const TensorSource& source, std::string_view what) {
  fail(ErrorCode::unsupported, source.description(), ": this is ", what,
       ", a variant that wkv does not run");
}

/// Transformers whose attention was replaced and that kept the rest (QRWKV6, ARWKV7), and what goes
/// by the name of RWKV-8 since its first preview.
void refuse_relatives(const TensorSource& source) {
  for (const std::string& name : source.names()) {
    const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
    if (has("rosa")) not_run(source, "RWKV-8 (ROSA)");
    if (has(".self_attn.") && (has("time_maa") || has("time_mixer") || has(".time_decay") ||
                               name.ends_with(".r_k") || name.ends_with(".w0")))
      not_run(source, "a hybrid: a transformer with RWKV in place of its attention");
  }
}

std::string version_of(const Names& names, const TensorSource& source) {
  // fla's configuration may give some blocks softmax attention under the name of the time-mix.
  const bool softmax = names.any("self_attn.q_proj.weight") || names.any("att.q_proj.weight");
  if (names.any("att.r_k")) {
    if (names.any("qkv.qq.weight")) not_run(source, "RWKV-7b (DEA)");
    if (names.any("ffn.enn.weight")) not_run(source, "RWKV-8 rc00 (Heron)");
    if (softmax) not_run(source, "a hybrid of RWKV-7 and softmax attention");
    return names.any("ffn.s_emb.weight") ? "7.0a" : "7.0";
  }
  if (names.any("att.time_maa_x")) {
    if (softmax) not_run(source, "a hybrid of RWKV-6 and softmax attention");
    // x060b and x060c have the same names and shapes; only a note in the file tells c.
    if (names.any("att.time_maa_rkvw_w1"))
      return source.metadata("rwkv.version") == "6.0c" ? "6.0c" : "6.0b";
    return names.any("att.gate_w1") ? "6.0a" : "6.0";
  }
  if (names.any("att.ln_x.weight")) {
    if (!names.any("att.gate.weight")) return "5.0";
    const std::optional<Shape> decay = names.in_blocks("att.time_decay");
    std::int64_t n = 1;
    for (const std::int64_t d : decay.value_or(Shape{})) n *= d;
    return decay && !decay->empty() && n == (*decay)[0] ? "5.1" : "5.2";
  }
  if (names.any("att.time_mix")) return "2";
  if (names.any("att.time_mix_k")) {
    const std::optional<Shape> decay = names.in_blocks("att.time_decay");
    if (decay && decay->size() == 2) return "3";
    return names.any("tiny_q.weight") ? "4a" : "4";
  }
  fail(ErrorCode::bad_model, source.description(),
       ": no RWKV version has these tensors (looked for att.r_k, att.time_maa_x, att.ln_x.weight, "
       "att.time_mix, att.time_mix_k in ",
       names.layers(), " blocks)");
}

/// Histories end where the training context ended, which a mask in the file tells.
void find_context(const Names& names, Detected& d) {
  constexpr int kUntold = 1024;  // what v2, v3 and 4neo's options were trained with
  const bool v1 = d.version == "1";
  if (v1) d.ctx_len = names.extent("attn.time_w", 1);
  if (v1 || (names.has("head_q.weight") && d.version[0] <= '4')) {
    d.head_qk = names.extent("head_q.weight", 0);
    if (d.ctx_len == 0) d.ctx_len = names.has("copy_mask") ? names.extent("copy_mask", 0) : kUntold;
  }
  if (d.version[0] == '4' && names.any("att.qq.weight"))
    d.ctx_len = names.any("att.att_mask") ? names.extent("att.att_mask", 0) : kUntold;
}

}  // namespace

std::optional<MatrixUse> quantised_use(std::string_view name,
                                       const std::vector<std::int64_t>& shape) noexcept {
  if (shape.size() != 2 || name.ends_with("emb.weight")) return std::nullopt;
  if (name == "head.weight") return MatrixUse::head;
  if (name.ends_with(".weight")) return MatrixUse::linear;
  for (const std::string_view factor :
       {".att.w1", ".att.w2", ".att.a1", ".att.a2", ".att.v1", ".att.v2", ".att.g1", ".att.g2",
        ".att.time_decay_w1", ".att.time_decay_w2", ".att.time_maa_w1", ".att.time_maa_rkvw_w1",
        ".att.gate_w1", ".att.gate_w2", ".ffn.s1", ".ffn.s2"})
    if (name.ends_with(factor)) return MatrixUse::lora;
  return std::nullopt;
}

bool is_training_buffer(std::string_view name) noexcept {
  for (const std::string_view suffix : {"copy_mask", ".tiny_mask", ".att_mask"})
    if (name.ends_with(suffix)) return true;
  return false;
}

Detected detect(const TensorSource& source) {
  const Names names(source);
  if (names.has("tok_emb.weight")) {
    if (names.any("attn.query.weight")) not_run(source, "an attention baseline of RWKV-v1's code");
  }
  const bool v1 = names.has("tok_emb.weight");
  refuse_relatives(source);
  WKV_CHECK((v1 || names.has("emb.weight")) && names.layers() > 0, bad_model, source.description(),
            ": no 'emb.weight' and 'blocks.0...' among its ", source.names().size(),
            " tensors; this is not an RWKV checkpoint in the official layout");

  Detected d;
  d.version = v1 ? "1" : version_of(names, source);
  d.n_layer = names.layers();
  d.n_vocab = names.extent(v1 ? "tok_emb.weight" : "emb.weight", 0);
  d.n_embd = names.extent(v1 ? "tok_emb.weight" : "emb.weight", 1);
  d.n_att = names.extent(v1 ? "attn.key.weight" : "att.key.weight", 0);
  const bool glu = !names.any("ffn.key.weight") && names.any("ffn.aa.weight");
  d.dim_ffn = names.extent(v1 ? "mlp.key.weight" : glu ? "ffn.aa.weight" : "ffn.key.weight", 0);
  find_context(names, d);
  d.looks_back = d.ctx_len > 0 || d.version[0] <= '3' || d.version == "4a" || d.version == "7.0a";
  if (v1) {
    d.n_head = names.extent("attn.time_w", 0);
    WKV_CHECK(d.n_att % d.n_head == 0, bad_model, source.description(), ": attn.time_w has ",
              d.n_head, " heads, which do not divide ", d.n_att, " channels");
    d.head_size = d.n_att / d.n_head;
  } else if (d.version[0] == '5') {
    const std::optional<Shape> decay = names.in_blocks("att.time_decay");
    WKV_CHECK(decay && !decay->empty() && (*decay)[0] > 0 && d.n_att % (*decay)[0] == 0, bad_model,
              source.description(), ": att.time_decay is ", shape_str(decay.value_or(Shape{})),
              "; its first axis must divide ", d.n_att, " channels into heads");
    d.n_head = static_cast<int>((*decay)[0]);
    d.head_size = d.n_att / d.n_head;
  } else if (d.version[0] >= '6') {
    const std::string bonus = d.version[0] == '6' ? "att.time_faaaa" : "att.r_k";
    d.n_head = names.extent(bonus, 0);
    d.head_size = names.extent(bonus, 1);
    WKV_CHECK(std::int64_t{d.n_head} * d.head_size == d.n_att, bad_model, source.description(),
              ": ", bonus, " says ", d.n_head, " heads of ", d.head_size, ", att.key.weight says ",
              d.n_att, " channels");
  }
  for (const std::string& name : source.names()) {
    if (is_training_buffer(name)) continue;
    const DType dtype = source.dtype(name);
    std::int64_t n = is_float(dtype) || is_quantized(dtype) ? 1 : 0;
    for (const std::int64_t extent : source.shape(name)) n *= extent;
    d.n_params += n;
  }
  return d;
}

}  // namespace wkv
