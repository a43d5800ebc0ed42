#include "runtime/cuda_plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "core/check.h"
#include "cuda/plugin.h"

namespace wkv {
namespace {

constexpr std::size_t kTextBytes = 1024;
constexpr const char* kFileName = "libwkv_cuda.so";

struct Plugin {
  const cuda::PluginTable* table = nullptr;
  std::string reason;  // why there is no table
};

/// Beside the library (or the program) that this code is part of.
std::filesystem::path own_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_directory), &info) == 0 ||
      info.dli_fname == nullptr)
    return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

Plugin open_plugin() {
  const char* named = std::getenv("WKV_CUDA_PLUGIN");
  const std::filesystem::path path =
      named != nullptr && *named != '\0' ? named : (own_directory() / kFileName).string();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    return {nullptr, str("this build has no CUDA plugin (", path.string(), " does not exist)")};
  // Never closed: buffers and threads of the CUDA runtime may outlive every model.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return {nullptr, str("the CUDA plugin cannot be opened: ", dlerror())};
  const auto entry = reinterpret_cast<cuda::PluginEntry>(dlsym(handle, cuda::kPluginSymbol));
  if (entry == nullptr) return {nullptr, str(path.string(), " is not a CUDA plugin of wkv")};
  char why[kTextBytes] = "";
  const cuda::PluginTable* table = entry(WKV_BUILD_ID, why, sizeof why);
  if (table == nullptr) return {nullptr, str("the CUDA plugin does not fit: ", why)};
  return {table, {}};
}

const Plugin& plugin() {
  static const Plugin opened = open_plugin();
  return opened;
}

}  // namespace

std::vector<DeviceInfo> cuda_devices() {
  const Plugin& p = plugin();
  char text[kTextBytes] = "";
  const int count = p.table == nullptr ? 0 : p.table->device_count(text, sizeof text);
  if (count == 0) return {{"cuda", "", false, p.table == nullptr ? p.reason : text}};
  std::vector<DeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    char why[kTextBytes] = "";
    p.table->describe(i, text, why, sizeof text);
    devices.push_back({str("cuda:", i), text, why[0] == '\0', why});
  }
  return devices;
}

std::shared_ptr<Backend> make_cuda_backend(int device) {
  const Plugin& p = plugin();
  WKV_CHECK(p.table != nullptr, unsupported, "device 'cuda:", device, "': ", p.reason);
  char why[kTextBytes] = "";
  int code = static_cast<int>(ErrorCode::internal);
  Backend* backend = p.table->create(device, &code, why, sizeof why);
  if (backend == nullptr) throw Error(static_cast<ErrorCode>(code), why);
  return std::shared_ptr<Backend>(backend);
}

}  // namespace wkv
