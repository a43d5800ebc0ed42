// Checks that always run (WKV_CHECK) and checks of debug and sanitizer builds (WKV_DCHECK).
#pragma once

#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>

#include "wkv/types.h"

namespace wkv {

/// What str() is made of; other types have an append() beside them. Not by streams, whose numbers
/// look as the program's locale wants them: "65.536" rows.
inline void append(std::string& to, std::string_view text) { to += text; }
inline void append(std::string& to, char c) { to += c; }
template <class T>
  requires std::is_arithmetic_v<T>
void append(std::string& to, T value) {
  char digits[32];
  std::to_chars_result end{};
  if constexpr (std::is_floating_point_v<T>)
    end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::general, 6);
  else
    end = std::to_chars(digits, digits + sizeof digits, +value);
  to.append(digits, end.ptr);
}

/// Concatenates its arguments.
template <class... Args>
std::string str(const Args&... args) {
  std::string out;
  (append(out, args), ...);
  return out;
}

/// "[2048, 512]"
template <class Shape>
std::string shape_str(const Shape& shape) {
  std::string out = "[";
  for (auto d : shape) {
    if (out.size() > 1) out += ", ";
    append(out, d);
  }
  return out += ']';
}

template <class... Args>
[[noreturn]] void fail(ErrorCode code, const Args&... args) {
  throw Error(code, str(args...));
}

}  // namespace wkv

/// WKV_CHECK(rows > 0, invalid_argument, "[linear] x has ", rows, " rows")
#define WKV_CHECK(condition, code, ...)                 \
  do {                                                  \
    if (!(condition)) [[unlikely]]                      \
      ::wkv::fail(::wkv::ErrorCode::code, __VA_ARGS__); \
  } while (false)

#if defined(WKV_DEBUG_CHECKS)
#define WKV_DCHECK(condition, ...) WKV_CHECK(condition, internal, __VA_ARGS__)
#else
#define WKV_DCHECK(condition, ...) \
  do {                             \
  } while (false)
#endif
