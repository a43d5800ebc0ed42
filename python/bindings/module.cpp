// The extension module wkv._core. Python's own classes in python/wkv wrap what is bound here.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "convert.h"
#include "wkv/wkv.hpp"

PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  m.doc() = "Native core of wkv. Use the classes of the package instead.";
  m.attr("__version__") = py::str(wkv::version().data(), wkv::version().size());
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const wkv::Error& error) {
      wkv::python::set_python_error(error);
    }
  });
  wkv::python::bind_model(m);
  wkv::python::bind_checkpoint(m);
#ifdef WKV_BINDINGS_TEXT
  wkv::python::bind_text(m);
#endif
}
