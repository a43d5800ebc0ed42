// cuda/device.h on the host. Memory is filled with NaN and fenced: a kernel that reads what nobody
// wrote or writes past the end is found. Built as a plugin (WKV_CUDA_PLUGIN=libwkv_cuda_shim.so) it
// lets every test of device "cuda" run without a GPU.
//   WKV_SHIM_DEVICES     number of devices; 1
//   WKV_SHIM_SM          architecture of a device that is opened now; 90
//   WKV_SHIM_PROCESSORS  how many it has; 4
//   WKV_SHIM_MEMORY      bytes it has; no limit
//   WKV_SHIM_LIBRARY     1: it has a library of matrix products, which takes all of them
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>

#include "core/buffer.h"
#include "core/check.h"
#include "core/dtype.h"
#include "cuda/device.h"
#include "cuda/plugin.h"
#include "shim/fibres.h"
#include "shim/host_device.h"

namespace wkv::shim {
namespace {

constexpr std::size_t kFence = 256;
constexpr unsigned char kFenceByte = 0xa5;
std::size_t broken_fences = 0;

std::size_t setting(const char* name, std::size_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : static_cast<std::size_t>(std::strtoull(text, nullptr, 10));
}

/// Shared memory that a block may have (CUDA C++ Programming Guide, "Compute Capabilities").
int shared_of(int capability) {
  constexpr int kKiB = 1024;
  return capability < 80    ? 64 * kKiB
         : capability == 80 ? 163 * kKiB
         : capability < 90  ? 99 * kKiB
         : capability < 120 ? 227 * kKiB
                            : 99 * kKiB;
}

/// Bytes in use, of the devices of this process.
constexpr int kMaxDevices = 8;
std::atomic<std::size_t> used[kMaxDevices];

class HostGraph final : public cuda::Graph {
 public:
  explicit HostGraph(cuda::LaunchList l) : list(std::move(l)) {}
  cuda::LaunchList list;
};

class HostDevice final : public cuda::Device {
 public:
  explicit HostDevice(int index) : index_(index) {}
  std::string name() const override { return "cuda:" + std::to_string(index_); }
  std::string description() const override {
    return "host shim, graphs captured: " + std::to_string(captured_) +
           ", replayed: " + std::to_string(replayed_);
  }
  int processors() const noexcept override { return processors_; }
  int capability() const noexcept override { return capability_; }
  int shared_bytes() const noexcept override { return shared_of(capability_); }

  Buffer allocate(std::size_t bytes) override {
    const std::size_t all = memory_;
    std::atomic<std::size_t>& mine = used[index_];
    WKV_CHECK(bytes <= all && mine <= all - bytes, out_of_memory, "[", name(), "] cannot allocate ",
              bytes, " bytes: ", all - std::min<std::size_t>(mine, all), " of ", all,
              " bytes are free");
    const Buffer buffer = fenced(bytes);
    mine += bytes;
    return {std::shared_ptr<void>(buffer.data(), [buffer, &mine, bytes](void*) { mine -= bytes; }),
            bytes};
  }
  Buffer allocate_pinned(std::size_t bytes) override { return fenced(bytes); }

  static Buffer fenced(std::size_t bytes) {
    auto memory = std::make_shared<Buffer>(allocate_host(bytes + 2 * kFence));
    auto* start = static_cast<unsigned char*>(memory->data());
    memset(start, kFenceByte, kFence);
    memset(start + kFence, 0xff, bytes);
    memset(start + kFence + bytes, kFenceByte, kFence);
    return {std::shared_ptr<void>(start + kFence,
                                  [memory, start, bytes](void*) {
                                    bool whole = true;
                                    for (std::size_t i = 0; i < kFence; ++i)
                                      whole = whole && start[i] == kFenceByte &&
                                              start[kFence + bytes + i] == kFenceByte;
                                    if (!whole) ++broken_fences;
                                  }),
            bytes};
  }

  void copy_in(void* to, const void* from, std::size_t n) override { memcpy(to, from, n); }
  void copy_out(void* to, const void* from, std::size_t n) override { memcpy(to, from, n); }
  void copy(void* to, const void* from, std::size_t n) override { memmove(to, from, n); }
  void zero(void* to, std::size_t n) override { memset(to, 0, n); }
  void mark(int) override {}
  void wait(int) override {}
  void synchronize() override {
    WKV_CHECK(broken_fences == 0, device, "[shim] ", broken_fences,
              " blocks of memory were written outside");
  }

  void launch(const cuda::LaunchHeader& h, const void* params) override {
    if (h.kernel == nullptr) return multiply(*static_cast<const cuda::LibraryProduct*>(params));
    constexpr int kStatic = 16;  // the least; skinny's is part of its plan
    WKV_CHECK(h.shared_bytes == 0 || static_cast<int>(h.shared_bytes) + kStatic <= shared_bytes(),
              device, "[shim] ", h.shared_bytes, " bytes of shared memory on sm_", capability_);
    WKV_CHECK(h.cluster == 1 || (capability_ >= 90 && h.cluster <= 8 && h.grid[0] % h.cluster == 0),
              device, "[shim] clusters of ", h.cluster, " in ", h.grid[0], " blocks on sm_",
              capability_);
    static std::mutex mutex;  // one kernel at a time: fibres and shared memory are global
    const std::lock_guard lock(mutex);
    alignas(16) unsigned char whole[cuda::Launch::kMaxParams] = {};
    memcpy(whole, params, h.params_bytes);
    run_kernel({h.kernel,
                h.invoke,
                whole,
                {h.grid[0], h.grid[1], h.grid[2]},
                h.block,
                h.cluster,
                h.shared_bytes});
  }
  std::unique_ptr<cuda::Graph> capture(const cuda::LaunchList& list) override {
    ++captured_;
    return std::make_unique<HostGraph>(list);
  }
  void replay(cuda::Graph& graph) override {
    ++replayed_;
    static_cast<HostGraph&>(graph).list.each(
        [&](const cuda::LaunchHeader& h, const void* params) { launch(h, params); });
  }
  bool accepts(const cuda::LibraryProduct&) override { return library_; }

 private:
  static void multiply(const cuda::LibraryProduct& p) {
    const auto widen = p.bf16 != 0 ? bf16_to_f32 : f16_to_f32;
    const auto row = [](const void* m, std::int64_t at) {
      return static_cast<const std::uint16_t*>(m) + at;
    };
    for (int r = 0; r < p.rows; ++r)
      for (int o = 0; o < p.out; ++o) {
        double sum = 0.0;
        for (int i = 0; i < p.in; ++i)
          sum += static_cast<double>(widen(row(p.x16, r * p.ldx)[i])) *
                 static_cast<double>(widen(row(p.w, o * p.ldw)[i]));
        float& y = p.y[r * p.ldy + o];
        y = static_cast<float>(sum * static_cast<double>(p.scale)) + (p.into != 0 ? y : 0.0f);
      }
  }

  int index_;
  int captured_ = 0, replayed_ = 0;
  int capability_ = static_cast<int>(setting("WKV_SHIM_SM", 90));
  int processors_ = static_cast<int>(setting("WKV_SHIM_PROCESSORS", 4));
  std::size_t memory_ = setting("WKV_SHIM_MEMORY", SIZE_MAX);
  bool library_ = setting("WKV_SHIM_LIBRARY", 0) != 0;
};

}  // namespace

std::size_t fences_broken() noexcept { return broken_fences; }

}  // namespace wkv::shim

namespace wkv::cuda {

int device_count(std::string&) {
  return static_cast<int>(
      std::min<std::size_t>(shim::setting("WKV_SHIM_DEVICES", 1), shim::kMaxDevices));
}
std::string device_description(int) { return "host shim"; }
int device_capability(int) { return static_cast<int>(shim::setting("WKV_SHIM_SM", 90)); }
std::unique_ptr<Device> open_device(int index) {
  std::string why;
  const int count = device_count(why);
  WKV_CHECK(index < count, unsupported, "[cuda] there is no cuda:", index, "; devices: ", count);
  return std::make_unique<shim::HostDevice>(index);
}

}  // namespace wkv::cuda
