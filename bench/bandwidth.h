// Measures the read bandwidth of this machine in a process of its own.
#pragma once

#include <sys/types.h>

#include <vector>

#include "figure.h"
#include "read_loops.h"

namespace wkv::bench {

/// GB/s (10^9 bytes) of all threads together, one sample per tenth of a second; negative where
/// another process took a CPU away meanwhile.
struct BandwidthSamples {
  std::vector<double> of_loop[kReadLoops];

  void append(const BandwidthSamples& more);
  /// Of the fastest loop, disturbed samples left out while others remain.
  Figure best() const;
};

/// A child process that measures on request. It is forked before any thread exists; its buffer
/// (1 GiB or more) does not count to the memory of the process that benchmarks a model.
class BandwidthProbe {
 public:
  /// Throws std::runtime_error if the system refuses a pipe or a process.
  BandwidthProbe();
  ~BandwidthProbe();
  BandwidthProbe(const BandwidthProbe&) = delete;
  BandwidthProbe& operator=(const BandwidthProbe&) = delete;

  /// Appends a fifth of a second of samples of each loop, read by `threads` threads.
  void measure(int threads, BandwidthSamples& samples);

 private:
  pid_t child_ = -1;
  int to_child_ = -1;
  int from_child_ = -1;
};

}  // namespace wkv::bench
