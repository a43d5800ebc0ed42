#include "ops_module.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "cpu/cpu_backend.h"
#include "runtime/devices.h"
#include "wkv/wkv.hpp"

namespace wkv::test {
namespace {

constexpr std::int64_t kGuard = 16;  // floats before and after each state
constexpr float kGuardValue = -12345.5f;

int rows_of(const Array& x) {
  WKV_CHECK(x.ndim() == 2, invalid_argument, "[test] an array of ", x.ndim(), " axes, expected 2");
  return static_cast<int>(x.shape(0));
}

std::vector<int> rows_or(const std::optional<std::vector<int>>& rows, const Array& x) {
  return rows ? *rows : std::vector<int>{rows_of(x)};
}

}  // namespace

DType dtype_named(const std::string& name) { return parse_dtype(name); }

Call::Call(Device& device, std::vector<int> rows, const std::optional<Array>& states)
    : device_(device),
      arena_([&device](std::size_t bytes) { return device.backend->allocate(bytes); },
             device.backend->host_memory()),
      step_{*device.backend, arena_, batch_} {
  for (int n : rows) {
    batch_.sequences.push_back({batch_.rows, n, nullptr, 0});
    batch_.rows += n;
  }
  if (!states) return;
  WKV_CHECK(rows_of(*states) == static_cast<int>(rows.size()), invalid_argument, "[test] ",
            rows_of(*states), " states for ", rows.size(), " sequences");
  state_size_ = states->shape(1);
  const std::int64_t pitch = state_size_ + 2 * kGuard;
  std::vector<float> host(rows.size() * static_cast<std::size_t>(pitch), kGuardValue);
  state_buffer_ = device_.backend->allocate(host.size() * sizeof(float));
  auto* base = static_cast<float*>(state_buffer_.data());
  for (std::size_t b = 0; b < rows.size(); ++b) {
    const std::int64_t at = static_cast<std::int64_t>(b) * pitch + kGuard;
    std::memcpy(host.data() + at, states->data(static_cast<py::ssize_t>(b), 0),
                static_cast<std::size_t>(state_size_) * sizeof(float));
    batch_.sequences[b].state = base + at;
  }
  device_.backend->write(base, host.data(), host.size() * sizeof(float));
}

Tensor Call::tensor(const Array& x) {
  const int rows = rows_of(x);
  const auto cols = static_cast<int>(x.shape(1));
  const int pad = device_.padding;
  const auto pitch = static_cast<std::size_t>(cols + 2 * pad);
  std::vector<float> host(static_cast<std::size_t>(rows) * pitch,
                          std::numeric_limits<float>::quiet_NaN());
  for (int t = 0; t < rows; ++t)
    std::memcpy(host.data() + static_cast<std::size_t>(t) * pitch + pad, x.data(t, 0),
                static_cast<std::size_t>(cols) * sizeof(float));
  Tensor wide = step_.tensor(rows, cols + 2 * pad);
  device_.backend->write(wide.data, host.data(), host.size() * sizeof(float));
  return columns(wide, pad, cols);
}

Vector Call::vector(const Array& x) {
  const auto bytes = static_cast<std::size_t>(x.size()) * sizeof(float);
  buffers_.push_back(device_.backend->allocate(bytes));
  device_.backend->write(buffers_.back().data(), x.data(), bytes);
  return {static_cast<const float*>(buffers_.back().data()), static_cast<int>(x.size())};
}

Slot Call::slot(std::int64_t offset, std::int64_t size) const {
  return {offset, size < 0 ? state_size_ : size};
}

const Matrix& Call::matrix(const py::array& x, DType dtype, DType want, MatrixUse use) {
  WKV_CHECK(x.ndim() == 2, invalid_argument, "[test] a matrix of ", x.ndim(), " axes");
  const auto bytes = static_cast<std::size_t>(x.nbytes());
  auto copy = std::make_shared<std::vector<std::byte>>(bytes);
  std::memcpy(copy->data(), x.data(), bytes);
  HostTensor host{copy->data(), dtype, {x.shape(0), x.shape(1)}, copy};
  keep_.push_back(copy);
  matrices_.push_back(
      std::make_unique<Matrix>(device_.backend->adopt(host, want, use, "test.weight", keep_, {})));
  return *matrices_.back();
}

Array Call::download(Tensor y) {
  Array host({y.rows, y.cols});
  for (int t = 0; t < y.rows; ++t)
    device_.backend->read(host.mutable_data(t, 0), y.row(t),
                          static_cast<std::size_t>(y.cols) * sizeof(float));
  return host;
}

Array Call::states() {
  const auto n = static_cast<py::ssize_t>(batch_.sequences.size());
  const std::int64_t pitch = state_size_ + 2 * kGuard;
  std::vector<float> host(static_cast<std::size_t>(n * pitch));
  device_.backend->read(host.data(), state_buffer_.data(), host.size() * sizeof(float));
  Array out({n, static_cast<py::ssize_t>(state_size_)});
  for (py::ssize_t b = 0; b < n; ++b) {
    const float* part = host.data() + b * pitch;
    for (std::int64_t i = 0; i < kGuard; ++i)
      WKV_CHECK(part[i] == kGuardValue && part[kGuard + state_size_ + i] == kGuardValue, internal,
                "[test] the op wrote outside of state ", b);
    std::memcpy(out.mutable_data(b, 0), part + kGuard,
                static_cast<std::size_t>(state_size_) * sizeof(float));
  }
  return out;
}

py::object Call::result(Tensor y) {
  device_.backend->end();
  if (state_size_ < 0) return download(y);
  return py::make_tuple(download(y), states());
}

py::object Call::results(const std::vector<Tensor>& y) {
  device_.backend->end();
  py::list list;
  for (const Tensor& t : y) list.append(download(t));
  if (state_size_ < 0) return list;
  return py::make_tuple(list, states());
}

namespace {

using Rows = std::optional<std::vector<int>>;
using Maybe = std::optional<Array>;

Device open_device(const std::string& name, const std::string& isa, int threads, int padding,
                   const std::string& skip_zeros, const std::string& precision) {
  if (name == "cpu")
    return {std::make_shared<cpu::CpuBackend>(threads, table_named(isa),
                                              skip_zeros == "on"    ? SkipZeros::on
                                              : skip_zeros == "off" ? SkipZeros::off
                                                                    : SkipZeros::automatic,
                                              parse_matmul_precision(precision)),
            padding};
  Options options;
  options.device = name;
  return {make_backend(options), padding};
}

py::object run_embed(Device& d, const std::vector<Token>& tokens, const py::array& table,
                     const std::string& dtype) {
  Call call(d, {static_cast<int>(tokens.size())});
  call.batch().tokens = tokens;
  const DType stored = dtype_named(dtype);
  const Matrix& m = call.matrix(table, stored, DType::automatic, MatrixUse::embedding);
  call.begin();
  return call.result(embed(call.step(), m));
}

py::object run_embed_inputs(Device& d, const Array& inputs) {
  Call call(d, {rows_of(inputs)});
  call.batch().inputs = inputs.data();
  const Array table({1, static_cast<int>(inputs.shape(1))});
  const Matrix& m = call.matrix(table, DType::f32, DType::automatic, MatrixUse::embedding);
  call.begin();
  return call.result(embed(call.step(), m));
}

py::object run_layer_norm(Device& d, const Array& x, const Array& weight, const Array& bias,
                          float eps) {
  Call call(d, {rows_of(x)});
  const Norm norm{call.vector(weight), call.vector(bias), eps};
  const Tensor in = call.tensor(x);
  call.begin();
  return call.result(layer_norm(in, norm));
}

py::object run_shift_delta(Device& d, const Array& x, const Array& prev, const Rows& rows) {
  Call call(d, rows_or(rows, x), prev);
  const Tensor in = call.tensor(x);
  call.begin();
  return call.result(shift_delta(in, call.slot()));
}

/// mu [G, C] -> G vectors.
std::vector<Vector> split_rows(Call& call, const Array& mu) {
  const Vector all = call.vector(mu);
  const auto cols = static_cast<int>(mu.shape(1));
  std::vector<Vector> parts;
  for (int g = 0; g < rows_of(mu); ++g)
    parts.push_back({all.data + std::ptrdiff_t{g} * cols, cols});
  return parts;
}

py::object run_shift_mix(Device& d, const Array& x, const Array& prev, const Array& mu,
                         const Rows& rows) {
  Call call(d, rows_or(rows, x), prev);
  const Tensor in = call.tensor(x);
  const std::vector<Vector> parts = split_rows(call, mu);
  std::vector<Tensor> y(parts.size());
  call.begin();
  detail::shift_mix(y.data(), in, call.slot(), parts.data(), parts.size());
  return call.results(y);
}

py::object run_lerp(Device& d, const Array& x, const Array& dx, const Array& mu) {
  Call call(d, {rows_of(x)});
  const Tensor in = call.tensor(x), delta = call.tensor(dx);
  const std::vector<Vector> parts = split_rows(call, mu);
  std::vector<Tensor> y(parts.size());
  call.begin();
  detail::lerp(y.data(), in, delta, parts.data(), parts.size());
  return call.results(y);
}

py::object run_add(Device& d, const Array& a, const Array& b) {
  Call call(d, {rows_of(a)});
  const Tensor x = call.tensor(a), z = call.tensor(b);
  call.begin();
  return call.result(x + z);
}

py::object run_multiply(Device& d, const Array& a, const Array& b) {
  Call call(d, {rows_of(a)});
  const Tensor x = call.tensor(a), z = call.tensor(b);
  call.begin();
  return call.result(x * z);
}

py::object run_select_rows(Device& d, const Array& x, const std::vector<int>& wanted) {
  Call call(d, {rows_of(x)});
  call.batch().wanted_rows = wanted;
  const Tensor in = call.tensor(x);
  call.begin();
  return call.result(select_rows(in));
}

py::object run_wkv4(Device& d, const Array& r, const Array& k, const Array& v, const Array& decay,
                    const Array& bonus, const Array& state, const Rows& rows) {
  Call call(d, rows_or(rows, r), state);
  const Tensor r_ = call.tensor(r), k_ = call.tensor(k), v_ = call.tensor(v);
  const Vector w = call.vector(decay), u = call.vector(bonus);
  call.begin();
  return call.result(wkv4(r_, k_, v_, w, u, call.slot()));
}

struct HeadArgs {
  Norm norm;
  HeadEpilogue epilogue;
  HeadArgs(Call& call, const Maybe& weight, const Maybe& bias, float eps, const Maybe& gate) {
    if (weight) {
      norm = {call.vector(*weight), call.vector(bias.value()), eps};
      epilogue.norm = &norm;
    }
    epilogue.gate = call.optional(gate);
  }
};

py::object run_wkv6(Device& d, const Array& r, const Array& k, const Array& v, const Array& decay,
                    const Array& bonus, int heads, const Array& state, const Rows& rows,
                    const Maybe& weight, const Maybe& bias, float eps, const Maybe& gate) {
  Call call(d, rows_or(rows, r), state);
  const Tensor r_ = call.tensor(r), k_ = call.tensor(k), v_ = call.tensor(v);
  const Vector u = call.vector(bonus);
  const HeadArgs head(call, weight, bias, eps, gate);
  if (decay.ndim() == 1) {
    const Vector w = call.vector(decay);
    call.begin();
    return call.result(wkv6(r_, k_, v_, w, u, heads, head.epilogue, call.slot()));
  }
  const Tensor w = call.tensor(decay);
  call.begin();
  return call.result(wkv6(r_, k_, v_, w, u, heads, head.epilogue, call.slot()));
}

py::object run_wkv7(Device& d, const Array& r, const Array& w, const Array& k, const Array& v,
                    const Array& a, const Array& k_k, const Array& k_a, const Array& r_k, int heads,
                    const Array& state, const Rows& rows, const Maybe& v_first, const Maybe& v_mix,
                    const Maybe& weight, const Maybe& bias, float eps, const Maybe& gate) {
  Call call(d, rows_or(rows, r), state);
  const Vector kk = call.vector(k_k), ka = call.vector(k_a), rk = call.vector(r_k);
  const HeadArgs head(call, weight, bias, eps, gate);
  const Wkv7 in{.r = call.tensor(r),
                .w = call.tensor(w),
                .k = call.tensor(k),
                .v = call.tensor(v),
                .a = call.tensor(a),
                .v_first = call.optional(v_first),
                .v_mix = call.optional(v_mix),
                .k_k = &kk,
                .k_a = &ka,
                .r_k = &rk,
                .norm = head.epilogue.norm,
                .gate = head.epilogue.gate};
  call.begin();
  return call.result(wkv7(in, heads, call.slot()));
}

}  // namespace
}  // namespace wkv::test

PYBIND11_MODULE(_wkv_ops, m) {
  using namespace wkv::test;
  namespace py = pybind11;
  using py::arg;

  m.def("devices", [] {
    std::vector<std::string> names;
    for (const wkv::DeviceInfo& info : wkv::devices())
      if (info.usable) names.push_back(info.name);
    return names;
  });

  py::class_<Device> device(m, "Device");
  device
      .def(py::init(&open_device), arg("device") = "cpu", arg("isa") = "", arg("threads") = 1,
           arg("padding") = 0, arg("skip_zeros") = "auto", arg("precision") = "auto")
      .def_property_readonly("name", [](const Device& d) { return d.backend->name(); })
      .def("embed", &run_embed, arg("tokens"), arg("table"), arg("dtype") = "fp32")
      .def("embed_inputs", &run_embed_inputs, arg("inputs"))
      .def("layer_norm", &run_layer_norm, arg("x"), arg("weight"), arg("bias"), arg("eps") = 1e-5f)
      .def("shift_delta", &run_shift_delta, arg("x"), arg("prev"), arg("rows") = py::none())
      .def("shift_mix", &run_shift_mix, arg("x"), arg("prev"), arg("mu"), arg("rows") = py::none())
      .def("lerp", &run_lerp, arg("x"), arg("dx"), arg("mu"))
      .def("add", &run_add, arg("a"), arg("b"))
      .def("multiply", &run_multiply, arg("a"), arg("b"))
      .def("select_rows", &run_select_rows, arg("x"), arg("wanted"))
      .def("wkv4", &run_wkv4, arg("r"), arg("k"), arg("v"), arg("decay"), arg("bonus"),
           arg("state"), arg("rows") = py::none())
      .def("wkv6", &run_wkv6, arg("r"), arg("k"), arg("v"), arg("decay"), arg("bonus"),
           arg("heads"), arg("state"), arg("rows") = py::none(), arg("weight") = py::none(),
           arg("bias") = py::none(), arg("eps") = 64e-5f, arg("gate") = py::none())
      .def("wkv7", &run_wkv7, arg("r"), arg("w"), arg("k"), arg("v"), arg("a"), arg("k_k"),
           arg("k_a"), arg("r_k"), arg("heads"), arg("state"), arg("rows") = py::none(),
           arg("v_first") = py::none(), arg("v_mix") = py::none(), arg("weight") = py::none(),
           arg("bias") = py::none(), arg("eps") = 64e-5f, arg("gate") = py::none());
  bind_gemm(m);
  bind_linear(m, device);
  bind_history(device);
}
