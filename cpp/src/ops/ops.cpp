#include "ops/ops.h"

#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"

namespace wkv {
namespace {

std::string shape(Tensor x) { return str('[', x.rows, ", ", x.cols, ']'); }

void check_same(const char* op, Tensor x,
                std::initializer_list<std::pair<const char*, Tensor>> others) {
  for (const auto& [name, t] : others)
    WKV_CHECK(t.rows == x.rows && t.cols == x.cols, internal, '[', op, "] ", name, " is ", shape(t),
              " where ", shape(x), " is needed");
}

void check_vector(const char* op, const char* name, const Vector& v, int n) {
  WKV_CHECK(v.n == n, internal, '[', op, "] ", name, " has ", v.n, " elements where ", n,
            " are needed");
}

void check_slot(const char* op, Slot slot, std::int64_t size) {
  WKV_CHECK(slot.offset >= 0 && slot.size == size, internal, '[', op, "] the state slot has ",
            slot.size, " floats where ", size, " are needed");
}

void check_heads(const char* op, int cols, int heads) {
  WKV_CHECK(heads > 0 && cols % heads == 0, internal, '[', op, "] ", cols,
            " channels do not divide into ", heads, " heads");
}

Tensor like(Tensor x) { return x.step->tensor(x.rows, x.cols); }

}  // namespace

Tensor Step::tensor(int rows, int cols, DType dtype) {
  const std::size_t bytes =
      static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * dtype_size(dtype);
  return {this, arena.allocate(bytes), rows, cols, cols, dtype};
}

Tensor embed(Step& step, const Matrix& table) {
  Tensor y = step.tensor(step.batch.rows, table.in);
  step.backend.embed(y, table);
  return y;
}

Tensor layer_norm(Tensor x, const Norm& norm) {
  check_vector("layer_norm", "weight", norm.weight, x.cols);
  check_vector("layer_norm", "bias", norm.bias, x.cols);
  Tensor y = like(x);
  x.step->backend.layer_norm(y, x, norm);
  return y;
}

Tensor shift_delta(Tensor x, Slot prev) {
  check_slot("shift_delta", prev, x.cols);
  Tensor dx = like(x);
  x.step->backend.shift_delta(dx, x, prev);
  return dx;
}

namespace detail {

void lerp(Tensor* y, Tensor x, Tensor dx, const Vector* mu, std::size_t n) {
  check_same("lerp", x, {{"dx", dx}});
  for (std::size_t g = 0; g < n; ++g) {
    check_vector("lerp", "mu", mu[g], x.cols);
    y[g] = like(x);
  }
  x.step->backend.lerp({y, n}, x, dx, {mu, n});
}

void shift_mix(Tensor* y, Tensor x, Slot prev, const Vector* mu, std::size_t n) {
  check_slot("shift_mix", prev, x.cols);
  for (std::size_t g = 0; g < n; ++g) {
    check_vector("shift_mix", "mu", mu[g], x.cols);
    y[g] = like(x);
  }
  x.step->backend.shift_mix({y, n}, x, prev, {mu, n});
}

void linears(Tensor* y, const Linear* calls, std::size_t n) {
  constexpr std::size_t kMaxGroup = 16;
  WKV_CHECK(n >= 1 && n <= kMaxGroup, internal, "[linear] a group of ", n, " products");
  std::array<LinearJob, kMaxGroup> jobs;
  std::size_t used = 0;
  Step& step = *calls[0].x.step;
  for (std::size_t g = 0; g < n; ++g) {
    const Linear& call = calls[g];
    const Matrix& w = *call.w;
    y[g] = Tensor{};
    if (!w) continue;
    WKV_CHECK(call.x.cols == w.in, internal, "[linear] x has ", call.x.cols, " columns, weight '",
              w.name, "' [", w.out, ", ", w.in, "] wants ", w.in);
    const Epilogue& e = call.epilogue;
    if (e.bias != nullptr) check_vector("linear", "bias", *e.bias, w.out);
    for (const Tensor& t : {e.gate, e.add, e.into, e.out})
      WKV_CHECK(!t || (t.rows == call.x.rows && t.cols == w.out), internal,
                "[linear] an epilogue operand of '", w.name, "' is ", shape(t), " where [",
                call.x.rows, ", ", w.out, "] is needed");
    y[g] = e.into ? e.into : e.out ? e.out : step.tensor(call.x.rows, w.out);
    jobs[used++] = {y[g], call.x, call.w, e};
  }
  if (used > 0) step.backend.linear(std::span(jobs.data(), used));
}

}  // namespace detail

Tensor operator+(Tensor a, Tensor b) {
  check_same("add", a, {{"b", b}});
  Tensor y = like(a);
  a.step->backend.add(y, a, b);
  return y;
}

Tensor operator*(Tensor a, Tensor b) {
  check_same("multiply", a, {{"b", b}});
  Tensor y = like(a);
  a.step->backend.multiply(y, a, b);
  return y;
}

Tensor add_to(Tensor x, Tensor y) {
  check_same("add_to", x, {{"y", y}});
  x.step->backend.add(x, x, y);
  return x;
}

Tensor columns(Tensor x, int begin, int n) {
  WKV_CHECK(begin >= 0 && n > 0 && begin + n <= x.cols, internal, "[columns] [", begin, ", ",
            begin + n, ") of ", x.cols);
  x.data = static_cast<std::byte*>(x.data) + static_cast<std::size_t>(begin) * dtype_size(x.dtype);
  x.cols = n;
  return x;
}

Tensor select_rows(Tensor x) {
  const int wanted = static_cast<int>(x.step->batch.wanted_rows.size());
  if (wanted == x.rows) return x;
  Tensor y = x.step->tensor(wanted, x.cols);
  if (wanted > 0) x.step->backend.select_rows(y, x);
  return y;
}

Tensor wkv4(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, Slot state) {
  check_same("wkv4", r, {{"k", k}, {"v", v}});
  check_vector("wkv4", "decay", decay, r.cols);
  check_vector("wkv4", "bonus", bonus, r.cols);
  check_slot("wkv4", state, 3 * std::int64_t{r.cols});
  Tensor y = like(r);
  r.step->backend.wkv4(y, r, k, v, decay, bonus, state);
  return y;
}

namespace {

void check_wkv6(Tensor r, Tensor k, Tensor v, const Vector& bonus, int heads, const HeadEpilogue& e,
                Slot state) {
  check_heads("wkv6", r.cols, heads);
  check_same("wkv6", r, {{"k", k}, {"v", v}});
  if (e.gate) check_same("wkv6", r, {{"gate", e.gate}});
  check_vector("wkv6", "bonus", bonus, r.cols);
  check_slot("wkv6", state, std::int64_t{r.cols} * (r.cols / heads));
}

}  // namespace

Tensor wkv6(Tensor r, Tensor k, Tensor v, Tensor decay, const Vector& bonus, int heads,
            const HeadEpilogue& epilogue, Slot state) {
  check_wkv6(r, k, v, bonus, heads, epilogue, state);
  check_same("wkv6", r, {{"decay", decay}});
  Tensor y = like(r);
  r.step->backend.wkv6(y, r, k, v, decay, nullptr, bonus, heads, epilogue, state);
  return y;
}

Tensor wkv6(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, int heads,
            const HeadEpilogue& epilogue, Slot state) {
  check_wkv6(r, k, v, bonus, heads, epilogue, state);
  check_vector("wkv6", "decay", decay, r.cols);
  Tensor y = like(r);
  r.step->backend.wkv6(y, r, k, v, Tensor{}, &decay, bonus, heads, epilogue, state);
  return y;
}

Tensor wkv7(const Wkv7& in, int heads, Slot state) {
  const Tensor r = in.r;
  check_heads("wkv7", r.cols, heads);
  check_same("wkv7", r, {{"w", in.w}, {"k", in.k}, {"v", in.v}, {"a", in.a}});
  if (in.v_mix) check_same("wkv7", r, {{"v_mix", in.v_mix}, {"v_first", in.v_first}});
  if (in.gate) check_same("wkv7", r, {{"gate", in.gate}});
  check_vector("wkv7", "k_k", *in.k_k, r.cols);
  check_vector("wkv7", "k_a", *in.k_a, r.cols);
  check_vector("wkv7", "r_k", *in.r_k, r.cols);
  check_slot("wkv7", state, std::int64_t{r.cols} * (r.cols / heads));
  Tensor y = like(r);
  r.step->backend.wkv7(y, in, heads, state);
  return y;
}

namespace {

/// Length of a history of rows of `cols` floats.
std::int64_t context(const char* op, Slot history, int cols) {
  WKV_CHECK(history.offset >= 0 && history.size > 0 && history.size % cols == 0, internal, '[', op,
            "] the history has ", history.size, " floats, no multiple of ", cols);
  return history.size / cols;
}

}  // namespace

Tensor wkv1(const Wkv1& in, int heads, Slot sum_k, Slot history) {
  const Tensor r = in.r;
  check_heads("wkv1", r.cols, heads);
  check_same("wkv1", r, {{"k", in.k}, {"v", in.v}});
  check_slot("wkv1", sum_k, r.cols);
  const int curve = heads * static_cast<int>(context("wkv1", history, r.cols));
  check_vector("wkv1", "time_w", *in.time_w, curve);
  check_vector("wkv1", "time_alpha", *in.time_alpha, curve);
  check_vector("wkv1", "time_beta", *in.time_beta, curve);
  Tensor y = like(r);
  r.step->backend.wkv1(y, in, heads, sum_k, history);
  return y;
}

Tensor wkv2(Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus, float eps,
            Slot state) {
  check_same("wkv2", r, {{"k", k}, {"v", v}});
  check_vector("wkv2", "decay", decay, r.cols);
  check_vector("wkv2", "bonus", bonus, r.cols);
  check_slot("wkv2", state, 2 * std::int64_t{r.cols});
  Tensor y = like(r);
  r.step->backend.wkv2(y, r, k, v, decay, bonus, eps, state);
  return y;
}

Tensor by_position(Tensor x, const Vector& values) {
  Tensor y = like(x);
  x.step->backend.by_position(y, values);
  return y;
}

void remember(Tensor x, Slot history) {
  context("remember", history, x.cols);
  x.step->backend.remember(x, history);
}

void remember_tokens(Step& step, Slot history) {
  WKV_CHECK(step.batch.inputs == nullptr, unsupported,
            "[forward] this model copies tokens, so it cannot read vectors in place of them");
  step.backend.remember_tokens(history);
}

void copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) {
  WKV_CHECK(logits.rows == q.rows, internal, "[copy_logits] logits are ", shape(logits), ", q ",
            shape(q));
  check_slot("copy_logits", tokens, context("copy_logits", keys, q.cols));
  if (q.rows > 0) q.step->backend.copy_logits(logits, q, keys, tokens, scale);
}

Tensor attention(Tensor q, Tensor k, Tensor v, Slot keys, Slot values) {
  check_same("attention", q, {{"k", k}});
  check_slot("attention", values, context("attention", keys, k.cols) * v.cols);
  remember(k, keys);
  remember(v, values);
  Tensor y = like(v);
  q.step->backend.attention(y, q, keys, values);
  return y;
}

Tensor linear_attention(Tensor q, Tensor k, Tensor v, float scale, Slot state) {
  check_same("linear_attention", q, {{"k", k}});
  check_slot("linear_attention", state, std::int64_t{q.cols} * v.cols);
  Tensor y = like(v);
  q.step->backend.linear_attention(y, q, k, v, scale, state);
  return y;
}

Tensor row_matvec(Tensor x, Tensor m) {
  WKV_CHECK(m.rows == x.rows && m.cols == x.cols * x.cols, internal, "[row_matvec] x is ", shape(x),
            ", m ", shape(m));
  Tensor y = like(x);
  x.step->backend.row_matvec(y, x, m);
  return y;
}

}  // namespace wkv
