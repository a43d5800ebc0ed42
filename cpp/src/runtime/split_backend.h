// A backend made of several: the layers of a model lie on different devices. Weights belong to one
// of them and say which (Matrix::place, Vector::place); an op runs where its weights are, or where
// the last one ran. Activations and states are MirroredMemory, so that a tensor moves when it is
// needed elsewhere, and only then: the residual stream at the border of two stages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/backend.h"
#include "runtime/mirrored.h"
#include "runtime/placement.h"

namespace wkv {

class SplitBackend final : public Backend {
 public:
  /// `devices[i]` is where `stages[i]` lies; stages of one device share a backend.
  SplitBackend(std::vector<Stage> stages, std::vector<std::shared_ptr<Backend>> devices);

  std::string name() const override;
  std::string device() const override { return placement_text(stages_); }
  bool host_memory() const noexcept override { return false; }
  int preferred_rows() const noexcept override;
  bool looks_back() const noexcept override;
  HiddenUnits hidden_units() const noexcept override;

  Buffer allocate(std::size_t bytes) override { return MirroredMemory::allocate(bytes); }
  void write(void* device, const void* host, std::size_t bytes) override;
  void read(void* host, const void* device, std::size_t bytes) override;
  void copy(void* to_device, const void* from_device, std::size_t bytes) override;
  int place(std::string_view tensor) const override;
  Backend& at(int place) override { return *devices_[static_cast<std::size_t>(place)]; }
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

 private:
  /// A device in the step under way.
  struct Running {
    std::shared_ptr<Backend> backend;
    Batch batch;  // with the addresses of its own memory
    bool begun = false;
  };

  void go(int place);
  Backend& current() { return *running_[current_].backend; }
  void* acquire(const void* address, std::size_t bytes, Access access);
  Tensor moved(Tensor x, Access access);
  Tensor in(Tensor x) { return moved(x, Access::read); }
  Tensor out(Tensor y) { return moved(y, Access::write); }
  Tensor update(Tensor y) { return moved(y, Access::update); }
  std::vector<Tensor> out(std::span<const Tensor> y);
  void hold(Slot slot);

  std::vector<Stage> stages_;
  std::vector<std::shared_ptr<Backend>> devices_;  // of each stage
  std::vector<Running> running_;                   // each device once
  std::vector<std::size_t> running_of_;            // stage -> running_
  MirroredMemory::Devices find_device_;

  Batch batch_;
  std::vector<std::shared_ptr<MirroredMemory>> states_;  // of each sequence
  std::shared_ptr<MirroredMemory> recent_;               // the block that was looked up last
  std::size_t current_ = 0;
};

}  // namespace wkv
