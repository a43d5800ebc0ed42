// Products that NVIDIA's library does, and quantised weights made ready for it.
#include <algorithm>
#include <cstring>

#include "cuda/cuda_backend.h"
#include "cuda/pack.h"

namespace wkv::cuda {
namespace {

/// Rows up to which codes are streamed, in less time than it takes to write and read halves: int8
/// still gains 7 % from it at 64 rows (RWKV-7 with 2048 channels on an H200), int4 loses there.
int streamed_rows(const Matrix& w) { return w.dtype == DType::int4 ? 48 : kSkinnyRows; }

bool is_quantised(const Matrix& w) { return codec_of(w) == Codec::u8 || codec_of(w) == Codec::u4; }

/// Brings the largest weights near the end of fp16's range: the smallest keep their bits.
float fp16_scale(const Matrix& w) {
  constexpr float kNearTheEnd = 32768.0f;
  return w.largest > 0.0f ? kNearTheEnd * normaliser(w.largest) : 1.0f;
}

}  // namespace

Codec CudaBackend::form_of(const LinearJob& job) {
  const Codec stored = codec_of(*job.w);
  if (!is_quantised(*job.w) || job.x.rows <= streamed_rows(*job.w)) return stored;
  return library_product(job, Codec::f16) ? Codec::f16 : stored;
}

int CudaBackend::outputs_at_once(const Matrix& w) const {
  const std::size_t row = static_cast<std::size_t>(padded_cols(w.in)) * 2;
  return static_cast<int>(
      std::min(static_cast<std::size_t>(w.out), std::max<std::size_t>(most_expanded_ / row, 1)));
}

std::optional<LibraryProduct> CudaBackend::library_product(const LinearJob& job, Codec form) {
  const Epilogue& e = job.epilogue;
  const Matrix& w = *job.w;
  const bool rounds = goes_on(job, job.x.rows);
  if ((form != Codec::f16 && form != Codec::bf16) || (e.into && finishes(job)) ||
      (rounds && padded_cols(w.out) != w.out))
    return std::nullopt;
  auto product = zeroed<LibraryProduct>();
  product.ldw = is_quantised(w) ? padded_cols(w.in) : packed_row_bytes(form, w.in) / 2;
  product.ldx = padded_cols(w.in);
  product.ldy = job.y.stride;
  product.in = w.in;
  product.out = w.out;
  product.rows = job.x.rows;
  product.bf16 = form == Codec::bf16 ? 1 : 0;
  product.into = e.into ? 1 : 0;
  if (!is_quantised(w)) return device_->accepts(product) ? std::optional(product) : std::nullopt;
  product.out = outputs_at_once(w);
  LibraryProduct last = product;
  last.out = (w.out - 1) % product.out + 1;
  return device_->accepts(product) && device_->accepts(last) ? std::optional(product)
                                                             : std::nullopt;
}

bool CudaBackend::finishes(const LinearJob& job) {
  const Epilogue& e = job.epilogue;
  return e.bias != nullptr || e.gate || e.add || e.act != Act::none || goes_on(job, job.x.rows);
}

void CudaBackend::push_product(const LibraryProduct& product, bool beside) {
  launch_.header = {};
  launch_.header.params_bytes = sizeof product;
  launch_.header.beside = beside ? 1 : 0;
  std::memcpy(launch_.params.data(), &product, sizeof product);
  push();
}

void CudaBackend::multiply_expanded(const LinearJob& job, const LinearJobParams& q,
                                    LibraryProduct product) {
  const Codec stored = codec_of(*job.w);
  auto p = zeroed<ExpandParams>();
  p.in_scale = q.in_scale;
  p.in_offset = q.in_offset;
  p.in = q.in;
  p.row_bytes = q.row_bytes;
  p.groups = q.groups;
  p.zero = q.zero;
  p.scale = fp16_scale(*job.w);
  p.to = grow(expanded_, static_cast<std::size_t>(product.out) *
                             static_cast<std::size_t>(padded_cols(q.in)) * 2);
  product.w = p.to;
  product.scale /= p.scale;
  const auto from = [](auto* values, std::int64_t n) {
    return values == nullptr ? nullptr : values + n;
  };
  const int step = product.out;
  for (int first = 0; first < q.out; first += step) {
    p.out = product.out = std::min(step, q.out - first);
    p.w = static_cast<const unsigned char*>(q.w) + std::int64_t{first} * q.row_bytes;
    p.out_scale = from(q.out_scale, first);
    p.out_offset = from(q.out_offset, first);
    p.group_scale = from(q.group_scale, std::int64_t{first} * q.groups);
    expand(launch_, stored, p);
    push();
    product.y = q.y + first;
    push_product(product, false);
  }
}

bool CudaBackend::multiply_by_library(const LinearJob& job, const LinearJobParams& q, Codec form,
                                      bool& beside) {
  const std::optional<LibraryProduct> found = library_product(job, form);
  if (!found) return false;
  LibraryProduct product = *found;
  product.x16 = q.x16;
  product.y = q.y;
  product.scale = 1.0f / q.x_scale;
  const bool more = finishes(job);
  if (is_quantised(*job.w)) {
    multiply_expanded(job, q, product);
    beside = false;  // what is expanded next takes the place of this
  } else {
    product.w = q.w;
    push_product(product, beside);
    beside = !more && q.into == 0;
  }
  if (!more) return true;
  auto p = zeroed<FinishParams>();
  p.y = q.y;
  p.y16 = q.y16;
  p.y16_scale = q.y16_scale;
  p.bf16 = q.bf16;
  p.bias = q.bias;
  p.gate = q.gate;
  p.add = q.add;
  p.ldy = q.ldy;
  p.ldgate = q.ldgate;
  p.ldadd = q.ldadd;
  p.rows = product.rows;
  p.cols = q.out;
  p.act = q.act;
  finish(launch_, p);
  push();
  return true;
}

}  // namespace wkv::cuda
