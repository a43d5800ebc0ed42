// The boundary between libwkv and the plugin libwkv_cuda: one exported function that returns this
// table, and the abstract Backend.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace wkv {
class Backend;
}

namespace wkv::cuda {

/// Strings are written to `out` [n], cut and terminated. No function throws.
struct PluginTable {
  /// Devices; 0 with the reason in `why`.
  int (*device_count)(char* why, std::size_t n);
  /// "NVIDIA H200, 139 GiB"; `why` [n] is empty, or says why this build cannot use it.
  void (*describe)(int device, char* out, char* why, std::size_t n);
  /// The caller owns it and deletes it; null with the reason in `why`. `code` is an ErrorCode.
  Backend* (*create)(int device, int* code, char* why, std::size_t n);
};

/// The exported symbol's name and type. Null, with both identities in `why`, if the plugin was
/// built from other sources than the caller.
inline constexpr const char* kPluginSymbol = "wkv_cuda_plugin";
using PluginEntry = const PluginTable* (*)(const char* build_id, char* why, std::size_t n);

int device_count(std::string& why);
std::string device_description(int index);
int device_capability(int index);  ///< 90 for sm_90

}  // namespace wkv::cuda
