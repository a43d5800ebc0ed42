// Names, shapes and ranges of every version's tensors, as the official code trains them.
#include <algorithm>
#include <cmath>
#include <string>

#include "io/synthetic.h"

namespace wkv {
namespace {

constexpr std::int64_t kCtxLen = 1024;  // of v1 and v2
constexpr std::int64_t kHeadQk = 256;

// Collects the tensors under a prefix such as "blocks.3.att.".
class Layout {
 public:
  explicit Layout(const SyntheticSpec& spec)
      : version(spec.version),
        L(spec.layers),
        C(spec.channels),
        V(spec.vocab),
        N(spec.head_size),
        H(C / N),
        density(spec.density) {
    const bool wide = version < "5.1" || version == "7.0";
    F = version == "1" ? C * 5 / 2 : wide ? 4 * C : std::max(C * 7 / 2 / 32 * 32, std::int64_t{32});
  }

  void add(const std::string& name, std::vector<std::int64_t> shape, Fill fill, float a, float b) {
    tensors.push_back({prefix + name, std::move(shape), fill, a, b, 0});
  }
  void matrix(const std::string& name, std::int64_t out, std::int64_t in) {
    add(name + ".weight", {out, in}, Fill::normal, 0, 0.5f / std::sqrt(static_cast<float>(in)));
  }
  void biased(const std::string& name, std::int64_t out, std::int64_t in) {
    matrix(name, out, in);
    constant(name + ".bias", {out}, 0);
  }
  void constant(const std::string& name, std::vector<std::int64_t> shape, float value) {
    add(name, std::move(shape), Fill::ramp, value, value);
  }
  void norm(const std::string& name) {
    constant(name + ".weight", {C}, 1);
    constant(name + ".bias", {C}, 0);
  }
  // One mixing vector per letter: time_mix_k, time_mix_v, ...
  void mixes(const std::string& stem, std::string_view letters) {
    for (const char c : letters) add(stem + c, {1, 1, C}, Fill::uniform, 0, 1);
  }

  std::string version;
  std::int64_t L, C, V, N, H, F = 0;
  float density;
  std::string prefix;
  std::vector<SyntheticTensor> tensors;
};

void v1_block(Layout& t, const std::string& block) {
  t.prefix = block + "attn.";
  t.add("time_w", {t.H, kCtxLen}, Fill::uniform, 0.2f, 1);
  t.constant("time_alpha", {t.H, 1, kCtxLen}, 1);
  t.constant("time_beta", {t.H, kCtxLen, 1}, 1);
  t.constant("time_gamma", {kCtxLen, 1}, 1);
  for (const char* name : {"key", "value", "receptance", "output"}) t.biased(name, t.C, t.C);
  t.prefix = block + "mlp.";
  t.biased("key", t.F, t.C);
  t.biased("value", t.F, t.C);
  t.biased("weight", t.C, t.F);
  t.biased("receptance", t.C, t.C);
}

// v2 to v5: decay and bonus are parameters.
void constant_decay(Layout& t) {
  const std::string& version = t.version;
  if (version == "2") t.mixes("time_mi", "x");
  if (version == "3" || version == "4") t.mixes("time_mix_", "kvr");
  if (version == "5.0") t.mixes("time_mix_", "kvr");
  if (version == "5.1" || version == "5.2") t.mixes("time_mix_", "kvrg");
  if (version < "5") {
    const auto shape =
        version == "4" ? std::vector<std::int64_t>{t.C} : std::vector<std::int64_t>{t.C, 1};
    t.add("time_decay", shape, Fill::ramp, -5, 3);
    t.add("time_first", shape, Fill::uniform, -1, 0);
    return;
  }
  const auto shape =
      version == "5.2" ? std::vector<std::int64_t>{t.H, t.N} : std::vector<std::int64_t>{t.H};
  t.add("time_decay", shape, Fill::ramp, -6, 1);
  t.add(version == "5.0" ? "time_first" : "time_faaaa", shape, Fill::uniform,
        version == "5.0" ? -1.0f : 0.0f, version == "5.0" ? 0.0f : 1.0f);
}

void v6_decay(Layout& t) {
  const std::int64_t mix = t.C < 4096 ? 32 : 64;
  const std::int64_t decay = 2 * mix;
  t.mixes("time_maa_", "xwkvrg");
  t.add("time_maa_w1", {t.C, 5 * mix}, Fill::normal, 0, 1e-2f);
  t.add("time_maa_w2", {5, mix, t.C}, Fill::normal, 0, 1e-2f);
  t.add("time_decay", {1, 1, t.C}, Fill::ramp, -6, 1);
  t.add("time_decay_w1", {t.C, decay}, Fill::normal, 0, 1e-2f);
  t.add("time_decay_w2", {decay, t.C}, Fill::normal, 0, 1e-2f);
  t.add("time_faaaa", {t.H, t.N}, Fill::uniform, 0, 1);
}

void v7_decay(Layout& t) {
  const auto rank = [&](double factor, double power) {
    const double ideal = factor * std::pow(static_cast<double>(t.C), power);
    return std::max<std::int64_t>(32, std::lround(ideal / 32) * 32);
  };
  const auto lora = [&](const std::string& name, std::int64_t r, float second) {
    t.add(name + "1", {t.C, r}, Fill::normal, 0, 1e-2f);
    t.add(name + "2", {r, t.C}, Fill::normal, 0, second);
  };
  t.mixes("x_", "rwkvag");
  t.add("w0", {1, 1, t.C}, Fill::ramp, -6, -1);
  t.constant("a0", {1, 1, t.C}, 0);
  t.constant("v0", {1, 1, t.C}, 0);
  lora("w", rank(1.8, 0.5), 1e-2f);
  lora("a", rank(1.8, 0.5), 1e-2f);
  lora("v", rank(1.3, 0.5), 1e-2f);
  lora("g", rank(0.6, 0.8), 1e-1f);
  t.constant("k_k", {1, 1, t.C}, 0.85f);
  t.constant("k_a", {1, 1, t.C}, 1);
  t.add("r_k", {t.H, t.N}, Fill::normal, 0, 0.1f);
}

void time_mix(Layout& t, const std::string& block) {
  t.prefix = block + "att.";
  if (t.version < "6") {
    constant_decay(t);
  } else if (t.version < "7") {
    v6_decay(t);
  } else {
    v7_decay(t);
  }
  for (const char* name : {"receptance", "key", "value", "output"}) t.matrix(name, t.C, t.C);
  if (t.version > "5.0" && t.version < "7") t.matrix("gate", t.C, t.C);
  if (t.version >= "5") t.norm("ln_x");
}

void channel_mix(Layout& t, const std::string& block) {
  t.prefix = block + "ffn.";
  if (t.version == "2") {
    t.mixes("time_mi", "x");
  } else if (t.version < "6") {
    t.mixes("time_mix_", "kr");
  } else if (t.version < "7") {
    t.mixes("time_maa_", "kr");
  } else {
    t.mixes("x_", "k");
  }
  t.matrix("key", t.F, t.C);
  t.tensors.back().zero_rows = 1 - 2 * t.density;  // of random rows every other gives a negative
  if (t.version < "7") t.matrix("receptance", t.C, t.C);
  t.matrix("value", t.C, t.F);
}

}  // namespace

std::vector<SyntheticTensor> synthetic_tensors(const SyntheticSpec& spec) {
  Layout t(spec);
  const bool v1 = t.version == "1";
  t.add(v1 ? "tok_emb.weight" : "emb.weight", {t.V, t.C}, Fill::normal, 0, 0.02f);
  for (std::int64_t i = 0; i < t.L; ++i) {
    const std::string block = "blocks." + std::to_string(i) + '.';
    t.prefix = block;
    if (i == 0 && t.version >= "3") t.norm("ln0");
    t.norm("ln1");
    t.norm("ln2");
    if (v1) {
      v1_block(t, block);
    } else {
      time_mix(t, block);
      channel_mix(t, block);
    }
  }
  t.prefix.clear();
  if (v1) t.constant("time_out", {1, kCtxLen, 1}, 1);
  t.norm(v1 ? "ln_f" : "ln_out");
  t.matrix("head", t.V, t.C);
  if (t.version < "3") {
    for (const char* name : {"head_q", "head_k"}) {
      if (v1) {
        t.biased(name, kHeadQk, t.C);
      } else {
        t.matrix(name, kHeadQk, t.C);
      }
    }
    t.add("copy_mask", {kCtxLen, kCtxLen}, Fill::causal, 0, 0);
  }
  return std::move(t.tensors);
}

}  // namespace wkv
