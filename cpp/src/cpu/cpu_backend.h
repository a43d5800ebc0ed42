// The CPU backend: splits ops over threads and calls the kernels of one ISA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "cpu/read_ahead.h"
#include "cpu/shares.h"
#include "ops/backend.h"
#include "wkv/wkv.hpp"

namespace wkv::cpu {

class CpuBackend final : public Backend {
 public:
  /// threads 0: usable_cores(). The table comes from isa.h.
  CpuBackend(int threads, const KernelTable& kernels, SkipZeros skip_zeros = SkipZeros::automatic,
             MatmulPrecision precision = MatmulPrecision::automatic);

  std::string name() const override;
  std::string device() const override { return "cpu"; }
  bool host_memory() const noexcept override { return true; }
  int preferred_rows() const noexcept override { return 256; }

  Buffer allocate(std::size_t bytes) override;
  void write(void* device, const void* host, std::size_t bytes) override;
  void read(void* host, const void* device, std::size_t bytes) override;
  void copy(void* to_device, const void* from_device, std::size_t bytes) override;
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

  bool looks_back() const noexcept override { return true; }
  void wkv1(Tensor y, const Wkv1& in, int heads, Slot sum_k, Slot history) override;
  void wkv2(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay, const Vector& bonus,
            float eps, Slot aa_bb) override;
  void by_position(Tensor y, const Vector& values) override;
  void remember(Tensor x, Slot history) override;
  void remember_tokens(Slot history) override;
  void copy_logits(Tensor logits, Tensor q, Slot keys, Slot tokens, float scale) override;
  void attention(Tensor y, Tensor q, Slot keys, Slot values) override;
  void linear_attention(Tensor y, Tensor q, Tensor k, Tensor v, float scale, Slot state) override;
  void row_matvec(Tensor y, Tensor x, Tensor m) override;

  HiddenUnits hidden_units() const noexcept override { return hidden_units_; }

 private:
  struct Place {
    float* state;
    int position;
  };
  /// Of row i of a tensor that holds all rows or the wanted ones.
  Place place(int rows, int i) const;
  /// `n` floats for every thread.
  float* scratch(std::size_t n);

  /// An int4 matrix in the order of its kernels, whose buffer is appended to `keep`.
  Matrix strips(const Matrix& from, std::vector<std::shared_ptr<const void>>& keep);
  /// A copy with one row for each input, whose buffer is appended to `keep`.
  Matrix input_major(const Matrix& from, std::vector<std::shared_ptr<const void>>& keep);
  /// A product with W input-major of few rows, after linear() has provided scratch.
  void sparse(const MatmulArgs& args);

  template <class F>
  void for_shifted(Tensor x, Slot prev, std::int64_t work, F f);

  const KernelTable& kernels_;
  const SkipZeros skip_zeros_;
  const MatmulPrecision precision_;
  HugePages weight_memory_;
  ReadAhead read_ahead_;  // linear(): weights of the next group
  ThreadPool pool_;
  const Batch* batch_ = nullptr;
  std::vector<const Sequence*> sequence_of_row_;  // of the batch
  std::vector<float> scratch_;                    // a part per thread
  Buffer packed_x_;                               // linear(): x of many rows as gemm reads it
  std::vector<Buffer> matmul_scratch_;            // linear(): a part per thread
  Shares shares_;                                 // linear(): blocks of outputs, parts of inputs
  Buffer sparse_sums_;                            // of sparse(): [parts][rows][out]
  HiddenUnits hidden_units_;
};

}  // namespace wkv::cpu
