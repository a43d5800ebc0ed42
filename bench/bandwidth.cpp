#include "bandwidth.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <string>
#include <thread>

#include "footprint.h"
#include "read_loops.h"

namespace wkv::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSamples = 2;
constexpr double kSampleSeconds = 0.1;
constexpr double kCpuShare = 0.97;          // a thread that got less was disturbed
constexpr std::size_t kBlock = 256 * 1024;  // bytes between two looks at the clock

/// Puts the calling thread on the index-th CPU it may use, so that it stays beside its memory.
void pin(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int cpus = CPU_COUNT(&allowed);
  int nth = index % std::max(cpus, 1);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || nth-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
}

double thread_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Fills `rates` [kReadLoops][kSamples] with GB/s, negative where another process took a CPU away.
/// Returns false if there is no memory.
bool read_memory(int threads, double* rates) {
  const std::size_t slice = footprint_bytes() / static_cast<std::size_t>(threads) / kBlock * kBlock;
  const std::size_t bytes = slice * static_cast<std::size_t>(threads);
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  void* mapping = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return false;
  char* data = static_cast<char*>(mapping);
  data += (kHugePage - reinterpret_cast<std::uintptr_t>(data) % kHugePage) % kHugePage;
  madvise(data, bytes, MADV_HUGEPAGE);

  constexpr int kAll = kReadLoops * kSamples;
  std::barrier together(threads);
  std::vector<std::atomic<double>> rate(kAll);
  std::vector<std::atomic<bool>> disturbed(kAll);
  std::atomic<float> sink{0};
  auto work = [&](int index) {
    pin(index);
    const char* mine = data + static_cast<std::size_t>(index) * slice;
    std::memset(data + static_cast<std::size_t>(index) * slice, 0,
                slice);  // first touch by the reader
    std::size_t at = 0;
    float sum = 0;
    for (int sample = 0; sample < kAll; ++sample) {
      together.arrive_and_wait();
      const auto start = Clock::now();
      const double cpu = thread_cpu_seconds();
      std::size_t read = 0;
      double seconds = 0;
      while (seconds < kSampleSeconds) {
        sum += read_loop(sample % kReadLoops)(mine + at, kBlock);
        at = at + kBlock < slice ? at + kBlock : 0;
        read += kBlock;
        seconds = std::chrono::duration<double>(Clock::now() - start).count();
      }
      const auto slot = static_cast<std::size_t>(sample);
      rate[slot].fetch_add(1e-9 * static_cast<double>(read) / seconds);
      if (thread_cpu_seconds() - cpu < kCpuShare * seconds) disturbed[slot].store(true);
    }
    sink.store(sum);
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) workers.emplace_back(work, i);
  for (std::thread& worker : workers) worker.join();
  munmap(mapping, bytes + kHugePage);
  for (int loop = 0; loop < kReadLoops; ++loop)
    for (int i = 0; i < kSamples; ++i) {
      const auto slot = static_cast<std::size_t>(kReadLoops * i + loop);
      rates[loop * kSamples + i] = (disturbed[slot].load() ? -1 : 1) * rate[slot].load();
    }
  return true;
}

/// Of the samples that no other process disturbed, or of all if none is left.
Figure undisturbed(std::vector<double> samples) {
  std::vector<double> clean;
  for (double& sample : samples) {
    if (sample > 0) clean.push_back(sample);
    sample = std::abs(sample);
  }
  return summarise(clean.empty() ? samples : clean);
}

bool write_all(int fd, const void* data, std::size_t bytes) {
  return write(fd, data, bytes) == static_cast<ssize_t>(bytes);
}

bool read_all(int fd, void* data, std::size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = read(fd, at, bytes);
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return true;
}

/// The child: answers requests (a thread count) until the pipe closes.
[[noreturn]] void serve(int requests, int replies) {
  int threads = 0;
  while (read_all(requests, &threads, sizeof threads)) {
    double rates[kReadLoops * kSamples] = {};
    const bool done = read_memory(threads, rates);
    if (!done || !write_all(replies, rates, sizeof rates)) break;
  }
  _exit(0);
}

}  // namespace

BandwidthProbe::BandwidthProbe() {
  int requests[2] = {};
  int replies[2] = {};
  if (pipe(requests) != 0 || pipe(replies) != 0) throw std::runtime_error("no pipe for the probe");
  child_ = fork();
  if (child_ < 0) throw std::runtime_error("no process for the bandwidth probe");
  if (child_ == 0) {
    close(requests[1]);
    close(replies[0]);
    serve(requests[0], replies[1]);
  }
  close(requests[0]);
  close(replies[1]);
  to_child_ = requests[1];
  from_child_ = replies[0];
}

BandwidthProbe::~BandwidthProbe() {
  close(to_child_);
  close(from_child_);
  waitpid(child_, nullptr, 0);
}

void BandwidthProbe::measure(int threads, BandwidthSamples& samples) {
  double rates[kReadLoops * kSamples] = {};
  if (!write_all(to_child_, &threads, sizeof threads) ||
      !read_all(from_child_, rates, sizeof rates))
    throw std::runtime_error("the bandwidth probe found no memory for its buffer");
  for (int loop = 0; loop < kReadLoops; ++loop) {
    const double* from = rates + loop * kSamples;
    samples.of_loop[loop].insert(samples.of_loop[loop].end(), from, from + kSamples);
  }
}

void BandwidthSamples::append(const BandwidthSamples& more) {
  for (int loop = 0; loop < kReadLoops; ++loop)
    of_loop[loop].insert(of_loop[loop].end(), more.of_loop[loop].begin(), more.of_loop[loop].end());
}

Figure BandwidthSamples::best() const {
  Figure best;
  for (const std::vector<double>& samples : of_loop)
    if (const Figure figure = undisturbed(samples); figure.median > best.median) best = figure;
  return best;
}

}  // namespace wkv::bench
