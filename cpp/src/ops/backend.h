// The interface between the op vocabulary and a device.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "core/tensor.h"
#include "ops/step.h"
#include "ops/weights.h"
#include "wkv/wkv.hpp"

namespace wkv {

enum class Act : std::uint8_t {
  none,
  tanh,
  sigmoid,
  silu,
  relu_squared,
  exp_neg_exp,  ///< exp(-exp(x)): the decay of v5 and v6
  decay7,       ///< exp(-e^{-1/2} sigmoid(x)): the decay of v7
  mish,         ///< x tanh(ln(1 + e^x))
};

/// What happens to a product before it is stored: act(x W^T + bias) * gate + add.
struct Epilogue {
  Act act = Act::none;
  const Vector* bias = nullptr;  ///< [out]
  Tensor gate{};                 ///< [T, out]
  Tensor add{};                  ///< [T, out]; added, stays as it is
  Tensor into{};  ///< [T, out]; the result is added to it in place and it is returned
  Tensor out{};   ///< [T, out]; written instead of fresh memory
};

/// One product of a group that runs in one dispatch. Every y of a group is distinct memory.
struct LinearJob {
  Tensor y;
  Tensor x;
  const Matrix* w = nullptr;
  Epilogue epilogue;
};

/// What happens to the rows of a WKV op: GroupNorm per head (if `norm`), then times `gate` (if
/// any).
struct HeadEpilogue {
  const Norm* norm = nullptr;
  Tensor gate{};
};

/// Inputs of wkv7, named as in the paper (arXiv:2503.14456) and spec section 8.
struct Wkv7 {
  Tensor r, w, k, v, a;         ///< [T, C]; w in (0.545, 1) and a in (0, 1) are already activated
  Tensor v_first{}, v_mix{};    ///< v <- v + (v_first - v) v_mix where given (layers > 0)
  const Vector* k_k = nullptr;  ///< removal key: kk = normalise(k * k_k)
  const Vector* k_a = nullptr;  ///< replacement key: k <- k (1 + (a - 1) k_a)
  const Vector* r_k = nullptr;  ///< bonus: y += (sum_j r_j k_j r_k,j) v after the norm
  const Norm* norm = nullptr;   ///< GroupNorm, one group per head
  Tensor gate{};                ///< y <- y * gate at last
};

/// Inputs of wkv1, named as in the checkpoint. The curves are per head, [H, context].
struct Wkv1 {
  Tensor r, k, v;                      ///< [T, C]; r in (0, 1) is activated, k is not
  const Vector* time_w = nullptr;      ///< by distance; the last element is the present
  const Vector* time_alpha = nullptr;  ///< by the position of the past token
  const Vector* time_beta = nullptr;   ///< by the position of the present token
};

/// A device's kernels. One per Model, which serialises adopt() and everything from begin() to
/// end(); allocate, write, read and copy may be called from any thread at any time. Ops get outputs
/// allocated and shapes checked by ops.cpp; they may run asynchronously until end(). All
/// activations are fp32.
class Backend {
 public:
  virtual ~Backend() = default;

  /// For people: "cpu avx512, 2 threads", "cuda:0 NVIDIA H200".
  virtual std::string name() const = 0;
  /// "cpu", "cuda:0".
  virtual std::string device() const = 0;
  /// True if pointers of this backend may be read and written by the host.
  virtual bool host_memory() const noexcept = 0;
  /// Rows per step that make prefill efficient; longer input is cut into steps of this size.
  virtual int preferred_rows() const noexcept = 0;
  /// A step of `rows` sequences of one row each may be filled up to this many with idle ones, so
  /// that a device that records steps meets few different numbers.
  virtual int decode_rows(int rows) const noexcept { return rows; }

  /// Throws Error(out_of_memory) with figures.
  virtual Buffer allocate(std::size_t bytes) = 0;
  /// write, read and copy return when the data is there, after all earlier work of this backend.
  virtual void write(void* device, const void* host, std::size_t bytes) = 0;
  virtual void read(void* host, const void* device, std::size_t bytes) = 0;
  virtual void copy(void* to_device, const void* from_device, std::size_t bytes) = 0;

  // A backend made of several says where a tensor of the checkpoint goes, and what lies there.
  virtual int place(std::string_view /*tensor*/) const { return 0; }
  virtual Backend& at(int /*place*/) { return *this; }
  /// Matrices adopted from here on stay in host memory and are copied to the device at every use.
  virtual void stream_matrices(bool /*on*/) {}

  /// Makes a host matrix [out, in] usable in linear() (or embed()), as `want` (`automatic`: as
  /// stored). Uses the memory in place if it can, else converts, packs or quantises into new
  /// memory. What must stay alive is appended to `keep`. `poll` (if any) is called now and then by
  /// what takes long and may throw to cancel.
  virtual Matrix adopt(const HostTensor& tensor, DType want, MatrixUse use, const char* name,
                       std::vector<std::shared_ptr<const void>>& keep,
                       const std::function<void()>& poll) = 0;

  /// Hidden units of channel mixes that were looked at one by one, and those that were not zero.
  virtual HiddenUnits hidden_units() const noexcept { return {}; }

  virtual void begin(const Batch& batch) = 0;
  virtual void end() = 0;

  // The vocabulary; formulas in ops.h.
  virtual void embed(Tensor y, const Matrix& table) = 0;
  virtual void layer_norm(Tensor y, Tensor x, const Norm& norm) = 0;
  virtual void shift_delta(Tensor dx, Tensor x, Slot prev) = 0;
  virtual void lerp(std::span<const Tensor> y, Tensor x, Tensor dx, std::span<const Vector> mu) = 0;
  virtual void shift_mix(std::span<const Tensor> y, Tensor x, Slot prev,
                         std::span<const Vector> mu) = 0;
  virtual void linear(std::span<const LinearJob> jobs) = 0;
  virtual void add(Tensor y, Tensor a, Tensor b) = 0;  ///< y may be a
  virtual void multiply(Tensor y, Tensor a, Tensor b) = 0;
  virtual void select_rows(Tensor y, Tensor x) = 0;
  virtual void wkv4(Tensor y, Tensor r, Tensor k, Tensor v, const Vector& decay,
                    const Vector& bonus, Slot aa_bb_pp) = 0;
  virtual void wkv6(Tensor y, Tensor r, Tensor k, Tensor v, Tensor decay, const Vector* decay_const,
                    const Vector& bonus, int heads, const HeadEpilogue& epilogue, Slot state) = 0;
  virtual void wkv7(Tensor y, const Wkv7& in, int heads, Slot state) = 0;

  // v1 to v3 and the variants of the research code. A device may leave these out; such models are
  // then refused when they are loaded.
  virtual bool looks_back() const noexcept { return false; }
  virtual void wkv1(Tensor, const Wkv1&, int, Slot, Slot) { missing("wkv1"); }
  virtual void wkv2(Tensor, Tensor, Tensor, Tensor, const Vector&, const Vector&, float, Slot) {
    missing("wkv2");
  }
  virtual void by_position(Tensor, const Vector&) { missing("by_position"); }
  virtual void remember(Tensor, Slot) { missing("remember"); }
  virtual void remember_tokens(Slot) { missing("remember_tokens"); }
  virtual void copy_logits(Tensor, Tensor, Slot, Slot, float) { missing("copy_logits"); }
  virtual void attention(Tensor, Tensor, Slot, Slot) { missing("attention"); }
  virtual void linear_attention(Tensor, Tensor, Tensor, Tensor, float, Slot) {
    missing("linear_attention");
  }
  virtual void row_matvec(Tensor, Tensor, Tensor) { missing("row_matvec"); }

 private:
  [[noreturn]] void missing(const char* op) const {
    throw Error(ErrorCode::unsupported, "[" + std::string(op) + "] this model needs an op that " +
                                            name() + " does not have; load it with device=\"cpu\"");
  }
};

}  // namespace wkv
