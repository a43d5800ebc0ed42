// JSON, as far as checkpoint headers and configurations need it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace wkv {

/// A parsed value. Objects keep the order of the text; their keys are unique.
class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Object = std::vector<std::pair<std::string, JsonValue>>;

  JsonValue() = default;
  template <class T>
  explicit JsonValue(T value) : value_(std::move(value)) {}

  bool is_null() const noexcept { return std::holds_alternative<std::monostate>(value_); }
  /// Null if the value is of another kind.
  const bool* boolean() const noexcept { return std::get_if<bool>(&value_); }
  const std::int64_t* integer() const noexcept { return std::get_if<std::int64_t>(&value_); }
  const double* real() const noexcept { return std::get_if<double>(&value_); }
  const std::string* string() const noexcept { return std::get_if<std::string>(&value_); }
  const Array* array() const noexcept { return std::get_if<Array>(&value_); }
  const Object* object() const noexcept { return std::get_if<Object>(&value_); }
  /// A member of an object; null if it is none or lacks the key.
  const JsonValue* find(std::string_view key) const noexcept;

 private:
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> value_;
};

/// Parses RFC 8259 text. Refused besides bad syntax: text that is not UTF-8, nesting deeper than
/// 32, more than 2^20 values (about 100 MB of memory), a key that occurs twice in an object,
/// numbers outside their type (integers of 64 bits, finite doubles), escaped lone surrogates.
/// Throws Error(bad_model), beginning with `place` and naming the byte.
JsonValue parse_json(std::string_view text, const std::string& place);

/// The text in quotes with everything escaped that must be.
std::string json_string(std::string_view text);

}  // namespace wkv
