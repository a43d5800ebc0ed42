// Tensors of a checkpoint -> weights of a backend, with one error for everything that is wrong.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ops/backend.h"
#include "wkv/types.h"

namespace wkv {

/// What loading needs and leaves behind. Readers never throw for a bad tensor: they note the
/// problem and return an empty view, so that finish() can list everything at once.
class Checkpoint {
 public:
  /// `poll(bytes done, bytes total)` is called per tensor, or more often, and may throw to cancel.
  Checkpoint(std::shared_ptr<const TensorSource> source, Backend& backend, DTypePlan want,
             std::function<void(std::int64_t, std::int64_t)> poll = {});

  bool has(std::string_view name) const { return source_->contains(name); }
  std::vector<std::int64_t> shape(std::string_view name) const { return source_->shape(name); }
  std::string metadata(std::string_view key) const { return source_->metadata(key); }
  /// One axis of a tensor whose extent only its shape tells (a rank). 1 if there is no such tensor
  /// or axis: reading it then notes the problem.
  int extent(std::string_view name, std::size_t axis) const;

  /// A projection [out, in].
  Matrix matrix(const std::string& name, int out, int in, MatrixUse use = MatrixUse::linear);
  /// A factor stored [in, out], also as int8 (a trailing part of a larger tensor if `index` >= 0:
  /// [G, in, out]).
  Matrix transposed(const std::string& name, int in, int out, int index = -1);
  /// Any shape with `n` elements, as fp32. `map` is applied to every element.
  Vector vector(const std::string& name, int n, float (*map)(float) = nullptr);
  /// The same on the host, unmapped; empty if missing.
  std::vector<float> values(const std::string& name, std::int64_t n);
  /// Puts fp32 values on the device, beside the tensor read last.
  Vector upload(const std::vector<float>& values);
  Norm norm(const std::string& prefix, int n, float eps = 1e-5f);

  /// Marks tensors that may be present and are ignored (training buffers).
  void ignore(std::string_view name);
  /// Throws Error(bad_model) listing every missing, unknown and mis-shaped tensor.
  void finish();

  std::int64_t matrix_bytes() const noexcept { return matrix_bytes_; }
  std::vector<std::shared_ptr<const void>> take_keep() { return std::move(keep_); }
  DType block_dtype() const noexcept { return block_dtype_; }
  /// Name and type of every matrix that is multiplied, in the order of loading.
  std::vector<std::pair<std::string, DType>> take_types() { return std::move(types_); }

 private:
  bool expect(const std::string& name, const std::vector<std::int64_t>& shape,
              bool quantised = false);
  const char* intern(const std::string& name);
  void poll(std::int64_t bytes);
  Matrix adopt(const HostTensor& tensor, const std::string& name, MatrixUse use, DType want);

  std::shared_ptr<const TensorSource> source_;
  Backend& backend_;
  DTypePlan want_;
  std::vector<std::pair<std::string, DType>> types_;
  std::function<void(std::int64_t, std::int64_t)> poll_;
  std::vector<std::shared_ptr<const void>> keep_;
  HugePages factors_;
  std::shared_ptr<std::deque<std::string>> interned_;
  std::unordered_set<std::string> seen_;
  std::vector<std::string> problems_;
  std::int64_t done_bytes_ = 0;
  std::int64_t total_bytes_ = 0;
  std::int64_t matrix_bytes_ = 0;
  DType block_dtype_ = DType::f32;
  int place_ = 0;  // of the tensor read last
};

}  // namespace wkv
