// Random checkpoints: names and shapes of the official ones, values that repeat.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "core/dtype.h"
#include "io/synthetic.h"
#include "io_files.h"
#include "wkv/wkv.hpp"

using namespace io_files;
using wkv::DType;

TEST_CASE("synthetic checkpoints have the names and ranks of the golden files") {
  const struct {
    const char* folder;
    const char* spec;
  } cases[] = {{"v1", "v1:2x32:48:8"},    {"v2", "v2:3x32:48"},        {"v3", "v3:2x32:48"},
               {"v4", "v4:2x64:64"},      {"v5_0", "v5.0:2x64:64:32"}, {"v5_1", "v5.1:2x64:64:32"},
               {"v5_2", "v5.2:2x128:64"}, {"v6", "v6:2x128:64"},       {"v7", "v7:2x128:64"}};
  int compared = 0;
  for (const auto& [folder, spec] : cases) {
    CAPTURE(spec);
    const fs::path path = golden_path(folder) / "model.safetensors";
    if (!fs::exists(path)) continue;
    const auto official = wkv::open_checkpoint(path);
    const auto synthetic = wkv::synthetic_checkpoint(spec);
    for (const std::string& name : official->names()) {
      CAPTURE(name);
      // v3's copy head is optional; the golden file has one.
      if (std::string(folder) == "v3" && name.find("head_") == 0) continue;
      if (std::string(folder) == "v3" && name == "copy_mask") continue;
      REQUIRE(synthetic->contains(name));
      CHECK(synthetic->shape(name).size() == official->shape(name).size());
      // Dimensions that the specification fixes; ranks, F and ctx_len are the golden files' own.
      if (name.find("ln") != std::string::npos || name.find("weight") == std::string::npos)
        continue;
      if (name.find("ffn") == std::string::npos && name.find("mlp") == std::string::npos)
        CHECK(synthetic->shape(name) == official->shape(name));
    }
    for (const std::string& name : synthetic->names())
      if (name.find("att.v") == std::string::npos) CHECK(official->contains(name));
    ++compared;
  }
  if (compared == 0) MESSAGE("skipped: no golden files");
}

TEST_CASE("synthetic values: right moments, equal for equal seeds, one for each type") {
  const auto source = wkv::synthetic_checkpoint("v7:2x256:8192", DType::f32, 7);
  for (const char* name : {"emb.weight", "blocks.0.att.key.weight"}) {  // above and below 2^20
    CAPTURE(name);
    const auto tensor = source->get(name);
    const auto n = static_cast<std::size_t>(tensor.numel());
    double sum = 0;
    double squares = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double x = wkv::element_as_f32(tensor.data, tensor.dtype, i);
      sum += x;
      squares += x * x;
    }
    const double wanted = name[0] == 'e' ? 0.02 : 0.5 / 16;
    CHECK(std::abs(sum / static_cast<double>(n)) < 0.05 * wanted);
    CHECK(std::sqrt(squares / static_cast<double>(n)) == doctest::Approx(wanted).epsilon(0.02));
    const auto again = wkv::synthetic_checkpoint("v7:2x256:8192", DType::f32, 7)->get(name);
    const auto other = wkv::synthetic_checkpoint("v7:2x256:8192", DType::f32, 8)->get(name);
    CHECK(std::memcmp(tensor.data, again.data, 4 * n) == 0);
    CHECK(std::memcmp(tensor.data, other.data, 4 * n) != 0);
    const auto half = wkv::synthetic_checkpoint("v7:2x256:8192", DType::bf16, 7)->get(name);
    for (std::size_t i = 0; i < n; i += 97)
      CHECK(wkv::element_as_f32(half.data, DType::bf16, i) ==
            doctest::Approx(wkv::element_as_f32(tensor.data, DType::f32, i)).epsilon(0.01));
  }
  const auto first = source->get("blocks.0.att.key.weight");
  const auto second = source->get("blocks.1.att.key.weight");
  CHECK(std::memcmp(first.data, second.data, 1024) != 0);
  const auto mask = wkv::synthetic_checkpoint("v2:1x8:16", DType::f32)->get("copy_mask");
  const auto* rows = static_cast<const float*>(mask.data);
  CHECK(rows[0] == 1.0f);
  CHECK(rows[1] == 0.0f);
  CHECK(rows[1025] == 1.0f);
}

TEST_CASE("the density of hidden units is the share of rows of ffn.key that count") {
  const auto source = wkv::synthetic_checkpoint("v7:1x64:16@0.2", DType::f32);
  const auto key = source->get("blocks.0.ffn.key.weight");
  const auto* rows = static_cast<const float*>(key.data);
  int zero = 0;
  for (int f = 0; f < 256; ++f) zero += rows[f * 64] == 0 && rows[f * 64 + 63] == 0;
  CHECK(zero == doctest::Approx(0.6 * 256).epsilon(0.15));
}

TEST_CASE("specs of synthetic checkpoints") {
  const auto spec = wkv::SyntheticSpec::parse("v6:24x2048");
  CHECK(spec.version == "6.0");
  CHECK(spec.vocab == 65536);
  CHECK(spec.head_size == 64);
  CHECK(wkv::SyntheticSpec::parse("v4:1x40").vocab == 50277);
  CHECK(wkv::SyntheticSpec::parse("v4:1x40").head_size == 40);
  CHECK(wkv::SyntheticSpec::parse("v7:2x64:100:8").head_size == 8);
  for (const char* wrong : {"",
                            "v8:1x64",
                            "v7",
                            "v7:1",
                            "v7:x64",
                            "v7:0x64",
                            "v7:1x65:10",
                            "v7:1x64:",
                            "v7:1x64:10:",
                            "v7:1x64:10:8:1",
                            "v7:1x64:-1",
                            "v7:1x64x2",
                            "v7:99999999999x64",
                            "7:1x64",
                            "v7:1x64:10:48",
                            "v7:1x64@",
                            "v7:1x64@0",
                            "v7:1x64@0.6",
                            "v7:1x64@x",
                            "v7:1x64@nan"}) {
    CAPTURE(wrong);
    try {
      wkv::synthetic_checkpoint(wrong);
      FAIL_CHECK("no error");
    } catch (const wkv::Error& e) {
      CHECK(e.code() == wkv::ErrorCode::invalid_argument);
    }
  }
}
