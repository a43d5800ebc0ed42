// CpuBackend::adopt: weights where they lie if the dtype is right, converted otherwise.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "cpu/cpu_backend.h"
#include "ops/quantize.h"

namespace wkv::cpu {
namespace {

void convert(void* to, DType want, const void* from, DType have, std::size_t begin,
             std::size_t end) noexcept {
  for (std::size_t i = begin; i < end; ++i) {
    const float value = element_as_f32(from, have, i);
    if (want == DType::f32)
      static_cast<float*>(to)[i] = value;
    else
      static_cast<std::uint16_t*>(to)[i] =
          want == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
}

bool is_weight_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

int part_of(int n, int index, int threads) {
  return static_cast<int>(std::int64_t{n} * index / threads);
}

/// to[i][o] = from[o][i] for inputs [begin, end), in squares that stay in L1.
void transpose_codes(std::uint8_t* to, const std::uint8_t* from, int out, int in, int begin,
                     int end) noexcept {
  constexpr int kSquare = 64;
  for (int i0 = begin; i0 < end; i0 += kSquare)
    for (int o0 = 0; o0 < out; o0 += kSquare)
      for (int i = i0; i < std::min(i0 + kSquare, end); ++i)
        for (int o = o0; o < std::min(o0 + kSquare, out); ++o)
          to[static_cast<std::ptrdiff_t>(i) * out + o] =
              from[static_cast<std::ptrdiff_t>(o) * in + i];
}

/// The type a matrix gets: small factors and the embedding are never quantised, and the head is
/// read by every token's choice, so it keeps eight bits.
DType choose_dtype(DType want, DType have, MatrixUse use) {
  if (quantize::is_quantized(want)) {
    if (use == MatrixUse::lora || use == MatrixUse::embedding) want = DType::automatic;
    if (use == MatrixUse::head && want == DType::int4) want = DType::int8;
  }
  if (want != DType::automatic) return want;
  return have == DType::f64 ? DType::f32 : have;
}

}  // namespace

Matrix CpuBackend::adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
                         std::vector<std::shared_ptr<const void>>& keep) {
  WKV_CHECK(tensor.shape.size() == 2, internal, "[adopt] '", name, "' has shape ",
            shape_str(tensor.shape), ", a matrix is wanted");
  WKV_CHECK(is_float(tensor.dtype), bad_model, "[adopt] '", name, "' is ", dtype_name(tensor.dtype),
            ", a float type is wanted");
  want = choose_dtype(want, tensor.dtype, use);
  Matrix m;
  if (quantize::is_quantized(want)) {
    Buffer memory;
    try {
      m = quantize::quantize(tensor, want, memory, [this](int n, const auto& work) {
        auto part = [&](int index, int threads) noexcept {
          work(part_of(n, index, threads), part_of(n, index + 1, threads));
        };
        pool_.run(part);
      });
    } catch (const Error& e) {
      fail(e.code(), "'", name, "': ", e.what());
    }
    m.name = name;
    keep.push_back(std::make_shared<Buffer>(memory));
    // Behind relu^2 most inputs are zero: input-major, their weights need not be read. Twice the
    // codes are held until the end of this call.
    if (use == MatrixUse::ffn_value && want != DType::int4) {
      const Buffer codes =
          allocate_host(static_cast<std::size_t>(m.out) * static_cast<std::size_t>(m.in));
      auto turn = [&](int index, int threads) noexcept {
        transpose_codes(static_cast<std::uint8_t*>(codes.data()),
                        static_cast<const std::uint8_t*>(m.data), m.out, m.in,
                        part_of(m.in, index, threads), part_of(m.in, index + 1, threads));
      };
      pool_.run(turn);
      std::memcpy(memory.data(), codes.data(), codes.bytes());
      m.layout = Layout::input_major;
    }
    return m;
  }
  WKV_CHECK(is_weight_float(want), unsupported, "[adopt] '", name, "': weights as ",
            dtype_name(want), " are not available on the cpu");
  m.out = static_cast<int>(tensor.shape[0]);
  m.in = static_cast<int>(tensor.shape[1]);
  m.dtype = want;
  m.name = name;
  if (want == tensor.dtype) {
    m.data = tensor.data;  // kernels load unaligned
    keep.push_back(tensor.owner);
    return m;
  }
  const auto n = static_cast<std::size_t>(tensor.numel());
  const Buffer copy = allocate_host(std::max<std::size_t>(n * dtype_size(want), 1));
  auto fill = [&](int index, int threads) noexcept {
    const auto bound = [&](int i) {
      return n * static_cast<std::size_t>(i) / static_cast<std::size_t>(threads);
    };
    convert(copy.data(), want, tensor.data, tensor.dtype, bound(index), bound(index + 1));
  };
  pool_.run(fill);
  m.data = copy.data();
  keep.push_back(std::make_shared<Buffer>(copy));
  return m;
}

}  // namespace wkv::cpu
