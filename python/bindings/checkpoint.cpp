// Files of tensors, without a model.
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "convert.h"

namespace wkv::python {
namespace {

Checkpoint open(const std::filesystem::path& path) {
  Checkpoint file;
  with_path(path, [&] {
    py::gil_scoped_release release;
    file.source = open_checkpoint(path);
  });
  return file;
}

Checkpoint with_lora(const Checkpoint& file, const Checkpoint& adapter, double alpha) {
  py::gil_scoped_release release;
  return {merge_lora(file.source, adapter.source, alpha)};
}

Checkpoint with_version(const Checkpoint& file, const std::string& version) {
  return {as_version(file.source, version)};
}

py::tuple shape_of(const Checkpoint& file, const std::string& name) {
  return py::tuple(py::cast(file.source->shape(name)));
}

/// numpy's name of an element type; bf16 has none.
const char* format_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "float64";
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::i64:
      return "int64";
    case DType::i32:
      return "int32";
    case DType::i16:
      return "int16";
    case DType::i8:
      return "int8";
    case DType::u8:
      return "uint8";
    case DType::boolean:
      return "bool";
    default:
      return nullptr;
  }
}

/// A copy in numpy's type of the same name; bf16, which numpy lacks, as float32 (exact), and so are
/// the quantised types.
py::array get(const Checkpoint& file, const std::string& name) {
  if (!file.source->contains(name)) throw py::key_error(name);
  const HostTensor tensor = dequantize(file.source->get(name));
  const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  const auto n = static_cast<std::size_t>(tensor.numel());
  if (tensor.dtype == DType::bf16) {
    Floats values = new_floats(shape);
    float* out = values.mutable_data();
    const auto* in = static_cast<const unsigned char*>(tensor.data);
    for (std::size_t i = 0; i < n; ++i) {
      std::uint16_t half = 0;  // the file may not be aligned
      std::memcpy(&half, in + 2 * i, 2);
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
    }
    return values;
  }
  const char* format = format_of(tensor.dtype);
  if (format == nullptr)
    throw py::type_error("[checkpoint] '" + name + "' is " + std::string(dtype_name(tensor.dtype)) +
                         ", which has no numpy type");
  py::array values(py::dtype(std::string(format)), shape);
  if (n > 0)
    std::memcpy(values.mutable_data(), tensor.data, static_cast<std::size_t>(values.nbytes()));
  return values;
}

void convert(const std::filesystem::path& in, const std::filesystem::path& out,
             const std::string& dtype, py::object callback) {
  PythonProgress progress(std::move(callback));
  const Progress function = progress.function();
  const DTypePlan type = parse_dtype_plan(dtype);
  with_path(in, [&] { progress.run([&] { convert_checkpoint(in, out, type, function); }); });
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  py::class_<Checkpoint>(m, "Checkpoint")
      .def_static("open", &open, py::arg("path"))
      .def("with_lora", &with_lora, py::arg("adapter"), py::arg("alpha"))
      .def("with_version", &with_version, py::arg("version"))
      .def("names", [](const Checkpoint& file) { return file.source->names(); })
      .def("__contains__", [](const Checkpoint& file,
                              const std::string& name) { return file.source->contains(name); })
      .def("shape", &shape_of, py::arg("name"))
      .def(
          "dtype",
          [](const Checkpoint& file, const std::string& name) {
            return std::string(dtype_name(file.source->dtype(name)));
          },
          py::arg("name"))
      .def(
          "metadata",
          [](const Checkpoint& file, const std::string& key) { return file.source->metadata(key); },
          py::arg("key"))
      .def("get", &get, py::arg("name"))
      .def("info", [](const Checkpoint& file) { return info_dict(inspect(*file.source)); });
  m.def("convert", &convert, py::arg("path"), py::arg("output"), py::arg("dtype"),
        py::arg("progress"));
}

}  // namespace wkv::python
