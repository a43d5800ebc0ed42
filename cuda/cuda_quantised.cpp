// Quantised weights: the host makes codes and scales (ops/quantize.h), this packs them for the
// tensor cores on their way to the GPU.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "cuda/cuda_backend.h"
#include "cuda/pack.h"
#include "ops/quantize.h"

namespace wkv::cuda {
namespace {

std::size_t padded_to(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

/// The largest magnitude; `otherwise` without values.
float largest(const float* v, int n, float otherwise) {
  if (v == nullptr) return otherwise;
  float most = 0.0f;
  for (int i = 0; i < n; ++i) most = std::max(most, std::fabs(v[i]));
  return most;
}

/// No weight of the matrix is larger.
float bound(const Matrix& q) {
  if (q.dtype == DType::int4) {
    constexpr float kLargestCode = 8.0f;
    const auto* scales = static_cast<const std::uint16_t*>(q.group_scale);
    const int groups = q.out * ((q.in + quantize::kGroup - 1) / quantize::kGroup);
    float most = 0.0f;
    for (int g = 0; g < groups; ++g) most = std::max(most, std::fabs(f16_to_f32(scales[g])));
    return kLargestCode * most;
  }
  constexpr float kLargestCode = 256.0f;  // with the zero
  return kLargestCode * largest(q.out_scale, q.out, 1.0f) * largest(q.in_scale, q.in, 1.0f) +
         largest(q.out_offset, q.out, 0.0f) + largest(q.in_offset, q.in, 0.0f);
}

/// Codes on the host at a time.
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

}  // namespace

ThreadPool& CudaBackend::workers() {
  if (!workers_) workers_ = std::make_unique<ThreadPool>(usable_cores());
  return *workers_;
}

quantize::Parallel CudaBackend::parallel(std::int64_t in, const std::function<void()>& poll) {
  return quantize::polled([this](int n, const auto& work) { workers().run_parts(n, work); }, poll,
                          in);
}

Matrix CudaBackend::adopt_quantised(const HostTensor& tensor, DType want, const char* name,
                                    std::vector<std::shared_ptr<const void>>& keep,
                                    const std::function<void()>& poll) {
  constexpr std::size_t kAlign = 256;
  const bool int4 = want == DType::int4;
  const auto out = static_cast<std::size_t>(tensor.shape[0]);
  const auto in = static_cast<std::size_t>(tensor.shape[1]);
  const int inputs = static_cast<int>(tensor.shape[1]);
  const Codec codec = int4 ? Codec::u4 : Codec::u8;
  const auto pitch = static_cast<std::size_t>(packed_row_bytes(codec, inputs));
  const std::size_t groups = pitch / 64 * 4;  // int4: scales of an output
  const auto code_bytes =
      static_cast<std::size_t>(packed_bytes(codec, static_cast<int>(out), inputs));
  const std::size_t in_bytes = padded_to(in * sizeof(float), kAlign);
  const std::size_t out_bytes = padded_to(out * sizeof(float), kAlign);
  const std::size_t bytes = code_bytes + (int4 ? out * groups * 2 : 2 * (in_bytes + out_bytes));
  auto memory = std::make_shared<Buffer>(allocate_weight(bytes, MatrixUse::linear));
  auto* to = static_cast<unsigned char*>(memory->data());

  const std::size_t code_row = quantize::row_bytes(want, inputs);
  const auto upload_codes = [&](std::size_t first, std::size_t n, const unsigned char* codes) {
    upload_made(to + first * pitch, n, pitch, [&](std::size_t row, unsigned char* slot) {
      if (int4)
        pack_u4(reinterpret_cast<std::uint32_t*>(slot), codes + row * code_row, inputs);
      else
        pack_u8(slot, codes + row * code_row, inputs, want == DType::int8 ? 128 : 0, 128);
    });
  };
  const std::size_t piece = std::max<std::size_t>(kPieceBytes / code_row, 1);
  Buffer host;
  Matrix q;
  try {
    if (tensor.dtype == want) {
      q = quantize::view(tensor, host);
      for (std::size_t row = 0; row < out; row += piece) {
        const std::size_t n = std::min(piece, out - row);
        const auto* codes = static_cast<const unsigned char*>(q.data) + row * code_row;
        upload_codes(row, n, codes);
        if (tensor.mapped) drop_pages(codes, n * code_row);
      }
    } else {
      const auto sink = [&](int first, int n, const unsigned char* codes) {
        upload_codes(static_cast<std::size_t>(first), static_cast<std::size_t>(n), codes);
      };
      q = quantize::quantize_in_pieces(tensor, want, host, static_cast<int>(piece), sink,
                                       parallel(tensor.shape[1], poll));
    }
  } catch (const Error& e) {
    fail(e.code(), "'", name, "': ", e.what());
  }

  Matrix m;
  m.data = to;
  m.out = q.out;
  m.in = q.in;
  m.dtype = want;
  m.layout = Layout::packed;
  m.bytes = static_cast<std::int64_t>(bytes);
  m.name = name;
  unsigned char* at = to + code_bytes;
  const auto put = [&](const float* from, std::size_t n, float factor) -> const float* {
    if (from == nullptr) return nullptr;
    std::vector<float> scaled(from, from + n);
    for (float& v : scaled) v *= factor;
    upload(at, scaled.data(), n * sizeof(float));
    const auto* placed = reinterpret_cast<const float*>(at);
    at += padded_to(n * sizeof(float), kAlign);
    return placed;
  };
  if (int4) {
    const auto* scales = static_cast<const std::uint16_t*>(q.group_scale);
    const std::size_t per_row = (in + quantize::kGroup - 1) / quantize::kGroup;
    upload_made(at, out, groups * 2, [&](std::size_t row, unsigned char* slot) {
      pack_scales(reinterpret_cast<std::uint16_t*>(slot), scales + row * per_row, q.in);
    });
  } else {
    // Scaled inputs stay in fp16's range.
    const float factor = q.in_scale != nullptr ? normaliser(largest(q.in_scale, q.in, 1.0f)) : 1.0f;
    m.in_scale = put(q.in_scale, in, factor);
    m.out_scale = put(q.out_scale, out, 1.0f / factor);
    m.in_offset = put(q.in_offset, in, 1.0f);
    m.out_offset = put(q.out_offset, out, 1.0f);
    // The codec yields code - 128; int8's codes were stored with 128 added.
    m.zero = want == DType::int8 ? q.zero : q.zero - 128.0f;
  }
  m.largest = bound(q);
  device_->synchronize();  // before the host's codes go
  if (stream_) streamed_[m.data] = bytes;
  keep.push_back(std::move(memory));
  return m;
}

}  // namespace wkv::cuda
