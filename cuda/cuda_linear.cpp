// How matrix products are cut into blocks.
#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/check.h"
#include "cuda/cuda_backend.h"

namespace wkv::cuda {
namespace {

constexpr int kRoundTo = 128;                     // columns of rounded activations
constexpr int kSkinnyShared = 220 * 1024;         // of the blocks of a processor
constexpr int kSkinnyStatic = 1024;               // more than its kernels' static part
constexpr int kLeastInputs = 1024;                // of a product that streams beyond 8 rows
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

std::vector<void*> CudaBackend::round_beside(std::size_t n, int rows, int cols) {
  if (rows <= kSplitRows || half_ == Half::none || cols % kRoundTo != 0) return {};
  turn_ ^= 1;
  const std::size_t bytes = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * 2;
  auto* at = static_cast<unsigned char*>(grow(beside_[turn_], n * bytes));
  std::vector<void*> places(n);
  for (void*& place : places) place = std::exchange(at, at + bytes);
  return places;
}

void* CudaBackend::find_rounded(const LinearJobParams& q, Codec codec) const {
  for (const Rounded& r : ready_)
    if (r.x == q.x && r.ldx == q.ldx && r.cols == q.in && r.scale == q.x_scale &&
        r.bf16 == (codec == Codec::bf16) && q.in_scale == nullptr)
      return r.x16;
  return nullptr;
}

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  const std::lock_guard lock(mutex_);
  ready_ = std::exchange(made_, {});
  std::vector<Rounded> squares;
  std::array<const LinearJob*, kMaxJobs> group{};
  for (const Codec codec : {Codec::f32, Codec::f16, Codec::bf16, Codec::u8, Codec::u4}) {
    std::size_t n = 0;
    for (const LinearJob& job : jobs) {
      if (codec_of(*job.w) != codec) continue;
      group[n++] = &job;
      if (n == kMaxJobs) {
        linear_group({group.data(), n}, codec, squares);
        n = 0;
      }
    }
    if (n > 0) linear_group({group.data(), n}, codec, squares);
  }
  ready_.clear();
  made_ = std::move(squares);
}

void CudaBackend::linear_group(std::span<const LinearJob* const> jobs, Codec codec,
                               std::vector<Rounded>& squares) {
  Group group;
  std::memset(static_cast<void*>(&group.params), 0, sizeof group.params);
  LinearParams& p = group.params;
  p.jobs = static_cast<std::int32_t>(jobs.size());
  p.rows = jobs[0]->x.rows;
  if (codec != Codec::f32) half_ = codec == Codec::bf16 ? Half::bf16 : Half::f16;
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
    if (e.act != Act::relu_squared || e.into || !squares.empty() || codec == Codec::f32) continue;
    for (void* y16 : round_beside(1, p.rows, q.out)) {
      q.y16 = y16;
      q.bf16 = codec == Codec::bf16 ? 1 : 0;
      q.y16_scale = q.bf16 != 0 ? 1.0f : kSquareScale;
      squares.push_back(rounded(q.y, q.ldy, q.out, q.y16_scale, y16));
    }
  }
  stage(p);
  if (codec == Codec::f32) {
    plan_f32(group);
    linear_f32(launch_, p, group.blocks);
  } else {
    if (p.rows > kSplitRows) {
      round_inputs(jobs, codec, p);
      int left = 0;
      for (int j = 0; j < p.jobs; ++j)
        if (!multiply_by_library(p.job[j], codec, p.rows)) p.job[left++] = p.job[j];
      p.jobs = left;
      if (left == 0) return;
    }
    const bool stream = streams(p, codec);
    const SkinnyShape shape = stream ? plan_skinny(group, codec) : SkinnyShape{};
    if (!stream) plan_gemm(group, codec);
    p.workspace = static_cast<float*>(
        grow(workspace_, static_cast<std::size_t>(group.partials) * sizeof(float)));
    p.tickets = static_cast<unsigned*>(tickets_.data());
    if (stream)
      skinny(launch_, codec, p, shape);
    else
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

/// Which kernel: up to 8 rows always the streaming one. Beyond, it pays where a tile for each
/// processor is all there is and its block can hold the inputs; else the ring, whose blocks share
/// the inputs of 64 outputs. (Of 32 rows on an H200: 2048 x 2048 13 us against 16, 2048 x 8192 44
/// against 31.)
bool CudaBackend::streams(const LinearParams& p, Codec codec) const {
  if (p.rows <= kSplitRows) return true;
  if (p.rows > skinny_rows(codec)) return false;
  constexpr int kWarps = 16;
  const int inputs = skinny_inputs(
      p.rows, std::min(kSkinnyShared, device_->shared_bytes()) - kSkinnyStatic, kWarps);
  int tiles = 0;
  for (int j = 0; j < p.jobs; ++j) {
    tiles += ceil_div(p.job[j].out, kSkinnyOutputs);
    if (p.job[j].in > inputs || p.job[j].in < kLeastInputs) return false;
  }
  return tiles <= device_->processors();
}

SkinnyShape CudaBackend::plan_skinny(Group& group, Codec codec) {
  LinearParams& p = group.params;
  constexpr int kMostTiles = 4;   // of a block
  constexpr int kLoadsAhead = 8;  // pairs of loads that a warp has in flight
  const int unit = load_inputs(codec);
  const int cores = device_->processors();
  int tiles = 0, units = 0;
  for (int j = 0; j < p.jobs; ++j) {
    tiles += ceil_div(p.job[j].out, kSkinnyOutputs);
    units = std::max(units, ceil_div(p.job[j].in, unit));
  }
  // Two blocks of 8 warps fill a processor's registers, and one of 16 where the inputs of more rows
  // fill its memory. With less than a tile for each processor the 16 share its inputs, if those are
  // more than 8 warps fetch at once.
  const bool few = tiles <= cores && units > 8 * kLoadsAhead;
  SkinnyShape shape{p.rows > 16 || few ? 16 : 8, 0, 0};
  const int resident = 16 / shape.warps;
  const int shared = std::min(kSkinnyShared, device_->shared_bytes()) / resident - kSkinnyStatic;
  const int tile_sums = static_cast<int>(skinny_shared_bytes(p.rows, 0, 8));
  const int per_block = std::clamp(
      std::min(ceil_div(tiles, resident * cores), shared / 2 / tile_sums), 1, kMostTiles);
  const int inputs = skinny_inputs(p.rows, shared, std::max(8 * per_block, shape.warps));
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    units = ceil_div(q.in, unit);
    q.splits = useful_splits(units, ceil_div(units, std::max(1, inputs / unit)));
    const int per_split = ceil_div(units, q.splits);
    // As many warps for a tile as have two loads each; the others take other tiles.
    q.parts = per_block == 1 ? shape.warps : 8;
    while (q.parts > 1 && per_split < 2 * q.parts) q.parts /= 2;
    q.tiles = std::max(per_block, shape.warps / q.parts);
    const int groups = ceil_div(ceil_div(q.out, kSkinnyOutputs), q.tiles);
    group.blocks += groups * q.splits;
    q.last_block = group.blocks;
    if (q.splits > 1) {
      q.first_ticket = group.tickets;
      group.tickets += groups;
      q.partial = group.partials;
      group.partials += std::int64_t{q.splits} * q.out * p.rows;
    }
    shape.shared_bytes = std::max(shape.shared_bytes,
                                  skinny_shared_bytes(p.rows, per_split * unit, q.tiles * q.parts));
  }
  shape.blocks = group.blocks;
  WKV_CHECK(group.tickets <= kMaxTickets, internal, "[linear] ", group.tickets, " shared tiles");
  return shape;
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
    const std::size_t part =
        static_cast<std::size_t>(tiles) * static_cast<std::size_t>(shape.out_tile * shape.row_tile);
    const auto affordable =
        static_cast<int>(std::min<std::size_t>(factor, kMaxWorkspace / (part * sizeof(float)) + 1));
    q.splits = useful_splits(stages, std::min(affordable, std::max(1, stages / 4)));
    if (q.splits > 1) {
      q.first_ticket = group.tickets;
      group.tickets += tiles;
      group.partials = (group.partials + 3) / 4 * 4;  // read 16 bytes at a time
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
  std::array<void*, kMaxJobs> there{};
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
    there[static_cast<std::size_t>(found)] = find_rounded(q, codec);
    p.job[p.jobs++] = job;
    if (there[static_cast<std::size_t>(found)] == nullptr)
      bytes += static_cast<std::size_t>(p.rows) * static_cast<std::size_t>(job.padded) * 2;
    sums[static_cast<std::size_t>(found)] = bytes;
    if (q.zero != 0.0f) {
      bytes += static_cast<std::size_t>(ceil_div(p.rows * 3, 64)) * 64 * sizeof(float);
      any_sums = true;
    }
  }
  auto* rounded = static_cast<unsigned char*>(grow(rounded_, bytes));
  bool any_left = false;
  for (int i = 0; i < p.jobs; ++i) {
    if (there[static_cast<std::size_t>(i)] != nullptr) continue;
    p.job[i].x16 = rounded + offset[static_cast<std::size_t>(i)];
    any_left = true;
  }
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    RoundJob& job = p.job[source[j]];
    if (params.job[j].zero != 0.0f)
      job.sums = reinterpret_cast<float*>(rounded + sums[static_cast<std::size_t>(source[j])]);
    void* const ready = there[static_cast<std::size_t>(source[j])];
    params.job[j].x16 = ready != nullptr ? ready : job.x16;
    params.job[j].sums = job.sums;
  }
  if (any_left) {
    round_rows(launch_, p);
    push();
  }
  if (any_sums) {
    sum_rows(launch_, p);
    push();
  }
}

bool CudaBackend::multiply_by_library(const LinearJobParams& job, Codec codec, int rows) {
  // Multiplications; smaller products share a launch. (RWKV-7 1.5B on an H200, 32 streams: 9.6k
  // tokens a second, with our own kernels up to 127 rows 7.6k.)
  constexpr std::int64_t kWorthwhile = 1 << 26;
  const bool more =
      job.bias != nullptr || job.gate != nullptr || job.add != nullptr || job.act != 0;
  if ((codec != Codec::f16 && codec != Codec::bf16) || (job.into != 0 && more) ||
      std::int64_t{job.in} * job.out * rows < kWorthwhile)
    return false;
  auto product = zeroed<LibraryProduct>();
  product.w = job.w;
  product.x16 = job.x16;
  product.y = job.y;
  product.ldw = job.row_bytes / 2;
  product.ldx = ceil_div(job.in, kRoundTo) * kRoundTo;
  product.ldy = job.ldy;
  product.in = job.in;
  product.out = job.out;
  product.rows = rows;
  product.scale = 1.0f / job.x_scale;
  product.bf16 = codec == Codec::bf16 ? 1 : 0;
  product.into = job.into;
  if (!device_->accepts(product)) return false;
  launch_.header = {};
  launch_.header.params_bytes = sizeof product;
  std::memcpy(launch_.params.data(), &product, sizeof product);
  push();
  if (more) {
    auto p = zeroed<FinishParams>();
    p.y = job.y;
    p.y16 = job.y16;
    p.y16_scale = job.y16_scale;
    p.bf16 = job.bf16;
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
