// The CUDA runtime behind device.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <span>
#include <unordered_set>

#include "core/check.h"
#include "cuda/cublaslt.h"
#include "cuda/device.h"
#include "cuda/plugin.h"

namespace wkv::cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());
  fail(ErrorCode::device, "[cuda] ", what, ": ", cudaGetErrorString(status), " (",
       cudaGetErrorName(status), ')');
}

class CudaGraph final : public Graph {
 public:
  CudaGraph(int device, cudaGraphExec_t exec) : device_(device), exec_(exec) {}
  ~CudaGraph() override {
    static_cast<void>(cudaSetDevice(device_));
    static_cast<void>(cudaGraphExecDestroy(exec_));
  }
  cudaGraphExec_t exec() const noexcept { return exec_; }

 private:
  int device_;
  cudaGraphExec_t exec_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    use();
    check(cudaGetDeviceProperties(&properties_, index), "cudaGetDeviceProperties");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    for (cudaEvent_t& event : marks_)
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    const char* overlap = std::getenv("WKV_CUDA_PDL");
    overlap_ = capability() >= 90 && (overlap == nullptr || *overlap != '0');
    library_ = CublasLt::open();
  }
  ~CudaDevice() override {
    static_cast<void>(cudaSetDevice(index_));
    static_cast<void>(cudaStreamSynchronize(stream_));
    for (cudaEvent_t event : marks_) static_cast<void>(cudaEventDestroy(event));
    for (Branch& branch : branches_) {
      if (branch.done != nullptr) static_cast<void>(cudaEventDestroy(branch.done));
      if (branch.stream != nullptr) static_cast<void>(cudaStreamDestroy(branch.stream));
    }
    if (fork_ != nullptr) static_cast<void>(cudaEventDestroy(fork_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  std::string name() const override { return "cuda:" + std::to_string(index_); }
  std::string description() const override {
    return str(properties_.name, library_ ? ", cuBLASLt" : "");
  }
  int processors() const noexcept override { return properties_.multiProcessorCount; }
  int capability() const noexcept override { return properties_.major * 10 + properties_.minor; }
  int shared_bytes() const noexcept override {
    return static_cast<int>(properties_.sharedMemPerBlockOptin);
  }

  Buffer allocate(std::size_t bytes) override {
    use();
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      std::size_t free_bytes = 0, total_bytes = 0;
      static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
      WKV_CHECK(status != cudaErrorMemoryAllocation, out_of_memory, "[", name(),
                "] cannot allocate ", bytes, " bytes: ", free_bytes, " of ", total_bytes,
                " bytes are free");
      check(status, "cudaMalloc");
    }
    return {std::shared_ptr<void>(memory,
                                  [index = index_](void* p) {
                                    static_cast<void>(cudaSetDevice(index));
                                    static_cast<void>(cudaFree(p));
                                  }),
            bytes};
  }
  Buffer allocate_pinned(std::size_t bytes) override {
    use();
    void* memory = nullptr;
    const cudaError_t status = cudaMallocHost(&memory, bytes);
    if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
    WKV_CHECK(status == cudaSuccess, out_of_memory, "[", name(), "] cannot allocate ", bytes,
              " bytes of pinned host memory: ", cudaGetErrorString(status));
    return {std::shared_ptr<void>(memory, [](void* p) { static_cast<void>(cudaFreeHost(p)); }),
            bytes};
  }

  void copy_in(void* to, const void* pinned, std::size_t bytes) override {
    use();
    // Default: streamed weights are themselves pinned memory.
    check(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyDefault, stream_), "copy to device");
  }
  void copy_out(void* pinned, const void* from, std::size_t bytes) override {
    use();
    check(cudaMemcpyAsync(pinned, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy to host");
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    use();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
  }
  void zero(void* to, std::size_t bytes) override {
    use();
    check(cudaMemsetAsync(to, 0, bytes, stream_), "zero");
  }
  void mark(int number) override {
    check(cudaEventRecord(marks_[number], stream_), "cudaEventRecord");
  }
  void wait(int number) override {
    use();
    check(cudaEventSynchronize(marks_[number]), "cudaEventSynchronize");
  }
  void synchronize() override {
    use();
    check(cudaStreamSynchronize(stream_), "a kernel failed");
  }

  void launch(const LaunchHeader& h, const void* params) override {
    use();
    launch_on(0, overlap_, h, params);
  }

  std::unique_ptr<Graph> capture(const LaunchList& list) override {
    use();
    std::vector<LaunchList::Entry> entries;
    bool beside = false;
    list.each([&](const LaunchHeader& h, const void* params) {
      entries.push_back({&h, params});
      beside = beside || h.beside != 0;
    });
    if (beside) make_branches();
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "graph capture");
    cudaGraph_t graph = nullptr;
    try {
      bool after_join = false;
      for (std::size_t i = 0; i < entries.size();) {
        std::size_t end = i + 1;
        while (end < entries.size() && entries[end].header->beside != 0) ++end;
        capture_beside({entries.data() + i, end - i}, after_join);
        after_join = end - i > 1;
        i = end;
      }
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream_, &graph));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "graph capture");
    cudaGraphExec_t exec = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return nullptr;
    }
    return std::make_unique<CudaGraph>(index_, exec);
  }
  void replay(Graph& graph) override {
    use();
    check(cudaGraphLaunch(static_cast<CudaGraph&>(graph).exec(), stream_), "graph launch");
  }
  bool accepts(const LibraryProduct& product) override {
    use();
    return library_ != nullptr && library_->accepts(product);
  }

 private:
  /// A kernel may have 48 KB without asking, its static part included; those with a dynamic one
  /// have at most 128 bytes of it.
  static constexpr std::uint32_t kSurelyFits = 36 * 1024;
  void use() const { check(cudaSetDevice(index_), "cudaSetDevice"); }

  /// Branch 0 is the stream itself. `overlap`: the kernel may start before the one before it ends.
  void launch_on(int branch, bool overlap, const LaunchHeader& h, const void* params) {
    if (h.kernel == nullptr) {
      LibraryProduct product;
      std::memcpy(&product, params, sizeof product);
      library_->multiply(product, stream_of(branch), branch);
      return;
    }
    if (overlap_ && !overlap_checked_) {
      // Code compiled for an older architecture does not wait for the kernel before it, even where
      // the driver compiles its PTX for this device. All kernels are built alike.
      constexpr int kFirstThatWaits = 90;
      cudaFuncAttributes attributes{};
      check(cudaFuncGetAttributes(&attributes, h.kernel), "cudaFuncGetAttributes");
      overlap = overlap_ = attributes.ptxVersion >= kFirstThatWaits;
      overlap_checked_ = true;
    }
    if (h.shared_bytes > kSurelyFits && large_.insert(h.kernel).second) {
      cudaFuncAttributes attributes{};
      check(cudaFuncGetAttributes(&attributes, h.kernel), "cudaFuncGetAttributes");
      // Static shared memory counts against the same limit.
      check(cudaFuncSetAttribute(
                h.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                static_cast<int>(properties_.sharedMemPerBlockOptin - attributes.sharedSizeBytes)),
            "shared memory limit");
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(h.grid[0], h.grid[1], h.grid[2]);
    config.blockDim = dim3(h.block);
    config.dynamicSmemBytes = h.shared_bytes;
    config.stream = stream_of(branch);
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (overlap) {
      cudaLaunchAttribute& early = attributes[config.numAttrs++];
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
    }
    if (h.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = h.cluster;
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
    alignas(16) unsigned char whole[Launch::kMaxParams] = {};
    std::memcpy(whole, params, h.params_bytes);
    void* args[] = {whole};
    check(cudaLaunchKernelExC(&config, h.kernel, args), "kernel launch");
  }
  cudaStream_t stream_of(int branch) const {
    return branch == 0 ? stream_ : branches_[branch - 1].stream;
  }

  void make_branches() {
    if (fork_ == nullptr)
      check(cudaEventCreateWithFlags(&fork_, cudaEventDisableTiming), "cudaEventCreate");
    for (Branch& b : branches_) {
      if (b.stream == nullptr)
        check(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking), "cudaStreamCreate");
      if (b.done == nullptr)
        check(cudaEventCreateWithFlags(&b.done, cudaEventDisableTiming), "cudaEventCreate");
    }
  }

  /// Launches that need nothing of each other, each on a branch of its own. What follows waits for
  /// all of them.
  void capture_beside(std::span<const LaunchList::Entry> launches, bool after_join) {
    if (launches.size() == 1)
      return launch_on(0, overlap_ && !after_join, *launches[0].header, launches[0].params);
    check(cudaEventRecord(fork_, stream_), "cudaEventRecord");
    for (std::size_t i = 0; i < launches.size(); ++i) {
      const int branch = static_cast<int>(i % (std::size(branches_) + 1));
      if (branch > 0 && i <= std::size(branches_))
        check(cudaStreamWaitEvent(stream_of(branch), fork_, 0), "cudaStreamWaitEvent");
      launch_on(branch, false, *launches[i].header, launches[i].params);
    }
    for (std::size_t i = 1; i < std::min(launches.size(), std::size(branches_) + 1); ++i) {
      check(cudaEventRecord(branches_[i - 1].done, branches_[i - 1].stream), "cudaEventRecord");
      check(cudaStreamWaitEvent(stream_, branches_[i - 1].done, 0), "cudaStreamWaitEvent");
    }
  }

  int index_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t marks_[2] = {};
  struct Branch {
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
  };
  Branch branches_[CublasLt::kBranches - 1];  // of captured graphs, made when first needed
  cudaEvent_t fork_ = nullptr;
  bool overlap_ = false, overlap_checked_ = false;
  std::unordered_set<const void*> large_;  // kernels whose limit of shared memory was raised
  std::unique_ptr<CublasLt> library_;
};

}  // namespace

int device_count(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  static_cast<void>(cudaGetLastError());
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    why = driver == 0
              ? "no NVIDIA driver is installed"
              : str("the NVIDIA driver supports CUDA ", driver / 1000, '.', driver % 1000 / 10,
                    ", this build needs ", CUDART_VERSION / 1000, '.', CUDART_VERSION % 1000 / 10);
  } else if (status == cudaSuccess || status == cudaErrorNoDevice) {
    why = "there is no CUDA device";
  } else {
    why = str("CUDA cannot start: ", cudaGetErrorString(status));
  }
  return 0;
}

std::string device_description(int index) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return "";
  }
  return str(properties.name, ", ", properties.totalGlobalMem >> 30, " GiB");
}

int device_capability(int index) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "capability");
  return major * 10 + minor;
}

std::unique_ptr<Device> open_device(int index) {
  std::string why;
  const int count = device_count(why);
  WKV_CHECK(count > 0, unsupported, "[cuda] ", why);
  WKV_CHECK(index < count, unsupported, "[cuda] there is no cuda:", index, "; devices: ", count);
  return std::make_unique<CudaDevice>(index);
}

}  // namespace wkv::cuda
