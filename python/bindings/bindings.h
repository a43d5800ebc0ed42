// What each file of bindings adds to the extension module.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "wkv/wkv.hpp"

namespace wkv::python {

/// Tensors without a model: a file, or what is made of one.
struct Checkpoint {
  std::shared_ptr<const TensorSource> source;
};

void bind_model(pybind11::module_& m);
void bind_checkpoint(pybind11::module_& m);
void bind_text(pybind11::module_& m);  // tokenizers and the sampler

}  // namespace wkv::python
