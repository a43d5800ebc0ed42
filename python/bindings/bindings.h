// What each file of bindings adds to the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace wkv::python {

void bind_model(pybind11::module_& m);
void bind_checkpoint(pybind11::module_& m);
void bind_text(pybind11::module_& m);  // tokenizers and the sampler

}  // namespace wkv::python
