#include "io/quantised.h"

#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/quantised_parts.h"
#include "io/bytes.h"

namespace wkv {
namespace {

using Shape = std::vector<std::int64_t>;
constexpr std::size_t kShownProblems = 10;

std::string member(std::string_view name, std::string_view part) {
  return std::string(name) + "." + std::string(part);
}

/// The weight that codes belong to: "head.weight" of "head.weight.q".
std::optional<std::string_view> owner_of(std::string_view name) {
  const std::size_t tail = kCodes.size() + 1;
  if (name.size() <= tail || !name.ends_with(kCodes) || name[name.size() - tail] != '.')
    return std::nullopt;
  return name.substr(0, name.size() - tail);
}

bool all_finite(const HostTensor& tensor) {
  const auto n = static_cast<std::size_t>(tensor.numel());
  float sum = 0;  // stays zero unless something is infinite or NaN
  for (std::size_t i = 0; i < n; ++i) sum += element_as_f32(tensor.data, tensor.dtype, i) * 0.0f;
  return sum == 0;
}

class QuantisedSource final : public TensorSource {
 public:
  explicit QuantisedSource(std::shared_ptr<const TensorSource> source)
      : source_(std::move(source)) {
    std::vector<std::string> problems;
    std::unordered_set<std::string> used;
    for (const std::string& stored : source_->names()) {
      const auto name = owner_of(stored);
      if (!name) continue;
      Matrix matrix;
      const std::string problem = describe(std::string(*name), matrix);
      used.insert(stored);
      for (const PartInfo& part : quantised_parts(matrix.dtype, matrix.shape))
        used.insert(member(*name, part.name));
      if (problem.empty())
        matrices_.emplace(std::string(*name), std::move(matrix));
      else
        problems.push_back(problem);
    }
    std::string list;
    for (std::size_t i = 0; i < problems.size() && i < kShownProblems; ++i)
      list += "\n  " + problems[i];
    WKV_CHECK(problems.empty(), bad_model, source_->description(), ": ", problems.size(),
              " quantised weights are wrong:", list);
    for (const std::string& stored : source_->names()) {
      if (const auto name = owner_of(stored))
        names_.emplace_back(*name);
      else if (!used.contains(stored))
        names_.push_back(stored);
    }
    known_.insert(names_.begin(), names_.end());
  }

  const std::vector<std::string>& names() const noexcept override { return names_; }
  bool contains(std::string_view name) const noexcept override {
    return known_.find(name) != known_.end();
  }
  Shape shape(std::string_view name) const override {
    const Matrix* matrix = find(name);
    return matrix != nullptr ? matrix->shape : source_->shape(name);
  }
  DType dtype(std::string_view name) const override {
    const Matrix* matrix = find(name);
    return matrix != nullptr ? matrix->dtype : source_->dtype(name);
  }
  std::string metadata(std::string_view key) const override { return source_->metadata(key); }
  std::string description() const override { return source_->description(); }

  HostTensor get(std::string_view name) const override {
    const Matrix* matrix = find(name);
    if (matrix == nullptr) return source_->get(name);
    HostTensor tensor = source_->get(member(name, kCodes));
    tensor.dtype = matrix->dtype;
    tensor.shape = matrix->shape;
    for (const PartInfo& part : quantised_parts(matrix->dtype, matrix->shape)) {
      tensor.parts.push_back(source_->get(member(name, part.name)));
      WKV_CHECK(all_finite(tensor.parts.back()), bad_model, source_->description(), ": ",
                quote(member(name, part.name)), " holds infinities or NaN");
    }
    return tensor;
  }

 private:
  struct Matrix {
    DType dtype = DType::automatic;
    Shape shape;
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const noexcept {
      return std::hash<std::string_view>()(s);
    }
  };

  const Matrix* find(std::string_view name) const {
    const auto found = matrices_.find(name);
    return found == matrices_.end() ? nullptr : &found->second;
  }

  /// int4 holds whole groups; where the weight's inputs are no multiple of 32 the metadata tell.
  std::int64_t int4_inputs(const std::string& name, std::int64_t groups) const {
    const std::string text = source_->metadata(member(name, "inputs"));
    const std::int64_t most = groups * kInt4Group;
    if (text.empty()) return most;
    std::int64_t inputs = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), inputs);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && inputs > most - kInt4Group && inputs <= most ? inputs : -1;
  }

  /// Fills `matrix`; returns what is wrong.
  std::string describe(const std::string& name, Matrix& matrix) const {
    const std::string codes = member(name, kCodes);
    const DType stored = source_->dtype(codes);
    const Shape shape = source_->shape(codes);
    const auto has = [&](std::string_view part) { return source_->contains(member(name, part)); };
    if (source_->contains(name)) return str(quote(name), " and ", quote(codes), " are both there");
    if (shape.size() != 2 || (stored != DType::i8 && stored != DType::u8))
      return str(quote(codes), " is ", dtype_name(stored), ' ', shape_str(shape),
                 "; codes are a matrix of I8 or U8");
    matrix = {DType::int8, shape};
    if (stored == DType::u8) {
      matrix.dtype = has("scale") ? DType::int4 : DType::mm8;
      if (has("scale")) {
        const Shape scales = source_->shape(member(name, "scale"));
        const std::int64_t groups = scales.size() == 2 ? scales[1] : 0;
        if (groups <= 0 || groups > shape[1] || groups * (kInt4Group / 2) != shape[1])
          return str(quote(codes), ' ', shape_str(shape), " and ", quote(member(name, "scale")),
                     ' ', shape_str(scales), " do not fit: int4 has a scale for each ",
                     kInt4Group / 2, " bytes of codes");
        matrix.shape[1] = int4_inputs(name, groups);
        if (matrix.shape[1] < 0)
          return str("the metadata ", quote(member(name, "inputs")), " do not fit ", groups,
                     " groups of ", kInt4Group);
      }
    }
    for (const PartInfo& part : quantised_parts(matrix.dtype, matrix.shape)) {
      const std::string full = member(name, part.name);
      if (!source_->contains(full)) return str(quote(codes), " has no ", quote(full));
      const DType found = source_->dtype(full);
      if (found != part.dtype || source_->shape(full) != part.shape)
        return str(quote(full), " is ", dtype_name(found), ' ', shape_str(source_->shape(full)),
                   ", expected ", dtype_name(part.dtype), ' ', shape_str(part.shape));
    }
    return {};
  }

  std::shared_ptr<const TensorSource> source_;
  std::unordered_map<std::string, Matrix, Hash, std::equal_to<>> matrices_;
  std::vector<std::string> names_;
  std::unordered_set<std::string, Hash, std::equal_to<>> known_;
};

}  // namespace

bool is_quantised_file(const TensorSource& source) {
  for (const std::string& name : source.names())
    if (owner_of(name)) return true;
  return false;
}

std::shared_ptr<const TensorSource> open_quantised(std::shared_ptr<const TensorSource> source) {
  return std::make_shared<const QuantisedSource>(std::move(source));
}

}  // namespace wkv
