#include "models/checkpoint.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "models/detect.h"
#include "ops/quantize.h"

namespace wkv {
namespace {

std::string list_problems(const std::vector<std::string>& problems) {
  constexpr std::size_t kShown = 40;  // a wrong file can have thousands
  std::string text;
  for (std::size_t i = 0; i < std::min(problems.size(), kShown); ++i) text += "\n  " + problems[i];
  if (problems.size() > kShown) text += str("\n  ... and ", problems.size() - kShown, " more");
  return text;
}

}  // namespace

Checkpoint::Checkpoint(std::shared_ptr<const TensorSource> source, Backend& backend, DTypePlan want,
                       std::function<void(std::int64_t, std::int64_t)> poll)
    : source_(std::move(source)),
      backend_(backend),
      want_(std::move(want)),
      poll_(std::move(poll)),
      interned_(std::make_shared<std::deque<std::string>>()) {
  keep_.push_back(interned_);
  for (const std::string& name : source_->names())
    total_bytes_ += stored_size(source_->dtype(name), source_->shape(name));
}

int Checkpoint::extent(std::string_view name, std::size_t axis) const {
  if (!has(name)) return 1;
  const std::vector<std::int64_t> found = shape(name);
  return axis < found.size() ? static_cast<int>(found[axis]) : 1;
}

const char* Checkpoint::intern(const std::string& name) {
  interned_->push_back(name);
  return interned_->back().c_str();
}

void Checkpoint::poll(std::int64_t bytes) {
  done_bytes_ += bytes;
  if (poll_) poll_(std::min(done_bytes_, total_bytes_), total_bytes_);
}

bool Checkpoint::expect(const std::string& name, const std::vector<std::int64_t>& shape,
                        bool quantised) {
  seen_.insert(name);
  if (!source_->contains(name)) {
    problems_.push_back(str("missing: ", name, ' ', shape_str(shape)));
    return false;
  }
  const std::vector<std::int64_t> found = source_->shape(name);
  const DType dtype = source_->dtype(name);
  if (!is_float(dtype) && !(quantised && is_quantized(dtype))) {
    problems_.push_back(
        str("wrong dtype: ", name, " is ", dtype_name(dtype), ", a floating-point type is needed"));
    return false;
  }
  if (found != shape) {
    problems_.push_back(
        str("wrong shape: ", name, " is ", shape_str(found), ", expected ", shape_str(shape)));
    return false;
  }
  return true;
}

Matrix Checkpoint::adopt(const HostTensor& tensor, const std::string& name, MatrixUse use,
                         DType want) {
  Matrix m = backend_.adopt(tensor, want, use, intern(name), keep_, [this] { poll(0); });
  if (m.bytes == 0)
    m.bytes = std::int64_t{m.out} * m.in * static_cast<std::int64_t>(dtype_size(m.dtype));
  if (use != MatrixUse::embedding) {
    matrix_bytes_ += m.bytes;
    types_.emplace_back(name, m.dtype);
  }
  if (use == MatrixUse::linear) block_dtype_ = m.dtype;
  const auto bytes = stored_size(tensor.dtype, tensor.shape);
  // A device has its own copy now; without this a model's whole file would stay in memory.
  if (tensor.mapped && !backend_.at(m.place).host_memory())
    drop_pages(tensor.data, static_cast<std::size_t>(bytes));
  poll(bytes);
  return m;
}

Matrix Checkpoint::matrix(const std::string& name, int out, int in, MatrixUse use) {
  if (!expect(name, {out, in}, true)) return {};
  // Embedding rows are only gathered, exactly, so they stay as stored.
  const DType want = use == MatrixUse::embedding ? DType::automatic : want_.type_for(name);
  return adopt(source_->get(name), name, use, want);
}

Matrix Checkpoint::transposed(const std::string& name, int in, int out, int index) {
  std::vector<std::int64_t> shape{in, out};
  if (index >= 0 && source_->contains(name)) {
    const std::vector<std::int64_t> found = source_->shape(name);
    const std::int64_t groups = found.empty() ? 0 : found[0];
    shape.insert(shape.begin(), std::max<std::int64_t>(groups, index + 1));
  }
  if (seen_.count(name) != 0 && index > 0) {
    if (!source_->contains(name) || source_->shape(name) != shape) return {};  // noted already
  } else {
    const bool codes = source_->contains(name) && source_->dtype(name) == DType::int8;
    if (!expect(name, shape, codes)) return {};
  }
  HostTensor factor = source_->get(name);
  if (index >= 0) {
    const std::size_t bytes =
        static_cast<std::size_t>(in) * static_cast<std::size_t>(out) * dtype_size(factor.dtype);
    factor.data =
        static_cast<const unsigned char*>(factor.data) + static_cast<std::size_t>(index) * bytes;
    factor.shape = {in, out};
  }
  DType want = quantize::type_of(want_.type_for(name), MatrixUse::lora);
  // A part of a larger tensor has no place for scales in files.
  if (index >= 0 && is_quantized(want)) want = DType::automatic;
  // Unless it is converted or copied to a device the turned copy is what the model keeps.
  const bool kept = backend_.at(backend_.place(name)).host_memory() &&
                    (want == factor.dtype || want == DType::automatic);
  const auto allocate = [&](std::size_t n) {
    return kept ? factors_.allocate(n) : allocate_host(n);
  };
  return adopt(quantize::transpose(factor, allocate), name, MatrixUse::lora, want);
}

std::vector<float> Checkpoint::values(const std::string& name, std::int64_t n) {
  seen_.insert(name);
  place_ = backend_.place(name);
  if (!source_->contains(name)) {
    problems_.push_back(str("missing: ", name, " [", n, ']'));
    return {};
  }
  std::int64_t found = 1;
  for (const std::int64_t d : source_->shape(name)) found *= d;
  if (found != n || !is_float(source_->dtype(name))) {
    problems_.push_back(str("wrong shape or dtype: ", name, " is ", shape_str(source_->shape(name)),
                            ' ', dtype_name(source_->dtype(name)), ", expected ", n,
                            " floating-point elements"));
    return {};
  }
  const HostTensor tensor = source_->get(name);
  std::vector<float> result(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < result.size(); ++i)
    result[i] = element_as_f32(tensor.data, tensor.dtype, i);
  poll(n * static_cast<std::int64_t>(dtype_size(tensor.dtype)));
  return result;
}

Vector Checkpoint::vector(const std::string& name, int n, float (*map)(float)) {
  std::vector<float> host = values(name, n);
  if (host.empty()) return {};
  if (map != nullptr) std::transform(host.begin(), host.end(), host.begin(), map);
  return upload(host);
}

Vector Checkpoint::upload(const std::vector<float>& host) {
  Backend& device = backend_.at(place_);
  auto buffer = std::make_shared<Buffer>(device.allocate(host.size() * sizeof(float)));
  device.write(buffer->data(), host.data(), host.size() * sizeof(float));
  keep_.push_back(buffer);
  return {static_cast<const float*>(buffer->data()), static_cast<int>(host.size()), place_};
}

Norm Checkpoint::norm(const std::string& prefix, int n, float eps) {
  return {vector(prefix + ".weight", n), vector(prefix + ".bias", n), eps};
}

void Checkpoint::ignore(std::string_view name) { seen_.emplace(name); }

void Checkpoint::finish() {
  for (const std::string& name : source_->names()) {
    if (seen_.count(name) != 0) continue;
    if (!is_training_buffer(name) && !name.ends_with(".time_state"))
      problems_.push_back(str("unknown: ", name, ' ', shape_str(source_->shape(name))));
  }
  WKV_CHECK(problems_.empty(), bad_model, source_->description(), ": ", problems_.size(),
            " tensors are wrong:", list_problems(problems_));
  for (const DTypePlan::Rule& rule : want_.rules)
    WKV_CHECK(std::any_of(types_.begin(), types_.end(),
                          [&](const auto& type) { return rule.matches(type.first); }),
              invalid_argument, "[load] the dtype plan's pattern '", rule.pattern,
              "' matches none of the ", types_.size(), " matrices of ", source_->description(),
              "; `wkv info --tensors` lists the names");
}

}  // namespace wkv
