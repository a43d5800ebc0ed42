// The scale and the codes of a group of int4 weights: docs/design/0009-int4-rounding.md.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/quantize.h"

namespace wkv::quantize {

/// The weights of a group as vectors: loops over floats stay scalar, in the order of the sums.
struct Int4Group {
  static constexpr int kLanes = 4;  // of the registers that every processor has
  typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
  std::array<Lanes, kGroup / kLanes> v;

  explicit Int4Group(const float* from) { std::memcpy(v.data(), from, sizeof v); }

  /// The nearest codes, ties to even. Adding 1.5 * 2^23 leaves no bits for a fraction.
  static Lanes codes(Lanes x) {
    const Lanes most = Lanes{} + 7.0f, least = Lanes{} - 8.0f;
    x = x > most ? most : x;
    x = x < least ? least : x;
    return (x + 12582912.0f) - 12582912.0f;
  }

  /// The element of largest magnitude.
  float extreme() const {
    float extreme = 0;
    for (const Lanes& part : v)
      for (int i = 0; i < kLanes; ++i)
        if (std::fabs(part[i]) > std::fabs(extreme)) extreme = part[i];
    return extreme;
  }

  /// How well the codes for a scale can fit: (w.q)^2 / q.q is what the best factor takes off the
  /// squared error.
  struct Fit {
    float along = 0, square = 0;
    float gain() const { return square > 0 ? along * along / square : 0.0f; }
  };
  Fit fit(float to_code) const {
    Lanes along{}, square{};
    for (const Lanes& part : v) {
      const Lanes code = codes(part * to_code);
      along += part * code;
      square += code * code;
    }
    Fit sum;
    for (int i = 0; i < kLanes; ++i) sum.along += along[i], sum.square += square[i];
    return sum;
  }

  /// The element of largest magnitude may become -8 (its sign is then that of the scale) or 7;
  /// between and beyond, 0.25 steps are tried, because clipping one element can pay by finer steps
  /// for the 31 others. Rounding to nearest alone is the try at 8.
  float scale() const {
    const float most = extreme();
    if (most == 0) return 0;
    float best_gain = 0, scale = 0;
    for (const float sign : {-1.0f, 1.0f})
      for (float at = 6.0f; at <= 9.5f; at += 0.25f) {
        const float to_code = sign * at / most;
        if (!std::isfinite(to_code)) continue;
        const Fit now = fit(to_code);
        if (now.gain() > best_gain) best_gain = now.gain(), scale = now.along / now.square;
      }
    return scale;
  }

  /// Codes + 8, two to a byte, the first low.
  void pack(float scale, unsigned char* to) const {
    for (std::size_t p = 0; p < v.size(); ++p) {
      const Lanes code = scale != 0 ? codes(v[p] / scale) + 8.0f : Lanes{} + 8.0f;
      for (int i = 0; i < kLanes; i += 2)
        *to++ = static_cast<unsigned char>(static_cast<unsigned>(code[i]) |
                                           static_cast<unsigned>(code[i + 1]) << 4);
    }
  }
};

}  // namespace wkv::quantize
