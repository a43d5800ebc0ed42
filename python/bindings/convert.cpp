#include "convert.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <span>
#include <string_view>
#include <system_error>

namespace wkv::python {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(50);

[[noreturn]] void bad_ids(const char* place, const std::string& why) {
  throw py::type_error("[" + std::string(place) +
                       "] token ids must be a sequence of integers, got " + why);
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

Token narrow(long long value, const char* place, std::size_t index) {
  if (value < std::numeric_limits<Token>::min() || value > std::numeric_limits<Token>::max())
    throw py::value_error("[" + std::string(place) + "] token " + std::to_string(index) + " is " +
                          std::to_string(value) + ": outside every vocabulary");
  return static_cast<Token>(value);
}

Token from_item(PyObject* item, const char* place, std::size_t index) {
  long long value = 0;
  int overflow = 0;
  if (PyLong_CheckExact(item)) {
    value = PyLong_AsLongLongAndOverflow(item, &overflow);
  } else {
    // numpy integers, zero-dimensional torch tensors: whatever says it is an integer.
    py::object number = PyIndex_Check(item)
                            ? py::reinterpret_steal<py::object>(PyNumber_Index(item))
                            : py::object();
    if (!number) {
      PyErr_Clear();
      bad_ids(place, "a " + type_name(item) + " at index " + std::to_string(index));
    }
    value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  }
  if (overflow != 0)
    throw py::value_error("[" + std::string(place) + "] token " + std::to_string(index) +
                          " does not fit an integer of 32 bits");
  return narrow(value, place, index);
}

template <class T>
std::vector<Token> from_strided(const py::array& array, const char* place) {
  const auto view = array.unchecked<T, 1>();
  std::vector<Token> tokens(static_cast<std::size_t>(view.shape(0)));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const T value = view(static_cast<py::ssize_t>(i));
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<Token>::max()))
        throw py::value_error("[" + std::string(place) + "] token " + std::to_string(i) + " is " +
                              std::to_string(value) + ": outside every vocabulary");
      tokens[i] = static_cast<Token>(value);
    } else {
      tokens[i] = narrow(static_cast<long long>(value), place, i);
    }
  }
  return tokens;
}

std::vector<Token> from_array(const py::array& array, const char* place) {
  if (array.ndim() != 1)
    throw py::value_error("[" + std::string(place) + "] token ids have " +
                          std::to_string(array.ndim()) + " dimensions, want 1; for several " +
                          "sequences call forward_batch");
  if (array.size() == 0) return {};
  const char kind = array.dtype().kind();
  const char order = array.dtype().byteorder();
  if ((kind == 'i' || kind == 'u') && order != '=' && order != '|' && order != '<')
    return from_array(array.attr("astype")("int64"), place);
  const auto size = array.itemsize();
  if (kind == 'i' && size == 8) return from_strided<std::int64_t>(array, place);
  if (kind == 'i' && size == 4) return from_strided<std::int32_t>(array, place);
  if (kind == 'i' && size == 2) return from_strided<std::int16_t>(array, place);
  if (kind == 'i' && size == 1) return from_strided<std::int8_t>(array, place);
  if (kind == 'u' && size == 8) return from_strided<std::uint64_t>(array, place);
  if (kind == 'u' && size == 4) return from_strided<std::uint32_t>(array, place);
  if (kind == 'u' && size == 2) return from_strided<std::uint16_t>(array, place);
  if (kind == 'u' && size == 1) return from_strided<std::uint8_t>(array, place);
  bad_ids(place, "an array of " + std::string(py::str(py::object(array.dtype()))));
}

/// numpy.asarray, which reads __array__ (torch), __array_interface__ and buffers. A tensor on a GPU
/// is fetched through its own cpu(), so torch itself is never imported here.
py::array as_array(py::object object, const char* place) {
  const auto numpy = py::module_::import("numpy");
  try {
    return numpy.attr("asarray")(object);
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_TypeError) && py::hasattr(object, "cpu"))
      return numpy.attr("asarray")(object.attr("cpu")());
    if (error.matches(PyExc_TypeError)) bad_ids(place, type_name(object));
    throw;
  }
}

py::object exception_class(const char* name) {
  return py::module_::import("wkv.errors").attr(name);
}

/// A message may quote the name of a file, which is any bytes.
py::object message_of(const Error& error) {
  const std::string_view text = error.what();
  const auto size = static_cast<py::ssize_t>(text.size());
  auto message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), size, "backslashreplace"));
  if (!message) throw py::error_already_set();
  return message;
}

std::vector<Token> read_tokens(py::handle ids, const char* place) {
  PyObject* object = ids.ptr();
  if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    const py::ssize_t n = PySequence_Fast_GET_SIZE(object);
    std::vector<Token> tokens(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      // An item's __index__ may run Python code that shortens the list.
      if (static_cast<py::ssize_t>(i) >= PySequence_Fast_GET_SIZE(object))
        throw py::value_error("[" + std::string(place) + "] the list changed while it was read");
      tokens[i] =
          from_item(PySequence_Fast_GET_ITEM(object, static_cast<py::ssize_t>(i)), place, i);
    }
    return tokens;
  }
  if (PyUnicode_Check(object) || PyBytes_Check(object))
    bad_ids(place, type_name(ids) + "; encode text with a tokenizer first");
  if (PyLong_Check(object)) bad_ids(place, "one integer; write [id]");
  if (PyObject_CheckBuffer(object) || py::hasattr(ids, "__array__") ||
      py::hasattr(ids, "__array_interface__"))
    return from_array(as_array(py::reinterpret_borrow<py::object>(ids), place), place);
  py::object iterator = py::reinterpret_steal<py::object>(PyObject_GetIter(object));
  if (!iterator) {
    PyErr_Clear();
    bad_ids(place, type_name(ids));
  }
  std::vector<Token> tokens;
  while (py::object item = py::reinterpret_steal<py::object>(PyIter_Next(iterator.ptr())))
    tokens.push_back(from_item(item.ptr(), place, tokens.size()));
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return tokens;
}

}  // namespace

std::vector<Token> to_tokens(py::handle ids, const char* place) {
  std::vector<Token> tokens = read_tokens(ids, place);
  if (tokens.empty())
    throw py::value_error("[" + std::string(place) + "] no tokens: at least one is needed");
  return tokens;
}

Floats new_floats(std::vector<py::ssize_t> shape) { return Floats(std::move(shape)); }

std::span<float> span_of(Floats& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

void set_python_error(const Error& error) {
  const py::object message = message_of(error);
  const auto set = [&](py::handle type) { PyErr_SetObject(type.ptr(), message.ptr()); };
  switch (error.code()) {
    case ErrorCode::invalid_argument:
      return set(PyExc_ValueError);
    case ErrorCode::io:
      return set(PyExc_OSError);
    case ErrorCode::bad_model:
      return set(exception_class("ModelFormatError"));
    case ErrorCode::unsupported:
      return set(exception_class("UnsupportedError"));
    case ErrorCode::context_full:
      return set(exception_class("ContextLengthError"));
    case ErrorCode::out_of_memory:
      return set(PyExc_MemoryError);
    case ErrorCode::device:
      return set(exception_class("DeviceError"));
    case ErrorCode::cancelled:
      return set(PyExc_KeyboardInterrupt);
    case ErrorCode::internal:
      break;
  }
  set(PyExc_RuntimeError);
}

void raise_os_error(const Error& error, const std::filesystem::path& path) {
  std::error_code ignored;
  bool exists = false;
  for (const char* suffix : {"", ".pth", ".safetensors"}) {
    std::filesystem::path candidate = path;
    candidate += suffix;
    exists = exists || std::filesystem::exists(candidate, ignored);
  }
  PyObject* kind = PyExc_OSError;
  int number = EIO;
  if (!exists) {
    kind = PyExc_FileNotFoundError;
    number = ENOENT;
  } else if (std::filesystem::is_directory(path, ignored) &&
             std::string_view(error.what()).ends_with(std::generic_category().message(ENOENT))) {
    kind = PyExc_FileNotFoundError;  // a shard that the folder's index names
    number = ENOENT;
  } else if (std::filesystem::is_directory(path, ignored)) {
    kind = PyExc_IsADirectoryError;
    number = EISDIR;
  } else if (std::string_view(error.what()).ends_with(std::generic_category().message(EACCES))) {
    kind = PyExc_PermissionError;
    number = EACCES;
  }
  // One argument keeps str(e) the library's sentence; errno is set beside it.
  const py::object exception = py::handle(kind)(message_of(error));
  exception.attr("errno") = number;
  PyErr_SetObject(kind, exception.ptr());
  throw py::error_already_set();
}

py::dict info_dict(const ModelInfo& info) {
  py::dict d;
  d["version"] = info.version;
  d["n_layer"] = info.n_layer;
  d["n_embd"] = info.n_embd;
  d["n_head"] = info.n_head;
  d["head_size"] = info.head_size;
  d["n_vocab"] = info.n_vocab;
  d["dim_ffn"] = info.dim_ffn;
  d["n_params"] = info.n_params;
  d["context_limit"] = info.context_limit;
  return d;
}

Progress PythonProgress::function() {
  return [this](std::int64_t done, std::int64_t total) { return report(done, total); };
}

bool PythonProgress::report(std::int64_t done, std::int64_t total) {
  const auto now = std::chrono::steady_clock::now();
  const bool last = done >= total && !callback_.is_none();
  if (now - last_ < kInterval && !last) return true;
  last_ = now;
  py::gil_scoped_acquire acquire;
  try {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!callback_.is_none()) callback_(done, total);
    return true;
  } catch (...) {
    raised_ = std::current_exception();
    return false;
  }
}

}  // namespace wkv::python
