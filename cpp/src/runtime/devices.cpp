#include "runtime/devices.h"

#include <charconv>
#include <utility>

#include "core/check.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "runtime/cuda_plugin.h"
#include "wkv/wkv.hpp"

namespace wkv {

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all{
      {"cpu", str(usable_cores(), " cores, ", cpu::select_isa().isa), true, ""}};
  for (DeviceInfo& device : cuda_devices()) all.push_back(std::move(device));
  return all;
}

std::vector<IsaInfo> isas() { return cpu::list_isas(); }

std::shared_ptr<Backend> make_backend(const Options& options) {
  constexpr int kMaxThreads = 1024;
  const std::string& device = options.device;
  const int threads = options.threads;
  WKV_CHECK(threads >= 0 && threads <= kMaxThreads, invalid_argument, "threads is ", threads,
            ", expected 0 (automatic) to ", kMaxThreads);
  // "auto" is the CPU until tests/gpu/run has passed on a GPU: kernels that only ever ran in the
  // host shim are for those who ask for them.
  if (device == "cpu" || device == "auto")
    return std::make_shared<cpu::CpuBackend>(threads == 0 ? usable_cores() : threads,
                                             cpu::select_isa(), options.skip_zeros,
                                             options.matmul_precision);
  if (device == "cuda") return make_cuda_backend(0);
  int index = 0;
  const char* end = device.data() + device.size();
  if (device.starts_with("cuda:")) {
    const auto [rest, error] = std::from_chars(device.data() + 5, end, index);
    if (error == std::errc() && rest == end && index >= 0) return make_cuda_backend(index);
  }
  fail(ErrorCode::invalid_argument, "unknown device '", device, "'; use auto, cpu, cuda or cuda:N");
}

}  // namespace wkv
