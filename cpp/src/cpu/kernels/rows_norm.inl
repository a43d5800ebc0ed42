// Loops over a row whose length need not be a multiple of the vector, and normalisation.
namespace wkv::cpu {
namespace {

inline f32v load_n(const float* p, int n) { return n == W ? load(p) : load_part(p, n); }
inline void store_n(float* p, f32v v, int n) { n == W ? store(p, v) : store_part(p, v, n); }

/// f(i, W) for whole vectors, then f(i, rest). With load_n and store_n the last lanes go through
/// the same instructions as the others.
template <class F>
inline void for_vectors(int n, F f) {
  int i = 0;
  for (; i + W <= n; i += W) f(i, W);
  if (i < n) f(i, n - i);
}

/// v with zeros from lane n on.
inline f32v first_lanes(f32v v, int n) {
  float lanes[W] = {};
  store_n(lanes, v, n);
  return load(lanes);
}

/// (x - mean) / sqrt(var + eps) is (x - mean) * scale + shift; `shift` takes back the rounding of
/// `mean`, which matters when the mean is large against the deviation.
struct Moments {
  float mean, scale, shift;
};

inline f32v normalize(f32v x, const Moments& m) { return (x - m.mean) * m.scale + m.shift; }

/// Sum of f(i, lanes) over a row: four chains, because one FMA chain waits for its latency.
template <class F>
inline float sum_vectors(int n, F f) {
  f32v acc[4] = {};
  int i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int u = 0; u < 4; ++u) acc[u] += f(i + u * W, W);
  for (; i + W <= n; i += W) acc[0] += f(i, W);
  if (i < n) acc[1] += f(i, n - i);
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

/// Biased variance, of x - mean: the one-pass form E[x^2] - mean^2 loses all digits when the mean
/// is large.
inline Moments moments(const float* x, int n, float eps) {
  const float count = (float)n;
  const float mean = sum_vectors(n, [=](int i, int m) { return load_n(x + i, m); }) / count;
  f32v deviations = {};
  const float squares = sum_vectors(n, [&](int i, int m) {
    f32v d = load_n(x + i, m) - mean;
    if (m < W) d = first_lanes(d, m);
    deviations += d;
    return d * d;
  });
  const float drift = sum(deviations) / count;  // the true mean less the rounded one
  const float scale = 1.0f / __builtin_sqrtf(squares / count - drift * drift + eps);
  return {mean, scale, -drift * scale};
}

}  // namespace
}  // namespace wkv::cpu
