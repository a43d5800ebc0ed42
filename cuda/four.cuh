// Four neighbouring floats of a row: one 16-byte access where the row allows it.
#pragma once

#include "cuda/platform.cuh"

namespace wkv::cuda {

struct Four {
  float v[4];
};

/// What decides it, of a row that starts at `p` and of those `ld` floats apart: ends_of(...) of all
/// the rows a kernel touches, or'ed, must be 0.
WKV_DEV unsigned ends_of(const void* p, std::int64_t ld = 0) {
  return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(p) |
                               static_cast<std::uintptr_t>(ld * 4)) &
         15u;
}

/// Of which the row has `n`; the others are 0.
WKV_DEV Four load4(const float* p, int n, bool vector) {
  Four f = {{0.0f, 0.0f, 0.0f, 0.0f}};
  if (vector && n >= 4) {
    const float4 q = *reinterpret_cast<const float4*>(p);
    f.v[0] = q.x;
    f.v[1] = q.y;
    f.v[2] = q.z;
    f.v[3] = q.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < n) f.v[i] = p[i];
  }
  return f;
}

WKV_DEV void store4(float* p, const Four& f, int n, bool vector) {
  if (vector && n >= 4) {
    *reinterpret_cast<float4*>(p) = make_float4(f.v[0], f.v[1], f.v[2], f.v[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < n) p[i] = f.v[i];
  }
}

}  // namespace wkv::cuda
