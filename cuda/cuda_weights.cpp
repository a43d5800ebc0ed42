// Weights and other memory from the host to the GPU, through two pinned blocks that take turns:
// 2 x 16 MiB of host memory whatever the size of the model.
#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"
#include "cuda/cuda_backend.h"
#include "ops/quantize.h"

namespace wkv::cuda {
namespace {

constexpr std::size_t kRingBytes = std::size_t{16} << 20;

Element element_of(DType dtype) {
  return dtype == DType::f16 ? Element::f16 : dtype == DType::bf16 ? Element::bf16 : Element::f32;
}

}  // namespace

unsigned char* CudaBackend::ring_slot(int number) {
  if (!ring_[number]) ring_[number] = device_->allocate_pinned(kRingBytes);
  device_->wait(number);
  return static_cast<unsigned char*>(ring_[number].data());
}

Buffer CudaBackend::allocate_weight(std::size_t bytes, MatrixUse use) {
  return stream_ && use != MatrixUse::lora ? device_->allocate_pinned(bytes)
                                           : device_->allocate(bytes);
}

void CudaBackend::upload(void* to, const void* host, std::size_t bytes, bool mapped) {
  const auto* from = static_cast<const unsigned char*>(host);
  auto* target = static_cast<unsigned char*>(to);
  int number = 0;
  for (std::size_t done = 0; done < bytes; number ^= 1) {
    const std::size_t n = std::min(kRingBytes, bytes - done);
    unsigned char* slot = ring_slot(number);
    std::memcpy(slot, from + done, n);
    if (mapped) drop_pages(from + done, n);
    device_->copy_in(target + done, slot, n);
    device_->mark(number);
    done += n;
  }
}

void CudaBackend::upload_rows(void* to, const void* host, std::size_t rows, std::size_t row_bytes,
                              std::size_t pitch, bool mapped) {
  if (row_bytes == pitch) return upload(to, host, rows * row_bytes, mapped);
  const auto* from = static_cast<const unsigned char*>(host);
  auto* target = static_cast<unsigned char*>(to);
  const std::size_t per_slot = kRingBytes / pitch;
  WKV_CHECK(per_slot > 0, unsupported, "[cuda] a row of ", pitch, " bytes; the limit is ",
            kRingBytes);
  int number = 0;
  for (std::size_t row = 0; row < rows; number ^= 1) {
    const std::size_t n = std::min(per_slot, rows - row);
    unsigned char* slot = ring_slot(number);
    for (std::size_t i = 0; i < n; ++i) {
      std::memcpy(slot + i * pitch, from + (row + i) * row_bytes, row_bytes);
      std::memset(slot + i * pitch + row_bytes, 0, pitch - row_bytes);
    }
    if (mapped) drop_pages(from + row * row_bytes, n * row_bytes);
    device_->copy_in(target + row * pitch, slot, n * pitch);
    device_->mark(number);
    row += n;
  }
}

void CudaBackend::upload_converted(void* to, const HostTensor& tensor, std::size_t rows,
                                   std::size_t cols, std::size_t pitch_elements, DType dtype) {
  // fp64 occurs in tests alone: the host makes fp32 of it.
  const DType carried = tensor.dtype == DType::f64 ? DType::f32 : tensor.dtype;
  const std::size_t row_bytes = cols * dtype_size(carried);
  const std::size_t per_slot = kRingBytes / row_bytes;
  WKV_CHECK(per_slot > 0, unsupported, "[cuda] a row of ", row_bytes, " bytes; the limit is ",
            kRingBytes);
  const auto* from = static_cast<const unsigned char*>(tensor.data);
  int number = 0;
  for (std::size_t row = 0; row < rows; number ^= 1) {
    const std::size_t n = std::min(per_slot, rows - row);
    unsigned char* slot = ring_slot(number);
    if (!staging_[number]) staging_[number] = device_->allocate(kRingBytes);
    if (tensor.dtype == DType::f64) {
      for (std::size_t i = 0; i < n * cols; ++i) {
        const float v = element_as_f32(from, DType::f64, row * cols + i);
        std::memcpy(slot + i * sizeof v, &v, sizeof v);
      }
    } else {
      std::memcpy(slot, from + row * row_bytes, n * row_bytes);
      if (tensor.mapped) drop_pages(from + row * row_bytes, n * row_bytes);
    }
    device_->copy_in(staging_[number].data(), slot, n * row_bytes);
    auto p = zeroed<ConvertParams>();
    p.from = staging_[number].data();
    p.to = static_cast<unsigned char*>(to) + row * pitch_elements * dtype_size(dtype);
    p.ld_from = static_cast<std::int64_t>(cols);
    p.ld_to = static_cast<std::int64_t>(pitch_elements);
    p.from_element = element_of(carried);
    p.to_element = element_of(dtype);
    p.rows = static_cast<std::int32_t>(n);
    p.cols = static_cast<std::int32_t>(cols);
    p.to_cols = static_cast<std::int32_t>(pitch_elements);
    convert(launch_, p);
    push();
    device_->mark(number);
    row += n;
  }
}

void CudaBackend::upload_made(void* to, std::size_t rows, std::size_t pitch,
                              const std::function<void(std::size_t, unsigned char*)>& make) {
  auto* target = static_cast<unsigned char*>(to);
  const std::size_t per_slot = kRingBytes / pitch;
  WKV_CHECK(per_slot > 0, unsupported, "[cuda] a row of ", pitch, " bytes; the limit is ",
            kRingBytes);
  int number = 0;
  for (std::size_t row = 0; row < rows; number ^= 1) {
    const std::size_t n = std::min(per_slot, rows - row);
    unsigned char* slot = ring_slot(number);
    auto part = [&](int index, int threads) noexcept {
      const auto bound = [&](int i) {
        return n * static_cast<std::size_t>(i) / static_cast<std::size_t>(threads);
      };
      for (std::size_t i = bound(index); i < bound(index + 1); ++i) make(row + i, slot + i * pitch);
    };
    workers().run(part);
    device_->copy_in(target + row * pitch, slot, n * pitch);
    device_->mark(number);
    row += n;
  }
}

void CudaBackend::write(void* device, const void* host, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  flush();
  upload(device, host, bytes);
  device_->synchronize();
}

void CudaBackend::copy_out(unsigned char* to, const unsigned char* from, std::size_t bytes) {
  constexpr std::size_t kShare = std::size_t{128} << 10;
  constexpr int kThreads = 8;
  if (bytes < 2 * kShare) {
    std::memcpy(to, from, bytes);
    return;
  }
  if (!copiers_) copiers_ = std::make_unique<ThreadPool>(std::min(kThreads, usable_cores()));
  auto part = [&](int index, int threads) noexcept {
    const auto bound = [&](int i) {
      return bytes * static_cast<std::size_t>(i) / static_cast<std::size_t>(threads);
    };
    std::memcpy(to + bound(index), from + bound(index), bound(index + 1) - bound(index));
  };
  copiers_->run(part);
}

void CudaBackend::read(void* host, const void* device, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  flush();
  // Small parts, so that copying one out of pinned memory overlaps with the transfer of the next.
  // One thread copies 10 GB/s, a fifth of what the bus brings: logits of 32 rows would take 0.8 ms.
  constexpr std::size_t kPart = std::size_t{1} << 20;
  const auto* from = static_cast<const unsigned char*>(device);
  auto* target = static_cast<unsigned char*>(host);
  const auto fetch = [&](std::size_t at, int number) {
    unsigned char* slot = ring_slot(number);
    device_->copy_out(slot, from + at, std::min(kPart, bytes - at));
    device_->mark(number);
  };
  if (bytes > 0) fetch(0, 0);
  int number = 0;
  for (std::size_t at = 0; at < bytes; at += kPart, number ^= 1) {
    if (at + kPart < bytes) fetch(at + kPart, number ^ 1);
    copy_out(target + at, ring_slot(number), std::min(kPart, bytes - at));
  }
  device_->synchronize();
}

Matrix CudaBackend::adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
                          std::vector<std::shared_ptr<const void>>& keep,
                          const std::function<void()>& poll) {
  WKV_CHECK(tensor.shape.size() == 2 && (is_float(tensor.dtype) || is_quantized(tensor.dtype)),
            internal, "[adopt] '", name, "' is no floating-point matrix");
  const bool factor = use == MatrixUse::lora;
  want = quantize::type_of(want, use);
  if (factor && want == DType::int8 && is_float(tensor.dtype)) {
    HostTensor values;
    try {
      values = quantize::rounded(tensor, want, parallel(tensor.shape[1], poll));
    } catch (const Error& e) {
      fail(e.code(), "'", name, "': ", e.what());
    }
    return adopt(values, DType::f16, use, name, keep, poll);
  }
  if (is_quantized(tensor.dtype)) {
    // Factors have int8's values but are multiplied as fp16, beside which codes gain nothing.
    if (want == DType::automatic && use != MatrixUse::embedding) want = tensor.dtype;
    if (factor && is_quantized(want)) want = DType::f16;
    if (want != tensor.dtype)
      return adopt(quantize::dequantize(tensor, parallel(tensor.shape[1], poll)), want, use, name,
                   keep, poll);
  }
  const auto rows = static_cast<std::size_t>(tensor.shape[0]);
  const auto cols = static_cast<std::size_t>(tensor.shape[1]);
  if (is_quantized(want)) {
    const std::lock_guard lock(mutex_);
    flush();
    Matrix m = adopt_quantised(tensor, want, name, keep, poll);
    if (use == MatrixUse::ffn_value) x_scale_[m.data] = kSquareScale;
    return m;
  }

  Matrix m;
  m.out = static_cast<int>(rows);
  m.in = static_cast<int>(cols);
  m.name = name;
  m.dtype = want == DType::automatic ? tensor.dtype : want;
  if (m.dtype == DType::f64) m.dtype = DType::f32;
  constexpr int kFirstBf16 = 80;  // sm_75's tensor cores have no bfloat16
  if (m.dtype == DType::bf16 && use != MatrixUse::embedding && device_->capability() < kFirstBf16)
    m.dtype = DType::f16;

  const bool padded = use != MatrixUse::embedding && m.dtype != DType::f32;
  const auto unit = static_cast<std::size_t>(load_inputs(Codec::f16));
  const std::size_t pitch = padded ? (cols + unit - 1) / unit * unit : cols;
  const std::size_t size = dtype_size(m.dtype);

  const std::lock_guard lock(mutex_);
  flush();
  auto memory = std::make_shared<Buffer>(allocate_weight(rows * pitch * size, use));
  if (m.dtype == tensor.dtype)
    upload_rows(memory->data(), tensor.data, rows, cols * size, pitch * size, tensor.mapped);
  else
    upload_converted(memory->data(), tensor, rows, cols, pitch, m.dtype);
  m.data = memory->data();
  m.bytes = static_cast<std::int64_t>(rows * pitch * size);
  m.layout = pitch == cols ? Layout::row_major : Layout::packed;
  if (use == MatrixUse::ffn_value && m.dtype == DType::f16) x_scale_[m.data] = kSquareScale;
  // The embedding is read where it lies: a few rows of it.
  if (stream_ && use != MatrixUse::lora && use != MatrixUse::embedding)
    streamed_[m.data] = rows * pitch * size;
  keep.push_back(std::move(memory));
  return m;
}

}  // namespace wkv::cuda
