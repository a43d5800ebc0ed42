#include "text/vocab_file.h"

#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

#include "core/check.h"

namespace wkv::detail {
namespace {

void append_utf8(std::uint32_t c, std::string& out) {
  const auto put = [&out](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

template <class Integer>
bool parse_integer(std::string_view text, Integer& value, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

/// The bytes of a Python literal, or nothing if it is none.
std::optional<std::string> parse_literal(std::string_view s) {
  const bool is_bytes = !s.empty() && s.front() == 'b';
  if (is_bytes) s.remove_prefix(1);
  if (s.size() < 2 || s.front() != s.back() || (s.front() != '\'' && s.front() != '"')) return {};
  const char quote = s.front();
  s = s.substr(1, s.size() - 2);

  std::string out;
  while (!s.empty()) {
    const char c = s.front();
    s.remove_prefix(1);
    if (c == quote || (is_bytes && static_cast<unsigned char>(c) >= 0x80)) return {};
    if (c != '\\') {
      out += c;
      continue;
    }
    if (s.empty()) return {};
    const char escape = s.front();
    s.remove_prefix(1);
    static constexpr std::string_view kNames = "\\'\"abfnrtv";
    static constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
    if (const auto i = kNames.find(escape); i != kNames.npos) {
      out += kValues[i];
      continue;
    }
    const bool wide = !is_bytes && (escape == 'u' || escape == 'U');
    if (escape != 'x' && !wide) return {};  // octal escapes and \N{...} do not occur
    const std::size_t digits = escape == 'x' ? 2 : escape == 'u' ? 4 : 8;
    std::uint32_t value = 0;
    if (s.size() < digits || !parse_integer(s.substr(0, digits), value, 16)) return {};
    s.remove_prefix(digits);
    if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return {};  // no code point
    if (is_bytes) {
      out += static_cast<char>(value);
    } else {
      append_utf8(value, out);
    }
  }
  return out;
}

}  // namespace

std::vector<Trie::Entry> parse_vocab(std::string_view text, const std::string& place) {
  std::vector<Trie::Entry> entries;
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == text.npos ? text.size() : newline + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;

    const std::size_t first = line.find(' ');
    const std::size_t last = line.rfind(' ');
    Token id = 0;
    std::size_t length = 0;
    WKV_CHECK(first < last && last != line.npos && parse_integer(line.substr(0, first), id) &&
                  parse_integer(line.substr(last + 1), length),
              bad_model, place, ":", number, ": not a line `id literal length`");
    std::optional<std::string> bytes = parse_literal(line.substr(first + 1, last - first - 1));
    WKV_CHECK(bytes, bad_model, place, ":", number, ": not a Python str or bytes literal");
    WKV_CHECK(bytes->size() == length, bad_model, place, ":", number, ": the literal has ",
              bytes->size(), " bytes, the line says ", length);
    entries.push_back({id, std::move(*bytes)});
  }
  return entries;
}

}  // namespace wkv::detail
