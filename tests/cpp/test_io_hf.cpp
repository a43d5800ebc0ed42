// Hugging Face layouts: official tensors written under those names come back bit for bit.
#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <map>

#include "core/dtype.h"
#include "io/safetensors.h"
#include "io_files.h"
#include "wkv/wkv.hpp"

using namespace io_files;
using wkv::DType;
using wkv::HostTensor;
using wkv::TensorSource;

namespace {

// fp32 tensors in memory, to be written.
struct Stored {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Stored>;

Stored stored(const TensorSource& source, const std::string& name) {
  const HostTensor t = source.get(name);
  Stored out{t.shape, std::vector<float>(static_cast<std::size_t>(t.numel()))};
  std::memcpy(out.values.data(), t.data, out.values.size() * sizeof(float));
  return out;
}

Stored transposed(const Stored& t) {
  const auto rows = static_cast<std::size_t>(t.shape[0]);
  const auto cols = static_cast<std::size_t>(t.shape[1]);
  Stored out{{t.shape[1], t.shape[0]}, std::vector<float>(t.values.size())};
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) out.values[j * rows + i] = t.values[i * cols + j];
  return out;
}

Stored flat(Stored t) {
  t.shape = {static_cast<std::int64_t>(t.values.size())};
  return t;
}

void save(const fs::path& path, const Tensors& tensors) {
  std::vector<wkv::TensorToSave> list;
  for (const auto& [name, t] : tensors)
    list.push_back(wkv::tensor_to_save(name, {t.values.data(), DType::f32, t.shape, nullptr}));
  wkv::save_safetensors(path, list, {{"format", "pt"}});
}

void check_equal(const TensorSource& official, const TensorSource& read) {
  CHECK(read.names().size() == official.names().size());
  for (const std::string& name : official.names()) {
    CAPTURE(name);
    REQUIRE(read.contains(name));
    CHECK(read.shape(name) == official.shape(name));
    CHECK(read.get(name).shape == official.shape(name));
    CHECK(stored(read, name).values == stored(official, name).values);
  }
}

std::string replaced(std::string name, const std::vector<std::pair<std::string, std::string>>& by) {
  for (const auto& [from, to] : by)
    if (const std::size_t at = name.find(from); at != std::string::npos)
      name.replace(at, from.size(), to);
  return name;
}

// RWKV/... repositories: other names, the same shapes.
std::string transformers_name(const std::string& name) {
  if (name == "head.weight") return name;
  return "rwkv." + replaced(name, {{"emb.weight", "embeddings.weight"},
                                   {".att.", ".attention."},
                                   {".ffn.", ".feed_forward."},
                                   {".ln0.", ".pre_ln."},
                                   {"time_mix_k", "time_mix_key"},
                                   {"time_mix_v", "time_mix_value"},
                                   {"time_mix_r", "time_mix_receptance"},
                                   {"time_mix_g", "time_mix_gate"}});
}

std::string fla_name(const std::string& name) {
  if (name == "head.weight") return "lm_head.weight";
  return "model." + replaced(name, {{"emb.weight", "embeddings.weight"},
                                    {"blocks.", "layers."},
                                    {".att.", ".attn."},
                                    {".ln0.", ".pre_norm."},
                                    {".ln1.", ".attn_norm."},
                                    {".ln2.", ".ffn_norm."},
                                    {"ln_out.", "norm."},
                                    {".ln_x.", ".g_norm."}});
}

std::string leaf_of(const std::string& name) {
  const std::size_t at = name.find(".att.");
  return at == std::string::npos ? "" : name.substr(at + 5);
}

Tensors fla_v7(const TensorSource& official, bool fused) {
  Tensors out;
  for (const std::string& name : official.names()) {
    const std::string leaf = leaf_of(name);
    const std::string fla = fla_name(name);
    const std::string attn = fla.substr(0, fla.size() - leaf.size());
    const Stored t = stored(official, name);
    if (leaf.size() == 2 && leaf[1] >= '0' && leaf[1] <= '2') {
      const char* part[] = {"2.bias", "0.weight", "2.weight"};
      const std::string to = attn + leaf[0] + "_lora.lora." + part[leaf[1] - '0'];
      out[to] = leaf[1] == '0' ? flat(t) : transposed(t);
    } else if (fused && leaf.size() == 3 && leaf[0] == 'x') {
      const std::size_t channels = t.values.size();
      Stored& x = out[attn + "x_x"];
      x.shape = {6, static_cast<std::int64_t>(channels)};
      x.values.resize(6 * channels);
      std::copy(t.values.begin(), t.values.end(),
                x.values.begin() +
                    static_cast<std::ptrdiff_t>(std::string("rwkvag").find(leaf[2]) * channels));
    } else if (t.shape.size() == 3) {
      out[fla] = flat(t);
    } else {
      out[replaced(fla, {{".attn.receptance.", ".attn.r_proj."},
                         {".attn.key.", ".attn.k_proj."},
                         {".attn.value.", ".attn.v_proj."},
                         {".attn.output.", ".attn.o_proj."}})] = t;
    }
  }
  return out;
}

// The groups of a five-fold tensor in fla's order r w k v g; officially w k v r g.
constexpr std::size_t kOfficialGroup[] = {3, 0, 1, 2, 4};

Tensors fla_v6(const TensorSource& official) {
  Tensors out;
  for (const std::string& name : official.names()) {
    const std::string leaf = leaf_of(name);
    const std::string fla = fla_name(name);
    const std::string attn = fla.substr(0, fla.size() - leaf.size());
    const Stored t = stored(official, name);
    if (leaf == "time_maa_x") {
      out[attn + "x_proj.0.mu"] = flat(t);
    } else if (leaf == "time_maa_w1") {  // [C, 5, D] -> [5, D, C]
      const auto channels = static_cast<std::size_t>(t.shape[0]);
      const auto rank = static_cast<std::size_t>(t.shape[1]) / 5;
      Stored& w = out[attn + "x_proj.0.linear.weight"];
      w.shape = {t.shape[1], t.shape[0]};
      for (const std::size_t group : kOfficialGroup)
        for (std::size_t d = 0; d < rank; ++d)
          for (std::size_t c = 0; c < channels; ++c)
            w.values.push_back(t.values[(c * 5 + group) * rank + d]);
    } else if (leaf == "time_maa_w2") {  // [5, D, C] -> [C, 5, D]
      const auto rank = static_cast<std::size_t>(t.shape[1]);
      const auto channels = static_cast<std::size_t>(t.shape[2]);
      Stored& w = out[attn + "x_proj.2.weight"];
      w.shape = {t.shape[2], 5 * t.shape[1]};
      for (std::size_t c = 0; c < channels; ++c)
        for (const std::size_t group : kOfficialGroup)
          for (std::size_t d = 0; d < rank; ++d)
            w.values.push_back(t.values[(group * rank + d) * channels + c]);
    } else if (leaf.starts_with("time_maa_")) {
      const std::size_t channels = t.values.size();
      Stored& x = out[attn + "x_bias"];
      x.shape = {5, static_cast<std::int64_t>(channels)};
      x.values.resize(5 * channels);
      std::copy(t.values.begin(), t.values.end(),
                x.values.begin() +
                    static_cast<std::ptrdiff_t>(std::string("rwkvg").find(leaf[9]) * channels));
    } else if (leaf == "time_decay") {
      out[attn + "w_proj.linear.lora.2.bias"] = flat(t);
    } else if (leaf == "time_decay_w1" || leaf == "time_decay_w2") {
      out[attn + (leaf.back() == '1' ? "w_proj.linear.lora.0.weight"
                                     : "w_proj.linear.lora.2.weight")] = transposed(t);
    } else if (leaf == "time_faaaa") {
      out[attn + "bonus"] = t;
    } else if (name.find("ffn.time_maa_k") != std::string::npos) {
      out[replaced(fla, {{"time_maa_k", "key.mu"}})] = flat(t);
    } else if (name.find("ffn.time_maa_r") != std::string::npos) {
      out[replaced(fla, {{"time_maa_r", "receptance.mu"}})] = flat(t);
    } else {
      out[replaced(fla, {{".attn.receptance.", ".attn.r_proj.linear."},
                         {".attn.key.", ".attn.k_proj.linear."},
                         {".attn.value.", ".attn.v_proj.linear."},
                         {".attn.gate.", ".attn.g_proj.linear."},
                         {".attn.output.", ".attn.o_proj."},
                         {".ffn.key.", ".ffn.key.linear."},
                         {".ffn.receptance.", ".ffn.receptance.linear."}})] = t;
    }
  }
  return out;
}

std::string error_of(const std::function<void()>& f, wkv::ErrorCode code) {
  try {
    f();
  } catch (const wkv::Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
  FAIL_CHECK("no error");
  return {};
}

}  // namespace

TEST_CASE("RWKV/... repositories of v4, v5 and v6") {
  TemporaryDirectory directory;
  for (const char* spec : {"v4:2x24:50", "v5.2:2x32:50:8", "v6:2x32:50:8", "v7:2x32:50:8"}) {
    CAPTURE(spec);
    const auto official = wkv::synthetic_checkpoint(spec, DType::f32);
    Tensors out;
    for (const std::string& name : official->names())
      out[transformers_name(name)] = stored(*official, name);
    save(directory / "model.safetensors", out);
    check_equal(*official, *wkv::open_checkpoint(directory / "."));
    check_equal(*official, *wkv::open_checkpoint(directory / "model"));
  }
}

TEST_CASE("fla-hub repositories of v6 and v7") {
  TemporaryDirectory directory;
  const auto v7 = wkv::synthetic_checkpoint("v7:3x32:50:8", DType::f32);
  for (const bool fused : {false, true}) {
    CAPTURE(fused);
    save(directory / "model.safetensors", fla_v7(*v7, fused));
    check_equal(*v7, *wkv::open_checkpoint(directory / "."));
  }
  const auto v6 = wkv::synthetic_checkpoint("v6:2x32:50:8", DType::f32);
  save(directory / "model.safetensors", fla_v6(*v6));
  check_equal(*v6, *wkv::open_checkpoint(directory / "."));
}

TEST_CASE("tied embeddings, unknown names, wrong shapes") {
  TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  const auto official = wkv::synthetic_checkpoint("v7:1x16:10:8", DType::f32);
  Tensors good = fla_v7(*official, false);
  good.erase("lm_head.weight");
  good["model.layers.0.attn.strange"] = {{2}, {1, 2}};
  good["model.what"] = {{1}, {1}};
  save(path, good);
  const auto source = wkv::open_checkpoint(path);
  CHECK(stored(*source, "head.weight").values == stored(*official, "emb.weight").values);
  CHECK(source->contains("blocks.0.att.strange"));
  CHECK(source->contains("model.what"));
  const auto refused = [&](const std::string& name, Stored t, const char* because) {
    Tensors bad = fla_v7(*official, false);
    bad[name] = std::move(t);
    save(path, bad);
    const std::string message =
        error_of([&] { wkv::open_checkpoint(path); }, wkv::ErrorCode::bad_model);
    CHECK(message.find(because) != std::string::npos);
  };
  Tensors empty = fla_v7(*official, false);
  empty["model.layers.0.attn.w_lora.lora.0.weight"] = {{std::int64_t{1} << 60, 0}, {}};
  save(path, empty);
  CHECK(wkv::open_checkpoint(path)->get("blocks.0.att.w1").numel() == 0);
  refused("model.layers.0.attn.w_lora.lora.0.weight", {{2}, {1, 2}}, "two dimensions");
  refused("model.layers.0.attn.x_bias", {{2}, {1, 2}}, "[5, C]");
  refused("model.layers.0.attn.x_x", {{}, {1}}, "[6, C]");
  refused("model.layers.0.attn.x_proj.2.weight", {{2, 4}, std::vector<float>(8)}, "5 D");
  refused("model.layers.0.attn.receptance.weight", {{1}, {1}}, "two tensors stand for");
}

TEST_CASE("shards with an index") {
  TemporaryDirectory directory;
  const auto official = wkv::synthetic_checkpoint("v4:2x16:20", DType::f32);
  Tensors parts[2];
  std::string map;
  for (const std::string& name : official->names()) {
    const int part = name.find("blocks.1") == 0 ? 1 : 0;
    parts[part][transformers_name(name)] = stored(*official, name);
    map += (map.empty() ? "\"" : ",\"") + transformers_name(name) + "\":\"part-" +
           std::to_string(part) + ".safetensors\"";
  }
  save(directory / "part-0.safetensors", parts[0]);
  save(directory / "part-1.safetensors", parts[1]);
  const fs::path index = directory / "model.safetensors.index.json";
  write_file(index, "{\"metadata\":{},\"weight_map\":{" + map + "}}");
  check_equal(*official, *wkv::open_checkpoint(directory / "."));
  const auto refused = [&](const std::string& json, const char* because,
                           wkv::ErrorCode code = wkv::ErrorCode::bad_model) {
    write_file(index, json);
    const std::string message = error_of([&] { wkv::open_checkpoint(directory / "."); }, code);
    CHECK(message.find(because) != std::string::npos);
  };
  refused("{}", "no 'weight_map'");
  refused(R"({"weight_map":{"w":1}})", "no file name");
  refused(R"({"weight_map":{"w":"../x"}})", "plain file name");
  refused(R"({"weight_map":{"w":"/etc/passwd"}})", "plain file name");
  refused(R"({"weight_map":{"w":".."}})", "plain file name");
  refused(R"({"weight_map":{"w":"part-0.safetensors"}})", "not in its shard");
  refused(R"({"weight_map":{"w":"part-9.safetensors"}})", "part-9", wkv::ErrorCode::io);
}
