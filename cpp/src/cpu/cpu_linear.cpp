// CpuBackend::linear: splits the outputs of a group of products over the threads.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/check.h"
#include "cpu/act.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "cpu/split.h"
#include "ops/quantize.h"

namespace wkv::cpu {

static_assert(static_cast<int>(MatmulPrecision::automatic) == kPrecisionAuto);
static_assert(static_cast<int>(MatmulPrecision::exact) == kPrecisionExact);
static_assert(static_cast<int>(MatmulPrecision::fast) == kPrecisionFast);
static_assert(static_cast<int>(MatmulPrecision::w8a8) == kPrecisionW8A8);

namespace {

constexpr std::size_t kMaxJobs = 16;
/// Multiply-adds below which a fork-join (0.3 us) costs more than a second thread saves.
constexpr std::int64_t kGrain = 16384;
/// How much cheaper a multiply-add of a narrow product is taken to be. With AVX2 it is 1.4 times:
/// threads that are done early help the others.
constexpr std::int64_t kNarrowSpeed = 4;
/// Blocks that a thread takes at once, at least: 128 outputs, a group of gemm.
constexpr int kLeastBlocks = 4;

WeightType weight_type(const Matrix& w) {
  switch (w.dtype) {
    case DType::f32:
      return kWeightF32;
    case DType::f16:
      return kWeightF16;
    case DType::bf16:
      return kWeightBF16;
    case DType::int8:
      return kWeightI8;
    case DType::mm8:
      return kWeightU8;
    case DType::int4:
      return kWeightI4;
    default:
      fail(ErrorCode::internal, "[linear] weight '", w.name, "' is ", dtype_name(w.dtype),
           ", which this backend did not adopt");
  }
}

/// A product with its place in the group.
struct Job {
  MatmulArgs args{};
  enum class Kernel : std::uint8_t { gemv, sparse, gemm } kernel = Kernel::gemv;
  const GemmKernels* gemm = nullptr;  ///< the table's, or the narrow ones that take it
  std::int64_t cost = 0;              ///< of one block of kOutBlock outputs
  std::int64_t cost_before = 0;       ///< of the jobs before it
  int blocks_before = 0;              ///< likewise
  std::size_t packed = 0;             ///< offset of its packed x in bytes
  int pack_units = 0;                 ///< 0 if it shares the packed x of an earlier job

  int blocks() const { return (args.out + kOutBlock - 1) / kOutBlock; }
};

Job make_job(const LinearJob& from, MatmulPrecision precision) {
  const Matrix& w = *from.w;
  const Epilogue& e = from.epilogue;
  Job job;
  MatmulArgs& a = job.args;
  a.w = w.data;
  a.type = weight_type(w);
  a.input_major = w.layout == Layout::input_major;
  a.row_bytes = static_cast<std::ptrdiff_t>(quantize::row_bytes(w));
  a.scales = {w.in_scale, w.out_scale, w.in_offset, w.out_offset, w.zero, w.group_scale};
  a.out = w.out;
  a.in = w.in;
  a.x = from.x.f32();
  a.x_stride = from.x.stride;
  a.y = static_cast<float*>(from.y.data);
  a.y_stride = from.y.stride;
  a.rows = from.x.rows;
  a.epilogue.act = static_cast<int>(e.act);
  a.epilogue.accumulate = static_cast<bool>(e.into);
  a.precision = static_cast<int>(precision);
  if (e.bias != nullptr) a.epilogue.bias = e.bias->data;
  if (e.gate) a.epilogue.gate = e.gate.f32(), a.epilogue.gate_stride = e.gate.stride;
  if (e.add) a.epilogue.add = e.add.f32(), a.epilogue.add_stride = e.add.stride;
  a.ahead = stream_ahead(a.type);
  a.streams = streams(a.type);
  a.segment = segment_inputs();
  job.cost = std::int64_t{a.in} * a.rows * kOutBlock;
  return job;
}

Job::Kernel kernel_of(const MatmulArgs& a, const MatmulKernels& kernels) {
  if (a.input_major)
    return a.rows <= kernels.sparse_max_rows ? Job::Kernel::sparse : Job::Kernel::gemm;
  return a.rows < kernels.gemm_min_rows[a.type] ? Job::Kernel::gemv : Job::Kernel::gemm;
}

std::size_t scratch_of(const Job& job, const MatmulKernels& kernels) {
  switch (job.kernel) {
    case Job::Kernel::gemv:
      return kernels.gemv_scratch(job.args);
    case Job::Kernel::sparse:
      return kernels.sparse_scratch(job.args);
    default:
      return job.gemm->scratch(job.args);
  }
}

bool same_x(const MatmulArgs& a, const MatmulArgs& b) {
  return a.x == b.x && a.x_stride == b.x_stride && a.rows == b.rows && a.in == b.in &&
         a.scales.in_scale == b.scales.in_scale && a.scales.in_offset == b.scales.in_offset &&
         (a.scales.zero != 0) == (b.scales.zero != 0) &&
         (a.scales.out_offset != nullptr) == (b.scales.out_offset != nullptr);
}

/// Whether two gemms read the same packed x. Narrow ones pack it as the type of W wants.
bool same_packed_x(const Job& a, const Job& b, const MatmulKernels& kernels) {
  return a.kernel == Job::Kernel::gemm && a.gemm == b.gemm && same_x(a.args, b.args) &&
         (a.gemm == &kernels.gemm || a.args.type == b.args.type);
}

/// The first block of the group that thread `index` of `threads` owns: the one whose middle lies in
/// the thread's share of the cost. Fixed for given shapes, so a thread meets the same weights at
/// every token.
int first_block(std::span<const Job> jobs, std::int64_t total, int index, int threads) {
  int first = 0;
  for (const Job& job : jobs) {
    if (job.kernel == Job::Kernel::sparse) continue;
    const std::int64_t share = total * index / threads - job.cost_before;
    const std::int64_t block = (2 * share + job.cost) / (2 * job.cost);
    first += static_cast<int>(std::clamp<std::int64_t>(block, 0, job.blocks()));
  }
  return first;
}

/// The weights of a job that is not sparse from block `block` on.
ReadAhead::Range weights_from(const Job& job, int block) {
  const MatmulArgs& a = job.args;
  const auto first = static_cast<std::size_t>(block) * kOutBlock,
             out = static_cast<std::size_t>(a.out);
  return {static_cast<const std::byte*>(a.w) + first * static_cast<std::size_t>(a.row_bytes),
          (out - std::min(first, out)) * static_cast<std::size_t>(a.row_bytes)};
}

}  // namespace

void CpuBackend::linear(std::span<const LinearJob> group) {
  const MatmulKernels& kernels = kernels_.matmul;
  std::array<Job, kMaxJobs> storage;
  WKV_CHECK(group.size() <= kMaxJobs, internal, "[linear] a group of ", group.size(), " products");
  std::size_t n = 0, scratch_bytes = 0, packed_bytes = 0;
  int parts = 2;
  std::int64_t total = 0;
  int pack_units = 0, blocks = 0;
  for (const LinearJob& from : group) {
    Job& job = storage[n] = make_job(from, precision_);
    if (job.args.rows == 0) continue;
    job.gemm = kernels.narrow(job.args);
    if (job.gemm != nullptr) {
      job.kernel = Job::Kernel::gemm;
      job.cost /= kNarrowSpeed;
    } else {
      job.gemm = &kernels.gemm;
      job.kernel = kernel_of(job.args, kernels);
    }
    job.cost_before = total;
    job.blocks_before = blocks;
    if (job.kernel != Job::Kernel::sparse) {
      total += job.cost * job.blocks();
      blocks += job.blocks();
    }
    scratch_bytes = std::max(scratch_bytes, scratch_of(job, kernels));
    if (job.kernel == Job::Kernel::gemm) {
      parts = std::max(parts, job.gemm->parts);
      const auto shares = [&](const Job& other) { return same_packed_x(other, job, kernels); };
      const auto end = storage.begin() + static_cast<std::ptrdiff_t>(n);
      if (const auto other = std::find_if(storage.begin(), end, shares); other != end) {
        job.packed = other->packed;
      } else {
        job.packed = packed_bytes;
        packed_bytes += (job.gemm->packed_bytes(job.args) + 63) / 64 * 64;
        job.pack_units = job.gemm->pack_units(job.args);
        pack_units += job.pack_units;
      }
    }
    ++n;
  }
  const std::span<Job> jobs(storage.data(), n);
  if (n == 0) return;
  const bool dense = std::any_of(jobs.begin(), jobs.end(),
                                 [](const Job& job) { return job.kernel != Job::Kernel::sparse; });

  if (packed_x_.bytes() < packed_bytes) packed_x_ = allocate_host(packed_bytes);
  matmul_scratch_.resize(static_cast<std::size_t>(pool_.threads()));
  for (Buffer& scratch : matmul_scratch_)
    if (scratch.bytes() < scratch_bytes) scratch = allocate_host(scratch_bytes);
  std::byte* packed = static_cast<std::byte*>(packed_x_.data());

  if (pack_units > 0) {
    auto pack = [&](int index, int threads) noexcept {
      int before = 0;
      for (const Job& job : jobs) {
        const auto bound = [&](int i) {
          const int unit = static_cast<int>(std::int64_t{pack_units} * i / threads) - before;
          return std::clamp(unit, 0, job.pack_units);
        };
        const int begin = bound(index), end = bound(index + 1);
        if (begin < end) job.gemm->pack(job.args, begin, end, packed + job.packed);
        before += job.pack_units;
      }
    };
    pool_.run(pack);
  }

  const int shared_by = total < kGrain ? 1 : pool_.threads();
  for (int i = 0, begin = 0; i < shared_by; ++i) {
    const int end = first_block(jobs, total, i + 1, shared_by);
    shares_.give(i, begin, end);
    begin = end;
  }
  if (pack_units > 0) {
    read_ahead_.forget();
  } else {
    read_ahead_.enter(jobs[0].args.w, [&](int index) {
      const int block = first_block(jobs, total, index, shared_by);
      for (const Job& job : jobs)
        if (job.kernel != Job::Kernel::sparse && block < job.blocks_before + job.blocks())
          return weights_from(job, block - job.blocks_before);
      return ReadAhead::Range{};
    });
  }
  auto multiply = [&](int index, int) noexcept {
    void* scratch = matmul_scratch_[static_cast<std::size_t>(index)].data();
    const Job* prepared = nullptr;
    int first = 0, last = 0;
    while (shares_.take(index, shared_by == 1 ? blocks : kLeastBlocks, first, last, parts)) {
      for (const Job& job : jobs) {
        const int begin = std::max(first - job.blocks_before, 0) * kOutBlock;
        const int end = std::min((last - job.blocks_before) * kOutBlock, job.args.out);
        if (job.kernel == Job::Kernel::sparse || begin >= end) continue;
        if (job.kernel == Job::Kernel::gemm) {
          job.gemm->multiply(job.args, packed + job.packed, begin, end, scratch);
          prepared = nullptr;
          continue;
        }
        if (prepared != &job) kernels.gemv_prepare(job.args, scratch);
        prepared = &job;
        kernels.gemv(job.args, begin, end, scratch);
      }
    }
    read_ahead_.done(index);
  };
  if (dense) {
    if (shared_by == 1)
      multiply(0, 1);
    else
      pool_.run(multiply);
  }
  for (const Job& job : jobs)
    if (job.kernel == Job::Kernel::sparse) sparse(job.args);
}

void CpuBackend::sparse(const MatmulArgs& args) {
  const MatmulKernels& kernels = kernels_.matmul;
  const std::size_t bytes = kernels.sparse_sums(args) * sizeof(float);
  if (sparse_sums_.bytes() < bytes) sparse_sums_ = allocate_host(bytes);
  auto* sums = static_cast<float*>(sparse_sums_.data());
  std::array<int, kInputParts> active{};
  const std::int64_t work = std::int64_t{args.rows} * args.in * args.out;
  const int shared_by = work < kRowGrain ? 1 : pool_.threads();
  for (int i = 0; i < shared_by; ++i)
    shares_.give(i, kInputParts * i / shared_by, kInputParts * (i + 1) / shared_by);
  auto add = [&](int index, int) noexcept {
    void* scratch = matmul_scratch_[static_cast<std::size_t>(index)].data();
    int first = 0, last = 0;
    while (shares_.take(index, 1, first, last))
      for (int part = first; part < last; ++part)
        active[static_cast<std::size_t>(part)] = kernels.sparse_part(args, part, sums, scratch);
  };
  const int blocks = (args.out + kOutBlock - 1) / kOutBlock;
  auto finish = [&](int index, int threads) noexcept {
    const int begin = blocks * index / threads * kOutBlock;
    const int end = std::min(blocks * (index + 1) / threads * kOutBlock, args.out);
    if (begin < end) kernels.sparse_finish(args, sums, begin, end);
    read_ahead_.done(index);
  };
  dispatch(pool_, work, add);
  dispatch(pool_, std::int64_t{args.rows} * kInputParts * args.out, finish);
  hidden_units_.seen += args.in;
  for (const int n : active) hidden_units_.active += n;
}

}  // namespace wkv::cpu
