#include "options.h"

#include <charconv>
#include <string_view>

#include "wkv/wkv.hpp"

namespace wkv::bench {

const char* const kUsage = R"(usage: wkv_bench [decode|prefill|batch] [options]

Measures a model, or random weights of any version and size, beside the read bandwidth of this
machine in the same run.

  decode               tokens per second of one stream (default)
  prefill              tokens per second of a prompt
  batch                tokens per second of 1 to 64 streams at once

  --model FILE         a .pth or .safetensors checkpoint
  --synthetic SPEC     v7:24x2048[:65536][@0.2], version:layers x channels:vocabulary@share of
                       hidden units that are not zero (default v7:24x1024, 0.4B parameters)
  --dtype NAME         fp32, fp16, bf16, int8, int4, mm8 (default: as stored; synthetic: bf16)
  --precision NAME     auto, exact, fast, w8a8: of prefill, where there are faster units than fp32's
  --device NAME        auto, cpu, cuda, cuda:N (default cpu)
  --threads N          CPU threads (default: physical cores)
  --skip-zeros on|off  hidden units that are zero are not read (default: in quantised models)
  --isa NAME           generic, avx2, avx512, avx512_bf16, amx (default: the best this processor has)
  --runs N             repetitions of each measurement (default 5)
  --tokens N           decode: tokens a run; prefill: tokens of the prompt; batch: tokens a stream
  --rows N,N,...       batch: numbers of streams (default 1,2,4,8,16,32,64)
  --json               one JSON object on standard output, nothing else
  --version, --help
)";

namespace {

int parse_int(std::string_view option, std::string_view text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least)
    throw UsageError(std::string(option) + " wants a number of at least " + std::to_string(least) +
                     ", not '" + std::string(text) + "'");
  return value;
}

std::vector<int> parse_ints(std::string_view option, std::string_view text) {
  std::vector<int> values;
  while (true) {
    const std::size_t comma = text.find(',');
    values.push_back(parse_int(option, text.substr(0, comma), 1));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

BenchOptions parse_options(int argc, char** argv) {
  BenchOptions options;
  options.device = "cpu";
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    if (argument == "decode" || argument == "prefill" || argument == "batch") {
      options.mode = argument == "decode"    ? Mode::decode
                     : argument == "prefill" ? Mode::prefill
                                             : Mode::batch;
      continue;
    }
    if (argument == "--json" || argument == "--help" || argument == "-h" ||
        argument == "--version") {
      (argument == "--json"      ? options.json
       : argument == "--version" ? options.version
                                 : options.help) = true;
      continue;
    }
    std::string_view value;  // "--name value" or "--name=value"
    const std::size_t equals = argument.find('=');
    const bool joined = equals != std::string_view::npos;
    if (joined) {
      value = argument.substr(equals + 1);
      argument = argument.substr(0, equals);
    } else if (i + 1 < argc) {
      value = argv[i + 1];
    }
    if (argument == "--model") {
      options.model = value;
    } else if (argument == "--synthetic") {
      options.synthetic = value;
    } else if (argument == "--dtype") {
      options.dtype = parse_dtype(value);
    } else if (argument == "--precision") {
      options.precision = parse_matmul_precision(value);
    } else if (argument == "--device") {
      options.device = value;
    } else if (argument == "--skip-zeros") {
      if (value != "on" && value != "off")
        throw UsageError("--skip-zeros wants on or off, not '" + std::string(value) + "'");
      options.skip_zeros = value == "on" ? SkipZeros::on : SkipZeros::off;
    } else if (argument == "--threads") {
      options.threads = parse_int(argument, value, 1);
    } else if (argument == "--isa") {
      options.isa = value;
    } else if (argument == "--runs") {
      options.runs = parse_int(argument, value, 1);
    } else if (argument == "--tokens") {
      options.tokens = parse_int(argument, value, 1);
    } else if (argument == "--rows") {
      options.rows = parse_ints(argument, value);
    } else {
      throw UsageError("unknown argument '" + std::string(argument) + "'");
    }
    if (value.empty()) throw UsageError(std::string(argument) + " wants a value");
    if (!joined) ++i;
  }
  if (!options.model.empty() && !options.synthetic.empty())
    throw UsageError("--model and --synthetic exclude each other");
  if (options.model.empty() && options.synthetic.empty()) options.synthetic = "v7:24x1024";
  return options;
}

}  // namespace wkv::bench
