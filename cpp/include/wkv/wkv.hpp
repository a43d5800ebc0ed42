// wkv: RWKV language models, native. The public C++ interface.
//
//   auto model = wkv::Model::load("RWKV-x070-World-1.5B.pth");
//   auto state = model.new_state();
//   std::vector<float> logits(model.info().n_vocab);
//   model.forward(tokens, state, logits);
//
// Errors are wkv::Error. The library never prints and never ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wkv/export.h"
#include "wkv/types.h"

namespace wkv {

/// Called now and then during long work with the amount done and the total (bytes for loading,
/// tokens for forward). Returning false cancels: the call throws Error(cancelled) and what it was
/// given is as before. Called from the calling thread.
using Progress = std::function<bool(std::int64_t done, std::int64_t total)>;

/// Whether the weights of channel-mix hidden units that are zero are left unread for few rows. The
/// matrices `ffn.value` are then held with one row for each hidden unit, a copy of those of the
/// file.
enum class SkipZeros : std::uint8_t {
  automatic,  ///< quantised matrices, which are made in memory anyway
  on,
  off,
};

/// Since the model was loaded, in steps of few rows: what SkipZeros has to work with.
struct HiddenUnits {
  std::int64_t seen = 0;    ///< 0 where nothing is skipped
  std::int64_t active = 0;  ///< not zero for some row of the step
};

struct Options {
  /// "cpu", "cuda", "cuda:1", or the layers over several: "cuda *20 -> cuda:1 int8 *8 -> cpu". A
  /// stage is DEVICE [DTYPE] [*LAYERS] [stream]; the output layer counts as one; `stream` leaves
  /// matrices in host memory and copies them at every use. "auto": the first usable GPU, and the
  /// CPU where there is none, or the model does not fit or run there; Model::device() tells.
  /// `progress` then begins anew.
  std::string device = "auto";
  DTypePlan dtype{};  ///< weights; automatic keeps the stored types
  int threads = 0;    ///< CPU, caller included; 0: physical cores this process may use
  int max_rows = 0;   ///< rows per step; 0: the device's choice
  SkipZeros skip_zeros = SkipZeros::automatic;                    ///< CPU
  MatmulPrecision matmul_precision = MatmulPrecision::automatic;  ///< CPU
  Progress progress;                                              ///< of load()
};

struct ModelInfo {
  std::string version;  ///< "1" to "4", "4a", "5.0", ... "7.0a": docs/versions.md
  int n_layer = 0;
  int n_embd = 0;
  int n_head = 0;     ///< 0 where the version has no heads (v2 to v4)
  int head_size = 0;  ///< 0 likewise
  int n_vocab = 0;
  int dim_ffn = 0;
  std::int64_t n_params = 0;
  std::optional<std::int64_t> context_limit;  ///< tokens; none for a true RNN
};

/// One part of a state: "blocks.3.att.wkv", [H, N, N], in the orientation of the official code.
struct StatePart {
  std::string name;
  std::vector<std::int64_t> shape;
};

namespace detail {
struct ModelImpl;
struct StateImpl;
}  // namespace detail

/// The memory of one stream: everything the model knows of the tokens it has read. A value: copying
/// is deep (one memcpy). Belongs to the model that made it and may outlive the Model object. May be
/// used by one call at a time; a second gets Error(invalid_argument).
class WKV_API State {
 public:
  State(const State&);
  State& operator=(const State&);
  State(State&&) noexcept;
  State& operator=(State&&) noexcept;
  ~State();

  /// Tokens consumed.
  std::int64_t position() const noexcept;
  const std::vector<StatePart>& parts() const noexcept;
  /// Copies a part out or in, as fp32. Error(invalid_argument) if the name or the size is wrong.
  void get(std::string_view part, std::span<float> out) const;
  void set(std::string_view part, std::span<const float> in);
  /// A self-describing blob: magic, version, fingerprint of the model, position, little-endian
  /// numbers. The same on every device. Model::state_from_bytes() reads it. `storage`: f32 is
  /// exact, f16 and int8 are smaller and rounded (docs/states.md tells how much).
  std::vector<std::byte> to_bytes(DType storage = DType::f32) const;
  /// Bytes of device memory it holds.
  std::size_t size_bytes() const noexcept;

 private:
  friend class Model;
  explicit State(std::unique_ptr<detail::StateImpl>);
  std::unique_ptr<detail::StateImpl> impl_;
};

enum class Logits : std::uint8_t { none, last, all };

/// Tokens for one stream. The state is advanced; its content after a failed call is as before.
struct Request {
  std::span<const Token> tokens;  ///< at least one, or none and `vectors`
  State* state = nullptr;
  Logits want = Logits::last;
  /// [T, n_embd] in place of tokens: rows as an embedding table would give them. All requests of a
  /// call have tokens, or all have vectors.
  std::span<const float> vectors{};
};

struct ForwardOptions {
  Progress progress{};
  /// Vectors enter the first block as they are; otherwise ln0 is applied, as it is to embeddings.
  bool raw_vectors = false;
  /// Hidden states to return for the rows whose logits are wanted: i < n_layer is the residual
  /// stream after block i, n_layer the output of the final norm. Ascending.
  std::vector<int> hidden_layers{};
  std::span<float> hidden{};  ///< receives [hidden_layers][logits_rows][n_embd]
  bool skip_logits = false;   ///< hidden states only; `logits` is empty
};

/// A loaded model. Movable. Every method may be called from any thread; forward calls are run one
/// after another.
class WKV_API Model {
 public:
  /// Opens a .pth or .safetensors file (the suffix may be left out). Throws Error: io, bad_model
  /// (one message that lists everything wrong), unsupported, out_of_memory, cancelled.
  static Model load(const std::filesystem::path& path, const Options& options = {});
  /// The same from any source of tensors.
  static Model load(std::shared_ptr<const TensorSource> source, const Options& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelInfo& info() const noexcept;
  std::string device() const;    ///< "cpu", "cuda:0"
  std::string backend() const;   ///< "cpu avx512, 2 threads"
  DType dtype() const noexcept;  ///< of the block matrices
  /// Every matrix that is multiplied, by its tensor's name, with the type it is held in.
  const std::vector<std::pair<std::string, DType>>& weight_types() const noexcept;
  /// Bytes of weights that a token of batch 1 reads once; the embedding row excluded.
  std::int64_t weight_bytes_per_token() const noexcept;
  /// Not while a forward call is running.
  HiddenUnits hidden_units() const noexcept;

  State new_state() const;
  State state_from_bytes(std::span<const std::byte> bytes) const;

  /// Runs every request and advances its state. `logits` receives, request by request, the wanted
  /// rows of n_vocab floats (row-major); its size must be logits_rows(requests) * n_vocab (0 with
  /// skip_logits).
  void forward(std::span<const Request> requests, std::span<float> logits,
               const ForwardOptions& options = {});
  /// One stream, the last token's logits [n_vocab].
  void forward(std::span<const Token> tokens, State& state, std::span<float> logits);
  std::size_t logits_rows(std::span<const Request> requests) const noexcept;

 private:
  explicit Model(std::shared_ptr<detail::ModelImpl>);
  std::shared_ptr<detail::ModelImpl> impl_;
};

struct DeviceInfo {
  std::string name;         ///< "cpu", "cuda:0"
  std::string description;  ///< "NVIDIA H200, 139 GiB"
  bool usable = false;
  std::string reason;  ///< why it is not usable
};
WKV_API std::vector<DeviceInfo> devices();

struct IsaInfo {
  std::string name;       ///< "generic", "avx2", "avx512", ...
  bool runnable = false;  ///< the processor and the system can run it
  bool active = false;    ///< what a model loaded now would use (WKV_ISA forces one)
};
WKV_API std::vector<IsaInfo> isas();

/// Opens a checkpoint without loading a model: names, shapes, memory-mapped data.
WKV_API std::shared_ptr<const TensorSource> open_checkpoint(const std::filesystem::path& path);

/// `base` with a LoRA adapter merged into it: W + alpha / rank * lora_B lora_A, in fp32 and rounded
/// once to the type of W, whenever such a matrix is asked for. Tensors that the adapter holds whole
/// take the place of the base's. Throws Error(bad_model) listing what does not fit the base.
WKV_API std::shared_ptr<const TensorSource> merge_lora(std::shared_ptr<const TensorSource> base,
                                                       std::shared_ptr<const TensorSource> adapter,
                                                       double alpha);

/// The same tensors under another version, where names and shapes leave a choice: "6.0c" for what
/// is taken for 6.0b. Throws Error(invalid_argument) if the tensors are not those of `version`.
WKV_API std::shared_ptr<const TensorSource> as_version(std::shared_ptr<const TensorSource> source,
                                                       std::string_view version);

/// Writes a checkpoint as .safetensors, whole or not at all. `dtype`: automatic keeps the stored
/// types; f32, f16 or bf16 is for the matrices, while vectors are never narrowed; int8, int4 and
/// mm8 are for the matrices that loading with that type would quantise, with the same codes.
/// `progress` counts bytes. Throws Error: io, bad_model, unsupported (a value beyond fp16),
/// invalid_argument (a pattern that matches no matrix), out_of_memory, cancelled.
WKV_API void convert_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out,
                                const DTypePlan& dtype = {}, const Progress& progress = {});

/// A tensor of a quantised type as fp32, in new memory; any other as it is.
WKV_API HostTensor dequantize(const HostTensor& tensor);

/// A model with random weights, for benchmarks and tests: "v7:24x2048" or "v7:24x2048:65536"
/// (version:layers x channels:vocabulary), stored as `dtype`. "@0.2" behind it makes that share of
/// the channel mixes' hidden units differ from zero, in place of about a half. Deterministic in
/// `seed`.
WKV_API std::shared_ptr<const TensorSource> synthetic_checkpoint(std::string_view spec,
                                                                 DType dtype = DType::bf16,
                                                                 std::uint64_t seed = 1);

/// The version and sizes of a checkpoint, from names and shapes. Error(bad_model) if it is no RWKV
/// file, Error(unsupported) for a variant that is known but not run.
WKV_API ModelInfo inspect(const TensorSource& source);

WKV_API std::string_view version() noexcept;

}  // namespace wkv
