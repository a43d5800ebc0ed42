// Runs single ops of cpp/src/ops/ops.h on numpy arrays, through the real checks and a real backend.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/arena.h"
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace wkv::test {

namespace py = pybind11;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

/// A backend opened for tests. With padding > 0 every input tensor is a view into a wider one whose
/// other columns are NaN, so an op that ignores strides or reads beside its operand shows.
struct Device {
  std::shared_ptr<Backend> backend;
  int padding = 0;
};

/// One op call: a ragged batch, its states, memory for operands. `rows` [B] rows per sequence;
/// `states` [B, size], each in memory of its own between guards.
class Call {
 public:
  Call(Device& device, std::vector<int> rows, const std::optional<Array>& states = std::nullopt);

  Step& step() noexcept { return step_; }
  Batch& batch() noexcept { return batch_; }
  Tensor tensor(const Array& x);  ///< [T, C]
  Vector vector(const Array& x);  ///< any shape, flattened
  Tensor optional(const std::optional<Array>& x) { return x ? tensor(*x) : Tensor{}; }
  Slot slot(std::int64_t offset = 0, std::int64_t size = -1) const;
  /// The backend's form of a matrix [out, in], given as the bytes of `dtype` elements.
  const Matrix& matrix(const py::array& x, DType dtype, DType want, MatrixUse use);

  void begin() { device_.backend->begin(batch_); }
  /// Ends the step; the tensor as numpy, with the new states beside it if the call has states.
  py::object result(Tensor y);
  py::object results(const std::vector<Tensor>& y);

 private:
  Array download(Tensor y);
  Array states();

  Device& device_;
  Arena arena_;
  Batch batch_;
  Step step_;
  std::vector<Buffer> buffers_;
  std::vector<std::shared_ptr<const void>> keep_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
  Buffer state_buffer_;
  std::int64_t state_size_ = -1;
};

/// dtype names as in numpy files and options: "fp32", "bf16", "int8", ...
DType dtype_named(const std::string& name);

constexpr const char* kEmulatedAvx512 = "avx512-emulated";
constexpr const char* kEmulatedAmx = "amx-emulated";
/// In bind_gemm.cpp: the table of an ISA, the emulated ones included; "": the best.
const cpu::KernelTable& table_named(const std::string& isa);
void bind_gemm(py::module_& m);
/// In bind_linear.cpp: matrices, their formats, products and epilogues.
void bind_linear(py::module_& m, py::class_<Device>& device);
/// In bind_history.cpp: ops that look back at a history.
void bind_history(py::class_<Device>& device);

}  // namespace wkv::test
