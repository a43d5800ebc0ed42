// _core.WorldTokenizer and _core.Sampler: the classes of wkv/text.hpp.
#include "wkv/text.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "convert.h"

namespace wkv::python {
namespace {

/// The bytes of a str (as UTF-8) or of a bytes-like object, readable without the GIL while this
/// lives. Only a str with other than ASCII characters is copied.
class TextBytes {
 public:
  explicit TextBytes(py::handle text) {
    PyObject* object = text.ptr();
    if (PyUnicode_Check(object)) {
      if (PyUnicode_IS_ASCII(object)) {
        owner_ = py::reinterpret_borrow<py::object>(text);
        view_ = {static_cast<const char*>(PyUnicode_DATA(object)),
                 static_cast<std::size_t>(PyUnicode_GET_LENGTH(object))};
        return;
      }
      owner_ = py::reinterpret_steal<py::object>(PyUnicode_AsUTF8String(object));
      if (!owner_) throw py::error_already_set();
      object = owner_.ptr();
    }
    if (!PyObject_CheckBuffer(object)) {
      throw py::type_error("[encode] the text must be str or bytes, got " +
                           std::string(Py_TYPE(object)->tp_name));
    }
    if (PyObject_GetBuffer(object, &buffer_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    view_ = {static_cast<const char*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
  }
  TextBytes(TextBytes&& other) noexcept
      : owner_(std::move(other.owner_)), buffer_(other.buffer_), view_(other.view_) {
    other.buffer_ = {};
  }
  TextBytes(const TextBytes&) = delete;
  TextBytes& operator=(const TextBytes&) = delete;
  TextBytes& operator=(TextBytes&&) = delete;
  ~TextBytes() {
    if (buffer_.obj != nullptr) PyBuffer_Release(&buffer_);
  }

  std::string_view view() const { return view_; }

 private:
  py::object owner_;
  Py_buffer buffer_ = {};
  std::string_view view_;
};

/// The int of an id, a new reference. Those of a vocabulary are kept for good (2 MB at most):
/// taking one is three times faster than making one. Called with the GIL.
PyObject* id_object(Token id) {
  static std::array<PyObject*, 65536> kept{};
  const auto index = static_cast<std::size_t>(id);
  if (index >= kept.size()) return PyLong_FromLong(id);
  if (kept[index] == nullptr) kept[index] = PyLong_FromLong(id);
  Py_XINCREF(kept[index]);
  return kept[index];
}

py::list to_list(const std::vector<Token>& ids) {
  py::list list(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    PyObject* id = id_object(ids[i]);
    if (id == nullptr) throw py::error_already_set();
    PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), id);
  }
  return list;
}

/// An array that takes over the vector's memory.
py::array_t<Token> to_array(std::vector<Token>&& ids) {
  auto owner = std::make_unique<std::vector<Token>>(std::move(ids));
  const auto* vector = owner.get();
  py::capsule capsule(owner.release(), [](void* p) { delete static_cast<std::vector<Token>*>(p); });
  return py::array_t<Token>(static_cast<py::ssize_t>(vector->size()), vector->data(), capsule);
}

std::vector<Token> encode(const WorldTokenizer& tokenizer, py::handle text, int threads) {
  const TextBytes bytes(text);
  const py::gil_scoped_release release;
  return tokenizer.encode(bytes.view(), threads);
}

py::list encode_batch(const WorldTokenizer& tokenizer, const py::sequence& texts, int threads) {
  std::vector<TextBytes> owners;
  owners.reserve(texts.size());
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (const py::handle text : texts) views.push_back(owners.emplace_back(text).view());
  std::vector<std::vector<Token>> ids;
  {
    const py::gil_scoped_release release;
    ids = tokenizer.encode_batch(views, threads);
  }
  py::list result;
  for (const std::vector<Token>& one : ids) result.append(to_list(one));
  return result;
}

py::bytes decode(const WorldTokenizer& tokenizer, py::handle ids) {
  return tokenizer.decode(to_tokens(ids, "decode"));
}

using Logits = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::span<const float> view_of(const Logits& logits) {
  if (logits.ndim() != 1) {
    throw py::value_error("[sampler] logits must have one dimension, got " +
                          std::to_string(logits.ndim()));
  }
  return {logits.data(), static_cast<std::size_t>(logits.size())};
}

/// A Sampler that refuses to be used by two threads at once, as its calls run without the GIL.
class PySampler {
 public:
  explicit PySampler(SamplingParams params) : sampler_(std::move(params)) {}
  PySampler(const PySampler& other) : sampler_(other.sampler_) {}
  PySampler& operator=(const PySampler&) = delete;

  template <class Call>
  decltype(auto) exclusively(Call&& call) {
    if (busy_.exchange(true)) {
      throw py::value_error("[sampler] another thread is using this sampler; copy it instead");
    }
    struct Guard {
      std::atomic<bool>& busy;
      ~Guard() { busy.store(false); }
    } const guard{busy_};
    return call(sampler_);
  }

  Token sample(const Logits& logits) {
    const std::span<const float> view = view_of(logits);
    return exclusively([view](Sampler& sampler) {
      const py::gil_scoped_release release;
      return sampler.sample(view);
    });
  }

  template <class Method>
  Floats vector_of(const Logits& logits, Method method) {
    const std::span<const float> view = view_of(logits);
    Floats out = new_floats({logits.size()});
    const std::span<float> result = span_of(out);
    exclusively([&](Sampler& sampler) {
      const py::gil_scoped_release release;
      (sampler.*method)(view, result);
    });
    return out;
  }

 private:
  Sampler sampler_;
  std::atomic<bool> busy_{false};
};

SamplerVariant to_variant(const std::string& name) {
  if (name == "pip") return SamplerVariant::pip;
  if (name == "v1") return SamplerVariant::v1;
  if (name == "v2") return SamplerVariant::v2;
  if (name == "v7") return SamplerVariant::v7;
  throw py::value_error("[sampler] variant must be 'pip', 'v1', 'v2' or 'v7', got '" + name + "'");
}

void bind_tokenizer(py::module_& m) {
  py::class_<WorldTokenizer>(m, "WorldTokenizer")
      .def_static("builtin", &WorldTokenizer::builtin, py::call_guard<py::gil_scoped_release>())
      .def_static("has_builtin", &WorldTokenizer::has_builtin)
      .def_static("from_file", &WorldTokenizer::from_file, py::arg("path"),
                  py::call_guard<py::gil_scoped_release>())
      .def(
          "encode",
          [](const WorldTokenizer& self, py::handle text, int threads) {
            return to_list(encode(self, text, threads));
          },
          py::arg("text"), py::arg("threads"))
      .def(
          "encode_array",
          [](const WorldTokenizer& self, py::handle text, int threads) {
            return to_array(encode(self, text, threads));
          },
          py::arg("text"), py::arg("threads"))
      .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("threads"))
      .def("decode", &decode, py::arg("ids"))
      .def(
          "token_bytes",
          [](const WorldTokenizer& self, Token id) { return py::bytes(self.token_bytes(id)); },
          py::arg("id"))
      .def_property_readonly("size", &WorldTokenizer::size);
}

void bind_sampler(py::module_& m) {
  py::class_<PySampler>(m, "Sampler")
      .def(py::init([](double temperature, double top_p, int top_k, double min_p, double typical,
                       double top_a, double top_a_power, double top_p_x, double presence_penalty,
                       double frequency_penalty, double penalty_decay, std::vector<Token> uncounted,
                       std::vector<std::pair<Token, double>> bias, std::vector<Token> ban,
                       std::uint64_t seed, const std::string& variant) {
             return std::make_unique<PySampler>(SamplingParams{
                 .temperature = temperature,
                 .top_p = top_p,
                 .top_k = top_k,
                 .min_p = min_p,
                 .typical = typical,
                 .top_a = top_a,
                 .top_a_power = top_a_power,
                 .top_p_x = top_p_x,
                 .presence_penalty = presence_penalty,
                 .frequency_penalty = frequency_penalty,
                 .penalty_decay = penalty_decay,
                 .uncounted = std::move(uncounted),
                 .bias = std::move(bias),
                 .ban = std::move(ban),
                 .seed = seed,
                 .variant = to_variant(variant),
             });
           }),
           py::kw_only(), py::arg("temperature"), py::arg("top_p"), py::arg("top_k"),
           py::arg("min_p"), py::arg("typical"), py::arg("top_a"), py::arg("top_a_power"),
           py::arg("top_p_x"), py::arg("presence_penalty"), py::arg("frequency_penalty"),
           py::arg("penalty_decay"), py::arg("uncounted"), py::arg("bias"), py::arg("ban"),
           py::arg("seed"), py::arg("variant"))
      .def("sample", &PySampler::sample, py::arg("logits"))
      .def(
          "probabilities",
          [](PySampler& self, const Logits& logits) {
            return self.vector_of(logits, &Sampler::probabilities);
          },
          py::arg("logits"))
      .def(
          "adjust",
          [](PySampler& self, const Logits& logits) {
            return self.vector_of(logits, &Sampler::adjust);
          },
          py::arg("logits"))
      .def(
          "accept",
          [](PySampler& self, Token token, double weight) {
            self.exclusively([&](Sampler& sampler) { sampler.accept(token, weight); });
          },
          py::arg("token"), py::arg("weight") = 1.0)
      .def("reset",
           [](PySampler& self) { self.exclusively([](Sampler& sampler) { sampler.reset(); }); })
      .def("copy",
           [](PySampler& self) {
             return self.exclusively([&](Sampler&) { return std::make_unique<PySampler>(self); });
           })
      .def_property(
          "position",
          [](PySampler& self) {
            return self.exclusively([](Sampler& sampler) { return sampler.position(); });
          },
          [](PySampler& self, std::uint64_t draws) {
            self.exclusively([&](Sampler& sampler) { sampler.set_position(draws); });
          });
}

}  // namespace

void bind_text(py::module_& m) {
  bind_tokenizer(m);
  bind_sampler(m);
}

}  // namespace wkv::python
