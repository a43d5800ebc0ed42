#include "runtime/state.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"
#include "runtime/state_storage.h"

namespace wkv {
namespace detail {
namespace {

static_assert(std::endian::native == std::endian::little, "state blobs are little-endian");

/// The 64 bytes before the numbers of a state blob.
struct Header {
  std::array<char, 8> magic;
  std::uint32_t format;
  std::uint32_t header_bytes;
  std::array<char, 8> version;  ///< of the model, zero-padded
  std::uint64_t fingerprint;
  std::uint64_t floats;
  std::int64_t position;
  std::uint64_t checksum;  ///< FNV-1a over what follows, 8 bytes at a time
  std::uint64_t storage;   ///< 0: fp32 (format 1); 1: fp16, 2: int8 (format 2)
};
static_assert(sizeof(Header) == 64);

constexpr std::array<char, 8> kMagic = {'W', 'K', 'V', 'S', 'T', 'A', 'T', 'E'};
constexpr std::uint32_t kPlain = 1;                          // formats: fp32,
constexpr std::uint32_t kPacked = 2;                         // and state_storage.h
constexpr std::int64_t kMostTokens = std::int64_t{1} << 60;  // sums with a call's do not overflow
constexpr std::array<DType, 3> kStorages = {DType::f32, DType::f16, DType::int8};

std::uint64_t checksum(const std::byte* data, std::size_t bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, std::min<std::size_t>(8, bytes - i));
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash;
}

std::array<char, 8> padded(const std::string& version) noexcept {
  std::array<char, 8> text{};
  std::copy_n(version.begin(), std::min(version.size(), text.size()), text.begin());
  return text;
}

const SlotInfo& find_slot(const StateSchema& schema, std::string_view part, std::size_t size) {
  for (const SlotInfo& slot : schema.layout.slots()) {
    if (slot.name != part) continue;
    WKV_CHECK(size == static_cast<std::size_t>(slot.slot.size), invalid_argument, "[state] part '",
              part, "' has ", slot.slot.size, " floats ", shape_str(slot.shape), ", not ", size);
    return slot;
  }
  fail(ErrorCode::invalid_argument, "[state] no part '", part, "'; parts are named like '",
       schema.layout.slots().front().name, "', see State.keys()");
}

/// Swaps the last two axes where users see them swapped.
std::vector<float> reoriented(const SlotInfo& slot, std::vector<float> values) {
  if (!slot.transposed) return values;
  const std::size_t rank = slot.shape.size();
  const std::int64_t rows = slot.shape[rank - 2], cols = slot.shape[rank - 1];
  return swap_axes(values, slot.slot.size / (rows * cols), rows, cols);
}

}  // namespace

StateLock::StateLock(StateImpl& state) : state_(nullptr) {
  WKV_CHECK(
      !state.busy.exchange(true, std::memory_order_acquire), invalid_argument,
      "[state] this state is in use by another call, or twice in this one; copy it to branch");
  state_ = &state;
}

std::unique_ptr<StateImpl> new_state(std::shared_ptr<const StateSchema> schema,
                                     std::shared_ptr<Backend> backend) {
  auto state = std::make_unique<StateImpl>();
  state->schema = std::move(schema);
  state->backend = std::move(backend);
  state->data = state->backend->allocate(state->bytes());
  state->backend->write(state->data.data(), state->schema->initial.data(), state->bytes());
  return state;
}

std::unique_ptr<StateImpl> parse_state(std::span<const std::byte> bytes,
                                       std::shared_ptr<const StateSchema> schema,
                                       std::shared_ptr<Backend> backend) {
  Header h{};
  WKV_CHECK(bytes.size() >= sizeof h, invalid_argument, "[state] ", bytes.size(),
            " bytes are too few for a state (its header alone has ", sizeof h, ')');
  std::memcpy(&h, bytes.data(), sizeof h);
  WKV_CHECK(h.magic == kMagic, invalid_argument, "[state] these bytes are not a wkv state");
  const bool known =
      h.format == kPlain ? h.storage == 0 : h.format == kPacked && h.storage < kStorages.size();
  WKV_CHECK(known && h.header_bytes == sizeof h, invalid_argument, "[state] format ", h.format, '.',
            h.storage, " is not known to this version (it reads ", kPlain, " and ", kPacked, ')');
  const DType storage = kStorages[h.storage];
  WKV_CHECK(h.version == padded(schema->version), invalid_argument,
            "[state] it belongs to an RWKV-",
            std::string(h.version.data(), strnlen(h.version.data(), 8)),
            " model, this one is RWKV-", schema->version);
  const auto floats = static_cast<std::uint64_t>(schema->layout.size());
  WKV_CHECK(h.floats == floats, invalid_argument, "[state] it has ", h.floats,
            " floats, a state of this model has ", floats,
            ": it belongs to a model of another size");
  WKV_CHECK(h.fingerprint == schema->fingerprint, invalid_argument,
            "[state] it belongs to another model of the same size (fingerprints differ)");
  const std::size_t size = packed_bytes(schema->layout, storage);
  WKV_CHECK(bytes.size() == sizeof h + size, invalid_argument, "[state] ", bytes.size(),
            " bytes where ", sizeof h + size, " are needed: truncated or padded");
  const std::span<const std::byte> data = bytes.subspan(sizeof h);
  WKV_CHECK(h.checksum == checksum(data.data(), size), invalid_argument,
            "[state] the checksum does not match: the data is damaged");
  WKV_CHECK(h.position >= 0 && h.position <= kMostTokens, invalid_argument, "[state] position ",
            h.position, " is outside [0, ", kMostTokens, ']');
  auto state = std::make_unique<StateImpl>();
  state->schema = std::move(schema);
  state->backend = std::move(backend);
  state->data = state->backend->allocate(state->bytes());
  if (storage == DType::f32) {
    state->backend->write(state->data.data(), data.data(), state->bytes());
  } else {
    std::vector<float> values(floats);
    unpack_state(state->schema->layout, storage, data, values);
    state->backend->write(state->data.data(), values.data(), state->bytes());
  }
  state->position = h.position;
  return state;
}

namespace {

std::unique_ptr<StateImpl> clone(StateImpl& from) {
  const StateLock lock(from);
  auto state = std::make_unique<StateImpl>();
  state->schema = from.schema;
  state->backend = from.backend;
  state->position = from.position;
  state->data = state->backend->allocate(state->bytes());
  state->backend->copy(state->data.data(), from.data.data(), state->bytes());
  return state;
}

}  // namespace
}  // namespace detail

State::State(std::unique_ptr<detail::StateImpl> impl) : impl_(std::move(impl)) {}
State::State(const State& other) : impl_(detail::clone(*other.impl_)) {}
State& State::operator=(const State& other) {
  if (this != &other) impl_ = detail::clone(*other.impl_);
  return *this;
}
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;
State::~State() = default;

std::int64_t State::position() const noexcept { return impl_->position; }
const std::vector<StatePart>& State::parts() const noexcept { return impl_->schema->parts; }
std::size_t State::size_bytes() const noexcept { return impl_->bytes(); }

void State::get(std::string_view part, std::span<float> out) const {
  const detail::StateLock lock(*impl_);
  const SlotInfo& slot = detail::find_slot(*impl_->schema, part, out.size());
  std::vector<float> values(out.size());
  impl_->backend->read(values.data(),
                       static_cast<const float*>(impl_->data.data()) + slot.slot.offset,
                       values.size() * sizeof(float));
  values = detail::reoriented(slot, std::move(values));
  std::copy(values.begin(), values.end(), out.begin());
}

void State::set(std::string_view part, std::span<const float> in) {
  const detail::StateLock lock(*impl_);
  const SlotInfo& slot = detail::find_slot(*impl_->schema, part, in.size());
  const std::vector<float> values = detail::reoriented(slot, {in.begin(), in.end()});
  impl_->backend->write(static_cast<float*>(impl_->data.data()) + slot.slot.offset, values.data(),
                        values.size() * sizeof(float));
}

std::vector<std::byte> State::to_bytes(DType storage) const {
  const auto code = std::find(detail::kStorages.begin(), detail::kStorages.end(), storage);
  WKV_CHECK(code != detail::kStorages.end(), invalid_argument,
            "[state] a state can be stored as fp32, fp16 or int8, not as ", dtype_name(storage));
  const detail::StateLock lock(*impl_);
  const StateLayout& layout = impl_->schema->layout;
  const std::size_t n = detail::packed_bytes(layout, storage);
  std::vector<std::byte> bytes(sizeof(detail::Header) + n);
  std::byte* data = bytes.data() + sizeof(detail::Header);
  if (storage == DType::f32) {
    impl_->backend->read(data, impl_->data.data(), n);
  } else {
    std::vector<float> values(static_cast<std::size_t>(layout.size()));
    impl_->backend->read(values.data(), impl_->data.data(), impl_->bytes());
    detail::pack_state(layout, storage, values, {data, n});
  }
  const bool plain = storage == DType::f32;
  const detail::Header h{.magic = detail::kMagic,
                         .format = plain ? detail::kPlain : detail::kPacked,
                         .header_bytes = sizeof(detail::Header),
                         .version = detail::padded(impl_->schema->version),
                         .fingerprint = impl_->schema->fingerprint,
                         .floats = static_cast<std::uint64_t>(layout.size()),
                         .position = impl_->position,
                         .checksum = detail::checksum(data, n),
                         .storage = static_cast<std::uint64_t>(code - detail::kStorages.begin())};
  std::memcpy(bytes.data(), &h, sizeof h);
  return bytes;
}

}  // namespace wkv
