// The recurrences of v1 to v3, and products with the rows of a history: the copy head and the small
// attentions of v4's research variants.
namespace wkv::cpu {
namespace {

void dots(float* y, const float* q, RowsIn rows, int count, int n) {
  for (int u = 0; u < count; ++u) {
    const float* k = row(rows, u);
    y[u] = sum_vectors(n, [=](int i, int m) { return load_n(q + i, m) * load_n(k + i, m); });
  }
}

void weighted_sum(float* y, const float* weight, RowsIn rows, int count, int n) {
  for_columns<4>(n, [=]<int V, bool kPartial>(int i, int lanes) {
    f32v acc[V] = {};
    for (int u = 0; u < count; ++u)
      for (int c = 0; c < V; ++c)
        acc[c] += weight[u] * load_columns<kPartial>(row(rows, u) + i + c * W, lanes);
    for (int c = 0; c < V; ++c) store_columns<kPartial>(y + i + c * W, acc[c], lanes);
  });
}

void softmax(float* x, int n) {
  float top = x[0];
  for (int i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
  const float total = sum_vectors(n, [=](int i, int m) {
    f32v e = exp(load_n(x + i, m) - top);
    if (m < W) e = first_lanes(e, m);
    store_n(x + i, e, m);
    return e;
  });
  for_vectors(n, [=](int i, int m) { store_n(x + i, load_n(x + i, m) / total, m); });
}

/// The weight of the past token u at distance d = t - u is time_w[context-1-d] alpha[u] beta[t].
void wkv1(const Wkv1Args& args) {
  const int n = args.head_size;
  for (int i = 0; i < args.rows; ++i) {
    const int t = args.position + i;
    const float* r = row(args.r, i);
    const float* k = row(args.k, i);
    const float* v = row(args.v, i);
    float* y = row(args.y, i);
    float* kv = row(args.history, t);
    for_vectors(n, [=](int c, int m) {
      const f32v k_c = exp(max(splat(-60.0f), min(splat(30.0f), load_n(k + c, m))));
      store_n(args.sum_k + c, load_n(args.sum_k + c, m) + k_c, m);
      store_n(kv + c, k_c * load_n(v + c, m), m);
    });
    const float* by_distance = args.time_w + (args.context - 1 - t);
    for_vectors(t + 1, [=](int u, int m) {
      store_n(args.scratch + u, load_n(by_distance + u, m) * load_n(args.time_alpha + u, m), m);
    });
    weighted_sum(y, args.scratch, {args.history.data, args.history.stride}, t + 1, n);
    const float beta = args.time_beta[t];
    for_vectors(n, [=](int c, int m) {
      store_n(y + c, load_n(r + c, m) * load_n(y + c, m) * beta / load_n(args.sum_k + c, m), m);
    });
  }
}

void wkv2(const Wkv2Args& args) {
  for (int t = 0; t < args.rows; ++t) {
    const float* r = row(args.r, t);
    const float* k = row(args.k, t);
    const float* v = row(args.v, t);
    float* y = row(args.y, t);
    for_vectors(args.channels, [=](int i, int m) {
      const f32v k_i = exp(min(splat(60.0f), load_n(k + i, m)));
      const f32v kv = k_i * load_n(v + i, m);
      const f32v aa = load_n(args.aa + i, m);
      const f32v bb = load_n(args.bb + i, m);
      const f32v u = load_n(args.bonus + i, m);
      store_n(y + i, load_n(r + i, m) * (aa + u * kv) / (bb + u * k_i + args.eps), m);
      const f32v d = load_n(args.decay + i, m);
      store_n(args.aa + i, d * aa + kv, m);
      store_n(args.bb + i, d * bb + k_i, m);
    });
  }
}

void linear_attention(const LinearAttentionArgs& args) {
  for (int t = 0; t < args.rows; ++t) {
    const float* q = row(args.q, t);
    const float* k = row(args.k, t);
    for_vectors(args.channels, [=](int i, int m) {
      const f32v v = load_n(row(args.v, t) + i, m);
      f32v y = {};
      for (int j = 0; j < args.width; ++j) {
        float* s = row(args.state, j) + i;
        const f32v s_j = load_n(s, m) + k[j] * v;
        store_n(s, s_j, m);
        y += q[j] * s_j;
      }
      store_n(row(args.y, t) + i, y * args.scale, m);
    });
  }
}

}  // namespace
}  // namespace wkv::cpu
