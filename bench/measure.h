// Runs a model and times it. Only the public interface of the library is used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bandwidth.h"
#include "figure.h"
#include "options.h"
#include "wkv/wkv.hpp"

namespace wkv::bench {

struct BatchResult {
  int rows = 0;
  Figure tok_s;  ///< of all streams together
};

struct Result {
  std::string model;  ///< the file's path or the synthetic model's description
  ModelInfo info;
  std::string backend;
  std::string device;
  std::string dtype;
  std::string precision;  ///< asked for
  std::string isa;
  int threads = 0;
  int decode_tokens = 0;
  int prefill_tokens = 0;

  Figure load_s;
  Figure first_token_s;  ///< the first token after loading: page faults included
  Figure decode_tok_s;
  Figure prefill_tok_s;
  std::vector<BatchResult> batch;
  Figure peak_rss_bytes;
  Figure weight_bytes_per_token;
  Figure read_bandwidth_gb_s;  ///< of the faster loop, before and after every decode run
  Figure bandwidth_fraction;   ///< decode_tok_s * weight_bytes_per_token / median bandwidth
  /// The same, run by run with the bandwidth measured right before and after it: what holds where
  /// the bandwidth of a shared machine changes by the second.
  Figure paired_fraction;
  /// Hidden units of channel mixes that were not zero while decoding; negative where all weights
  /// are read. The weights of the others are left out, which bandwidth_fraction does not see: it
  /// tells how many times as fast as a dense program at the roof this one is.
  double active_share = -1;
  Figure cpu_share;  ///< CPU time / (wall time * threads) while decoding: below 0.97
                     ///< somebody else used the machine
};

/// Throws wkv::Error, std::runtime_error.
Result measure(const BenchOptions& options, BandwidthProbe& probe);

}  // namespace wkv::bench
