// The recurrence of v7, one head of one sequence per call, fused with everything per head around
// it.
//
//   S' = diag(w) S + k^T v + b^T sa,   sa = -kk S,   b = kk a,   y = r S'
//
// y is linear in the old state: y = (w r) S + (b.r) sa + (k.r) v. So sa and y need one look at S
// before its update, and the update of token t and the look of token t + 1 share one pass over S.
namespace wkv::cpu {
namespace {

/// What a token needs per head; rows of scratch, padded with zeros to whole vectors.
struct Token7 {
  float *nkk, *k, *b, *wr, *v;  // -kk, replacement key, kk a, w r, mixed value
  float *sa, *y;                // results of the look at S
  const float* w;
  float br, kr, bonus;  // b.r, k.r, sum r k r_k
};

inline Token7 token7_in(float* scratch, int which, int padded) {
  float* p = scratch + (size_t)which * 7 * (size_t)padded;
  return {p,
          p + padded,
          p + 2 * padded,
          p + 3 * padded,
          p + 4 * padded,
          p + 5 * padded,
          p + 6 * padded,
          nullptr,
          0.0f,
          0.0f,
          0.0f};
}

inline void prepare7(Token7& token, const Wkv7Args& args, int t) {
  const int n = args.head_size;
  const float* r = row(args.r, t);
  const float* w = row(args.w, t);
  const float* k = row(args.k, t);
  const float* v = row(args.v, t);
  const float* a = row(args.a, t);
  const float* v_first = args.v_mix.data ? row(args.v_first, t) : nullptr;
  const float* v_mix = args.v_mix.data ? row(args.v_mix, t) : nullptr;

  const float length = __builtin_sqrtf(sum_vectors(n, [&](int i, int m) {
    const f32v kk = load_n(k + i, m) * load_n(args.k_k + i, m);
    return kk * kk;
  }));
  const float inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);

  f32v br = {}, kr = {}, bonus = {};
  for_vectors(n, [&](int i, int m) {
    const f32v r_i = load_n(r + i, m);
    const f32v k_i = load_n(k + i, m);
    const f32v a_i = load_n(a + i, m);
    const f32v kk = k_i * load_n(args.k_k + i, m) * inverse;
    const f32v key = k_i * (1.0f + (a_i - 1.0f) * load_n(args.k_a + i, m));
    f32v v_i = load_n(v + i, m);
    if (v_mix) v_i += (load_n(v_first + i, m) - v_i) * load_n(v_mix + i, m);
    store(token.nkk + i, -kk);
    store(token.k + i, key);
    store(token.b + i, kk * a_i);
    store(token.wr + i, load_n(w + i, m) * r_i);
    store(token.v + i, v_i);
    br += kk * a_i * r_i;
    kr += key * r_i;
    bonus += key * r_i * load_n(args.r_k + i, m);
  });
  token.w = w;
  token.br = sum(br);
  token.kr = sum(kr);
  token.bonus = sum(bonus);
}

/// One pass over V vectors of columns: the update for `now`, the look for `next`, or both. An
/// update alone works on what the look has read; it asks for the same of a state `ahead` floats on.
template <int V, bool kPartial, bool kUpdate, bool kLook>
inline void wkv7_columns(float* s, int n, const Token7& now, const Token7& next, ptrdiff_t ahead,
                         int i, int lanes) {
  f32v v[V], sa[V], next_sa[V], next_y[V];
  for (int c = 0; c < V; ++c) {
    if (kUpdate) v[c] = load(now.v + i + c * W);
    if (kUpdate) sa[c] = load(now.sa + i + c * W);
    next_sa[c] = next_y[c] = f32v{};
  }
  s += i;
  for (int j = 0; j < n; ++j, s += n) {
    // Into registers before the first store, which might alias them for all the compiler knows.
    const f32v w_j = splat(now.w[j]), k_j = splat(now.k[j]), b_j = splat(now.b[j]);
    const f32v nkk_j = splat(next.nkk[j]), wr_j = splat(next.wr[j]);
    for (int c = 0; c < V; ++c) {
      f32v s_ji = load_columns<kPartial>(s + c * W, lanes);
      if (!kLook && c * W % 16 == 0) __builtin_prefetch(s + c * W + ahead, 0, 2);
      if (kUpdate) {
        s_ji = s_ji * w_j + v[c] * k_j + sa[c] * b_j;
        store_columns<kPartial>(s + c * W, s_ji, lanes);
      }
      if (kLook) {
        next_sa[c] += s_ji * nkk_j;
        next_y[c] += s_ji * wr_j;
      }
    }
  }
  for (int c = 0; kLook && c < V; ++c) {
    store(next.sa + i + c * W, next_sa[c]);
    store(next.y + i + c * W, next_y[c]);
  }
}

template <bool kUpdate, bool kLook>
inline void pass7(float* s, int n, const Token7& now, const Token7& next, ptrdiff_t ahead = 0) {
  // An update and a look keep 2 V registers each; there are 16, with AVX-512 32.
  constexpr int kVectors = W < 16 && kUpdate && kLook ? 2 : 4;
  for_columns<kVectors>(n, [&]<int V, bool kPartial>(int i, int lanes) {
    wkv7_columns<V, kPartial, kUpdate, kLook>(s, n, now, next, ahead, i, lanes);
  });
}

/// y of token t, once the state before it has been looked at.
inline void finish7(const Token7& token, const Wkv7Args& args, int t) {
  const int n = args.head_size;
  float* y = row(args.y, t);
  for_vectors(n, [&](int i, int m) {
    const f32v y_i =
        load(token.y + i) + load(token.sa + i) * token.br + load(token.v + i) * token.kr;
    store_n(y + i, y_i, m);
  });
  const float* gate = args.finish.gate.data ? row(args.finish.gate, t) : nullptr;
  finish_head(y, n, args.finish, gate, token.bonus, token.v);
}

void wkv7(const Wkv7Args& args) {
  const int n = args.head_size, rows = args.rows;
  const int padded = (n + W - 1) / W * W;
  Token7 tokens[2 * kTokens7];
  for (int i = 0; i < 2 * kTokens7 && i < rows; ++i) tokens[i] = token7_in(args.scratch, i, padded);
  const auto token = [&](int t) -> Token7& { return tokens[t % (2 * kTokens7)]; };
  const RowsIn inputs[] = {args.r, args.w,       args.k,     args.v,
                           args.a, args.v_first, args.v_mix, args.finish.gate};
  int ready = 0;
  const auto prepare = [&] {
    for (int i = 0; i < kTokens7 && ready < rows; ++i, ++ready) prepare7(token(ready), args, ready);
  };
  prepare();
  pass7<false, true>(args.state, n, token(0), token(0));
  for (int t = 0; t < rows; ++t) {
    for (const RowsIn& x : inputs) prefetch_row(x, t + kTokens7 + kRowsAhead, rows, n);
    prefetch_row(args.y, t + kRowsAhead, rows, n);
    if (t + 1 == ready) prepare();
    if (t + 1 < rows)
      pass7<true, true>(args.state, n, token(t), token(t + 1));
    else
      pass7<true, false>(args.state, n, token(t), token(t), args.next_state);
    if ((t + 1) % kTokens7 != 0 && t + 1 < rows) continue;
    for (int done = t / kTokens7 * kTokens7; done <= t; ++done) finish7(token(done), args, done);
  }
}

}  // namespace
}  // namespace wkv::cpu
