// The World tokenizer against a short slow version of itself; vocabulary files.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wkv/text.hpp"

namespace {

using wkv::Token;
using wkv::WorldTokenizer;

std::string random_bytes(std::mt19937& random, std::size_t size, int alphabet) {
  std::string bytes(size, '\0');
  std::uniform_int_distribution<int> byte(0, alphabet - 1);
  for (char& c : bytes) c = static_cast<char>(byte(random));
  return bytes;
}

/// Greedy longest match by trying every length.
std::vector<Token> slow_encode(const std::map<std::string, Token>& vocab, std::string_view text) {
  std::vector<Token> ids;
  while (!text.empty()) {
    for (std::size_t length = std::min<std::size_t>(text.size(), 128); length > 0; --length) {
      const auto found = vocab.find(std::string(text.substr(0, length)));
      if (found == vocab.end()) continue;
      ids.push_back(found->second);
      text.remove_prefix(length);
      break;
    }
  }
  return ids;
}

struct TemporaryFile {
  explicit TemporaryFile(const std::string& content)
      : path(std::filesystem::temp_directory_path() /
             ("wkv_vocab_" + std::to_string(std::random_device{}()) + ".txt")) {
    std::ofstream(path, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::filesystem::path path;
};

wkv::ErrorCode vocab_error(const std::string& content, std::string& message) {
  const TemporaryFile file(content);
  try {
    WorldTokenizer::from_file(file.path);
  } catch (const wkv::Error& error) {
    message = error.what();
    return error.code();
  }
  return wkv::ErrorCode::internal;
}

}  // namespace

TEST_CASE("World tokenizer: greedy longest match over any bytes") {
  if (!WorldTokenizer::has_builtin()) {
    CHECK_THROWS_AS(WorldTokenizer::builtin(), wkv::Error);
    return;
  }
  const WorldTokenizer world = WorldTokenizer::builtin();
  CHECK(world.size() == 65536);
  CHECK(world.encode("").empty());
  CHECK(world.encode("\n\n") == std::vector<Token>{261});
  CHECK(world.encode("\r\n") == std::vector<Token>{263});
  CHECK(world.encode(std::string(1, '\0')) == std::vector<Token>{1});

  std::map<std::string, Token> vocab;
  for (Token id = 1; id <= 65529; ++id) vocab[std::string(world.token_bytes(id))] = id;
  REQUIRE(vocab.size() == 65529);
  std::mt19937 random(7);
  for (const int alphabet : {2, 128, 256}) {
    const std::string text = random_bytes(random, 20000, alphabet);
    CHECK(world.encode(text) == slow_encode(vocab, text));
  }
  // Tokens end to end, long ones included, and cut short.
  std::string text;
  std::uniform_int_distribution<Token> any(1, 65529);
  for (int i = 0; i < 5000; ++i) text += world.token_bytes(any(random));
  const std::vector<Token> ids = world.encode(text);
  CHECK(ids == slow_encode(vocab, text));
  CHECK(world.decode(ids) == text);
}

TEST_CASE("World tokenizer: any id decodes") {
  if (!WorldTokenizer::has_builtin()) return;
  const WorldTokenizer world = WorldTokenizer::builtin();
  const std::vector<Token> strange{0,
                                   -1,
                                   65530,
                                   65535,
                                   65536,
                                   std::numeric_limits<Token>::max(),
                                   std::numeric_limits<Token>::min(),
                                   34};
  CHECK(world.decode(strange) == "!");
  CHECK(world.token_bytes(-1).empty());
  CHECK(world.token_bytes(0).empty());
}

TEST_CASE("World tokenizer: threads change nothing") {
  if (!WorldTokenizer::has_builtin()) return;
  const WorldTokenizer world = WorldTokenizer::builtin();
  std::mt19937 random(8);
  std::string text;
  std::uniform_int_distribution<Token> any(1, 65529);
  while (text.size() < (3u << 20)) text += world.token_bytes(any(random));
  const std::vector<Token> ids = world.encode(text);
  CHECK(world.encode(text, 3) == ids);
  CHECK(world.encode(text, 0) == ids);
  const std::string blanks(2 << 20, ' ');  // nowhere to cut
  CHECK(world.encode(blanks, 3) == world.encode(blanks, 1));

  std::vector<std::string_view> texts{"", "a", "", std::string_view(text).substr(0, 1000000)};
  for (std::size_t i = 0; i < 500; ++i) texts.push_back(std::string_view(text).substr(i * 7, i));
  for (const int threads : {0, 1, 4}) {
    const auto batch = world.encode_batch(texts, threads);
    REQUIRE(batch.size() == texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) CHECK(batch[i] == world.encode(texts[i]));
  }
  CHECK(world.encode_batch({}).empty());
  CHECK_THROWS_AS(world.encode("a", -1), wkv::Error);
}

TEST_CASE("Vocabulary files: literals, line ends, errors with the line") {
  const TemporaryFile file(
      "1 'a' 1\r\n2 b'\\x80' 1\r\n5 '\\x80' 2\r\n7 \"it's\" 4\r\n8 ' ' 1\r\n9 '\\u4e2d\\n' 4\r\n"
      "10 '\\\\' 1\r\n");
  const WorldTokenizer tokenizer = WorldTokenizer::from_file(file.path);
  CHECK(tokenizer.size() == 11);
  CHECK(tokenizer.encode("it's a\x80\xc2\x80\\") == std::vector<Token>{7, 8, 1, 2, 5, 10});
  CHECK(tokenizer.decode(std::vector<Token>{9}) == "\xe4\xb8\xad\n");
  CHECK(tokenizer.decode(std::vector<Token>{3, 4, 6, 11, 0}).empty());
  CHECK_THROWS_WITH_AS(tokenizer.encode("ab"), doctest::Contains("byte 98 (offset 1 of 2)"),
                       wkv::Error);

  std::string message;
  for (const char* bad :
       {"1 'a' 2\n", "1 'a'\n", "x 'a' 1\n", "1 a 1\n", "1 'a\\q' 2\n", "1 'a\\' 1\n",
        "1 b'\\u0041' 1\n", "1 '\\ud800' 3\n", "1 'a' 1\n1 'b' 1\n", "1 'a' 1\n2 'a' 1\n",
        "-1 'a' 1\n", "99999999 'a' 1\n", "1 '' 0\n", "", "1 'a'b' 3\n", "4294967297 'a' 1\n"}) {
    CAPTURE(bad);
    CHECK(vocab_error(bad, message) == wkv::ErrorCode::bad_model);
  }
  CHECK(vocab_error("1 'a' 1\n2 'b' 9\n", message) == wkv::ErrorCode::bad_model);
  CHECK(message.find(":2: the literal has 1 bytes, the line says 9") != std::string::npos);
  CHECK_THROWS_AS(WorldTokenizer::from_file("no/such/file"), wkv::Error);
}
