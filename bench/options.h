// The command line of wkv_bench.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "wkv/wkv.hpp"

namespace wkv::bench {

enum class Mode { decode, prefill, batch };

struct BenchOptions {
  Mode mode = Mode::decode;
  std::string model;      ///< a file, or empty
  std::string synthetic;  ///< "v7:24x1024[:vocabulary]", or empty
  DType dtype = DType::automatic;
  MatmulPrecision precision = MatmulPrecision::automatic;
  std::string device = "auto";
  SkipZeros skip_zeros = SkipZeros::automatic;
  int threads = 0;                                   ///< 0: the library's choice
  std::string isa;                                   ///< "" leaves it to WKV_ISA and the processor
  int runs = 0;                                      ///< 0: 5, fewer where one run takes long
  int tokens = 0;                                    ///< 0: per mode
  std::vector<int> rows = {1, 2, 4, 8, 16, 32, 64};  ///< batch
  bool json = false;
  bool help = false;
  bool version = false;
};

/// A command line that cannot be understood; what() says which part and what is allowed.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws UsageError, or wkv::Error for an unknown dtype or precision.
BenchOptions parse_options(int argc, char** argv);

extern const char* const kUsage;

}  // namespace wkv::bench
