#include <string>
#include <string_view>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

}  // namespace

// A star takes as little as it can; when the rest does not fit, the last star takes one more.
bool DTypePlan::Rule::matches(std::string_view name) const noexcept {
  std::size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

DType DTypePlan::type_for(std::string_view name) const noexcept {
  for (auto rule = rules.rbegin(); rule != rules.rend(); ++rule)
    if (rule->matches(name)) return rule->dtype;
  return otherwise;
}

std::string DTypePlan::str() const {
  std::string text(dtype_name(otherwise));
  for (const Rule& rule : rules) text += wkv::str(",", rule.pattern, "=", dtype_name(rule.dtype));
  return text;
}

DTypePlan parse_dtype_plan(std::string_view text) {
  DTypePlan plan;
  bool first = true;
  for (std::string_view rest = text;; first = false) {
    const std::size_t comma = rest.find(',');
    const std::string_view item = trimmed(rest.substr(0, comma));
    const std::size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      WKV_CHECK(first, invalid_argument, "[dtype] '", item, "' in the plan '", text,
                "' is no rule; write PATTERN=TYPE, as in 'int4,blocks.0.*=int8'");
      plan.otherwise = parse_dtype(item);
    } else {
      const std::string_view pattern = trimmed(item.substr(0, equals));
      WKV_CHECK(!pattern.empty(), invalid_argument, "[dtype] the plan '", text,
                "' has a rule without a pattern");
      plan.rules.push_back({std::string(pattern), parse_dtype(trimmed(item.substr(equals + 1)))});
    }
    if (comma == std::string_view::npos) return plan;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace wkv
