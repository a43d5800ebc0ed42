// Between Python objects and the types of wkv.hpp: token ids in, float32 arrays out, errors, and
// progress callbacks with Ctrl-C.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "wkv/wkv.hpp"

namespace wkv::python {

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;

/// Token ids from a list, a tuple, any integer array (numpy, torch, the buffer protocol), or an
/// iterable of integers. `place` begins the message of a TypeError or ValueError.
std::vector<Token> to_tokens(py::handle ids, const char* place);

/// A new float32 array whose memory C++ may fill without the GIL.
Floats new_floats(std::vector<py::ssize_t> shape);
std::span<float> span_of(Floats& array);

/// The Python exception for an Error; sets the interpreter's error indicator.
void set_python_error(const Error& error);

/// Throws the OSError for an Error(io): one class per cause in Python, while the library has one
/// code; the path tells which.
[[noreturn]] void raise_os_error(const Error& error, const std::filesystem::path& path);

/// Runs `call`, which opens `path`.
template <class Call>
auto with_path(const std::filesystem::path& path, Call&& call) {
  try {
    return call();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::io) raise_os_error(error, path);
    throw;
  }
}

/// The fields of wkv.ModelInfo by name.
py::dict info_dict(const ModelInfo& info);

/// A wkv::Progress that looks for Ctrl-C and calls a Python function (or None), both at most every
/// 50 ms: taking the GIL more often would cost a running interpreter thread its time slice. The
/// first exception cancels the native call and is thrown by `run`.
class PythonProgress {
 public:
  explicit PythonProgress(py::object callback) : callback_(std::move(callback)) {}
  PythonProgress(const PythonProgress&) = delete;
  PythonProgress& operator=(const PythonProgress&) = delete;

  /// Valid while this object lives; called without the GIL.
  Progress function();

  /// Runs `call` without the GIL. If the callback or a signal handler raised, throws that.
  template <class Call>
  void run(Call&& call) {
    try {
      py::gil_scoped_release release;
      call();
    } catch (const Error& error) {
      if (error.code() == ErrorCode::cancelled && raised_) std::rethrow_exception(raised_);
      throw;
    }
  }

 private:
  bool report(std::int64_t done, std::int64_t total);

  py::object callback_;
  std::exception_ptr raised_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace wkv::python
