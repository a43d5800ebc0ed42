// The readers on files as they should be.
#include <doctest/doctest.h>

#include <cstring>
#include <locale>
#include <map>
#include <set>

#include "core/check.h"
#include "core/dtype.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io_files.h"
#include "wkv/wkv.hpp"

using namespace io_files;
using wkv::DType;
using wkv::ErrorCode;
using wkv::HostTensor;
using wkv::TensorSource;

namespace {

std::string bytes_of(const HostTensor& t) {
  return {static_cast<const char*>(t.data),
          static_cast<std::size_t>(t.numel()) * wkv::dtype_size(t.dtype)};
}

void check_equal(const TensorSource& a, const TensorSource& b) {
  CHECK(std::set(a.names().begin(), a.names().end()) ==
        std::set(b.names().begin(), b.names().end()));
  for (const std::string& name : a.names()) {
    CAPTURE(name);
    REQUIRE(b.contains(name));
    CHECK(a.shape(name) == b.shape(name));
    CHECK(a.dtype(name) == b.dtype(name));
    CHECK(a.get(name).shape == a.shape(name));
    CHECK(bytes_of(a.get(name)) == bytes_of(b.get(name)));
  }
}

template <class F>
std::string error_of(ErrorCode code, F&& f) {
  try {
    f();
  } catch (const wkv::Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
  FAIL("no error");
  return {};
}

TEST_CASE("messages look the same in every locale") {
  struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    char do_decimal_point() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale old = std::locale::global(std::locale(std::locale::classic(), new Grouped));
  const std::string text = wkv::str("rows ", 65536, ", ", -7L, ' ', 1.5f, " at ", 1e-7, true);
  const std::string shape = wkv::shape_str(std::vector<std::int64_t>{65536, 2048});
  std::locale::global(old);
  CHECK(text == "rows 65536, -7 1.5 at 1e-071");
  CHECK(shape == "[65536, 2048]");
}

}  // namespace

TEST_CASE("a .pth and its .safetensors twin hold the same bits") {
  int pairs = 0;
  for (const fs::path& path : checkpoints("model.pth")) {
    CAPTURE(path.string());
    const fs::path twin = fs::path(path).replace_extension(".safetensors");
    if (!fs::exists(twin)) continue;
    const auto a = wkv::open_checkpoint(path);
    const auto b = wkv::open_checkpoint(twin);
    check_equal(*a, *b);
    ++pairs;
  }
  if (pairs == 0) MESSAGE("skipped: no checkpoints in WKV_SHARED or ../shared");
}

TEST_CASE("every checkpoint opens") {
  for (const char* suffix : {".pth", ".safetensors"})
    for (const fs::path& path : checkpoints(suffix)) {
      CAPTURE(path.string());
      const auto source = wkv::open_checkpoint(path);
      CHECK(source->description() == path.string());
      for (const std::string& name : source->names()) CHECK(source->get(name).data != nullptr);
    }
}

TEST_CASE("containers of one model: old, plain dict, prefix, views, mixed types") {
  if (!fs::exists(golden_path("pth_variants_of_v4"))) {
    MESSAGE("skipped: no pth_variants_of_v4");
    return;
  }
  const auto original = wkv::open_checkpoint(golden_path("v4/model.safetensors"));
  for (const char* name :
       {"legacy_not_zip", "one_storage_offsets_strides", "plain_dict", "prefix_forward_module"}) {
    CAPTURE(name);
    const auto variant =
        wkv::open_checkpoint(golden_path("pth_variants_of_v4") / name);  // no suffix
    check_equal(*original, *variant);
  }
  // Mixed types: the same numbers, each tensor in a type of its own.
  const auto mixed = wkv::open_checkpoint(golden_path("pth_variants_of_v4/mixed_dtypes.pth"));
  CHECK(mixed->names().size() == original->names().size());
  std::set<DType> types;
  for (const std::string& name : mixed->names()) {
    CAPTURE(name);
    const HostTensor a = original->get(name);
    const HostTensor b = mixed->get(name);
    types.insert(b.dtype);
    REQUIRE(a.shape == b.shape);
    float worst = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(a.numel()); ++i) {
      const float x = wkv::element_as_f32(a.data, a.dtype, i);
      const float y = wkv::element_as_f32(b.data, b.dtype, i);
      worst = std::max(worst, std::abs(x - y) / std::max(1e-3f, std::abs(x)));
    }
    CHECK(worst < 1e-3f);  // fp16 of a bf16 number loses only subnormals
  }
  CHECK(types.size() > 1);
}

TEST_CASE("a pickled v1 module opens as its state dict") {
  if (!fs::exists(golden_path("v1_pickled_module"))) {
    MESSAGE("skipped: no v1_pickled_module");
    return;
  }
  check_equal(*wkv::open_checkpoint(golden_path("v1/model.safetensors")),
              *wkv::open_checkpoint(golden_path("v1_pickled_module/model_full_pickle.pth")));
}

TEST_CASE("contiguous tensors point into the mapping") {
  TemporaryDirectory directory;
  write_file(directory / "a.pth", pth(pickle(dict({{"w", TensorPickle{}.str()}}))).bytes());
  const auto source = wkv::open_checkpoint(directory / "a");
  CHECK(source->get("w").data == source->get("w").data);
  const HostTensor kept = wkv::open_checkpoint(directory / "a.pth")->get("w");
  CHECK(bytes_of(kept) == std::string(24, 'a'));  // the tensor keeps the mapping alive
}

TEST_CASE("views: offsets, transposes, shared storages, scalars, empty tensors") {
  std::string storage;
  for (int i = 0; i < 6; ++i) storage += le(static_cast<float>(i));
  const auto at = [](std::int64_t offset, std::vector<std::int64_t> shape,
                     std::vector<std::int64_t> strides) {
    TensorPickle t;
    t.offset = offset;
    t.shape = std::move(shape);
    t.strides = std::move(strides);
    return t.str();
  };
  const auto source = open_text(pth(pickle(dict({{"all", at(0, {2, 3}, {3, 1})},
                                                 {"t", at(0, {3, 2}, {1, 3})},
                                                 {"column", at(1, {2}, {3})},
                                                 {"cube", at(0, {1, 3, 2}, {7, 1, 3})},
                                                 {"row", at(3, {1, 3}, {9, 1})},
                                                 {"scalar", at(5, {}, {})},
                                                 {"none", at(6, {0, 3}, {3, 1})}})),
                                    storage)
                                    .bytes());
  const auto floats = [&](const char* name) {
    const HostTensor t = source->get(name);
    std::vector<float> out(static_cast<std::size_t>(t.numel()));
    if (!out.empty()) std::memcpy(out.data(), t.data, out.size() * sizeof(float));
    return out;
  };
  CHECK(floats("all") == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(floats("t") == std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(floats("column") == std::vector<float>{1, 4});
  CHECK(floats("cube") == std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(floats("row") == std::vector<float>{3, 4, 5});
  CHECK(floats("scalar") == std::vector<float>{5});
  CHECK(floats("none").empty());
  CHECK(source->shape("none") == std::vector<std::int64_t>{0, 3});
}

TEST_CASE("dicts: other values are skipped, nested dicts found, later protocols read") {
  const std::string tensor = TensorPickle{}.str();
  const std::string others = dict({{"epoch", number(3)},
                                   {"w", tensor},
                                   {"lr", std::string("G") + std::string(8, '\0')},
                                   {"tag", text("x")},
                                   {"size", global("torch", "Size") + tuple({1}) + "\x85R"},
                                   {"type", global("torch", "bfloat16")}});
  CHECK(open_text(pth(pickle(others)).bytes())->names() == std::vector<std::string>{"w"});
  for (const char* key : {"state_dict", "model", "module"}) {
    const auto nested = dict({{"epoch", number(1)}, {key, dict({{"_forward_module.w", tensor}})}});
    CHECK(open_text(pth(pickle(nested)).bytes())->names() == std::vector<std::string>{"w"});
  }
  // Protocol 4: PROTO 4, FRAME, short texts, STACK_GLOBAL, MEMOIZE.
  std::string late = std::string("\x80\x04\x95") + le(std::uint64_t{9}) + "}\x94\x8c\x01w";
  late += std::string("\x8c\x0c") + "torch._utils" + "\x8c\x12" + "_rebuild_tensor_v2" + "\x93" +
          tensor.substr(global("torch._utils", "_rebuild_tensor_v2").size()) + "s.";
  CHECK(bytes_of(open_text(pth(late).bytes())->get("w")) == std::string(24, 'a'));
}

TEST_CASE("untyped storages of torch 2") {
  const std::string body = global("torch._utils", "_rebuild_tensor_v3") + "((" + text("storage") +
                           global("torch.storage", "UntypedStorage") + text("0") + text("cpu") +
                           number(24) + "tQ" + number(2) + tuple({2, 3}) + tuple({3, 1}) + "\x89}" +
                           global("torch", "bfloat16") + "tR";
  const auto source = open_text(pth(pickle(dict({{"w", body}}))).bytes());
  CHECK(source->dtype("w") == DType::bf16);
  CHECK(bytes_of(source->get("w")) == std::string(12, 'a'));
  // A type we do not have is an error only when the tensor is asked for.
  std::string strange = body;
  strange.replace(strange.find("bfloat16"), 8, "uint16");
  const auto other = open_text(pth(pickle(dict({{"w", strange}}))).bytes());
  CHECK(other->shape("w") == std::vector<std::int64_t>{2, 3});
  CHECK(error_of(ErrorCode::bad_model, [&] { other->get("w"); }).find("uint16") !=
        std::string::npos);
}

TEST_CASE("zip64 archives") {
  Zip zip = pth(pickle(dict({{"w", TensorPickle{}.str()}})));
  zip.zip64 = true;
  CHECK(bytes_of(open_text(zip.bytes())->get("w")) == std::string(24, 'a'));
}

TEST_CASE("JSON") {
  const auto value = wkv::parse_json(
      R"( {"a": [1, -2.5e3, true, null], "b\n\u00e9\ud83d\ude00": "x\/y", "c": {}} )", "");
  REQUIRE(value.object() != nullptr);
  const auto& a = *value.find("a")->array();
  CHECK(*a[0].integer() == 1);
  CHECK(*a[1].real() == -2500.0);
  CHECK(*a[2].boolean());
  CHECK(a[3].is_null());
  CHECK(*value.find("b\n\xc3\xa9\xf0\x9f\x98\x80")->string() == "x/y");
  CHECK(*wkv::parse_json("-9223372036854775808", "").integer() == INT64_MIN);
  CHECK(*wkv::parse_json(wkv::json_string("\"\\\x01\xc3\xa9"), "").string() == "\"\\\x01\xc3\xa9");
}

TEST_CASE("safetensors: written and read back, aligned, in order") {
  TemporaryDirectory directory;
  const std::vector<float> matrix(48, 1.5f);
  const std::vector<std::uint16_t> vector(5, 0x3f80);
  std::vector<wkv::TensorToSave> tensors;
  tensors.push_back(wkv::tensor_to_save("odd", {vector.data(), DType::bf16, {5}, nullptr}));
  tensors.push_back(wkv::tensor_to_save("m\"\xc3\xa9", {matrix.data(), DType::f32, {3, 16}, {}}));
  tensors.push_back({"pieces", DType::u8, {128}, [](const auto& sink) {
                       for (int i = 0; i < 4; ++i) sink(std::string(32, 'p').data(), 32);
                     }});
  tensors.push_back(wkv::tensor_to_save("empty", {matrix.data(), DType::f32, {0, 4}, {}}));
  std::int64_t last = 0;
  wkv::save_safetensors(directory / "a.safetensors", tensors, {{"format", "pt"}},
                        [&](std::int64_t done, std::int64_t total) {
                          CHECK(done >= last);
                          last = done;
                          return done <= total;
                        });
  CHECK(last == 10 + 192 + 128);
  const auto source = wkv::open_checkpoint(directory / "a");
  CHECK(source->names() == std::vector<std::string>{"odd", "m\"\xc3\xa9", "pieces", "empty"});
  CHECK(source->metadata("format") == "pt");
  CHECK(source->metadata("absent").empty());
  CHECK(bytes_of(source->get("pieces")) == std::string(128, 'p'));
  CHECK(bytes_of(source->get("odd")) ==
        std::string(reinterpret_cast<const char*>(vector.data()), 10));
  for (const char* name : {"m\"\xc3\xa9", "pieces"})
    CHECK(reinterpret_cast<std::uintptr_t>(source->get(name).data) % 64 == 0);
}

TEST_CASE("safetensors: a failed write leaves the old file") {
  TemporaryDirectory directory;
  const fs::path path = directory / "a.safetensors";
  write_file(path, "old");
  const auto wrong = [](std::size_t bytes) {
    return std::vector<wkv::TensorToSave>{{"w", DType::f32, {4}, [bytes](const auto& sink) {
                                             sink(std::string(bytes, 'x').data(), bytes);
                                           }}};
  };
  error_of(ErrorCode::invalid_argument, [&] { wkv::save_safetensors(path, wrong(15)); });
  error_of(ErrorCode::invalid_argument, [&] { wkv::save_safetensors(path, wrong(17)); });
  error_of(ErrorCode::cancelled,
           [&] { wkv::save_safetensors(path, wrong(16), {}, [](auto, auto) { return false; }); });
  CHECK_THROWS_AS(
      wkv::save_safetensors(
          path,
          {{"w", DType::f32, {4}, [](const auto&) { throw std::runtime_error("source failed"); }}}),
      std::runtime_error);
  error_of(ErrorCode::invalid_argument,
           [&] { wkv::save_safetensors(path, {wrong(16)[0], wrong(16)[0]}); });
  error_of(ErrorCode::invalid_argument,
           [&] { wkv::save_safetensors(path, {{"w", DType::int4, {4}, [](const auto&) {}}}); });
  error_of(ErrorCode::io,
           [&] { wkv::save_safetensors(directory / "no/such/a.safetensors", wrong(16)); });
  CHECK(read_text(path) == "old");
  CHECK(std::distance(fs::directory_iterator(path.parent_path()), {}) == 1);
  wkv::save_safetensors(path, wrong(16));
  CHECK(bytes_of(wkv::open_checkpoint(path)->get("w")) == std::string(16, 'x'));
}

TEST_CASE("files that cannot be opened") {
  TemporaryDirectory directory;
  const auto open = [&](const fs::path& path) {
    return error_of(ErrorCode::io, [&] { wkv::open_checkpoint(path); });
  };
  const std::string missing = open(directory / "no");
  for (const char* tried : {"/no", "/no.pth", "/no.safetensors"})
    CHECK(missing.find(tried) != std::string::npos);
  CHECK(open(directory / ".").find("directory") != std::string::npos);
  CHECK(open("/dev/null").find("regular") != std::string::npos);
  write_file(directory / "empty.pth", "");  // a download that never began
  const std::string empty =
      error_of(ErrorCode::bad_model, [&] { wkv::open_checkpoint(directory / "empty"); });
  CHECK(empty.find("empty") != std::string::npos);
}
