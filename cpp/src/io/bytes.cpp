#include "io/bytes.h"

namespace wkv {
namespace {

constexpr std::size_t kShown = 120;

}  // namespace

std::string quote(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out + (text.size() > kShown ? "...'" : "'");
}

bool is_utf8(std::string_view text) noexcept {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = s + text.size();
  while (s < end) {
    if (*s < 0x80) {
      ++s;
      continue;
    }
    const int more = *s >= 0xf0 ? 3 : *s >= 0xe0 ? 2 : 1;
    if (*s < 0xc2 || *s > 0xf4 || end - s <= more) return false;
    std::uint32_t code = *s & (0x3fu >> more);
    for (int i = 1; i <= more; ++i) {
      if ((s[i] & 0xc0) != 0x80) return false;
      code = code << 6 | (s[i] & 0x3fu);
    }
    constexpr std::uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    s += more + 1;
  }
  return true;
}

}  // namespace wkv
