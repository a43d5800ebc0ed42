// Rounding to bf16, an instruction of AVX512-BF16, which every processor with AMX has.
// tests/ops/emulated_amx.h has it in software.
#pragma once

#include "cpu/simd.h"

#if !defined(WKV_EMULATED_AMX)

namespace wkv::cpu {
namespace {

/// Thirty-two numbers as bf16, to nearest, ties to even; denormals become 0.
inline __m512i to_bf16(f32v first, f32v second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

}  // namespace
}  // namespace wkv::cpu

#endif
