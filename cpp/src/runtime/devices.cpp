#include "runtime/devices.h"

#include <charconv>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "runtime/cuda_plugin.h"
#include "runtime/placement.h"
#include "runtime/split_backend.h"
#include "wkv/wkv.hpp"

namespace wkv {

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all{
      {"cpu", str(usable_cores(), " cores, ", cpu::select_isa().isa), true, ""}};
  for (DeviceInfo& device : cuda_devices()) all.push_back(std::move(device));
  return all;
}

std::vector<IsaInfo> isas() { return cpu::list_isas(); }

namespace {

std::shared_ptr<Backend> make_one(const Options& options, const std::string& device) {
  constexpr int kMaxThreads = 1024;
  const int threads = options.threads;
  WKV_CHECK(threads >= 0 && threads <= kMaxThreads, invalid_argument, "threads is ", threads,
            ", expected 0 (automatic) to ", kMaxThreads);
  if (device == "cpu")
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
  fail(ErrorCode::invalid_argument, "unknown device '", device,
       "'; use auto (alone), cpu, cuda or cuda:N");
}

}  // namespace

std::vector<std::string> candidates(const std::string& device, bool looks_back) {
  if (device != "auto") return {device};
  if (!looks_back)
    for (const DeviceInfo& cuda : cuda_devices())
      if (cuda.usable) return {cuda.name, "cpu"};
  return {"cpu"};
}

std::shared_ptr<Backend> make_backend(const Options& options, int n_layer) {
  std::vector<Stage> stages = parse_placement(options.device);
  if (stages.size() == 1 && stages[0].layers < 0 && !stages[0].stream &&
      stages[0].dtype == DType::automatic)
    return make_one(options, stages[0].device);
  stages = resolve(std::move(stages), n_layer);
  std::vector<std::shared_ptr<Backend>> devices;
  for (const Stage& stage : stages) {
    const auto index = devices.size();
    for (std::size_t i = 0; i < index && devices.size() == index; ++i)
      if (stages[i].device == stage.device) devices.push_back(devices[i]);
    if (devices.size() == index) devices.push_back(make_one(options, stage.device));
  }
  return std::make_shared<SplitBackend>(std::move(stages), std::move(devices));
}

}  // namespace wkv
