#include "measure.h"

#include <sys/resource.h>

#include <chrono>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <stdexcept>

namespace wkv::bench {
namespace {

// A measurement that was not asked for in so many runs stops after this long.
constexpr double kPatienceSeconds = 8;
constexpr int kRuns = 5;

class Timer {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Ids all over the vocabulary; which ones does not matter to speed, that they differ does.
std::vector<Token> some_tokens(int n, int n_vocab) {
  std::vector<Token> tokens(static_cast<std::size_t>(n));
  std::uint32_t x = 1;
  for (Token& token : tokens) {
    x = x * 1664525u + 1013904223u;
    token = static_cast<Token>((x >> 8) % static_cast<std::uint32_t>(n_vocab));
  }
  return tokens;
}

/// The number in "cpu avx512, 2 threads", or 0.
int threads_of(const std::string& backend) {
  const std::size_t word = backend.find(" thread");
  if (word == std::string::npos) return 0;
  std::size_t digits = word;
  while (digits > 0 && backend[digits - 1] >= '0' && backend[digits - 1] <= '9') --digits;
  return std::atoi(backend.c_str() + digits);
}

std::string active_isa() {
  for (const IsaInfo& isa : isas())
    if (isa.active) return isa.name;
  return "";
}

class Bench {
 public:
  Bench(const BenchOptions& options, BandwidthProbe& probe) : options_(options), probe_(probe) {}

  Result run() {
    load();
    const bool full_decode = options_.mode == Mode::decode;
    const bool full_prefill = options_.mode == Mode::prefill;
    measure_decode(full_decode && options_.tokens > 0 ? options_.tokens : 0, full_decode);
    measure_prefill(full_prefill && options_.tokens > 0 ? options_.tokens : 0, full_prefill);
    if (options_.mode == Mode::batch) measure_batches();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    result_.peak_rss_bytes = exactly(1024.0 * static_cast<double>(usage.ru_maxrss));
    summarise_bandwidth();
    return result_;
  }

 private:
  Model& model() { return *model_; }
  std::size_t n_vocab() { return static_cast<std::size_t>(result_.info.n_vocab); }

  void load() {
    std::shared_ptr<const TensorSource> source;
    if (!options_.synthetic.empty()) {
      const DType d = options_.dtype;
      const bool stored = d == DType::f32 || d == DType::f16 || d == DType::bf16;
      source = synthetic_checkpoint(options_.synthetic, stored ? d : DType::bf16);
      result_.model = source->description();
    } else {
      result_.model = options_.model;
    }
    Options load_options;
    load_options.device = options_.device;
    load_options.dtype = options_.dtype;
    load_options.threads = options_.threads;
    load_options.skip_zeros = options_.skip_zeros;
    load_options.matmul_precision = options_.precision;
    std::vector<double> seconds;
    const Timer all;
    do {
      model_.reset();  // one model at a time in memory
      const Timer timer;
      model_.emplace(source ? Model::load(source, load_options)
                            : Model::load(options_.model, load_options));
      seconds.push_back(timer.seconds());
    } while (seconds.size() < 3 && all.seconds() < 1);
    result_.load_s = summarise(seconds);

    result_.info = model().info();
    result_.backend = model().backend();
    result_.device = model().device();
    result_.dtype = dtype_name(model().dtype());
    result_.precision = matmul_precision_name(options_.precision);
    const bool cpu = result_.device == "cpu";
    result_.isa = cpu ? active_isa() : "";
    result_.threads = cpu && options_.threads > 0 ? options_.threads : threads_of(result_.backend);
    result_.weight_bytes_per_token = exactly(static_cast<double>(model().weight_bytes_per_token()));

    State state = model().new_state();
    std::vector<float> logits(n_vocab());
    const Timer timer;
    model().forward(some_tokens(1, result_.info.n_vocab), state, logits);
    result_.first_token_s = exactly(timer.seconds());
  }

  int runs_wanted(bool full) const {
    if (!full) return 3;
    return options_.runs > 0 ? options_.runs : kRuns;
  }
  /// True while another run is due: those asked for, or as many as patience allows.
  bool another(std::size_t done, bool full, double seconds) const {
    if (done == 0) return true;
    if (full && options_.runs > 0) return done < static_cast<std::size_t>(options_.runs);
    const double patience = full ? kPatienceSeconds : kPatienceSeconds / 2;
    return done < static_cast<std::size_t>(runs_wanted(full)) && seconds < patience;
  }

  /// One run: `tokens` steps of `rows` streams. Returns tokens of all streams per second.
  double decode(std::vector<State>& states, int tokens) {
    const std::vector<Token> ids =
        some_tokens(tokens * static_cast<int>(states.size()), result_.info.n_vocab);
    std::vector<float> logits(states.size() * n_vocab());
    std::vector<Request> requests(states.size());
    const Timer timer;
    for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
      for (std::size_t s = 0; s < states.size(); ++s)
        requests[s] = {std::span(ids).subspan(t * states.size() + s, 1), &states[s], Logits::last};
      model().forward(requests, logits);
    }
    return static_cast<double>(ids.size()) / timer.seconds();
  }

  /// How many steps take about a second (the short form: a third), from one that is timed.
  int steps_of_a_second(std::vector<State>& states, bool full) {
    decode(states, 1);
    const double per_second = decode(states, 2) / static_cast<double>(states.size());
    return std::clamp(static_cast<int>(per_second * (full ? 1.0 : 0.3)), 2, 4096);
  }

  void measure_decode(int tokens, bool full) {
    std::vector<State> states;
    states.push_back(model().new_state());
    const int steps = steps_of_a_second(states, full);
    if (tokens == 0) tokens = steps;
    std::vector<double> tok_s;
    std::vector<double> cpu_share;
    const HiddenUnits before = model().hidden_units();
    std::vector<double> bandwidths{measure_bandwidth()};
    double probing = 0;
    const Timer all;
    while (another(tok_s.size(), full, all.seconds() - probing)) {
      const Timer timer;
      const double cpu = cpu_seconds();
      tok_s.push_back(decode(states, tokens));
      const double capacity = timer.seconds() * std::max(result_.threads, 1);
      cpu_share.push_back((cpu_seconds() - cpu) / capacity);
      const Timer probe;
      bandwidths.push_back(measure_bandwidth());
      probing += probe.seconds();
    }
    std::vector<double> paired;
    for (std::size_t i = 0; i < tok_s.size(); ++i)
      paired.push_back(tok_s[i] * result_.weight_bytes_per_token.median /
                       (0.5e9 * (bandwidths[i] + bandwidths[i + 1])));
    result_.paired_fraction = summarise(paired);
    const HiddenUnits after = model().hidden_units();
    if (after.seen > before.seen)
      result_.active_share = static_cast<double>(after.active - before.active) /
                             static_cast<double>(after.seen - before.seen);
    result_.decode_tokens = tokens;
    result_.decode_tok_s = summarise(tok_s);
    result_.cpu_share = summarise(cpu_share);
  }

  double prefill(int tokens) {
    const std::vector<Token> ids = some_tokens(tokens, result_.info.n_vocab);
    State state = model().new_state();
    std::vector<float> logits(n_vocab());
    const Timer timer;
    model().forward(ids, state, logits);
    return static_cast<double>(tokens) / timer.seconds();
  }

  void measure_prefill(int tokens, bool full) {
    const double warm = prefill(tokens > 0 ? std::min(tokens, 32) : 32);
    if (tokens == 0) {
      tokens = 256;
      // A slow tier or a large model is timed on a shorter prompt rather than for a minute.
      while (tokens > 32 && tokens / warm > kPatienceSeconds / 2) tokens /= 2;
    }
    std::vector<double> tok_s;
    const Timer all;
    while (another(tok_s.size(), full, all.seconds())) tok_s.push_back(prefill(tokens));
    result_.prefill_tokens = tokens;
    result_.prefill_tok_s = summarise(tok_s);
  }

  void measure_batches() {
    for (const int rows : options_.rows) {
      std::vector<State> states;
      for (int i = 0; i < rows; ++i) states.push_back(model().new_state());
      const int steps = steps_of_a_second(states, false);
      const int tokens = options_.tokens > 0 ? options_.tokens : steps;
      std::vector<double> tok_s;
      const Timer all;
      while (another(tok_s.size(), options_.runs > 0, all.seconds()))
        tok_s.push_back(decode(states, tokens));
      result_.batch.push_back({rows, summarise(tok_s)});
    }
  }

  double measure_bandwidth() {
    BandwidthSamples samples;
    probe_.measure(std::max(result_.threads, 1), samples);
    bandwidth_.append(samples);
    return samples.best().median;
  }

  void summarise_bandwidth() {
    result_.read_bandwidth_gb_s = bandwidth_.best();
    result_.bandwidth_fraction = result_.decode_tok_s.scaled(
        result_.weight_bytes_per_token.median / (1e9 * result_.read_bandwidth_gb_s.median));
  }

  const BenchOptions& options_;
  BandwidthProbe& probe_;
  BandwidthSamples bandwidth_;
  std::optional<Model> model_;
  Result result_;
};

}  // namespace

Result measure(const BenchOptions& options, BandwidthProbe& probe) {
  return Bench(options, probe).run();
}

}  // namespace wkv::bench
