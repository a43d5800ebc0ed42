// The globals a checkpoint may name, and what calling them builds.
#pragma once

#include <cstdint>
#include <string_view>

#include "io/pickle.h"

namespace wkv {

enum class TorchGlobal : std::uint8_t {
  none,            ///< not on the list
  ordered_dict,    ///< collections.OrderedDict
  rebuild_tensor,  ///< torch._utils._rebuild_tensor, _v2, _v3
  rebuild_parameter,
  rebuild_from_type,  ///< wraps one of the two above
  storage,            ///< a storage class
  dtype,              ///< torch.float32
  tensor_type,        ///< torch.Tensor, torch.nn.parameter.Parameter
  opaque_call,        ///< set, frozenset, torch.Size, torch.device
};

struct KnownGlobal {
  TorchGlobal what = TorchGlobal::none;
  DType dtype = DType::automatic;  ///< of storage and dtype; automatic if unknown or untyped
};

KnownGlobal known_global(std::string_view module, std::string_view name) noexcept;

/// Calls a global of the list with a tuple of arguments. `place` begins the message of an error.
PickleValue call_global(PickleHeap& heap, const PickleValue& callee, const PickleValue& arguments,
                        const PicklePlace& place);

/// Resolves a persistent id: ("storage", class, key, device, numel[, view]) or ("module", class,
/// ..).
PickleValue persistent_load(PickleHeap& heap, const PickleValue& id, const PicklePlace& place);

}  // namespace wkv
