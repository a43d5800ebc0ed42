// The readers on files that lie: one Error(bad_model) each, never a crash, never much memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

#include "core/dtype.h"
#include "io/json.h"
#include "io_files.h"
#include "wkv/wkv.hpp"

using namespace io_files;

namespace {

// Opens and reads everything. The message of the error, or "" if the file is good.
std::string verdict(std::string_view bytes) {
  try {
    const auto source = open_text(bytes);
    unsigned sum = 0;
    for (const std::string& name : source->names()) {
      const wkv::HostTensor tensor = source->get(name);
      const auto* p = static_cast<const unsigned char*>(tensor.data);
      const std::size_t n =
          static_cast<std::size_t>(tensor.numel()) * wkv::dtype_size(tensor.dtype);
      for (std::size_t i = 0; i < n; i += n < 4096 ? 1 : 4096) sum += p[i];  // every page
    }
    static volatile unsigned sink;
    sink = sink + sum;
    return {};
  } catch (const wkv::Error& e) {
    if (e.code() != wkv::ErrorCode::bad_model) FAIL_CHECK(e.what());
    return e.what();
  }
}

void refused(const std::string& bytes, std::string_view because) {
  const std::string message = verdict(bytes);
  CAPTURE(message);
  CAPTURE(because);
  CHECK(message.find(because) != std::string::npos);
  CHECK(std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c < 127; }));
}

std::string state_dict(const TensorPickle& t) { return pickle(dict({{"w", t.str()}})); }

std::string tensor_with(const std::function<void(TensorPickle&)>& bend) {
  TensorPickle t;
  bend(t);
  return pth(state_dict(t)).bytes();
}

// An object of class "m.M" with these members.
std::string module(const std::vector<std::pair<std::string, std::string>>& parameters,
                   const std::string& children) {
  return global("m", "M") + ")\x81" +
         dict({{"_parameters", dict(parameters)}, {"_modules", children}}) + "b";
}

std::string legacy() {
  const std::string magic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 15);
  std::string tensor = TensorPickle{}.str();
  return magic + pickle(number(1001)) + pickle(dict({{"little_endian", "\x88"}})) +
         pickle(dict({{"w", tensor}})) + pickle("](" + text("0") + "e") + le(std::uint64_t{6}) +
         std::string(24, 'a');
}

const char* const kHeader =
    R"({"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";

}  // namespace

TEST_CASE("zip archives that lie") {
  const std::string good = pth(state_dict({})).bytes();
  REQUIRE(verdict(good).empty());
  REQUIRE(verdict(good + "").empty());
  const auto bent = [&](const std::function<void(Zip&)>& bend, bool zip64 = false) {
    Zip zip = pth(state_dict({}));
    zip.zip64 = zip64;
    bend(zip);
    return zip.bytes();
  };
  refused(bent([](Zip& z) { z.entries[2].method = 8; }), "'x/data/0' is compressed (method 8)");
  refused(bent([](Zip& z) { z.entries[2].flags = 1; }), "'x/data/0' is encrypted");
  for (const bool zip64 : {false, true}) {
    CAPTURE(zip64);
    refused(bent([](Zip& z) { z.entries[2].size_lie = 1 << 20; }, zip64), "does not fit");
    refused(bent([](Zip& z) { z.entries[2].offset_lie = 0; }, zip64), "is called");
    refused(bent([](Zip& z) { z.entries[2].offset_lie = 7; }, zip64), "no header");
    refused(bent([](Zip& z) { z.entries[2].offset_lie = 0x7fffffff; }, zip64), "no header");
    refused(bent([](Zip& z) { z.entries[2].size_lie = 64; }, zip64), "overlap");
  }
  refused(bent([](Zip& z) { z.entries[2].size_lie = INT64_MAX; }, true), "does not fit");
  refused(bent([](Zip& z) { z.entries[2].offset_lie = INT64_MAX; }, true), "no header");
  refused(bent([](Zip& z) { z.entries.push_back(z.entries[2]); }), "occurs twice");
  refused(bent([](Zip& z) { z.entries[2].name = "x/data/1"; }), "which the file does not have");
  refused(bent([](Zip& z) { z.entries[0].name = "x/data.pk"; }), "no */data.pkl");
  refused(bent([](Zip& z) { z.entries[1].data = "big"; }), "byte order is 'big'");
  refused(bent([](Zip& z) { z.entries.push_back({"x/constants.pkl", "."}); }), "TorchScript");
  refused(bent([](Zip& z) { z.entries.clear(); }), "no */data.pkl");
  refused(good + "x", "end-of-directory");
  refused("PK\3\4", "end-of-directory");
  refused("GGUF....", "neither .pth nor .safetensors");
  std::string more = good;
  more[more.size() - 12] = '\xff';  // number of entries
  refused(more, "entries in a directory");
}

TEST_CASE("pickles that do more than build tensors") {
  const std::string tensor = TensorPickle{}.str();
  const auto item = [&](const std::string& value) {
    return pth(pickle(dict({{"w", tensor}, {"x", value}}))).bytes();
  };
  const std::string nothing = "nothing was executed";
  refused(item(global("os", "system") + text("echo") + "\x85R"), "'os.system'");
  refused(item(global("os", "system") + text("echo") + "\x85R"), nothing);
  refused(item(global("builtins", "eval")), "'builtins.eval'");
  refused(item(global("builtins", "eval")), nothing);
  refused(item(global("posix", "system") + text("echo") + "\x85\x81"), "'posix.system'");
  refused(item(global("torch.storage", "_load_from_bytes") + "C\x01x\x85R"), "_load_from_bytes");
  refused(item(global("torch._tensor", "_rebuild_from_type_v2") + "(" + global("os", "system") +
               global("torch", "Tensor") + "(t}tR"),
          "'os.system'");
  refused(item(global("argparse", "Namespace") + ")\x81}b"), "'argparse.Namespace'");
  refused(item(std::string("(cos\nsystem\nS'echo'\no")), "opcode");
  refused(item("i" + std::string("os\nsystem\n")), "opcode");
  refused(item(number(7) + ")R"), "not a function");
  refused(pth(pickle(global("os", "system"))).bytes(), "'os.system'");
  refused(pth(pickle(global("os", "system") + ")\x81}b")).bytes(), "'os.system'");
  // Inside a module tree a class is only a name; calling it is refused there as well.
  const std::string tree = module({{"w", tensor}}, dict({{"c", global("os", "system")}}));
  CHECK(verdict(pth(pickle(tree)).bytes()).empty());
  refused(pth(pickle(module({{"w", tensor}},
                            dict({{"c", global("os", "system") + text("echo") + "\x85R"}}))))
              .bytes(),
          "'os.system'");
  refused(pth(pickle(module({{"w", tensor}}, dict({{"c", global("os", "system") + ")\x81}b"}}))))
              .bytes(),
          "where a module was expected");
}

TEST_CASE("pickles that are broken") {
  const auto raw = [](const std::string& bytes) { return pth(bytes).bytes(); };
  refused(raw(""), "cut off");
  refused(raw("\x80\x02"), "cut off");
  refused(raw("\x80\x02."), "0 values on its stack");
  refused(raw("\x80\x02NN."), "2 values on its stack");
  refused(raw("\x80\x01N."), "protocol 1");
  refused(raw("\x80\x02(N."), "values on its stack");
  refused(raw("\x80\x02R."), "empty stack");
  refused(raw("\x80\x02t."), "no mark");
  refused(raw("\x80\x02N(R."), "empty stack");
  refused(raw("\x80\x02N\x87."), "takes 3 values");
  refused(raw("\x80\x02h\x05."), "memo 5");
  refused(raw("\x80\x02}(Nu."), "a key without a value");
  refused(raw("\x80\x02NNNs."), "not a dict");
  refused(raw("\x80\x02NNa."), "not a list");
  refused(raw("\x80\x02X\xff\xff\xff\xff."), "wants 4294967295 bytes");
  refused(raw(std::string("\x80\x02\x8d") + std::string(8, '\xff')), "text of");
  refused(raw("\x80\x02" + text("x") + "b."), "empty stack");
  refused(raw("\x80\x02"
              "cos"),
          "name without an end");
  refused(raw("\x80\x02\xee."), "opcode 238");
  refused(raw(pickle("NQ")), "not a tuple");
  refused(raw(pickle("(" + text("blob") + "tQ")), "unknown kind 'blob'");
  refused(raw(pickle("]")), "holds no dict");
  refused(raw(pickle("}")), "holds no tensors");
  refused(raw(pickle(dict({{"n", number(1)}}))), "holds no tensors");
  const std::string t = TensorPickle{}.str();
  refused(raw(pickle(dict({{"w", t}, {"w", t}}))), "occurs twice");
  refused(raw(pickle(dict({{"w", t}, {"_forward_module.w", t}}))), "occurs twice");
  refused(raw(pickle(dict({{"", t}}))), "unusable tensor name");
  refused(raw(pickle(dict({{"\xff", t}}))), "unusable tensor name");
  refused(raw(pickle(dict({{std::string(2000, 'n'), t}}))), "unusable tensor name");
  refused(raw(pickle("}" + number(1) + t + "s")), "not a text");
}

TEST_CASE("tensors that do not fit their storage") {
  const std::int64_t huge = std::int64_t{1} << 62;
  const auto shape = [](std::vector<std::int64_t> dims, std::vector<std::int64_t> strides) {
    return tensor_with([&](TensorPickle& t) {
      t.shape = dims;
      t.strides = strides;
    });
  };
  refused(shape({7}, {1}), "larger than its storage");
  refused(shape({2, 3}, {4, 1}), "reaches outside");
  refused(shape({2}, {6}), "reaches outside");
  refused(shape({2}, {huge}), "reaches outside");
  refused(shape({huge}, {1}), "impossible shape");
  refused(shape({huge / 2, 2, 2}, {1, 1, 1}), "impossible shape");
  refused(shape({0, huge, huge}, {1, 1, 1}), "impossible shape");
  refused(shape({1 << 30}, {0}), "larger than its storage");  // one element repeated
  refused(shape({-2, -3}, {3, 1}), "not a size");
  refused(shape({2, 3}, {-3, 1}), "not a size");
  refused(shape({2, 3}, {1}), "and strides");
  refused(shape(std::vector<std::int64_t>(9, 1), std::vector<std::int64_t>(9, 1)), "dimensions");
  refused(tensor_with([](TensorPickle& t) { t.offset = 1; }), "reaches outside");
  refused(tensor_with([&](TensorPickle& t) { t.offset = huge; }), "larger than its storage");
  refused(tensor_with([](TensorPickle& t) { t.offset = -1; }), "negative");
  refused(tensor_with([](TensorPickle& t) { t.numel = 7; }), "only 24 bytes");
  refused(tensor_with([&](TensorPickle& t) { t.numel = huge; }), "only 24 bytes");
  refused(tensor_with([](TensorPickle& t) { t.numel = 5; }), "larger than its storage");
  refused(tensor_with([](TensorPickle& t) { t.type = "DoubleStorage"; }), "only 24 bytes");
  refused(tensor_with([](TensorPickle& t) { t.type = "QInt8Storage"; }), "'QInt8Storage'");
  refused(tensor_with([](TensorPickle& t) { t.type = "float32"; }), "not a storage class");
  refused(tensor_with([](TensorPickle& t) { t.type = "Monster"; }), "not a storage class");
  refused(tensor_with([](TensorPickle& t) { t.key = "../0"; }), "does not have");
  CHECK(verdict(shape({1, 6}, {huge, 1})).empty());  // the stride of one row is never used
}

TEST_CASE("small pickles that want much memory or time") {
  // A list of 2^12 numbers, copied by OrderedDict 2^14 times.
  std::string pairs = "](";
  for (int i = 0; i < 4096; ++i) pairs += "NN\x86";
  std::string copies = pairs + "eq\x01\x30" + global("collections", "OrderedDict") + "q\x02\x30(";
  for (int i = 0; i < 16384; ++i) copies += "h\x02h\x01\x85R";
  refused(pth(pickle(copies + "t")).bytes(), "4 million items");
  // Modules that all share one child, and one that is its own child.
  std::string tower = module({{"w", TensorPickle{}.str()}}, "}");
  for (int i = 0; i < 30; ++i)
    tower +=
        std::string("q\x01\x30") + module({}, "}(" + text("a") + "h\x01" + text("b") + "h\x01u");
  refused(pth(pickle(tower)).bytes(), "more than");
  const std::string self = global("m", "M") + ")\x81q\x01" +
                           dict({{"_parameters", "}"}, {"_modules", dict({{"a", "h\x01"}})}}) + "b";
  refused(pth(pickle(self)).bytes(), "more than 32 deep");
  refused(pth("\x80\x02" + std::string(1 << 21, '(')).bytes(), "opcodes");
  refused(pth("\x80\x02" + std::string(1 << 21, 'N')).bytes(), "opcodes");
  refused(pth("\x80\x02" + std::string(1 << 20, ']') + std::string(1 << 20, 'a')).bytes(),
          "opcodes");
}

TEST_CASE("the container from before torch 1.6, bent") {
  const std::string good = legacy();
  REQUIRE(verdict(good).empty());
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string out = good;
    const std::size_t at = out.find(from);
    REQUIRE(at != std::string::npos);
    return out.replace(at, from.size(), to);
  };
  refused(replaced(number(1001), number(1002)), "unknown protocol");
  refused(replaced("\x88", "\x89"), "little-endian");
  refused(replaced(le(std::uint64_t{6}) + "aaa", le(std::uint64_t{7}) + "aaa"), "has 7");
  refused(replaced(le(std::uint64_t{6}) + "aaa", le(~std::uint64_t{0}) + "aaa"), "should have 6");
  refused(replaced("](" + text("0"), "](" + text("1")), "no tensor names");
  refused(replaced("FloatStorage", "QInt8Storage"), "unknown element type");
}

TEST_CASE("safetensors that lie") {
  REQUIRE(verdict(safetensors(kHeader)).empty());
  const auto header = [](const std::string& json) { return safetensors(json); };
  const auto one = [](const std::string& dtype, const std::string& shape,
                      const std::string& range) {
    return safetensors("{\"w\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
                       ",\"data_offsets\":" + range + "}}");
  };
  refused(le(std::uint64_t{1} << 20) + "{", "header of 1048576 bytes");
  refused(le(~std::uint64_t{0}) + "{", "neither");
  refused(header("{"), "JSON, byte 1");
  refused(header("[]"), "neither");
  refused(header("{\"w\":1}"), "has no dtype");
  refused(header(R"({"__metadata__":1})"), "not an object");
  refused(header(R"({"__metadata__":{"a":1}})"), "not a text");
  refused(one("F32", "[2,3]", "[0,24,25]"), "offsets");
  refused(one("F32", "[2,3]", "[0,25]"), "offsets");
  refused(one("F32", "[2,3]", "[24,0]"), "offsets");
  refused(one("F32", "[2,3]", "[0,9223372036854775807]"), "offsets");
  refused(one("F32", "[2,3]", "[-1,24]"), "not a size");
  refused(one("F32", "[2,3]", "[0.0,24]"), "not a size");
  refused(one("F32", "[2,4]", "[0,24]"), "wants 32 bytes, has 24");
  refused(one("F32", "[-2,-3]", "[0,24]"), "not a size");
  refused(one("F32", "[4611686018427387904,4]", "[0,24]"), "impossible shape");
  refused(one("F32", "[0,4611686018427387904,4]", "[0,0]"), "impossible shape");
  refused(one("F32", "[1,1,1,1,1,1,1,2,3]", "[0,24]"), "dimensions");
  refused(one("F32", "[2,2]", "[4,20]"), "begins at byte 4");
  refused(one("F32", "[2,2]", "[0,16]"), "end at byte 16");
  refused(one("F32", "2", "[0,24]"), "no array 'shape'");
  refused(one("F4", "[2,3]", "[0,24]"), "unknown element type 'F4'");  // when it is read
  refused(one("U32", "[2,3]", "[0,24]"), "unknown element type 'U32'");
  refused(one("U32", "[2,2]", "[0,24]"), "wants 16 bytes");
  const std::string t = R"({"dtype":"U8","shape":[12],"data_offsets":)";
  refused(header("{\"a\":" + t + "[0,12]},\"b\":" + t + "[6,18]}}"), "begins at byte 6");
  refused(header("{\"a\":" + t + "[0,12]},\"b\":" + t + "[0,12]}}"), "begins at byte 0");
  refused(header("{\"a\":" + t + "[0,12]},\"a\":" + t + "[12,24]}}"), "occurs twice");
  refused(header(std::string("{\"\xff\":1}")), "not UTF-8");
}

TEST_CASE("JSON that lies") {
  const auto refuse = [](const std::string& json, std::string_view because) {
    CAPTURE(json.substr(0, 40));
    try {
      wkv::parse_json(json, "[x] ");
      FAIL_CHECK("no error");
    } catch (const wkv::Error& e) {
      CHECK(std::string(e.what()).find(because) != std::string::npos);
    }
  };
  refuse("", "a value expected");
  refuse(std::string(33, '[') + std::string(33, ']'), "nested too deep");
  refuse(std::string(1 << 20, '['), "nested too deep");
  std::string many = "[0";
  for (int i = 0; i < (1 << 20); ++i) many += ",0";
  refuse(many + "]", "too many values");
  for (const char* wrong : {"[1,]", "[1 2]",   "{\"a\" 1}", "{\"a\":1,}",  "{a:1}",   "tru",
                            "+1",   ".5",      "-",         "1.",          "1e",      "1e+",
                            "\"a",  "\"\\x\"", "\"\\u12\"", "\"\\ug000\"", "\"\t\"",  "nul",
                            "[",    "{",       "\"\\",      "NaN",         "Infinity"})
    refuse(wrong, "JSON, byte");
  refuse("[1]]", "text after the end");
  refuse("01", "text after the end");
  refuse("{\"a\":1,\"a\":2}", "occurs twice");
  refuse("{\"a\":1,\"\\u0061\":2}", "occurs twice");
  refuse("9223372036854775808", "integer out of range");
  refuse("1e999", "out of range");
  refuse("\"\\ud800\"", "surrogate");
  refuse("\"\\udc00\"", "surrogate");
  refuse("\"\\ud800\\u0061\"", "surrogate");
  for (const char* wrong : {"\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe9\"",
                            "\"\x80\"", "\"\xf8\x88\x80\x80\x80\""})
    refuse(wrong, "not UTF-8");
}

// Everything that is shorter than the file, or that differs from it by one bit, is refused or reads
// as tensors; it never crashes.
TEST_CASE("every truncation and every flipped bit of small files") {
  Zip wide = pth(state_dict({}));
  wide.zip64 = true;
  const std::string files[] = {pth(state_dict({})).bytes(), wide.bytes(), legacy(),
                               safetensors(kHeader),
                               pth(pickle(module({{"w", TensorPickle{}.str()}}, "}"))).bytes()};
  for (const std::string& file : files) {
    CAPTURE(file.substr(0, 4));
    for (std::size_t size = 0; size < file.size(); ++size)
      if (verdict(file.substr(0, size)).empty()) FAIL_CHECK("cut to ", size, " bytes, it opens");
    for (std::size_t bit = 0; bit < 8 * file.size(); ++bit) {
      std::string flipped = file;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
      verdict(flipped);
    }
  }
}

TEST_CASE("truncations and flipped bits of real files") {
  for (const char* name :
       {"v4/model.pth", "v4/model.safetensors", "v7/model.pth",
        "v1_pickled_module/model_full_pickle.pth", "pth_variants_of_v4/legacy_not_zip.pth"}) {
    CAPTURE(name);
    const fs::path path = golden_path(name);
    if (!fs::exists(path)) continue;
    const std::string file = read_text(path);
    REQUIRE(verdict(file).empty());
    // All of the header and of the directory at the end, in steps of an odd size between.
    const std::size_t head = 800;
    for (std::size_t size = 0; size < file.size();
         size += size < head || size + head > file.size() ? 1 : 331)
      if (verdict(std::string_view(file).substr(0, size)).empty())
        FAIL_CHECK("cut to ", size, " bytes, it opens");
    std::string bent = file;
    for (std::size_t at = 0; at < file.size();
         at += at < head || at + head > file.size() ? 1 : 331) {
      bent[at] = static_cast<char>(file[at] ^ 1 << at % 8);
      verdict(bent);
      bent[at] = file[at];
    }
  }
}
