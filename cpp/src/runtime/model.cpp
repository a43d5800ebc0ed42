#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "models/checkpoint.h"
#include "models/detect.h"
#include "runtime/devices.h"
#include "runtime/fingerprint.h"
#include "runtime/model_impl.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace detail {

namespace {

ModelInfo to_info(const Detected& d) {
  ModelInfo info;
  info.version = d.version;
  info.n_layer = d.n_layer;
  info.n_embd = d.n_embd;
  info.n_head = d.n_head;
  info.head_size = d.head_size;
  info.n_vocab = d.n_vocab;
  info.dim_ffn = d.dim_ffn;
  info.n_params = d.n_params;
  if (d.ctx_len > 0) info.context_limit = d.ctx_len;
  return info;
}

std::shared_ptr<const StateSchema> make_schema(const Arch& arch, const std::string& version,
                                               const TensorSource& source) {
  auto schema = std::make_shared<StateSchema>();
  schema->layout = arch.layout;
  schema->version = version;
  schema->fingerprint = weight_fingerprint(source, arch.layout.fingerprint());
  schema->initial.resize(static_cast<std::size_t>(arch.layout.size()));
  const auto begin = [&](const SlotInfo& s) { return schema->initial.begin() + s.slot.offset; };
  for (const SlotInfo& slot : arch.layout.slots()) {
    std::fill_n(begin(slot), slot.slot.size, slot.initial);
    schema->parts.push_back({slot.name, slot.shape});
  }
  for (const auto& [index, values] : arch.initial_parts)
    std::copy(values.begin(), values.end(), begin(arch.layout.slots()[index]));
  return schema;
}

}  // namespace
}  // namespace detail

Model::Model(std::shared_ptr<detail::ModelImpl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

ModelInfo inspect(const TensorSource& source) { return detail::to_info(detect(source)); }

Model Model::load(const std::filesystem::path& path, const Options& options) {
  return load(open_checkpoint(path), options);
}

namespace detail {
namespace {

std::shared_ptr<ModelImpl> load_on(const std::string& device,
                                   const std::shared_ptr<const TensorSource>& source,
                                   const Detected& sizes, Options options) {
  options.device = device;
  auto impl = std::make_shared<ModelImpl>();
  impl->info = to_info(sizes);
  impl->backend = make_backend(options, sizes.n_layer);
  WKV_CHECK(!sizes.looks_back || impl->backend->looks_back(), unsupported, "[load] RWKV-",
            sizes.version, sizes.head_qk > 0 ? " with a copy head" : "", " does not run on ",
            impl->backend->device(), "; use device=\"cpu\"");

  Poll poll(options.progress, "[load]");
  std::int64_t total_bytes = 0;
  Checkpoint in(source, *impl->backend, options.dtype, [&](std::int64_t done, std::int64_t total) {
    total_bytes = total;
    poll.report(done, total);
  });
  impl->arch = make_arch(in, sizes);
  in.finish();
  impl->dtype = in.block_dtype();
  impl->weight_types = in.take_types();
  impl->weight_bytes = in.matrix_bytes();
  impl->keep = in.take_keep();
  impl->schema = make_schema(*impl->arch, sizes.version, *source);
  impl->max_rows = options.max_rows > 0 ? options.max_rows : impl->backend->preferred_rows();
  impl->arena = std::make_unique<Arena>(
      [backend = impl->backend.get()](std::size_t bytes) { return backend->allocate(bytes); },
      impl->backend->host_memory());
  poll.report(total_bytes, total_bytes, true);
  return impl;
}

/// Whether another device may do what one could not.
bool is_about_device(const Error& e) {
  return e.code() == ErrorCode::out_of_memory || e.code() == ErrorCode::unsupported ||
         e.code() == ErrorCode::device;
}

}  // namespace
}  // namespace detail

Model Model::load(std::shared_ptr<const TensorSource> source, const Options& options) {
  WKV_CHECK(source != nullptr, invalid_argument, "[load] no source");
  WKV_CHECK(options.max_rows >= 0, invalid_argument, "[load] max_rows is ", options.max_rows);
  const Detected sizes = detect(*source);
  const std::vector<std::string> devices = candidates(options.device, sizes.looks_back);
  for (std::size_t i = 0; i + 1 < devices.size(); ++i) {
    try {
      return Model(detail::load_on(devices[i], source, sizes, options));
    } catch (const Error& e) {
      if (!detail::is_about_device(e)) throw;
    }
  }
  return Model(detail::load_on(devices.back(), source, sizes, options));
}

const ModelInfo& Model::info() const noexcept { return impl_->info; }
std::string Model::device() const { return impl_->backend->device(); }
std::string Model::backend() const { return impl_->backend->name(); }
DType Model::dtype() const noexcept { return impl_->dtype; }
HiddenUnits Model::hidden_units() const noexcept { return impl_->backend->hidden_units(); }
const std::vector<std::pair<std::string, DType>>& Model::weight_types() const noexcept {
  return impl_->weight_types;
}
std::int64_t Model::weight_bytes_per_token() const noexcept { return impl_->weight_bytes; }

State Model::new_state() const { return State(detail::new_state(impl_->schema, impl_->backend)); }

State Model::state_from_bytes(std::span<const std::byte> bytes) const {
  return State(detail::parse_state(bytes, impl_->schema, impl_->backend));
}

std::string_view version() noexcept { return WKV_VERSION; }

}  // namespace wkv
