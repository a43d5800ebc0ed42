#include "gpu/probes.h"

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace wkv::probes {
namespace {

constexpr int kThreads = 512;

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

int processors() {
  int n = 0;
  check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
  return n;
}

/// Median milliseconds of seven runs after two.
template <class F>
double milliseconds(F&& body) {
  cudaEvent_t start = nullptr, end = nullptr;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int run = 0; run < 9; ++run) {
    check(cudaEventRecord(start));
    body();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms = 0.0f;
    check(cudaEventElapsedTime(&ms, start, end));
    if (run >= 2) times.push_back(ms);
  }
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* from, std::size_t n, unsigned* never) {
  constexpr int kUnroll = 8;
  const std::size_t step = std::size_t{gridDim.x} * kThreads;
  unsigned sum = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += kUnroll * step) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::size_t at = i + static_cast<std::size_t>(u) * step;
      if (at >= n) continue;
      const uint4 v = __ldcs(from + at);
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  if (sum == 0x5eed5eedu && n == 0) *never = sum;
}

__global__ void barrier_kernel(int rounds) {
  for (int i = 0; i < rounds; ++i) cooperative_groups::this_grid().sync();
}

__global__ void empty_kernel() {}

}  // namespace

double read(const void* memory, std::size_t bytes) {
  const int blocks = 4 * processors();
  return 1e-3 * milliseconds([&] {
           read_kernel<<<blocks, kThreads>>>(static_cast<const uint4*>(memory), bytes / 16,
                                             nullptr);
         });
}

double grid_barrier() {
  int rounds = 1000;
  void* args[] = {&rounds};
  return 1e-3 / rounds * milliseconds([&] {
           check(cudaLaunchCooperativeKernel(barrier_kernel, dim3(processors()), dim3(256), args, 0,
                                             nullptr));
         });
}

double cluster_launch() {
  constexpr int kLaunches = 1000;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 8;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(8);
  config.blockDim = dim3(256);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return 1e-3 / kLaunches * milliseconds([&] {
           for (int i = 0; i < kLaunches; ++i) check(cudaLaunchKernelEx(&config, empty_kernel));
         });
}

}  // namespace wkv::probes
