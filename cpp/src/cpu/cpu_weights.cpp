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
#include "cpu/split.h"
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

/// f(input, output) for inputs [begin, end) and all outputs, in squares that stay in L1.
template <class F>
void for_squares(int out, int begin, int end, F f) {
  constexpr int kSquare = 64;
  for (int i0 = begin; i0 < end; i0 += kSquare)
    for (int o0 = 0; o0 < out; o0 += kSquare)
      for (int i = i0; i < std::min(i0 + kSquare, end); ++i)
        for (int o = o0; o < std::min(o0 + kSquare, out); ++o) f(i, o);
}

std::size_t at(int row, int cols, int col) {
  return static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) +
         static_cast<std::size_t>(col);
}

/// to[i][o] = from[o][i] for inputs [begin, end); rows of `to` are `row_bytes` apart.
template <class T>
void turn(void* to, std::size_t row_bytes, const void* from, int out, int in, int begin,
          int end) noexcept {
  for_squares(out, begin, end, [&](int i, int o) {
    // Files may hold elements at any address.
    auto* row = static_cast<std::byte*>(to) + static_cast<std::size_t>(i) * row_bytes;
    std::memcpy(row + static_cast<std::size_t>(o) * sizeof(T),
                static_cast<const T*>(from) + at(o, in, i), sizeof(T));
  });
}

/// The same for codes of four bits, whose rows are `from_bytes` and `to_bytes` long. `to` is zero.
void turn_nibbles(std::uint8_t* to, std::size_t to_bytes, const std::uint8_t* from,
                  std::size_t from_bytes, int out, int begin, int end) noexcept {
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  for_squares(out, begin, end, [&](int i, int o) {
    const int code = from[size(o) * from_bytes + size(i / 2)] >> (i % 2 * 4) & 15;
    to[size(i) * to_bytes + size(o / 2)] |= static_cast<std::uint8_t>(code << (o % 2 * 4));
  });
}

/// The type a matrix gets that is `have` and wanted as `want`.
DType choose_dtype(DType want, DType have, MatrixUse use) {
  if (quantize::is_quantized(have) && use == MatrixUse::embedding) have = DType::f32;
  want = quantize::type_of(want, use);
  if (want != DType::automatic) return want;
  return have == DType::f64 ? DType::f32 : have;
}

}  // namespace

Matrix CpuBackend::adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
                         std::vector<std::shared_ptr<const void>>& keep,
                         const std::function<void()>& poll) {
  WKV_CHECK(tensor.shape.size() == 2, internal, "[adopt] '", name, "' has shape ",
            shape_str(tensor.shape), ", a matrix is wanted");
  WKV_CHECK(is_float(tensor.dtype) || quantize::is_quantized(tensor.dtype), bad_model, "[adopt] '",
            name, "' is ", dtype_name(tensor.dtype), ", a float type is wanted");
  want = choose_dtype(want, tensor.dtype, use);
  const quantize::Parallel parallel = quantize::polled(
      [this](int n, const auto& work) { pool_.run_parts(n, work); }, poll, tensor.shape[1]);
  if (quantize::is_quantized(tensor.dtype) && tensor.dtype != want)
    return adopt(quantize::dequantize(tensor, parallel), want, use, name, keep, poll);
  Matrix m;
  if (quantize::is_quantized(want)) {
    const bool turned = use == MatrixUse::ffn_value && skip_zeros_ != SkipZeros::off;
    const bool final = !turned && want != DType::int4;  // no copy in another order follows
    const auto allocate = [&](std::size_t n) {
      return final ? weight_memory_.allocate(n) : allocate_host(n);
    };
    Buffer memory;
    try {
      if (tensor.dtype == want) {
        m = quantize::view(tensor, memory);
        keep.push_back(tensor.owner);
        for (const HostTensor& part : tensor.parts) keep.push_back(part.owner);
      } else {
        m = quantize::quantize(tensor, want, memory, parallel, allocate);
      }
    } catch (const Error& e) {
      fail(e.code(), "'", name, "': ", e.what());
    }
    m.name = name;
    if (turned) return input_major(m, keep);
    if (want == DType::int4) return strips(m, keep);
    keep.push_back(std::make_shared<Buffer>(memory));
    return m;
  }
  WKV_CHECK(is_weight_float(want), unsupported, "[adopt] '", name, "': weights as ",
            dtype_name(want), " are not available on the cpu");
  m.out = static_cast<int>(tensor.shape[0]);
  m.in = static_cast<int>(tensor.shape[1]);
  m.dtype = want;
  m.name = name;
  m.data = tensor.data;  // kernels load unaligned
  const bool turned = use == MatrixUse::ffn_value && skip_zeros_ == SkipZeros::on;
  if (want == tensor.dtype) {
    if (turned) return input_major(m, keep);
    keep.push_back(tensor.owner);
    return m;
  }
  const auto n = static_cast<std::size_t>(tensor.numel());
  const std::size_t bytes = std::max<std::size_t>(n * dtype_size(want), 1);
  const Buffer copy = turned ? allocate_host(bytes) : weight_memory_.allocate(bytes);
  auto fill = [&](int index, int threads) noexcept {
    const auto bound = [&](int i) {
      return n * static_cast<std::size_t>(i) / static_cast<std::size_t>(threads);
    };
    convert(copy.data(), want, tensor.data, tensor.dtype, bound(index), bound(index + 1));
  };
  pool_.run(fill);
  m.data = copy.data();
  if (turned) return input_major(m, keep);
  keep.push_back(std::make_shared<Buffer>(copy));
  return m;
}

Matrix CpuBackend::strips(const Matrix& from, std::vector<std::shared_ptr<const void>>& keep) {
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const std::size_t groups = (size(from.in) + quantize::kGroup - 1) / quantize::kGroup;
  const int count = (from.out + kStrip - 1) / kStrip;
  const std::size_t code_bytes = size(count) * kStrip * groups * (quantize::kGroup / 2);
  const Buffer memory = weight_memory_.allocate(code_bytes + size(count) * kStrip * groups * 2);
  std::memset(memory.data(), 0, memory.bytes());  // outputs that fill up a strip have a scale of 0
  auto* codes = static_cast<std::byte*>(memory.data());
  auto* scales = codes + code_bytes;
  const auto* from_codes = static_cast<const std::byte*>(from.data);
  const auto* from_scales = static_cast<const std::byte*>(from.group_scale);
  auto part = [&](int index, int threads) noexcept {
    for (int strip = part_of(count, index, threads); strip < part_of(count, index + 1, threads);
         ++strip)
      for (int o = 0; o < std::min(kStrip, from.out - strip * kStrip); ++o) {
        const std::size_t row = (size(strip) * kStrip + size(o)) * groups;
        for (std::size_t g = 0; g < groups; ++g) {
          const std::size_t group = size(strip) * groups + g;
          std::memcpy(scales + (group * kStrip + size(o)) * 2, from_scales + (row + g) * 2, 2);
          for (std::size_t line = 0; line < 4; ++line)
            std::memcpy(codes + ((group * 4 + line) * kStrip + size(o)) * 4,
                        from_codes + (row + g) * 16 + line * 4, 4);
        }
      }
  };
  pool_.run(part);
  Matrix m = from;
  m.layout = Layout::packed;
  m.data = codes;
  m.group_scale = scales;
  keep.push_back(std::make_shared<Buffer>(memory));
  return m;
}

Matrix CpuBackend::input_major(const Matrix& from, std::vector<std::shared_ptr<const void>>& keep) {
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const auto aligned = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
  const std::size_t groups = (size(from.in) + quantize::kGroup - 1) / quantize::kGroup;
  Matrix m = from;
  m.layout = Layout::input_major;
  const std::size_t row = quantize::row_bytes(m);
  const std::size_t in_bytes = aligned(floats(from.in)), out_bytes = aligned(floats(from.out));
  std::size_t bytes = aligned(size(from.in) * row);
  if (from.group_scale != nullptr) bytes += aligned(groups * size(from.out) * 2);
  for (const float* v : {from.in_scale, from.in_offset}) bytes += v != nullptr ? in_bytes : 0;
  for (const float* v : {from.out_scale, from.out_offset}) bytes += v != nullptr ? out_bytes : 0;
  const Buffer memory = weight_memory_.allocate(bytes);

  m.data = memory.data();
  auto* next = static_cast<std::byte*>(memory.data()) + aligned(size(from.in) * row);
  const auto copy = [&next](const float*& vector, int n, std::size_t space) {
    if (vector == nullptr) return;
    std::memcpy(next, vector, floats(n));
    vector = reinterpret_cast<const float*>(next);
    next += space;
  };
  copy(m.in_scale, m.in, in_bytes);
  copy(m.out_scale, m.out, out_bytes);
  copy(m.in_offset, m.in, in_bytes);
  copy(m.out_offset, m.out, out_bytes);
  if (from.group_scale != nullptr) {
    m.group_scale = next;
    turn<std::uint16_t>(next, size(from.out) * 2, from.group_scale, from.out,
                        static_cast<int>(groups), 0, static_cast<int>(groups));
    std::memset(memory.data(), 0, size(from.in) * row);
  }
  auto part = [&](int index, int threads) noexcept {
    const int begin = part_of(from.in, index, threads), end = part_of(from.in, index + 1, threads);
    if (from.dtype == DType::int4)
      turn_nibbles(static_cast<std::uint8_t*>(memory.data()), row,
                   static_cast<const std::uint8_t*>(from.data),
                   quantize::row_bytes(from.dtype, from.in), from.out, begin, end);
    else if (from.dtype == DType::f32)
      turn<std::uint32_t>(memory.data(), row, from.data, from.out, from.in, begin, end);
    else if (quantize::is_quantized(from.dtype))
      turn<std::uint8_t>(memory.data(), row, from.data, from.out, from.in, begin, end);
    else
      turn<std::uint16_t>(memory.data(), row, from.data, from.out, from.in, begin, end);
  };
  pool_.run(part);
  keep.push_back(std::make_shared<Buffer>(memory));
  return m;
}

}  // namespace wkv::cpu
