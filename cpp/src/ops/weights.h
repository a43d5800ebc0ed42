// Views of weights in a backend's memory. The Model owns what they point to.
#pragma once

#include <cstdint>
#include <string>

#include "wkv/types.h"

namespace wkv {

/// fp32 [n] in the backend's memory.
struct Vector {
  const float* data = nullptr;
  int n = 0;
  int place = 0;  ///< Backend::place() of the tensor
  explicit operator bool() const noexcept { return data != nullptr; }
};

/// LayerNorm or GroupNorm parameters, each [C].
struct Norm {
  Vector weight;
  Vector bias;
  float eps = 1e-5f;
};

/// What a matrix is used for. A backend may choose layout and precision by it.
enum class MatrixUse : std::uint8_t {
  linear,     ///< a block's [out, in] projection
  embedding,  ///< gathered by row, never multiplied
  head,       ///< [V, C]
  lora,       ///< low-rank factor, small
  ffn_value,  ///< [C, F], its input is relu^2 of something: mostly zeros
};

/// How `Matrix::data` is arranged. Layouts are the backend's secret; `row_major` is what files
/// hold.
enum class Layout : std::uint8_t {
  row_major,    ///< [out][in]
  input_major,  ///< [in][out], see quantize::row_bytes()
  packed,       ///< the backend's own order
};

/// A weight W [out, in]; y = x W^T. Quantised formats add scales, see docs/weights.md:
///   w[o][i] ~ (q[o][i] - zero) * out_scale[o] * in_scale[i] + out_offset[o] + in_offset[i]
/// where absent scales are 1 and absent offsets 0. int4 has a fp16 scale per 32 inputs of an output
/// (group_scale [out][in / 32 rounded up]) besides.
struct Matrix {
  const void* data = nullptr;
  int out = 0;
  int in = 0;
  DType dtype = DType::f32;
  Layout layout = Layout::row_major;
  float zero = 0.0f;
  const float* out_scale = nullptr;   ///< [out]
  const float* in_scale = nullptr;    ///< [in]
  const float* out_offset = nullptr;  ///< [out]
  const float* in_offset = nullptr;   ///< [in]
  const void* group_scale = nullptr;  ///< int4: fp16 [out][groups]
  float largest = 0.0f;               ///< no element is larger; 0: unknown, or none is more than 0
  std::int64_t bytes = 0;             ///< what a dense product reads; set by adopt()
  int place = 0;                      ///< Backend::place() of the tensor
  const char* name = "";              ///< the checkpoint's tensor name; lives as long as the Model

  explicit operator bool() const noexcept { return data != nullptr; }
};

/// A low-rank map x -> act(x down^T) up^T; stored [in][out] in checkpoints, transposed at load.
struct Lora {
  Matrix down;
  Matrix up;
};

}  // namespace wkv
