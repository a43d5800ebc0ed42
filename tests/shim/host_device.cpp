// cuda/device.h on the host. Memory is filled with NaN and fenced: a kernel that reads what nobody
// wrote or writes past the end is found. Built as a plugin (WKV_CUDA_PLUGIN=libwkv_cuda_shim.so) it
// lets every test of device "cuda" run without a GPU.
#include <cstdlib>
#include <mutex>

#include "core/buffer.h"
#include "core/check.h"
#include "cuda/device.h"
#include "cuda/plugin.h"
#include "shim/fibres.h"
#include "shim/host_device.h"

namespace wkv::shim {
namespace {

constexpr std::size_t kFence = 256;
constexpr unsigned char kFenceByte = 0xa5;
std::size_t broken_fences = 0;

class HostGraph final : public cuda::Graph {
 public:
  explicit HostGraph(cuda::LaunchList l) : list(std::move(l)) {}
  cuda::LaunchList list;
};

class HostDevice final : public cuda::Device {
 public:
  std::string name() const override { return "cuda:0"; }
  std::string description() const override { return "host shim"; }
  int processors() const noexcept override { return 4; }
  int capability() const noexcept override { return 90; }

  Buffer allocate(std::size_t bytes) override {
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
  Buffer allocate_pinned(std::size_t bytes) override { return allocate(bytes); }

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
    static std::mutex mutex;  // one kernel at a time: fibres and shared memory are global
    const std::lock_guard lock(mutex);
    run_kernel(
        {h.kernel, h.invoke, params, {h.grid[0], h.grid[1], h.grid[2]}, h.block, h.shared_bytes});
  }
  std::unique_ptr<cuda::Graph> capture(const cuda::LaunchList& list) override {
    return std::make_unique<HostGraph>(list);
  }
  void replay(cuda::Graph& graph) override {
    static_cast<HostGraph&>(graph).list.each(
        [&](const cuda::LaunchHeader& h, const void* params) { launch(h, params); });
  }
  bool multiply(const cuda::LibraryProduct&) override { return false; }
};

}  // namespace

std::size_t fences_broken() noexcept { return broken_fences; }

}  // namespace wkv::shim

namespace wkv::cuda {

int device_count(std::string&) { return 1; }
std::string device_description(int) { return "host shim"; }
std::unique_ptr<Device> open_device(int index) {
  WKV_CHECK(index == 0, unsupported, "[cuda] there is no cuda:", index, "; devices: 1");
  return std::make_unique<shim::HostDevice>();
}

}  // namespace wkv::cuda
