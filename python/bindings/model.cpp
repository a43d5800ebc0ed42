// Model, State and devices. The GIL is released around everything that may take longer
// than a few microseconds or wait for another thread.
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "convert.h"

namespace wkv::python {
namespace {

using Part = py::array_t<float, py::array::c_style | py::array::forcecast>;

SkipZeros skip_zeros_named(std::optional<bool> wanted) {
  if (!wanted) return SkipZeros::automatic;
  return *wanted ? SkipZeros::on : SkipZeros::off;
}

Options make_options(const std::string& device, const std::string& dtype, int threads,
                     std::optional<bool> skip_zeros, const std::string& matmul_precision) {
  Options options;
  options.device = device;
  options.dtype = parse_dtype_plan(dtype);
  options.threads = threads;
  options.skip_zeros = skip_zeros_named(skip_zeros);
  options.matmul_precision = parse_matmul_precision(matmul_precision);
  return options;
}

std::unique_ptr<Model> load(const Checkpoint& file, const std::string& device,
                            const std::string& dtype, int threads, std::optional<bool> skip_zeros,
                            const std::string& matmul_precision, py::object callback) {
  Options options = make_options(device, dtype, threads, skip_zeros, matmul_precision);
  PythonProgress progress(std::move(callback));
  options.progress = progress.function();
  std::unique_ptr<Model> model;
  with_path(file.source->description(), [&] {
    progress.run([&] { model = std::make_unique<Model>(Model::load(file.source, options)); });
  });
  return model;
}

std::unique_ptr<Model> load_synthetic(const std::string& spec, const std::string& stored,
                                      std::uint64_t seed, const std::string& device,
                                      const std::string& dtype, int threads,
                                      std::optional<bool> skip_zeros,
                                      const std::string& matmul_precision, py::object callback) {
  Options options = make_options(device, dtype, threads, skip_zeros, matmul_precision);
  PythonProgress progress(std::move(callback));
  options.progress = progress.function();
  std::unique_ptr<Model> model;
  progress.run([&] {
    auto source = synthetic_checkpoint(spec, parse_dtype(stored), seed);
    model = std::make_unique<Model>(Model::load(std::move(source), options));
  });
  return model;
}

/// Several streams; `ids` and `states` are lists of equal length (checked in Python).
struct Batched {
  Batched(const py::list& ids, const py::list& states, int want, const char* place) {
    tokens.reserve(ids.size());
    for (py::handle one : ids) tokens.push_back(to_tokens(one, place));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      keep.push_back(states[i]);
      requests.push_back({.tokens = tokens[i],
                          .state = keep.back().cast<State*>(),
                          .want = static_cast<Logits>(want)});
    }
  }
  std::vector<std::vector<Token>> tokens;
  std::vector<py::object> keep;  // another thread may change the list meanwhile
  std::vector<Request> requests;
};

Floats run(Model& model, const std::vector<Request>& requests, std::vector<py::ssize_t> shape,
           py::object callback) {
  Floats logits = new_floats(std::move(shape));
  const std::span<float> out = span_of(logits);
  PythonProgress progress(std::move(callback));
  const Progress function = progress.function();
  progress.run([&] { model.forward(requests, out, {.progress = function}); });
  return logits;
}

Floats forward(Model& model, py::handle ids, State& state, int want, py::object callback) {
  const std::vector<Token> tokens = to_tokens(ids, "forward");
  const std::vector<Request> requests{
      {.tokens = tokens, .state = &state, .want = static_cast<Logits>(want)}};
  const py::ssize_t vocab = model.info().n_vocab;
  const auto rows = static_cast<py::ssize_t>(tokens.size());
  std::vector<py::ssize_t> shape;
  if (requests[0].want == Logits::last) shape = {vocab};
  if (requests[0].want == Logits::all) shape = {rows, vocab};
  if (requests[0].want == Logits::none) shape = {0};
  return run(model, requests, std::move(shape), std::move(callback));
}

/// Rows of n_embd floats in place of token ids; logits as in forward().
Floats forward_vectors(Model& model, const Part& vectors, State& state, int want, bool ln0,
                       py::object callback) {
  const py::ssize_t channels = model.info().n_embd;
  if (vectors.ndim() != 2 || vectors.shape(1) != channels || vectors.shape(0) < 1)
    throw py::value_error("[forward] vectors must be [T, " + std::to_string(channels) +
                          "] with T >= 1");
  Request request;
  request.state = &state;
  request.want = static_cast<Logits>(want);
  request.vectors = {vectors.data(), static_cast<std::size_t>(vectors.size())};
  const std::vector<Request> requests{request};
  const py::ssize_t vocab = model.info().n_vocab;
  std::vector<py::ssize_t> shape;
  if (requests[0].want == Logits::last) shape = {vocab};
  if (requests[0].want == Logits::all) shape = {vectors.shape(0), vocab};
  if (requests[0].want == Logits::none) shape = {0};
  Floats logits = new_floats(std::move(shape));
  const std::span<float> out = span_of(logits);
  PythonProgress progress(std::move(callback));
  const Progress function = progress.function();
  progress.run([&] { model.forward(requests, out, {.progress = function, .raw_vectors = !ln0}); });
  return logits;
}

/// Hidden states [layers, rows, n_embd] of several streams; `want` says which rows.
Floats hidden(Model& model, const py::list& ids, const py::list& states, std::vector<int> layers,
              int want, py::object callback) {
  const Batched batch(ids, states, want, "hidden");
  const auto rows = static_cast<py::ssize_t>(model.logits_rows(batch.requests));
  Floats result = new_floats({static_cast<py::ssize_t>(layers.size()), rows, model.info().n_embd});
  const std::span<float> out = span_of(result);
  PythonProgress progress(std::move(callback));
  const Progress function = progress.function();
  progress.run([&] {
    model.forward(batch.requests, {},
                  {.progress = function,
                   .hidden_layers = std::move(layers),
                   .hidden = out,
                   .skip_logits = true});
  });
  return result;
}

/// Returns the wanted rows of all sequences, one after the other: [rows, V].
Floats forward_batch(Model& model, const py::list& ids, const py::list& states, int want,
                     py::object callback) {
  const Batched batch(ids, states, want, "forward_batch");
  const auto rows = static_cast<py::ssize_t>(model.logits_rows(batch.requests));
  return run(model, batch.requests, {rows, model.info().n_vocab}, std::move(callback));
}

const StatePart& find_part(const State& state, const std::string& name) {
  for (const StatePart& part : state.parts())
    if (part.name == name) return part;
  throw py::key_error(name);
}

std::vector<py::ssize_t> shape_of(const StatePart& part) {
  return {part.shape.begin(), part.shape.end()};
}

Floats get_part(const State& state, const std::string& name) {
  Floats values = new_floats(shape_of(find_part(state, name)));
  const std::span<float> out = span_of(values);
  py::gil_scoped_release release;
  state.get(name, out);
  return values;
}

void set_part(State& state, const std::string& name, const Part& values) {
  const StatePart& part = find_part(state, name);
  const std::vector<py::ssize_t> want = shape_of(part);
  const std::vector<py::ssize_t> got(values.shape(), values.shape() + values.ndim());
  if (want != got)
    throw py::value_error("[state] '" + name + "' has shape " +
                          std::string(py::str(py::tuple(py::cast(want)))) + ", the value has " +
                          std::string(py::str(py::tuple(py::cast(got)))));
  const std::span<const float> in{values.data(), static_cast<std::size_t>(values.size())};
  py::gil_scoped_release release;
  state.set(name, in);
}

/// Every part, in the order of parts().
py::list get_parts(const State& state) {
  py::list result;
  for (const StatePart& part : state.parts()) result.append(get_part(state, part.name));
  return result;
}

void set_parts(State& state, const std::vector<Part>& values) {
  if (values.size() != state.parts().size())
    throw py::value_error("[state] " + std::to_string(values.size()) + " arrays for " +
                          std::to_string(state.parts().size()) + " parts");
  for (std::size_t i = 0; i < values.size(); ++i) set_part(state, state.parts()[i].name, values[i]);
}

py::bytes to_bytes(const State& state, const std::string& dtype) {
  const DType storage = parse_dtype(dtype);
  std::vector<std::byte> blob;
  {
    py::gil_scoped_release release;
    blob = state.to_bytes(storage);
  }
  return py::bytes(reinterpret_cast<const char*>(blob.data()), blob.size());
}

std::unique_ptr<State> state_from_bytes(const Model& model, const py::buffer& data) {
  const py::buffer_info view = data.request();
  if (view.ndim != 1 || view.itemsize != 1 || view.strides[0] != 1)
    throw py::type_error("[state] the data must be bytes");
  const std::span<const std::byte> bytes{static_cast<const std::byte*>(view.ptr),
                                         static_cast<std::size_t>(view.size)};
  py::gil_scoped_release release;
  return std::make_unique<State>(model.state_from_bytes(bytes));
}

py::list list_isas() {
  py::list result;
  for (const IsaInfo& isa : isas())
    result.append(py::make_tuple(isa.name, isa.runnable, isa.active));
  return result;
}

py::list list_devices() {
  std::vector<DeviceInfo> found;
  {
    py::gil_scoped_release release;  // opens the CUDA driver
    found = devices();
  }
  py::list result;
  for (const DeviceInfo& device : found)
    result.append(py::make_tuple(device.name, device.description, device.usable, device.reason));
  return result;
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<State>(m, "State")
      .def("copy",
           [](const State& state) {
             py::gil_scoped_release release;
             return std::make_unique<State>(state);
           })
      .def_property_readonly("position", &State::position)
      .def_property_readonly("size_bytes", &State::size_bytes)
      .def("parts",
           [](const State& state) {
             py::list result;
             for (const StatePart& part : state.parts())
               result.append(py::make_tuple(part.name, py::tuple(py::cast(part.shape))));
             return result;
           })
      .def("get", &get_part, py::arg("name"))
      .def("set", &set_part, py::arg("name"), py::arg("values"))
      .def("arrays", &get_parts)
      .def("set_arrays", &set_parts, py::arg("values"))
      .def("to_bytes", &to_bytes, py::arg("dtype") = "fp32");

  py::class_<Model>(m, "Model")
      .def_static("load", &load, py::arg("file"), py::arg("device"), py::arg("dtype"),
                  py::arg("threads"), py::arg("skip_zeros"), py::arg("matmul_precision"),
                  py::arg("progress"))
      .def_static("load_synthetic", &load_synthetic, py::arg("spec"), py::arg("stored"),
                  py::arg("seed"), py::arg("device"), py::arg("dtype"), py::arg("threads"),
                  py::arg("skip_zeros"), py::arg("matmul_precision"), py::arg("progress"))
      .def_property_readonly("info", [](const Model& model) { return info_dict(model.info()); })
      .def_property_readonly("device", &Model::device)
      .def_property_readonly("backend", &Model::backend)
      .def_property_readonly(
          "dtype", [](const Model& model) { return std::string(dtype_name(model.dtype())); })
      .def_property_readonly("weight_types",
                             [](const Model& model) {
                               py::dict types;
                               for (const auto& [name, type] : model.weight_types())
                                 types[py::str(name)] = std::string(dtype_name(type));
                               return types;
                             })
      .def_property_readonly("weight_bytes_per_token", &Model::weight_bytes_per_token)
      .def("new_state",
           [](const Model& model) {
             py::gil_scoped_release release;
             return std::make_unique<State>(model.new_state());
           })
      .def("state_from_bytes", &state_from_bytes, py::arg("data"))
      .def("forward", &forward, py::arg("ids"), py::arg("state"), py::arg("want"),
           py::arg("progress"))
      .def("forward_batch", &forward_batch, py::arg("ids"), py::arg("states"), py::arg("want"),
           py::arg("progress"))
      .def("forward_vectors", &forward_vectors, py::arg("vectors"), py::arg("state"),
           py::arg("want"), py::arg("ln0"), py::arg("progress"))
      .def("hidden", &hidden, py::arg("ids"), py::arg("states"), py::arg("layers"), py::arg("want"),
           py::arg("progress"));

  m.def("isas", &list_isas);
  m.def("devices", &list_devices);
}

}  // namespace wkv::python
