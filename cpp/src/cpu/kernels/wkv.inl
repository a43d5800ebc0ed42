// The recurrences of v4 and of v5/v6. A state is [N key][N value], so decay, key and receptance are
// broadcasts, values and outputs are vectors: no horizontal sum in the inner loop, and columns
// (value indices) are independent of each other.
namespace wkv::cpu {
namespace {

inline const float* row(RowsIn x, int t) { return x.data + t * x.stride; }
inline float* row(RowsOut x, int t) { return x.data + t * x.stride; }

/// Asks for row t of a head's operand, if there is one. Rows of a head lie pages apart, where no
/// hardware prefetcher follows; asked for two tokens ahead they arrive while S is worked on.
template <class Rows>
inline void prefetch_row(Rows x, int t, int rows, int n) {
  if (!x.data || t >= rows) return;
  const float* p = x.data + t * x.stride;
  for (int i = 0; i < n; i += 16) __builtin_prefetch(p + i);
}
constexpr int kRowsAhead = 2;

void wkv4(const Wkv4Args& args) {
  for (int t = 0; t < args.rows; ++t) {
    const float* r = row(args.r, t);
    const float* k = row(args.k, t);
    const float* v = row(args.v, t);
    float* y = row(args.y, t);
    for_vectors(args.channels, [=](int i, int m) {
      const f32v k_i = load_n(k + i, m);
      const f32v v_i = load_n(v + i, m);
      const f32v aa = load_n(args.aa + i, m);
      const f32v bb = load_n(args.bb + i, m);
      const f32v pp = load_n(args.pp + i, m);
      // Of e^{p-q} and e^{k-q} with q = max(p, k), one is 1 and the other e^-|p-k|.
      f32v d = pp - (load_n(args.bonus + i, m) + k_i);
      f32v e = exp(d > 0.0f ? -d : d);
      f32v old = d > 0.0f ? splat(1.0f) : e;
      f32v now = d > 0.0f ? e : splat(1.0f);
      const f32v wkv = (old * aa + now * v_i) / (old * bb + now);
      store_n(y + i, load_n(r + i, m) * wkv, m);

      const f32v decayed = pp + load_n(args.decay + i, m);
      d = decayed - k_i;
      e = exp(d > 0.0f ? -d : d);
      old = d > 0.0f ? splat(1.0f) : e;
      now = d > 0.0f ? e : splat(1.0f);
      store_n(args.aa + i, old * aa + now * v_i, m);
      store_n(args.bb + i, old * bb + now, m);
      store_n(args.pp + i, max(decayed, k_i), m);
    });
  }
}

/// y <- (GroupNorm(y) + bonus v) gate in place, each part where given.
inline void finish_head(float* y, int n, const HeadFinish& finish, const float* gate, float bonus,
                        const float* v) {
  Moments m = {};
  if (finish.weight) m = moments(y, n, finish.eps);
  for_vectors(n, [=, &finish](int i, int lanes) {
    f32v y_i = load_n(y + i, lanes);
    if (finish.weight)
      y_i = normalize(y_i, m) * load_n(finish.weight + i, lanes) + load_n(finish.bias + i, lanes);
    if (v) y_i += bonus * load_n(v + i, lanes);
    if (gate) y_i *= load_n(gate + i, lanes);
    store_n(y + i, y_i, lanes);
  });
}

/// Calls f.template operator()<V, partial>(column, lanes) so that every column of N is visited
/// once: V whole vectors at a time, at last one of `lanes` < W columns.
template <int V, class F>
inline void for_columns(int n, F f) {
  int i = 0;
  for (; i + V * W <= n; i += V * W) f.template operator()<V, false>(i, W);
  for (; i + W <= n; i += W) f.template operator()<1, false>(i, W);
  if (i < n) f.template operator()<1, true>(i, n - i);
}

template <bool kPartial>
inline f32v load_columns(const float* p, int lanes) {
  return kPartial ? load_part(p, lanes) : load(p);
}
template <bool kPartial>
inline void store_columns(float* p, f32v v, int lanes) {
  kPartial ? store_part(p, v, lanes) : store(p, v);
}

/// One token, V vectors of columns: y = r S + v (r u k), S <- diag(w) S + k^T v.
template <int V, bool kPartial>
inline void wkv6_columns(float* s, int n, const float* r, const float* w, const float* k,
                         const float* v, float* y, float ruk, int lanes) {
  f32v v_i[V], y_i[V];
  for (int c = 0; c < V; ++c) {
    v_i[c] = load_columns<kPartial>(v + c * W, lanes);
    y_i[c] = v_i[c] * ruk;
  }
  for (int j = 0; j < n; ++j, s += n) {
    // Into registers before the first store, which might alias them for all the compiler knows.
    const f32v r_j = splat(r[j]), w_j = splat(w[j]), k_j = splat(k[j]);
    for (int c = 0; c < V; ++c) {
      const f32v s_ji = load_columns<kPartial>(s + c * W, lanes);
      y_i[c] += s_ji * r_j;
      store_columns<kPartial>(s + c * W, s_ji * w_j + v_i[c] * k_j, lanes);
    }
  }
  for (int c = 0; c < V; ++c) store_columns<kPartial>(y + c * W, y_i[c], lanes);
}

void wkv6(const Wkv6Args& args) {
  const int n = args.head_size;
  const RowsIn inputs[] = {args.r, args.k, args.v, args.decay, args.finish.gate};
  for (int t = 0; t < args.rows; ++t) {
    const float* r = row(args.r, t);
    const float* k = row(args.k, t);
    const float* v = row(args.v, t);
    const float* w = row(args.decay, t);
    const float* u = args.bonus;
    float* y = row(args.y, t);
    for (const RowsIn& x : inputs) prefetch_row(x, t + kRowsAhead, args.rows, n);
    prefetch_row(args.y, t + kRowsAhead, args.rows, n);
    const float ruk = sum_vectors(
        n, [=](int i, int m) { return load_n(r + i, m) * load_n(u + i, m) * load_n(k + i, m); });
    for_columns<4>(n, [=, &args]<int V, bool kPartial>(int i, int lanes) {
      wkv6_columns<V, kPartial>(args.state + i, n, r, w, k, v + i, y + i, ruk, lanes);
    });
    const float* gate = args.finish.gate.data ? row(args.finish.gate, t) : nullptr;
    finish_head(y, n, args.finish, gate, 0.0f, nullptr);
  }
}

}  // namespace
}  // namespace wkv::cpu
