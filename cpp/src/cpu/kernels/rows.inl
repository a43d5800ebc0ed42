// Row-wise kernels: gather, norms, token shift, elementwise arithmetic.
#include "cpu/kernels/rows_norm.inl"
#include "cpu/kernels/wkv.inl"
#include "cpu/kernels/wkv7.inl"
#include "cpu/kernels/wkv_history.inl"

namespace wkv::cpu {
namespace {

template <class T>
void convert(float* y, const T* x, int n) {
  int i = 0;
  for (; i + W <= n; i += W) store(y + i, load(x + i));
  for (; i < n; ++i) y[i] = scalar(x + i);
}

void gather(float* y, const void* table, int type, size_t index, int n) {
  const size_t first = index * (size_t)n;
  if (type == kTableF32)
    convert(y, (const float*)table + first, n);
  else if (type == kTableF16)
    convert(y, (const f16*)table + first, n);
  else
    convert(y, (const bf16*)table + first, n);
}

void layer_norm(float* y, const float* x, const float* weight, const float* bias, float eps,
                int n) {
  const Moments m = moments(x, n, eps);
  for_vectors(n, [=](int i, int lanes) {
    store_n(
        y + i,
        normalize(load_n(x + i, lanes), m) * load_n(weight + i, lanes) + load_n(bias + i, lanes),
        lanes);
  });
}

void subtract(float* y, const float* a, const float* b, int n) {
  for_vectors(n, [=](int i, int m) { store_n(y + i, load_n(a + i, m) - load_n(b + i, m), m); });
}

void add(float* y, const float* a, const float* b, int n) {
  for_vectors(n, [=](int i, int m) { store_n(y + i, load_n(a + i, m) + load_n(b + i, m), m); });
}

void multiply(float* y, const float* a, const float* b, int n) {
  for_vectors(n, [=](int i, int m) { store_n(y + i, load_n(a + i, m) * load_n(b + i, m), m); });
}

void lerp(float* const* y, const float* x, const float* dx, const float* const* mu, int groups,
          int n) {
  for_vectors(n, [=](int i, int m) {
    const f32v x_i = load_n(x + i, m);
    const f32v dx_i = load_n(dx + i, m);
    for (int g = 0; g < groups; ++g) store_n(y[g] + i, x_i + dx_i * load_n(mu[g] + i, m), m);
  });
}

void shift_mix(float* const* y, const float* x, const float* prev, const float* const* mu,
               int groups, int n) {
  for_vectors(n, [=](int i, int m) {
    const f32v x_i = load_n(x + i, m);
    const f32v dx_i = load_n(prev + i, m) - x_i;
    for (int g = 0; g < groups; ++g) store_n(y[g] + i, x_i + dx_i * load_n(mu[g] + i, m), m);
  });
}

void scale(float* y, const float* x, float s, int n) {
  for_vectors(n, [=](int i, int m) { store_n(y + i, load_n(x + i, m) * s, m); });
}

constexpr RowKernels kRows = {
    .gather = gather,
    .layer_norm = layer_norm,
    .subtract = subtract,
    .add = add,
    .multiply = multiply,
    .lerp = lerp,
    .shift_mix = shift_mix,
    .wkv4 = wkv4,
    .wkv6 = wkv6,
    .wkv7 = wkv7,
    .scale = scale,
    .dots = dots,
    .weighted_sum = weighted_sum,
    .softmax = softmax,
    .wkv1 = wkv1,
    .wkv2 = wkv2,
    .linear_attention = linear_attention,
};

}  // namespace
}  // namespace wkv::cpu
