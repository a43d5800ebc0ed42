// Types that every layer shares: element types, errors, tensors as they lie in a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "wkv/export.h"

namespace wkv {

/// A token id, in [0, n_vocab).
using Token = std::int32_t;

/// Element types. `automatic` means "as stored" where a choice is asked for. `int8`, `int4` and
/// `mm8` are the quantised weight formats of docs/weights.md; the last group occurs in files only.
enum class DType : std::uint8_t {
  automatic,
  f32,
  f16,
  bf16,
  int8,
  int4,
  mm8,
  f64,
  i64,
  i32,
  i16,
  i8,
  u8,
  boolean,
};

/// "fp32", "fp16", "bf16", "int8", ...; "auto" for `automatic`.
WKV_API std::string_view dtype_name(DType dtype) noexcept;
/// The inverse of dtype_name. Throws Error(invalid_argument) that lists the names.
WKV_API DType parse_dtype(std::string_view name);

/// How far the arithmetic of matrix products of many rows (prefill, large batches) may fall below
/// fp32 where the processor has faster units for it; docs/weights.md has the errors. It is a
/// permission: where there are no such units the products are in fp32, whatever is asked for.
/// `automatic`: fp32 for fp32 weights, `exact` for mm8 and small matrices, `fast` for fp16, bf16,
/// int8 and int4.
enum class MatmulPrecision : std::uint8_t {
  automatic,
  exact,  ///< AMX: x and W in two bf16 parts each; AMX, AVX-512: 24 bits of x with 8-bit codes
  /// AMX, AVX512-BF16: x and W rounded to bf16; AMX, AVX-512: 16 bits of x with 8-bit codes; AVX2:
  /// 16 bits of x with codes of 8 and 4 bits.
  fast,
  w8a8,  ///< AMX, AVX-512: 8 bits of x with 8-bit codes, AVX2: 16; otherwise as `automatic`
};

/// "auto", "exact", "fast", "w8a8".
WKV_API std::string_view matmul_precision_name(MatmulPrecision precision) noexcept;
/// The inverse. Throws Error(invalid_argument) that lists the names.
WKV_API MatmulPrecision parse_matmul_precision(std::string_view name);

enum class ErrorCode : std::uint8_t {
  invalid_argument = 1,  ///< token outside the vocabulary, empty request, wrong state
  io,                    ///< open, read, write or map failed
  bad_model,             ///< malformed file; missing, unknown or mis-shaped tensors
  unsupported,           ///< dtype, ISA, device or model variant not available here
  context_full,          ///< v1-v3 beyond ctx_len
  out_of_memory,         ///< host or device
  device,                ///< a device fault; the model is dead afterwards
  internal,              ///< a bug of ours
  cancelled,             ///< a callback asked to stop
};

/// The one exception type of the library. what() begins with the place, then the numbers:
/// "[linear] x has 2048 columns, weight 'blocks.0.att.key.weight' wants 2560".
class WKV_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Which type the weights of a model get: `otherwise`, unless a rule's pattern matches the tensor's
/// name; of several that match the last one counts. In a pattern `*` stands for any characters.
struct WKV_API DTypePlan {
  struct WKV_API Rule {
    std::string pattern;
    DType dtype = DType::automatic;
    bool matches(std::string_view name) const noexcept;
  };
  DType otherwise = DType::automatic;
  std::vector<Rule> rules{};

  DTypePlan() = default;
  DTypePlan(DType all) : otherwise(all) {}  // NOLINT(google-explicit-constructor): a type is a plan

  DType type_for(std::string_view name) const noexcept;
  /// "int4,blocks.0.*=int8,head.weight=bf16": what parse_dtype_plan() reads.
  std::string str() const;
};

/// A plan from its text: the type of all, then the exceptions; without a first type "auto". Throws
/// Error(invalid_argument) that says what is wrong.
WKV_API DTypePlan parse_dtype_plan(std::string_view text);

/// A tensor in host memory. Row-major and contiguous, native little-endian elements.
/// `owner` keeps the memory alive (a file mapping, a Python object); `data` may be unaligned.
/// A matrix of a quantised type is `[out, in]` though its codes are not; `data` are the codes and
/// `parts` what belongs to them, in the order of docs/weights.md.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::shared_ptr<const void> owner;
  bool mapped = false;  ///< pages of a file, which may be dropped and read again
  std::vector<HostTensor> parts{};

  std::int64_t numel() const noexcept {
    std::int64_t n = 1;
    for (std::int64_t d : shape) n *= d;
    return n;
  }
};

/// Named tensors, wherever they come from. Implementations are immutable after construction, so
/// every method may be called from several threads.
class WKV_API TensorSource {
 public:
  virtual ~TensorSource() = default;
  /// Names in the order of the file.
  virtual const std::vector<std::string>& names() const noexcept = 0;
  virtual bool contains(std::string_view name) const noexcept = 0;
  /// Throws Error(bad_model) if there is no such tensor.
  virtual HostTensor get(std::string_view name) const = 0;
  /// Shape and dtype without touching the data.
  virtual std::vector<std::int64_t> shape(std::string_view name) const = 0;
  virtual DType dtype(std::string_view name) const = 0;
  /// String metadata of the container ("" if absent), e.g. safetensors' __metadata__.
  virtual std::string metadata(std::string_view key) const = 0;
  /// Where the tensors come from, for messages: a path, "synthetic v7:24x2048".
  virtual std::string description() const = 0;
};

}  // namespace wkv
