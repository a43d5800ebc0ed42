// How matrix products are cut into blocks.
#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "cuda/cuda_backend.h"

namespace wkv::cuda {
namespace {

constexpr int kRoundTo = 128;                     // columns of rounded activations
constexpr int kSkinnyShared = 73 * 1024;          // of a block: three fit a processor
constexpr int kLibraryRows = 128;                 // the vendor's kernels need rows to pay off
constexpr std::size_t kMaxWorkspace = 256 << 20;  // partial sums, bytes
constexpr int kMaxTickets = 65536;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

Codec codec_of(const Matrix& w) {
  switch (w.dtype) {
    case DType::f32:
      return Codec::f32;
    case DType::f16:
      return Codec::f16;
    case DType::bf16:
      return Codec::bf16;
    case DType::int8:
    case DType::mm8:
      return Codec::u8;
    case DType::int4:
      return Codec::u4;
    default:
      fail(ErrorCode::internal, "[linear] '", w.name, "' has a form that CUDA does not know");
  }
}

int row_bytes_of(const Matrix& w, Codec codec) {
  return codec == Codec::f32 ? w.in * 4 : packed_row_bytes(codec, w.in);
}

/// Parts of `units` of at most ceil(units / splits) each, without an empty one.
int useful_splits(int units, int splits) {
  splits = std::clamp(splits, 1, units);
  return ceil_div(units, ceil_div(units, splits));
}

}  // namespace

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  std::array<const LinearJob*, kMaxJobs> group{};
  for (const Codec codec : {Codec::f32, Codec::f16, Codec::bf16, Codec::u8, Codec::u4}) {
    std::size_t n = 0;
    for (const LinearJob& job : jobs) {
      if (codec_of(*job.w) != codec) continue;
      group[n++] = &job;
      if (n == kMaxJobs) {
        linear_group({group.data(), n}, codec);
        n = 0;
      }
    }
    if (n > 0) linear_group({group.data(), n}, codec);
  }
}

void CudaBackend::linear_group(std::span<const LinearJob* const> jobs, Codec codec) {
  const std::lock_guard lock(mutex_);
  Group group;
  std::memset(static_cast<void*>(&group.params), 0, sizeof group.params);
  LinearParams& p = group.params;
  p.jobs = static_cast<std::int32_t>(jobs.size());
  p.rows = jobs[0]->x.rows;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const LinearJob& job = *jobs[j];
    const Epilogue& e = job.epilogue;
    LinearJobParams& q = p.job[j];
    q.w = job.w->data;
    q.x = job.x.f32();
    q.y = static_cast<float*>(job.y.data);
    q.bias = e.bias != nullptr ? e.bias->data : nullptr;
    q.gate = e.gate.f32();
    q.add = e.add.f32();
    q.ldx = static_cast<std::int32_t>(job.x.stride);
    q.ldy = static_cast<std::int32_t>(job.y.stride);
    q.ldgate = static_cast<std::int32_t>(e.gate.stride);
    q.ldadd = static_cast<std::int32_t>(e.add.stride);
    q.in = job.w->in;
    q.out = job.w->out;
    q.row_bytes = row_bytes_of(*job.w, codec);
    q.out_scale = job.w->out_scale;
    q.out_offset = job.w->out_offset;
    q.in_scale = job.w->in_scale;
    q.in_offset = job.w->in_offset;
    if (codec == Codec::u4) {  // its scales follow its codes
      q.group_scale = reinterpret_cast<const std::uint16_t*>(static_cast<const char*>(job.w->data) +
                                                             packed_bytes(codec, q.out, q.in));
      q.groups = ceil_div(q.in, load_inputs(codec)) * 4;
    }
    q.zero = -job.w->zero;
    q.splits = 1;
    q.tiles = 1;
    const auto scale = x_scale_.find(q.w);
    q.x_scale = scale == x_scale_.end() ? 1.0f : scale->second;
    q.act = static_cast<std::int32_t>(e.act);
    q.into = e.into ? 1 : 0;
  }
  stage(p);
  std::uint32_t shared_bytes = 0;
  if (codec == Codec::f32) {
    plan_f32(group);
    linear_f32(launch_, p, group.blocks);
  } else if (p.rows <= kSkinnyRows) {
    plan_skinny(group, codec, shared_bytes);
    p.workspace = static_cast<float*>(
        grow(workspace_, static_cast<std::size_t>(group.partials) * sizeof(float)));
    p.tickets = static_cast<unsigned*>(tickets_.data());
    skinny(launch_, codec, p, group.blocks, shared_bytes);
  } else {
    round_inputs(jobs, codec, p);
    int left = 0;
    for (int j = 0; j < p.jobs; ++j)
      if (p.rows < kLibraryRows || !multiply_by_library(p.job[j], codec, p.rows))
        p.job[left++] = p.job[j];
    p.jobs = left;
    if (left == 0) return;
    plan_gemm(group, codec);
    p.workspace = static_cast<float*>(
        grow(workspace_, static_cast<std::size_t>(group.partials) * sizeof(float)));
    p.tickets = static_cast<unsigned*>(tickets_.data());
    gemm(launch_, codec, p, group.blocks, device_->shared_bytes());
  }
  push();
}

/// Copies the matrices of a group that lie in host memory to the device. The stream is in order:
/// the copy waits for the kernels that read what was there before, the next kernel for the copy.
/// Hiding one behind the other would gain little: a matrix takes a hundred times longer over the
/// bus than out of the device's memory.
void CudaBackend::stage(LinearParams& p) {
  constexpr std::size_t kAlign = 256;
  const auto padded = [](std::size_t n) { return (n + kAlign - 1) / kAlign * kAlign; };
  std::size_t bytes = 0;
  for (int j = 0; j < p.jobs; ++j)
    if (const auto found = streamed_.find(p.job[j].w); found != streamed_.end())
      bytes += padded(found->second);
  if (bytes == 0) return;
  flush();
  auto* to = static_cast<unsigned char*>(grow(staged_, bytes));
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    const auto found = streamed_.find(q.w);
    if (found == streamed_.end()) continue;
    const auto* from = static_cast<const unsigned char*>(q.w);
    device_->copy_in(to, from, found->second);
    const auto move = [&](auto*& part) {  // scales and offsets lie in the same block
      if (part != nullptr)
        part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(
            to + (reinterpret_cast<const unsigned char*>(part) - from));
    };
    q.w = to;
    move(q.out_scale);
    move(q.out_offset);
    move(q.in_scale);
    move(q.in_offset);
    move(q.group_scale);
    to += padded(found->second);
  }
}

void CudaBackend::plan_f32(Group& group) {
  for (int j = 0; j < group.params.jobs; ++j) {
    group.blocks += ceil_div(group.params.job[j].out, kF32Outputs);
    group.params.job[j].last_block = group.blocks;
  }
}

void CudaBackend::plan_skinny(Group& group, Codec codec, std::uint32_t& shared_bytes) {
  LinearParams& p = group.params;
  constexpr int kWarps = 8;     // of a block, which share the inputs
  constexpr int kResident = 2;  // blocks per processor
  const int unit = load_inputs(codec);
  const int shared = std::min(kSkinnyShared, device_->shared_bytes());
  const int max_units = std::max(1, skinny_inputs(p.rows, shared) / unit);
  int total = 0;
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    q.splits = useful_splits(ceil_div(q.in, unit), ceil_div(ceil_div(q.in, unit), max_units));
    total += ceil_div(q.out, kSkinnyOutputs) * q.splits;
  }
  // Too few tiles to fill the GPU: let several blocks share a tile's inputs, as long as every warp
  // keeps two loads.
  const int cores = device_->processors();
  const int want = kResident * cores;
  if (total < want) {
    const int factor = ceil_div(want, total);
    total = 0;
    for (int j = 0; j < p.jobs; ++j) {
      LinearJobParams& q = p.job[j];
      const int units = ceil_div(q.in, unit);
      const int most = std::max(q.splits, units / (2 * kWarps));
      q.splits = useful_splits(units, std::min(q.splits * factor, most));
      total += ceil_div(q.out, kSkinnyOutputs) * q.splits;
    }
  }
  // Up to two waves the scheduler balances single tiles; beyond, one wave of equal blocks leaves no
  // tail.
  const int tiles = total <= 2 * kResident * cores ? 1 : ceil_div(total, kResident * cores);
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    const int tile_count = ceil_div(q.out, kSkinnyOutputs);
    q.tiles = tiles;
    const int groups = ceil_div(tile_count, tiles);
    group.blocks += groups * q.splits;
    q.last_block = group.blocks;
    if (q.splits > 1) {
      q.first_ticket = group.tickets;
      group.tickets += groups;
      q.partial = group.partials;
      group.partials += std::int64_t{q.splits} * tile_count * kSkinnyOutputs * p.rows;
    }
    const int per_split = ceil_div(ceil_div(q.in, unit), q.splits);
    shared_bytes = std::max(shared_bytes, skinny_shared_bytes(p.rows, per_split * unit));
  }
  WKV_CHECK(group.tickets <= kMaxTickets, internal, "[linear] ", group.tickets, " shared tiles");
}

void CudaBackend::plan_gemm(Group& group, Codec codec) {
  LinearParams& p = group.params;
  const GemmShape shape = gemm_shape(codec, p.rows, device_->shared_bytes());
  const int row_tiles = ceil_div(p.rows, shape.row_tile);
  int total = 0;
  for (int j = 0; j < p.jobs; ++j) total += ceil_div(p.job[j].out, shape.out_tile) * row_tiles;
  const int want = 2 * device_->processors();
  const int factor = total < want ? ceil_div(want, total) : 1;
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    const int tiles = ceil_div(q.out, shape.out_tile) * row_tiles;
    const int stages = ceil_div(q.in, shape.inputs);
    const std::size_t part = static_cast<std::size_t>(p.rows) * static_cast<std::size_t>(q.out);
    const auto affordable =
        static_cast<int>(std::min<std::size_t>(factor, kMaxWorkspace / (part * sizeof(float)) + 1));
    q.splits = useful_splits(stages, std::min(affordable, std::max(1, stages / 4)));
    if (q.splits > 1) {
      q.first_ticket = group.tickets;
      group.tickets += tiles;
      q.partial = group.partials;
      group.partials += q.splits * static_cast<std::int64_t>(part);
    }
    group.blocks += tiles * q.splits;
    q.last_block = group.blocks;
  }
  WKV_CHECK(group.tickets <= kMaxTickets, internal, "[linear] ", group.tickets, " shared tiles");
}

void CudaBackend::round_inputs(std::span<const LinearJob* const> jobs, Codec codec,
                               LinearParams& params) {
  auto p = zeroed<RoundParams>();
  p.rows = params.rows;
  std::array<std::size_t, kMaxJobs> offset{}, sums{};
  bool any_sums = false;
  std::array<int, kMaxJobs> source{};
  std::size_t bytes = 0;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const LinearJobParams& q = params.job[j];
    RoundJob job{};
    job.x = q.x;
    job.in_scale = q.in_scale;
    job.in_offset = q.in_offset;
    job.ldx = q.ldx;
    job.cols = q.in;
    job.padded = ceil_div(q.in, kRoundTo) * kRoundTo;
    job.scale = q.x_scale;
    job.bf16 = codec == Codec::bf16 ? 1 : 0;
    int found = 0;
    while (found < p.jobs &&
           !(p.job[found].x == job.x && p.job[found].ldx == job.ldx &&
             p.job[found].cols == job.cols && p.job[found].scale == job.scale &&
             p.job[found].in_scale == job.in_scale && p.job[found].in_offset == job.in_offset))
      ++found;
    source[j] = found;
    if (found < p.jobs) continue;
    offset[static_cast<std::size_t>(found)] = bytes;
    p.job[p.jobs++] = job;
    bytes += static_cast<std::size_t>(p.rows) * static_cast<std::size_t>(job.padded) * 2;
    sums[static_cast<std::size_t>(found)] = bytes;
    if (q.zero != 0.0f) {
      bytes += static_cast<std::size_t>(ceil_div(p.rows * 3, 64)) * 64 * sizeof(float);
      any_sums = true;
    }
  }
  auto* rounded = static_cast<unsigned char*>(grow(rounded_, bytes));
  for (int i = 0; i < p.jobs; ++i) p.job[i].x16 = rounded + offset[static_cast<std::size_t>(i)];
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    RoundJob& job = p.job[source[j]];
    if (params.job[j].zero != 0.0f)
      job.sums = reinterpret_cast<float*>(rounded + sums[static_cast<std::size_t>(source[j])]);
    params.job[j].x16 = job.x16;
    params.job[j].sums = job.sums;
  }
  round_rows(launch_, p);
  push();
  if (any_sums) {
    sum_rows(launch_, p);
    push();
  }
}

bool CudaBackend::multiply_by_library(const LinearJobParams& job, Codec codec, int rows) {
  constexpr std::int64_t kWorthwhile = 1 << 20;  // weights; smaller ones share one dispatch instead
  const bool more =
      job.bias != nullptr || job.gate != nullptr || job.add != nullptr || job.act != 0;
  if ((codec != Codec::f16 && codec != Codec::bf16) || (job.into != 0 && more) ||
      std::int64_t{job.in} * job.out < kWorthwhile)
    return false;
  settle();
  const LibraryProduct product{job.w,
                               job.x16,
                               job.y,
                               job.row_bytes / 2,
                               ceil_div(job.in, kRoundTo) * kRoundTo,
                               job.ldy,
                               job.in,
                               job.out,
                               rows,
                               1.0f / job.x_scale,
                               codec == Codec::bf16,
                               job.into != 0};
  queue_.flush();
  if (!device_->multiply(product)) return false;
  if (more) {
    auto p = zeroed<FinishParams>();
    p.y = job.y;
    p.bias = job.bias;
    p.gate = job.gate;
    p.add = job.add;
    p.ldy = job.ldy;
    p.ldgate = job.ldgate;
    p.ldadd = job.ldadd;
    p.rows = rows;
    p.cols = job.out;
    p.act = job.act;
    finish(launch_, p);
    push();
  }
  return true;
}

}  // namespace wkv::cuda
