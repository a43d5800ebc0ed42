// Checks that always run (WKV_CHECK) and checks of debug and sanitizer builds (WKV_DCHECK).
#pragma once

#include <sstream>
#include <string>

#include "wkv/types.h"

namespace wkv {

/// Concatenates its arguments with operator<<.
template <class... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

/// "[2048, 512]"
template <class Shape>
std::string shape_str(const Shape& shape) {
  std::ostringstream out;
  out << '[';
  const char* comma = "";
  for (auto d : shape) {
    out << comma << d;
    comma = ", ";
  }
  out << ']';
  return out.str();
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
