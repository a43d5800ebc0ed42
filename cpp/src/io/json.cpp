#include "io/json.h"

#include <charconv>
#include <unordered_set>

#include "core/check.h"
#include "io/bytes.h"

namespace wkv {
namespace {

constexpr int kMaxDepth = 32;
constexpr std::size_t kMaxValues = std::size_t{1} << 20;

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  const auto tail = [&](int shift) { put(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    tail(6);
    tail(0);
  } else {
    put(0xf0 | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& place) : text_(text), place_(place) {}

  JsonValue document() {
    check(is_utf8(text_), "the text is not UTF-8");
    JsonValue result = value(0);
    skip_space();
    check(pos_ == text_.size(), "text after the end");
    return result;
  }

 private:
  void check(bool condition, const char* problem) const {
    WKV_CHECK(condition, bad_model, place_, "JSON, byte ", pos_, ": ", problem);
  }

  // '\0' at the end: no valid JSON has it outside of a string, and inside it is refused.
  char peek() const noexcept { return pos_ < text_.size() ? text_[pos_] : '\0'; }

  bool accept(char c) noexcept {
    if (pos_ >= text_.size() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }

  void skip_space() noexcept {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++pos_;
  }

  JsonValue value(int depth) {
    check(depth < kMaxDepth, "nested too deep");
    check(++values_ <= kMaxValues, "too many values");
    skip_space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return JsonValue(string());
      case 't':
        return word("true", JsonValue(true));
      case 'f':
        return word("false", JsonValue(false));
      case 'n':
        return word("null", JsonValue());
      default:
        return number();
    }
  }

  JsonValue word(std::string_view expected, JsonValue result) {
    check(text_.substr(pos_).starts_with(expected), "unknown word");
    pos_ += expected.size();
    return result;
  }

  JsonValue array(int depth) {
    JsonValue::Array items;
    ++pos_;
    skip_space();
    if (accept(']')) return JsonValue(std::move(items));
    while (true) {
      items.push_back(value(depth + 1));
      skip_space();
      if (accept(']')) return JsonValue(std::move(items));
      check(accept(','), "',' or ']' expected");
    }
  }

  JsonValue object(int depth) {
    JsonValue::Object members;
    ++pos_;
    skip_space();
    if (accept('}')) return JsonValue(std::move(members));
    while (true) {
      skip_space();
      check(peek() == '"', "a key in quotes expected");
      std::string key = string();
      skip_space();
      check(accept(':'), "':' expected");
      members.emplace_back(std::move(key), value(depth + 1));
      skip_space();
      if (accept('}')) break;
      check(accept(','), "',' or '}' expected");
    }
    std::unordered_set<std::string_view> keys;
    for (const auto& [key, member] : members)
      WKV_CHECK(keys.insert(key).second, bad_model, place_, "JSON, byte ", pos_, ": the key ",
                quote(key), " occurs twice");
    return JsonValue(std::move(members));
  }

  std::uint32_t hex4() {
    check(text_.size() - pos_ >= 4, "cut off");
    std::uint32_t code = 0;
    const char* first = text_.data() + pos_;
    const auto [end, error] = std::from_chars(first, first + 4, code, 16);
    check(error == std::errc() && end == first + 4, "four hexadecimal digits expected");
    pos_ += 4;
    return code;
  }

  std::uint32_t unicode_escape() {
    const std::uint32_t high = hex4();
    if (high < 0xd800 || high >= 0xe000) return high;
    check(high < 0xdc00 && accept('\\') && accept('u'), "half of a surrogate pair");
    const std::uint32_t low = hex4();
    check(low >= 0xdc00 && low < 0xe000, "half of a surrogate pair");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  std::string string() {
    std::string out;
    ++pos_;
    while (!accept('"')) {
      check(pos_ < text_.size(), "text without an end");
      const char c = text_[pos_++];
      check(static_cast<unsigned char>(c) >= 0x20, "control character in a text");
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escape = peek();
      ++pos_;
      switch (escape) {
        case '"':
        case '\\':
        case '/':
          out += escape;
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'n':
          out += '\n';
          break;
        case 'r':
          out += '\r';
          break;
        case 't':
          out += '\t';
          break;
        case 'u':
          append_utf8(out, unicode_escape());
          break;
        default:
          check(false, "unknown escape");
      }
    }
    return out;
  }

  void digits() {
    check(peek() >= '0' && peek() <= '9', "a value expected");
    while (peek() >= '0' && peek() <= '9') ++pos_;
  }

  JsonValue number() {
    const std::size_t start = pos_;
    accept('-');
    if (!accept('0')) digits();
    bool is_integer = true;
    if (accept('.')) {
      is_integer = false;
      digits();
    }
    if (accept('e') || accept('E')) {
      is_integer = false;
      if (!accept('+')) accept('-');
      digits();
    }
    const char* first = text_.data() + start;
    const char* last = text_.data() + pos_;
    if (is_integer) {
      std::int64_t result = 0;
      check(std::from_chars(first, last, result).ec == std::errc(), "integer out of range");
      return JsonValue(result);
    }
    double result = 0;
    check(std::from_chars(first, last, result).ec == std::errc(), "number out of range");
    return JsonValue(result);
  }

  std::string_view text_;
  const std::string& place_;
  std::size_t pos_ = 0;
  std::size_t values_ = 0;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const noexcept {
  if (const Object* members = object(); members != nullptr)
    for (const auto& [name, member] : *members)
      if (name == key) return &member;
  return nullptr;
}

JsonValue parse_json(std::string_view text, const std::string& place) {
  return Parser(text, place).document();
}

std::string json_string(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace wkv
