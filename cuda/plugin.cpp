#include "cuda/plugin.h"

#include <cstdio>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "cuda/architectures.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.h"
#include "wkv/types.h"

namespace wkv::cuda {
namespace {

void put(char* out, std::size_t n, const char* text) {
  if (n > 0) std::snprintf(out, n, "%s", text);
}

int count(char* why, std::size_t n) {
  try {
    std::string reason;
    const int devices = device_count(reason);
    put(why, n, reason.c_str());
    return devices;
  } catch (const std::exception& e) {
    put(why, n, e.what());
    return 0;
  }
}

void describe(int device, char* out, char* why, std::size_t n) {
  put(why, n, "");
  try {
    put(out, n, device_description(device).c_str());
    put(why, n, why_not(device_capability(device)).c_str());
  } catch (const std::exception& e) {
    put(out, n, e.what());
  }
}

Backend* create(int device, int* code, char* why, std::size_t n) {
  try {
    auto opened = open_device(device);
    const std::string fault = why_not(opened->capability());
    WKV_CHECK(fault.empty(), unsupported, "[", opened->name(), "] ", fault);
    return new CudaBackend(std::move(opened));
  } catch (const Error& e) {
    *code = static_cast<int>(e.code());
    put(why, n, e.what());
  } catch (const std::exception& e) {
    *code = static_cast<int>(ErrorCode::internal);
    put(why, n, e.what());
  }
  return nullptr;
}

}  // namespace
}  // namespace wkv::cuda

extern "C" __attribute__((visibility("default"))) const wkv::cuda::PluginTable* wkv_cuda_plugin(
    const char* build_id, char* why, std::size_t n) {
  static constexpr wkv::cuda::PluginTable table = {wkv::cuda::count, wkv::cuda::describe,
                                                   wkv::cuda::create};
  if (std::strcmp(build_id, WKV_BUILD_ID) == 0) return &table;
  if (n > 0)
    std::snprintf(why, n, "it belongs to build %s, this library is build %s", WKV_BUILD_ID,
                  build_id);
  return nullptr;
}
