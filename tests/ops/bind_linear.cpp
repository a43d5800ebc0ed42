#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "cpu/kernels_matmul.h"
#include "ops/quantize.h"
#include "ops_module.h"

namespace wkv::test {
namespace {

using py::arg;
using Maybe = std::optional<Array>;

Act act_named(const std::string& name) {
  static constexpr std::pair<const char*, Act> kActs[] = {
      {"none", Act::none},
      {"tanh", Act::tanh},
      {"sigmoid", Act::sigmoid},
      {"silu", Act::silu},
      {"relu_squared", Act::relu_squared},
      {"exp_neg_exp", Act::exp_neg_exp},
      {"decay7", Act::decay7},
      {"mish", Act::mish},
  };
  for (const auto& [known, act] : kActs)
    if (name == known) return act;
  fail(ErrorCode::invalid_argument, "[test] no activation '", name, "'");
}

MatrixUse use_named(const std::string& name) {
  if (name == "linear") return MatrixUse::linear;
  if (name == "embedding") return MatrixUse::embedding;
  if (name == "head") return MatrixUse::head;
  if (name == "lora") return MatrixUse::lora;
  if (name == "ffn_value") return MatrixUse::ffn_value;
  fail(ErrorCode::invalid_argument, "[test] no use '", name, "'");
}

/// A weight, adopted once and used by many calls. `offset` bytes put its elements off alignment, as
/// they may lie in a file.
struct Weight {
  std::vector<std::shared_ptr<const void>> keep;
  Matrix matrix;

  Weight(Device& d, const py::array& w, const std::string& dtype, const std::string& want,
         const std::string& use, int offset) {
    WKV_CHECK(w.ndim() == 2, invalid_argument, "[test] a matrix of ", w.ndim(), " axes");
    const auto bytes = static_cast<std::size_t>(w.nbytes());
    auto copy = std::make_shared<std::vector<std::byte>>(bytes + static_cast<std::size_t>(offset));
    std::memcpy(copy->data() + offset, w.data(), bytes);
    const HostTensor host{
        copy->data() + offset, dtype_named(dtype), {w.shape(0), w.shape(1)}, copy};
    keep.push_back(copy);
    matrix = d.backend->adopt(host, dtype_named(want), use_named(use), "test.weight", keep, {});
  }
};

/// An int4 matrix row-major again, from the strips of the CPU; any other as it is.
struct RowMajor {
  explicit RowMajor(const Matrix& m) : matrix(m) {
    if (m.layout != Layout::packed) return;
    const auto size = [](int n) { return static_cast<std::size_t>(n); };
    const std::size_t groups = size(m.in + quantize::kGroup - 1) / quantize::kGroup;
    codes.resize(size(m.out) * groups * 16);
    scales.resize(size(m.out) * groups);
    const auto* from = static_cast<const std::uint8_t*>(m.data);
    const auto* from_scales = static_cast<const std::uint16_t*>(m.group_scale);
    for (std::size_t o = 0; o < size(m.out); ++o)
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t group = o / cpu::kStrip * groups + g, lane = o % cpu::kStrip;
        scales[o * groups + g] = from_scales[group * cpu::kStrip + lane];
        for (std::size_t b = 0; b < 16; ++b)
          codes[(o * groups + g) * 16 + b] =
              from[((group * 4 + b / 4) * cpu::kStrip + lane) * 4 + b % 4];
      }
    matrix.layout = Layout::row_major;
    matrix.data = codes.data();
    matrix.group_scale = scales.data();
  }
  Matrix matrix;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales;
};

/// What the elements are worth, fp32 [out, in].
Array decoded(const Weight& w) {
  const RowMajor held(w.matrix);
  Array all({w.matrix.out, w.matrix.in});
  for (int o = 0; o < w.matrix.out; ++o)
    quantize::decode_row(held.matrix, o, all.mutable_data(o, 0));
  return all;
}

/// Codes, scales and offsets as numpy arrays; those that the format has.
py::dict parts(const Weight& w) {
  const RowMajor held(w.matrix);
  const Matrix& m = held.matrix;
  py::dict all;
  all["dtype"] = std::string(dtype_name(m.dtype));
  all["bytes"] = m.bytes;
  const bool input_major = m.layout == Layout::input_major;
  const auto rows = static_cast<py::ssize_t>(input_major ? m.in : m.out);
  const auto bytes =
      static_cast<py::ssize_t>(quantize::row_bytes(m.dtype, input_major ? m.out : m.in));
  const auto stride = static_cast<py::ssize_t>(quantize::row_bytes(m));
  const py::array_t<std::uint8_t> codes({rows, bytes}, {stride, py::ssize_t{1}},
                                        static_cast<const std::uint8_t*>(m.data));
  if (input_major)
    all["q"] = codes.attr("T");
  else
    all["q"] = codes;
  const auto vector = [&](const char* name, const float* data, int n) {
    if (data != nullptr) all[name] = Array(n, data);
  };
  vector("in_scale", m.in_scale, m.in);
  vector("out_scale", m.out_scale, m.out);
  vector("in_offset", m.in_offset, m.in);
  if (m.group_scale != nullptr) {  // the bits of fp16
    const py::ssize_t groups = (m.in + quantize::kGroup - 1) / quantize::kGroup;
    all["scale"] = py::array_t<std::uint16_t>({static_cast<py::ssize_t>(m.out), groups},
                                              static_cast<const std::uint16_t*>(m.group_scale));
  }
  vector("out_offset", m.out_offset, m.out);
  return all;
}

struct Product {
  Array x;
  std::shared_ptr<Weight> w;
  std::string act = "none";
  Maybe bias, gate, add, into;
};

/// One group of products, one dispatch.
py::object run_linears(Device& d, const std::vector<Product>& products) {
  Call call(d, {products.empty() ? 1 : static_cast<int>(products[0].x.shape(0))});
  std::deque<Vector> biases;
  std::vector<Linear> calls;
  for (const Product& p : products) {
    Epilogue e{.act = act_named(p.act),
               .gate = call.optional(p.gate),
               .add = call.optional(p.add),
               .into = call.optional(p.into)};
    if (p.bias) e.bias = &biases.emplace_back(call.vector(*p.bias));
    calls.emplace_back(call.tensor(p.x), p.w->matrix, e);
  }
  std::vector<Tensor> y(calls.size());
  call.begin();
  detail::linears(y.data(), calls.data(), calls.size());
  return call.results(y);
}

}  // namespace

void bind_linear(py::module_& m, py::class_<Device>& device) {
  py::class_<Weight, std::shared_ptr<Weight>>(m, "Weight")
      .def(py::init<Device&, const py::array&, const std::string&, const std::string&,
                    const std::string&, int>(),
           arg("device"), arg("w"), arg("dtype"), arg("want") = "auto", arg("use") = "linear",
           arg("offset") = 0)
      .def("decoded", &decoded)
      .def("parts", &parts);
  py::class_<Product>(m, "Product")
      .def(py::init([](const Array& x, std::shared_ptr<Weight> w, const std::string& act,
                       const Maybe& bias, const Maybe& gate, const Maybe& add, const Maybe& into) {
             return Product{x, std::move(w), act, bias, gate, add, into};
           }),
           arg("x"), arg("w"), arg("act") = "none", arg("bias") = py::none(),
           arg("gate") = py::none(), arg("add") = py::none(), arg("into") = py::none());
  device.def("linears", &run_linears, arg("products"));
}

}  // namespace wkv::test
