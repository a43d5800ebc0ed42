// LoRA adapters: W + alpha / rank * B A against float64, and adapters that do not fit.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "wkv/wkv.hpp"

using wkv::DType;
using wkv::HostTensor;

namespace {

// fp32 tensors in memory.
class Memory final : public wkv::TensorSource {
 public:
  void put(const std::string& name, std::vector<std::int64_t> shape, std::uint32_t seed) {
    std::size_t n = 1;
    for (const std::int64_t d : shape) n *= static_cast<std::size_t>(d);
    std::vector<float> values(n);
    for (float& v : values) {
      seed = seed * 1664525u + 1013904223u;
      v = static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f;
    }
    names_.push_back(name);
    tensors_[name] = {std::move(shape), std::move(values)};
  }
  const std::vector<float>& values(const std::string& name) const {
    return tensors_.at(name).second;
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override {
    return tensors_.contains(std::string(name));
  }
  HostTensor get(std::string_view name) const override {
    const auto& [s, v] = tensors_.at(std::string(name));
    return {v.data(), DType::f32, s, nullptr};
  }
  std::vector<std::int64_t> shape(std::string_view name) const override {
    return tensors_.at(std::string(name)).first;
  }
  DType dtype(std::string_view) const override { return DType::f32; }
  std::string metadata(std::string_view) const override { return {}; }
  std::string description() const override { return "memory"; }

 private:
  std::vector<std::string> names_;
  std::map<std::string, std::pair<std::vector<std::int64_t>, std::vector<float>>> tensors_;
};

std::vector<double> values(const wkv::TensorSource& source, const std::string& name) {
  const HostTensor t = source.get(name);
  std::vector<double> out(static_cast<std::size_t>(t.numel()));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = wkv::element_as_f32(t.data, t.dtype, i);
  return out;
}

constexpr int kC = 16;
constexpr int kRank = 4;
constexpr double kAlpha = 12;

}  // namespace

TEST_CASE("LoRA is merged into the matrices it names") {
  struct Names {
    const char* down;
    const char* up;
  };
  // RWKV-PEFT, the peft library on official names, the peft library on a fla-hub model.
  for (const Names& names : {Names{"blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B"},
                             Names{"base_model.model.blocks.0.att.key.lora_A.default.weight",
                                   "base_model.model.blocks.0.att.key.lora_B.default.weight"},
                             Names{"base_model.model.model.layers.0.attn.k_proj.lora_A.weight",
                                   "base_model.model.model.layers.0.attn.k_proj.lora_B.weight"}}) {
    CAPTURE(names.down);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const auto base = wkv::synthetic_checkpoint("v7:2x16:32:8", dtype);
      const auto adapter = std::make_shared<Memory>();
      adapter->put(names.down, {kRank, kC}, 1);
      adapter->put(names.up, {kC, kRank}, 2);
      adapter->put("blocks.1.ln1.weight", {kC}, 3);
      adapter->put("blocks.1.att.x_r", {kC}, 4);  // trained whole, kept flat
      const auto merged = wkv::merge_lora(base, adapter, kAlpha);
      CHECK(merged->names() == base->names());
      CHECK(merged->dtype("blocks.0.att.key.weight") == dtype);
      const auto w = values(*base, "blocks.0.att.key.weight");
      const auto got = values(*merged, "blocks.0.att.key.weight");
      const auto& a = adapter->values(names.down);
      const auto& b = adapter->values(names.up);
      const double unit = dtype == DType::f32 ? 1e-6 : dtype == DType::f16 ? 1e-3 : 8e-3;
      for (std::size_t i = 0; i < kC; ++i)
        for (std::size_t j = 0; j < kC; ++j) {
          double want = w[i * kC + j];
          for (std::size_t r = 0; r < kRank; ++r)
            want += kAlpha / kRank * double{b[i * kRank + r]} * double{a[r * kC + j]};
          CHECK(std::abs(got[i * kC + j] - want) <= unit * std::max(1.0, std::abs(want)));
        }
      CHECK(values(*merged, "emb.weight") == values(*base, "emb.weight"));
      CHECK(merged->dtype("blocks.1.ln1.weight") == DType::f32);
      CHECK(values(*merged, "blocks.1.ln1.weight") == values(*adapter, "blocks.1.ln1.weight"));
      CHECK(merged->get("blocks.1.att.x_r").shape == std::vector<std::int64_t>{1, 1, kC});
    }
  }
}

TEST_CASE("an adapter tells its model from others") {
  const auto base = wkv::synthetic_checkpoint("v7:1x16:32:8");
  const auto digest = [&](std::uint32_t seed, double alpha) {
    const auto adapter = std::make_shared<Memory>();
    adapter->put("blocks.0.att.key.lora_A", {kRank, kC}, seed);
    adapter->put("blocks.0.att.key.lora_B", {kC, kRank}, 2);
    const auto merged = wkv::merge_lora(base, adapter, alpha);
    CHECK(merged->metadata("other").empty());
    return merged->metadata("wkv.adapter");
  };
  CHECK(base->metadata("wkv.adapter").empty());
  CHECK(digest(1, 8).size() == 16);
  CHECK(digest(1, 8) == digest(1, 8));
  CHECK(digest(1, 8) != digest(3, 8));
  CHECK(digest(1, 8) != digest(1, 9));
}

TEST_CASE("adapters that do not fit the model") {
  const auto base = wkv::synthetic_checkpoint("v7:1x16:32:8");
  const auto refused = [&](const char* because, auto&& fill) {
    const auto adapter = std::make_shared<Memory>();
    fill(*adapter);
    try {
      wkv::merge_lora(base, adapter, kAlpha);
      FAIL_CHECK("no error");
    } catch (const wkv::Error& e) {
      CAPTURE(e.what());
      CHECK(e.code() == wkv::ErrorCode::bad_model);
      CHECK(std::string(e.what()).find(because) != std::string::npos);
    }
  };
  const std::string key = "blocks.0.att.key";
  refused("no lora_A", [](Memory&) {});
  refused("not in the model", [&](Memory& m) { m.put("blocks.7.att.key.lora_A", {4, 16}, 1); });
  refused("only one of", [&](Memory& m) { m.put(key + ".lora_A", {4, 16}, 1); });
  refused("lora_B [16, 5]", [&](Memory& m) {
    m.put(key + ".lora_A", {4, 16}, 1);
    m.put(key + ".lora_B", {16, 5}, 1);
  });
  refused("lora_A [4, 15]", [&](Memory& m) {
    m.put(key + ".lora_A", {4, 15}, 1);
    m.put(key + ".lora_B", {16, 4}, 1);
  });
  refused("lora_A [0, 16]", [&](Memory& m) {
    m.put(key + ".lora_A", {0, 16}, 1);
    m.put(key + ".lora_B", {16, 0}, 1);
  });
  refused("method other than LoRA", [&](Memory& m) { m.put(key + ".bone", {4, 16}, 1); });
  refused("not in the model", [&](Memory& m) { m.put("blocks.0.att.what", {4, 16}, 1); });
  refused("the model's [16]", [&](Memory& m) { m.put("blocks.0.ln1.weight", {17}, 1); });
  refused("2 tensors do not fit", [&](Memory& m) {
    m.put("a", {1}, 1);
    m.put("b", {1}, 1);
  });
  const auto adapter = std::make_shared<Memory>();
  CHECK_THROWS_AS(wkv::merge_lora(base, adapter, std::nan("")), wkv::Error);
}
