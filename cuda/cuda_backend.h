// The CUDA backend: turns ops into launches.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/thread_pool.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/launch_queue.h"
#include "ops/backend.h"
#include "ops/quantize.h"

namespace wkv::cuda {

/// Hidden units of a channel mix are squares: fp16 would overflow from a key of 256 on. Scaled by
/// 2^-6 they hold keys up to 2047; what is lost is below 4e-6.
constexpr float kSquareScale = 1.0f / 64.0f;

/// Rows that a decoding step is filled up to: 23 sizes up to 512, each with its graph; larger steps
/// stay as they are. Up to 64 rows a step waits for the weights and idle rows are free; beyond,
/// steps of 32 keep them below a third.
constexpr int filled_up(int rows) {
  constexpr int kSmall[] = {1, 2, 4, 8, 16, 24, 32, 48, 64}, kStep = 32, kMost = 512;
  for (const int size : kSmall)
    if (rows <= size) return size;
  return rows > kMost ? rows : (rows + kStep - 1) / kStep * kStep;
}

/// How a matrix is stored.
Codec codec_of(const Matrix& w);

/// Steps in which every sequence has one row are gathered and replayed as CUDA graphs; others are
/// launched op by op.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::unique_ptr<Device> device);
  ~CudaBackend() override;

  std::string name() const override;
  std::string device() const override { return device_->name(); }
  bool host_memory() const noexcept override { return false; }
  int preferred_rows() const noexcept override { return 2048; }
  int decode_rows(int rows) const noexcept override { return filled_up(rows); }
  bool looks_back() const noexcept override { return true; }

  Buffer allocate(std::size_t bytes) override;
  void write(void* device, const void* host, std::size_t bytes) override;
  void read(void* host, const void* device, std::size_t bytes) override;
  void copy(void* to_device, const void* from_device, std::size_t bytes) override;
  void stream_matrices(bool on) override { stream_ = on; }
  Matrix adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
               std::vector<std::shared_ptr<const void>>& keep,
               const std::function<void()>& poll) override;

  void begin(const Batch& batch) override;
  void end() override;

  void embed(Tensor y, const Matrix& table) override;
  void layer_norm(Tensor y, Tensor x, const Norm& norm) override;
  void shift_delta(Tensor dx, Tensor x, Slot prev) override;
  void lerp(std::span<const Tensor> y, Tensor x, Tensor dx, std::span<const Vector> mu) override;
  void shift_mix(std::span<const Tensor> y, Tensor x, Slot prev,
                 std::span<const Vector> mu) override;
  void linear(std::span<const LinearJob> jobs) override;
  void add(Tensor y, Tensor a, Tensor b) override;
  void multiply(Tensor y, Tensor a, Tensor b) override;
  void select_rows(Tensor y, Tensor x) override;
  void wkv4(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus,
            Slot aa_bb_pp) override;
  void wkv6(Tensor y, Tensor r, Tensor k, Tensor v, Tensor decay, const Vector* decay_const,
            const Vector& bonus, int heads, const HeadEpilogue& epilogue, Slot state) override;
  void wkv7(Tensor y, const Wkv7& in, int heads, Slot state) override;
  void wkv1(Tensor y, const Wkv1& in, int heads, Slot sum_k, Slot past) override;
  void wkv2(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus,
            float eps, Slot aa_bb) override;
  void by_position(Tensor y, const Vector& values) override;
  void remember(Tensor x, Slot past) override;
  void remember_tokens(Slot past) override;
  void copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) override;
  void attention(Tensor y, Tensor q, Slot keys, Slot values) override;
  void linear_attention(Tensor y, Tensor q, Tensor k, Tensor v, float scale, Slot state) override;
  void row_matvec(Tensor y, Tensor x, Tensor m) override;

  /// Bytes of quantised weights that are expanded for the library at a time: 128 MB, a matrix of
  /// 16384 x 4096. Pieces of 16 to 64 MB, which L2 holds, are no faster (docs/gpu.md).
  void expand_at_most(std::size_t bytes) { most_expanded_ = bytes; }

  /// For DeviceSampler: part of the step, like an op.
  void sample(const SampleParams& p);

  const LaunchQueue& queue() const noexcept { return queue_; }

 private:
  /// Memory that only grows. What it held is gone after growth; the old block lives until end(),
  /// for launches that are still to run.
  struct Scratch {
    Buffer buffer;
  };
  void* grow(Scratch& scratch, std::size_t bytes);
  void push();
  /// Launches a norm that waited for the token shift of its result, and did not get it.
  void settle();
  void flush();
  void mix(std::span<const Tensor> y, Tensor x, Tensor dx, Slot prev, std::span<const Vector> mu,
           bool shift, bool delta);
  void binary(Tensor y, Tensor a, Tensor b, bool product);

  HistoryParams history_params(Tensor y, Slot slot) const;
  void push_history(HistoryOp op, const HistoryParams& p);

  // cuda_linear.cpp
  /// Rows that the kernel which made them also rounded for the tensor cores, which saves a kernel
  /// that only rounds. Good for the next op alone: after that their memory may hold something else.
  struct Rounded {
    const float* x;
    std::int64_t ldx;
    std::int32_t cols;
    float scale;
    bool bf16;
    void* x16;
  };
  /// Places for the rounded forms of `n` tensors like `y`, each `cols` wide; nothing if products
  /// of so many rows, or of fp32 weights, would not read them.
  std::vector<void*> round_beside(std::size_t n, int rows, int cols);
  /// Memory for them until the next call but one.
  unsigned char* turn_over(std::size_t bytes);
  /// Whether the output of a product is probably what the next one reads.
  static bool goes_on(const LinearJob& job, int rows);
  Rounded rounded(const float* y, std::int64_t ldy, int cols, float scale, void* y16) const {
    return {y, ldy, cols, scale, half_ == Half::bf16, y16};
  }
  /// What round_rows would make of these inputs, if it is there already.
  void* find_rounded(const LinearJobParams& q, Codec codec) const;
  struct Group {
    LinearParams params;
    std::int32_t blocks = 0;
    std::int32_t tickets = 0;
    std::int64_t partials = 0;  // floats of workspace
  };
  void linear_group(std::span<const LinearJob* const> jobs, Codec codec);
  void stage(LinearParams& p);
  void run_wkv(WkvParams& p);
  void plan_f32(Group& group);
  SkinnyShape plan_skinny(Group& group, Codec codec);
  void plan_gemm(Group& group, Codec codec);
  void round_inputs(std::span<const LinearJob* const> jobs, Codec codec, LinearParams& params);

  // cuda_library.cpp
  /// The form in which a job's weights are multiplied: as stored, or f16 if the library is to
  /// multiply quantised ones.
  Codec form_of(const LinearJob& job);
  /// Of a quantised matrix; the last ones may be fewer.
  int outputs_at_once(const Matrix& w) const;
  /// A product for the library, without its operands; nothing if it does not do it.
  std::optional<LibraryProduct> library_product(const LinearJob& job, Codec form);
  /// Whether an epilogue leaves something to do after the library's product.
  static bool finishes(const LinearJob& job);
  void push_product(const LibraryProduct& product, bool beside);
  void multiply_expanded(const LinearJob& job, const LinearJobParams& q, LibraryProduct product);
  /// False if the library does not do it. `beside`: it needs nothing of the launch before; becomes
  /// whether that is so of the next one.
  bool multiply_by_library(const LinearJob& job, const LinearJobParams& q, Codec form,
                           bool& beside);

  // cuda_weights.cpp
  /// Device memory, or pinned host memory if matrices are streamed.
  Buffer allocate_weight(std::size_t bytes, MatrixUse use);
  /// `mapped`: `host` lies in a mapped file, whose pages are dropped once they have been copied.
  void upload(void* to, const void* host, std::size_t bytes, bool mapped = false);
  /// Rows of `row_bytes` to rows of `pitch` bytes, the rest zeros.
  void upload_rows(void* to, const void* host, std::size_t rows, std::size_t row_bytes,
                   std::size_t pitch, bool mapped = false);
  void upload_converted(void* to, const HostTensor& tensor, std::size_t rows, std::size_t cols,
                        std::size_t pitch_elements, DType dtype);
  unsigned char* ring_slot(int number);
  /// `rows` rows of `pitch` bytes, each written by make(row, slot), several at once.
  void upload_made(void* to, std::size_t rows, std::size_t pitch,
                   const std::function<void(std::size_t, unsigned char*)>& make);
  Matrix adopt_quantised(const HostTensor& tensor, DType want, const char* name,
                         std::vector<std::shared_ptr<const void>>& keep,
                         const std::function<void()>& poll);
  ThreadPool& workers();
  /// Them, for a matrix of `in` inputs.
  quantize::Parallel parallel(std::int64_t in, const std::function<void()>& poll);
  void copy_out(unsigned char* to, const unsigned char* from, std::size_t bytes);

  std::unique_ptr<Device> device_;
  LaunchQueue queue_;
  mutable std::mutex mutex_;  // the stream, the queue and the pinned ring
  Launch launch_;             // the one being made: 3.6 kB are too much to clear each time

  LayerNormParams norm_{};  // of layer_norm(), while norm_waits_
  bool norm_waits_ = false;
  bool one_row_each_ = false;            // every sequence of the batch has one row
  std::unique_ptr<ThreadPool> copiers_;  // made by the first large read
  std::unique_ptr<ThreadPool> workers_;  // made by the first quantised matrix

  Batch batch_;
  BatchView view_{};
  Buffer batch_host_, batch_device_;
  Scratch rounded_, workspace_, staged_, expanded_;
  std::vector<Rounded> made_, ready_;  // by the op before; of those, what the present one may read
  std::vector<Rounded> rounding_;      // by the present op
  std::vector<Codec> forms_;           // of the present op's weights
  unsigned char* rounding_at_ = nullptr;
  Scratch beside_[2];  // by turns: an op reads one and fills the other
  int turn_ = 0;
  enum class Half { none, f16, bf16 } half_ = Half::none;  // what the last product multiplied
  std::vector<Buffer> retired_;
  Buffer tickets_;
  Buffer ring_[2], staging_[2];
  /// How products of equal sizes were cut up: planning takes longer than a launch.
  struct Way {
    std::int32_t warps = 0, tile_bits = 0, splits = 0;
    bool clusters = false;
  };
  std::map<std::vector<std::int32_t>, Way> ways_;
  Way find_way(const LinearParams& p, Codec codec) const;
  std::unordered_map<const void*, float> x_scale_;  // by matrix data, where it is not 1
  std::size_t most_expanded_ = std::size_t{128} << 20;
  bool stream_ = false;
  std::unordered_map<const void*, std::size_t> streamed_;  // bytes, by matrix data
};

}  // namespace wkv::cuda
