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

constexpr int kSkinnyShared = 220 * 1024;         // of the blocks of a processor
constexpr int kSkinnyStatic = 1024;               // more than its kernels' static part
constexpr int kClusters = 90;                     // the first architecture that has them
constexpr int kLargestCluster = 8;                // that every one of them can run
constexpr std::size_t kMaxWorkspace = 256 << 20;  // partial sums, bytes
constexpr int kMaxTickets = 65536;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

int row_bytes_of(const Matrix& w, Codec codec) {
  return codec == Codec::f32 ? w.in * 4 : packed_row_bytes(codec, w.in);
}

/// Whether products of that form are of codes, whose scales and offsets count elsewhere.
bool multiplies_codes(Codec codec) { return codec == Codec::u8 || codec == Codec::u4; }

std::size_t rounded_bytes(int rows, int cols) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(padded_cols(cols)) * 2;
}

/// Parts of `units` of at most ceil(units / splits) each, without an empty one.
int useful_splits(int units, int splits) {
  splits = std::clamp(splits, 1, units);
  return ceil_div(units, ceil_div(units, splits));
}

/// A way to cut a group of products up for skinny(): blocks of `warps` warps for `outputs` outputs,
/// `splits` of which share the inputs; `loads` of 16 bytes a lane are the most of a split.
struct Cut {
  int warps, outputs, splits, blocks, loads;
  bool clusters;
};
/// Microseconds it takes, roughly: fitted to 1,400 measured ways on an H200, of which the one that
/// this picks is 4 % slower than the best in the mean. What counts there is the time in which a
/// block begins and ends, fetches its activations, multiplies, and adds up. A cluster needs a whole
/// part of the GPU: 32 of 4 blocks did not run at once on 132 processors.
double skinny_us(int rows, Codec codec, int cores, const Cut& cut) {
  const int resident = 16 / cut.warps, tiles = cut.outputs / kSkinnyOutputs;
  const int parts = std::max(1, cut.warps / tiles),
            streams = std::max(1, tiles * parts / cut.warps);
  const int products = rows <= 4 ? 1 : rows <= 16 ? 2 : ceil_div(rows, 8);
  const double steps = load_inputs(codec) / 32.0;
  const double weights = 64.0 * cut.outputs * cut.loads * std::min(cut.blocks, resident * cores);
  const double inputs = (rows <= kSplitRows ? 4.0 : 2.0) * rows * cut.loads * load_inputs(codec);
  const double of_block = 3.3 + weights / 5.3e6 + inputs * resident / 38e3 +
                          2e-4 * rows * cut.outputs * (parts + 3) * resident +
                          0.0735 * streams * ceil_div(cut.loads, parts) * steps * products;
  const double adding = cut.splits == 1 ? 0.0 : 0.78 * cut.splits + (cut.clusters ? 0.0 : 2.0);
  const int at_once = resident * (cut.clusters && cut.splits > 2 ? cores * 7 / 8 : cores);
  return ceil_div(cut.blocks, std::max(1, at_once)) * of_block + adding;
}

}  // namespace

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

unsigned char* CudaBackend::turn_over(std::size_t bytes) {
  turn_ ^= 1;
  return static_cast<unsigned char*>(grow(beside_[turn_], bytes));
}

std::vector<void*> CudaBackend::round_beside(std::size_t n, int rows, int cols) {
  if (rows <= kSplitRows || half_ == Half::none || padded_cols(cols) != cols) return {};
  const std::size_t bytes = rounded_bytes(rows, cols);
  unsigned char* at = turn_over(n * bytes);
  std::vector<void*> places(n);
  for (void*& place : places) place = std::exchange(at, at + bytes);
  return places;
}

/// The hidden units of a channel mix, and low-rank factors.
bool CudaBackend::goes_on(const LinearJob& job, int rows) {
  constexpr int kLargestRank = 512;
  return rows > kSplitRows && !job.epilogue.into && job.w->dtype != DType::f32 &&
         (job.epilogue.act == Act::relu_squared || job.w->out <= kLargestRank);
}

void* CudaBackend::find_rounded(const LinearJobParams& q, Codec codec) const {
  for (const Rounded& r : ready_)
    if (r.x == q.x && r.ldx == q.ldx && r.cols == q.in && r.scale == q.x_scale &&
        r.bf16 == (codec == Codec::bf16) && (q.in_scale == nullptr || !multiplies_codes(codec)))
      return r.x16;
  return nullptr;
}

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  const std::lock_guard lock(mutex_);
  ready_ = std::exchange(made_, {});
  rounding_.clear();
  std::size_t bytes = 0;
  for (const LinearJob& job : jobs)
    if (goes_on(job, job.x.rows)) bytes += rounded_bytes(job.x.rows, job.w->out);
  if (bytes > 0) rounding_at_ = turn_over(bytes);
  forms_.clear();
  for (const LinearJob& job : jobs) forms_.push_back(form_of(job));
  std::array<const LinearJob*, kMaxJobs> group{};
  for (const Codec codec : {Codec::f32, Codec::f16, Codec::bf16, Codec::u8, Codec::u4}) {
    std::size_t n = 0;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      if (forms_[j] != codec) continue;
      group[n++] = &jobs[j];
      if (n == kMaxJobs) {
        linear_group({group.data(), n}, codec);
        n = 0;
      }
    }
    if (n > 0) linear_group({group.data(), n}, codec);
  }
  ready_.clear();
  made_ = rounding_;
}

void CudaBackend::linear_group(std::span<const LinearJob* const> jobs, Codec codec) {
  Group group;
  LinearParams& p = group.params;
  std::memset(static_cast<void*>(&p), 0,
              offsetof(LinearParams, job) + jobs.size() * sizeof(LinearJobParams));
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
    const Codec stored = codec_of(*job.w);
    q.row_bytes = row_bytes_of(*job.w, stored);
    q.out_scale = job.w->out_scale;
    q.out_offset = job.w->out_offset;
    q.in_scale = job.w->in_scale;
    q.in_offset = job.w->in_offset;
    if (stored == Codec::u4) {  // its scales follow its codes
      q.group_scale = reinterpret_cast<const std::uint16_t*>(static_cast<const char*>(job.w->data) +
                                                             packed_bytes(stored, q.out, q.in));
      q.groups = ceil_div(q.in, load_inputs(stored)) * 4;
    }
    q.zero = -job.w->zero;
    q.splits = 1;
    const auto scale = x_scale_.find(q.w);
    q.x_scale = scale == x_scale_.end() ? 1.0f : scale->second;
    q.act = static_cast<std::int32_t>(e.act);
    q.into = e.into ? 1 : 0;
    if (!goes_on(job, p.rows)) continue;
    q.y16 = std::exchange(rounding_at_, rounding_at_ + rounded_bytes(p.rows, q.out));
    q.bf16 = codec == Codec::bf16 ? 1 : 0;
    q.y16_scale = q.bf16 != 0 || e.act != Act::relu_squared ? 1.0f : kSquareScale;
    rounding_.push_back(rounded(q.y, q.ldy, q.out, q.y16_scale, q.y16));
  }
  stage(p);
  if (codec == Codec::f32) {
    plan_f32(group);
    linear_f32(launch_, p, group.blocks);
  } else {
    bool beside = false;
    if (p.rows > kSplitRows) {
      round_inputs(jobs, codec, p);
      int left = 0;
      for (int j = 0; j < p.jobs; ++j)
        if (!multiply_by_library(*jobs[static_cast<std::size_t>(j)], p.job[j], codec, beside))
          p.job[left++] = p.job[j];
      p.jobs = left;
      if (left == 0) return;
    }
    const SkinnyShape shape = p.rows <= kSkinnyRows ? plan_skinny(group, codec) : SkinnyShape{};
    const bool stream = shape.warps > 0;
    if (!stream) plan_gemm(group, codec);
    p.workspace = static_cast<float*>(
        grow(workspace_, static_cast<std::size_t>(group.partials) * sizeof(float)));
    p.tickets = static_cast<unsigned*>(tickets_.data());
    if (stream)
      skinny(launch_, codec, p, shape);
    else
      gemm(launch_, codec, p, group.blocks, device_->shared_bytes());
    launch_.header.beside = beside ? 1 : 0;
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

/// Of all ways that fit the one that should take the least time.
CudaBackend::Way CudaBackend::find_way(const LinearParams& p, Codec codec) const {
  const int unit = load_inputs(codec), cores = device_->processors();
  const int memory = std::min(kSkinnyShared, device_->shared_bytes());
  Way best;
  double least = 1e30;
  for (const int warps : {16, 8}) {
    if (warps == 8 && p.rows > 16) continue;
    const int resident = 16 / warps, shared = memory / resident - kSkinnyStatic;
    for (int tile_bits = 0; tile_bits <= 5; ++tile_bits) {
      for (const int splits : {1, 2, 4, 8, 16, 32, 64}) {
        const int outputs = kSkinnyOutputs << tile_bits, parts = std::max(1, warps >> tile_bits);
        int blocks = 0, loads = 0;
        for (int j = 0; j < p.jobs; ++j) {
          const LinearJobParams& q = p.job[j];
          blocks += ceil_div(q.out, outputs) * splits;
          loads = std::max(loads, ceil_div(ceil_div(q.in, unit), splits));
        }
        for (const bool clusters : {true, false}) {
          if (clusters &&
              (device_->capability() < kClusters || splits == 1 || splits > kLargestCluster))
            continue;
          if (static_cast<int>(skinny_shared_bytes(p.rows, loads * unit, parts << tile_bits,
                                                   clusters ? outputs : 0)) > shared)
            continue;
          const double us =
              skinny_us(p.rows, codec, cores, {warps, outputs, splits, blocks, loads, clusters});
          if (us < least) best = {warps, tile_bits, splits, clusters}, least = us;
        }
      }
    }
  }
  return best;
}

SkinnyShape CudaBackend::plan_skinny(Group& group, Codec codec) {
  LinearParams& p = group.params;
  std::vector<std::int32_t> sizes = {static_cast<std::int32_t>(codec), p.rows};
  for (int j = 0; j < p.jobs; ++j) sizes.insert(sizes.end(), {p.job[j].in, p.job[j].out});
  auto found = ways_.find(sizes);
  if (found == ways_.end()) found = ways_.emplace(std::move(sizes), find_way(p, codec)).first;
  const Way& way = found->second;
  SkinnyShape shape{way.warps, 0, 0};
  if (way.warps == 0) return shape;
  p.clusters = way.clusters ? way.splits : 0;
  for (int j = 0; j < p.jobs; ++j) {
    LinearJobParams& q = p.job[j];
    const int units = ceil_div(q.in, load_inputs(codec));
    q.tile_bits = way.tile_bits;
    q.splits = way.clusters ? way.splits : useful_splits(units, way.splits);
    q.parts = std::max(1, way.warps >> way.tile_bits);
    const int groups = ceil_div(ceil_div(q.out, kSkinnyOutputs), 1 << q.tile_bits);
    group.blocks += groups * q.splits;
    q.last_block = group.blocks;
    if (q.splits > 1 && !way.clusters) {
      q.first_ticket = group.tickets;
      group.tickets += groups;
      q.partial = group.partials;
      group.partials += std::int64_t{q.splits} * q.out * p.rows;
    }
    shape.shared_bytes =
        std::max(shape.shared_bytes,
                 skinny_shared_bytes(p.rows, ceil_div(units, q.splits) * load_inputs(codec),
                                     q.parts << q.tile_bits,
                                     way.clusters ? kSkinnyOutputs << q.tile_bits : 0));
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
    if (multiplies_codes(codec)) {
      job.in_scale = q.in_scale;
      job.in_offset = q.in_offset;
    }
    job.ldx = q.ldx;
    job.cols = q.in;
    job.padded = padded_cols(q.in);
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
    if (q.zero != 0.0f && multiplies_codes(codec)) {
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
    if (params.job[j].zero != 0.0f && multiplies_codes(codec))
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

}  // namespace wkv::cuda
