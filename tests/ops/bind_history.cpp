// Ops of v1 to v3 and of the research variants: they know a row's position in its stream.
#include "ops_module.h"

namespace wkv::test {
namespace {

using py::arg;

using Ints = std::vector<int>;

/// Tokens that each sequence has read before.
void set_positions(Call& call, const Ints& positions) {
  for (std::size_t b = 0; b < positions.size(); ++b)
    call.batch().sequences.at(b).position = positions[b];
}

/// states [B, C + ctx C]: sum_k, history.
py::object run_wkv1(Device& d, const Array& r, const Array& k, const Array& v, const Array& time_w,
                    const Array& time_alpha, const Array& time_beta, int heads, const Array& states,
                    const Ints& rows, const Ints& positions) {
  Call call(d, rows, states);
  set_positions(call, positions);
  const Vector w = call.vector(time_w), alpha = call.vector(time_alpha),
               beta = call.vector(time_beta);
  const Wkv1 in{.r = call.tensor(r),
                .k = call.tensor(k),
                .v = call.tensor(v),
                .time_w = &w,
                .time_alpha = &alpha,
                .time_beta = &beta};
  const std::int64_t C = in.r.cols;
  call.begin();
  return call.result(wkv1(in, heads, call.slot(0, C), call.slot(C, states.shape(1) - C)));
}

py::object run_wkv2(Device& d, const Array& r, const Array& k, const Array& v, const Array& decay,
                    const Array& bonus, float eps, const Array& states, const Ints& rows) {
  Call call(d, rows, states);
  const Tensor r_ = call.tensor(r), k_ = call.tensor(k), v_ = call.tensor(v);
  const Vector w = call.vector(decay), u = call.vector(bonus);
  call.begin();
  return call.result(wkv2(r_, k_, v_, w, u, eps, call.slot()));
}

py::object run_by_position(Device& d, const Array& x, const Array& values, const Ints& rows,
                           const Ints& positions, const Ints& wanted) {
  Call call(d, rows);
  set_positions(call, positions);
  call.batch().wanted_rows = wanted;
  const Tensor x_ = call.tensor(x);
  const Vector of = call.vector(values);
  call.begin();
  return call.result(by_position(x_, of));
}

/// states [B, ctx D + ctx]: keys, tokens. Remembers k and the tokens of all rows, then adds.
py::object run_copy_logits(Device& d, const Array& logits, const Array& q, const Array& k,
                           const std::vector<Token>& tokens, float scale, const Array& states,
                           const Ints& rows, const Ints& positions, const Ints& wanted) {
  Call call(d, rows, states);
  set_positions(call, positions);
  call.batch().wanted_rows = wanted;
  call.batch().tokens = tokens;
  const Tensor y = call.tensor(logits), q_ = call.tensor(q), k_ = call.tensor(k);
  const std::int64_t ctx = states.shape(1) / (k_.cols + 1);
  const Slot keys = call.slot(0, ctx * k_.cols), ids = call.slot(ctx * k_.cols, ctx);
  call.begin();
  remember(k_, keys);
  remember_tokens(call.step(), ids);
  copy_logits(y, q_, keys, ids, scale);
  return call.result(y);
}

/// states [B, ctx (D + E)]: keys, values.
py::object run_attention(Device& d, const Array& q, const Array& k, const Array& v,
                         const Array& states, const Ints& rows, const Ints& positions) {
  Call call(d, rows, states);
  set_positions(call, positions);
  const Tensor q_ = call.tensor(q), k_ = call.tensor(k), v_ = call.tensor(v);
  const std::int64_t ctx = states.shape(1) / (k_.cols + v_.cols);
  call.begin();
  return call.result(
      attention(q_, k_, v_, call.slot(0, ctx * k_.cols), call.slot(ctx * k_.cols, ctx * v_.cols)));
}

py::object run_linear_attention(Device& d, const Array& q, const Array& k, const Array& v,
                                float scale, const Array& states, const Ints& rows) {
  Call call(d, rows, states);
  const Tensor q_ = call.tensor(q), k_ = call.tensor(k), v_ = call.tensor(v);
  call.begin();
  return call.result(linear_attention(q_, k_, v_, scale, call.slot()));
}

py::object run_row_matvec(Device& d, const Array& x, const Array& m) {
  Call call(d, {static_cast<int>(x.shape(0))});
  const Tensor x_ = call.tensor(x), m_ = call.tensor(m);
  call.begin();
  return call.result(row_matvec(x_, m_));
}

}  // namespace

void bind_history(py::class_<Device>& device) {
  device
      .def("wkv1", &run_wkv1, arg("r"), arg("k"), arg("v"), arg("time_w"), arg("time_alpha"),
           arg("time_beta"), arg("heads"), arg("states"), arg("rows"), arg("positions"))
      .def("wkv2", &run_wkv2, arg("r"), arg("k"), arg("v"), arg("decay"), arg("bonus"), arg("eps"),
           arg("states"), arg("rows"))
      .def("by_position", &run_by_position, arg("x"), arg("values"), arg("rows"), arg("positions"),
           arg("wanted"))
      .def("copy_logits", &run_copy_logits, arg("logits"), arg("q"), arg("k"), arg("tokens"),
           arg("scale"), arg("states"), arg("rows"), arg("positions"), arg("wanted"))
      .def("attention", &run_attention, arg("q"), arg("k"), arg("v"), arg("states"), arg("rows"),
           arg("positions"))
      .def("linear_attention", &run_linear_attention, arg("q"), arg("k"), arg("v"), arg("scale"),
           arg("states"), arg("rows"))
      .def("row_matvec", &run_row_matvec, arg("x"), arg("m"));
}

}  // namespace wkv::test
