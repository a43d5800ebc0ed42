// wkv_bench: how fast a model runs here, beside what the memory of this machine allows.
// Exit status: 0 done, 1 the measurement failed, 2 the command line is wrong.
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>

#include "bandwidth.h"
#include "measure.h"
#include "options.h"
#include "report.h"

int main(int argc, char** argv) {
  using namespace wkv::bench;
  try {
    const BenchOptions options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(kUsage, stdout);
      return 0;
    }
    if (options.version) {
      std::printf("wkv_bench %s\n", std::string(wkv::version()).c_str());
      return 0;
    }
    if (!options.isa.empty()) setenv("WKV_ISA", options.isa.c_str(), 1);
    std::signal(SIGPIPE, SIG_IGN);
    BandwidthProbe probe;
    const Result result = measure(options, probe);
    const std::string text = options.json ? json(result) : table(result);
    std::fputs(text.c_str(), stdout);
    if (std::fflush(stdout) != 0)
      throw std::runtime_error("cannot write to standard output: " +
                               std::generic_category().message(errno));
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "wkv_bench: %s (see wkv_bench --help)\n", error.what());
    return 2;
  } catch (const wkv::Error& error) {
    std::fprintf(stderr, "wkv_bench: %s\n", error.what());
    return error.code() == wkv::ErrorCode::invalid_argument ? 2 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wkv_bench: %s\n", error.what());
    return 1;
  }
}
