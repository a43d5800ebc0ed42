// Small helpers for bytes that nobody has vouched for.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace wkv {

static_assert(std::endian::native == std::endian::little,
              "files are little-endian and their tensors are used in place");

/// A little-endian value at any address. The caller has checked the range.
template <class T>
T load_le(const std::byte* at) noexcept {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

/// Text of a file as it may appear in a message: in quotes, printable ASCII, at most 120
/// characters.
std::string quote(std::string_view text);

/// Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text) noexcept;

}  // namespace wkv
