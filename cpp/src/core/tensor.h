// A view of activations inside a step.
#pragma once

#include <cstdint>

#include "wkv/types.h"

namespace wkv {

struct Step;

/// [rows, cols] activations in the memory of the step's backend. A view: copied like a pointer,
/// valid until the end of the step. Rows are tokens, `stride` elements apart.
struct Tensor {
  Step* step = nullptr;
  void* data = nullptr;
  int rows = 0;
  int cols = 0;
  std::int64_t stride = 0;
  DType dtype = DType::f32;

  explicit operator bool() const noexcept { return data != nullptr; }
  float* row(std::int64_t t) const noexcept { return static_cast<float*>(data) + t * stride; }
  const float* f32() const noexcept { return static_cast<const float*>(data); }
};

}  // namespace wkv
