// Model::forward: requests are checked, locked, cut into steps and run.
#include <algorithm>
#include <utility>

#include "core/check.h"
#include "runtime/model_impl.h"

namespace wkv {
namespace detail {
namespace {

/// A request with its state found and its rows counted.
struct Stream {
  Request request;
  StateImpl* state = nullptr;
  std::int64_t rows = 0;
};

/// The states of a call: locked, and put back as they were unless commit() is reached.
class Transaction {
 public:
  /// `copies`: whether the call can end half-way, cancelled or since a variant takes no vectors.
  /// Against its two tokens or more a memcpy per state is cheap, also of those that read one.
  Transaction(const std::vector<Stream>& streams, bool copies) {
    locks_.reserve(streams.size());
    for (const Stream& s : streams) locks_.emplace_back(*s.state);
    for (const Stream& s : streams) {
      StateImpl& state = *s.state;
      Buffer copy;
      if (copies) {
        copy = state.backend->allocate(state.bytes());
        state.backend->copy(copy.data(), state.data.data(), state.bytes());
      }
      saved_.push_back({&state, std::move(copy), state.position});
    }
  }
  ~Transaction() {
    if (committed_) return;
    for (Saved& saved : saved_) {
      if (saved.copy) std::swap(saved.state->data, saved.copy);
      saved.state->position = saved.position;
    }
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit() noexcept { committed_ = true; }

 private:
  struct Saved {
    StateImpl* state;
    Buffer copy;
    std::int64_t position;
  };
  std::vector<StateLock> locks_;
  std::vector<Saved> saved_;
  bool committed_ = false;
};

void check_stream(const ModelImpl& m, const Stream& s, std::size_t i, bool vectors) {
  const Request& r = s.request;
  WKV_CHECK(r.tokens.empty() != r.vectors.empty(), invalid_argument, "[forward] request ", i,
            " needs either tokens or vectors, at least one");
  WKV_CHECK(r.vectors.empty() != vectors, invalid_argument,
            "[forward] requests with tokens and with vectors cannot be mixed in one call");
  WKV_CHECK(r.vectors.size() % static_cast<std::size_t>(m.info.n_embd) == 0, invalid_argument,
            "[forward] request ", i, " has ", r.vectors.size(),
            " vector elements, not a multiple of n_embd = ", m.info.n_embd);
  WKV_CHECK(s.state != nullptr, invalid_argument, "[forward] request ", i, " has no state");
  WKV_CHECK(s.state->schema->fingerprint == m.schema->fingerprint &&
                s.state->backend->device() == m.backend->device(),
            invalid_argument, "[forward] the state of request ", i,
            " belongs to another model or device");
  for (std::size_t t = 0; t < r.tokens.size(); ++t)
    WKV_CHECK(r.tokens[t] >= 0 && r.tokens[t] < m.info.n_vocab, invalid_argument,
              "[forward] token ", r.tokens[t], " at index ", t, " is outside the vocabulary [0, ",
              m.info.n_vocab, ')');
}

void check_outputs(const ModelImpl& m, std::size_t rows, std::size_t n_logits,
                   const ForwardOptions& o) {
  const std::size_t wanted = o.skip_logits ? 0 : rows * static_cast<std::size_t>(m.info.n_vocab);
  WKV_CHECK(n_logits == wanted, invalid_argument, "[forward] the logits buffer has ", n_logits,
            " floats where ", wanted, " are needed");
  int previous = -1;
  for (const int layer : o.hidden_layers) {
    WKV_CHECK(layer > previous && layer <= m.info.n_layer, invalid_argument,
              "[forward] hidden layer ", layer, " after ", previous,
              "; layers are ascending, 0 to ", m.info.n_layer);
    previous = layer;
  }
  const std::size_t hidden =
      o.hidden_layers.size() * rows * static_cast<std::size_t>(m.info.n_embd);
  WKV_CHECK(o.hidden.size() == hidden, invalid_argument, "[forward] the hidden buffer has ",
            o.hidden.size(), " floats where ", hidden, " are needed");
}

/// Needs the states' locks: another call may be advancing them.
void check_context(const ModelImpl& m, const std::vector<Stream>& streams) {
  if (!m.info.context_limit) return;
  for (std::size_t i = 0; i < streams.size(); ++i)
    WKV_CHECK(streams[i].state->position + streams[i].rows <= *m.info.context_limit, context_full,
              "[forward] request ", i, " has ", streams[i].rows, " tokens after ",
              streams[i].state->position, "; this model's context ends at ", *m.info.context_limit,
              " tokens");
}

/// Cuts streams into steps of at most max_rows rows, in order.
class Steps {
 public:
  Steps(const std::vector<Stream>& streams, int max_rows, std::int64_t n_embd)
      : streams_(streams), max_rows_(max_rows), n_embd_(n_embd) {}

  bool next(Batch& batch) {
    batch.sequences.clear();
    batch.tokens.clear();
    batch.wanted_rows.clear();
    batch.rows = 0;
    batch.idle = 0;
    vectors_.clear();
    while (stream_ < streams_.size() && batch.rows < max_rows_) {
      const Stream& s = streams_[stream_];
      const int rows =
          static_cast<int>(std::min<std::int64_t>(s.rows - taken_, max_rows_ - batch.rows));
      take(s, rows, batch);
      taken_ += rows;
      if (taken_ == s.rows) {
        ++stream_;
        taken_ = 0;
      }
    }
    batch.inputs = vectors_.empty() ? nullptr : vectors_.data();
    return batch.rows > 0;
  }

 private:
  void take(const Stream& s, int rows, Batch& batch) {
    const Request& r = s.request;
    batch.sequences.push_back(
        {batch.rows, rows, static_cast<float*>(s.state->data.data()), s.state->position});
    if (!r.tokens.empty()) {
      const auto first = r.tokens.begin() + taken_;
      batch.tokens.insert(batch.tokens.end(), first, first + rows);
    } else {
      const auto first = r.vectors.begin() + taken_ * n_embd_;
      vectors_.insert(vectors_.end(), first, first + rows * n_embd_);
    }
    for (int i = 0; i < rows; ++i) {
      const bool last = taken_ + i + 1 == s.rows;
      if (r.want == Logits::all || (r.want == Logits::last && last))
        batch.wanted_rows.push_back(batch.rows + i);
    }
    s.state->position += rows;
    batch.rows += rows;
  }

  const std::vector<Stream>& streams_;
  int max_rows_;
  std::int64_t n_embd_;
  std::vector<float> vectors_;
  std::size_t stream_ = 0;
  std::int64_t taken_ = 0;
};

/// Fills a decoding step up with rows that nobody asked for. They share one state, which nothing
/// reads: what they do to it at the same time does not matter.
void fill_up(ModelImpl& m, Batch& batch) {
  const auto live = static_cast<int>(batch.sequences.size());
  if (batch.rows != live || batch.tokens.empty()) return;
  const int rows = m.backend->decode_rows(live);
  if (rows <= live || rows > m.max_rows) return;
  if (!m.idle_state) {
    const std::vector<float>& initial = m.schema->initial;
    const std::size_t bytes = initial.size() * sizeof(float);
    Buffer state = m.backend->allocate(bytes);
    m.backend->write(state.data(), initial.data(), bytes);
    m.idle_state = std::move(state);
  }
  const bool wanted = batch.wanted_rows.size() == batch.sequences.size();
  for (int row = live; row < rows; ++row) {
    batch.sequences.push_back({row, 1, static_cast<float*>(m.idle_state.data()), 0});
    batch.tokens.push_back(0);
    if (wanted) batch.wanted_rows.push_back(row);
  }
  batch.rows = rows;
  batch.idle = rows - live;
}

/// Where the rows of a call go; `row` counts those already there, `step_rows` those of this step.
struct Outputs {
  float* logits;
  const ForwardOptions& options;
  std::size_t rows;
  std::size_t row = 0;
  std::size_t step_rows = 0;
};

void store_hidden(ModelImpl& m, int layer, Tensor x, const Outputs& out) {
  const auto& layers = out.options.hidden_layers;
  const auto at = std::find(layers.begin(), layers.end(), layer);
  if (at == layers.end() || out.step_rows == 0) return;
  const auto index = static_cast<std::size_t>(at - layers.begin());
  const auto cols = static_cast<std::size_t>(x.cols);
  float* to = out.options.hidden.data() + (index * out.rows + out.row) * cols;
  m.backend->read(to, x.data, out.step_rows * cols * sizeof(float));
}

void store_logits(ModelImpl& m, Step& step, Tensor hidden, const Outputs& out) {
  const int V = m.info.n_vocab;
  float* to = out.logits + out.row * static_cast<std::size_t>(V);
  const bool direct = m.backend->host_memory();
  Tensor y =
      direct ? Tensor{&step, to, hidden.rows, V, V, DType::f32} : step.tensor(hidden.rows, V);
  m.arch->logits(hidden, y);
  if (!direct)
    m.backend->read(to, y.data, out.step_rows * static_cast<std::size_t>(V) * sizeof(float));
}

void run_step(ModelImpl& m, const Batch& batch, const std::function<void()>& poll, Outputs& out) {
  m.arena->reset();
  const auto& wanted = batch.wanted_rows;
  out.step_rows = static_cast<std::size_t>(
      std::lower_bound(wanted.begin(), wanted.end(), batch.rows - batch.idle) - wanted.begin());
  const std::function<void(int, Tensor)> tap = [&](int layer, Tensor x) {
    store_hidden(m, layer, select_rows(x), out);
  };
  Step step{*m.backend, *m.arena, batch, &poll, out.options.hidden_layers.empty() ? nullptr : &tap};
  m.backend->begin(batch);
  try {
    Tensor hidden = m.arch->forward(step);
    if (!batch.wanted_rows.empty()) {
      hidden = m.arch->leave(select_rows(hidden));
      store_hidden(m, m.info.n_layer, hidden, out);
      if (!out.options.skip_logits) store_logits(m, step, hidden, out);
    }
  } catch (...) {
    m.backend->end();
    throw;
  }
  m.backend->end();
  out.row += out.step_rows;
}

}  // namespace
}  // namespace detail

std::size_t Model::logits_rows(std::span<const Request> requests) const noexcept {
  std::size_t rows = 0;
  for (const Request& r : requests) {
    const std::size_t n =
        r.tokens.size() + r.vectors.size() / static_cast<std::size_t>(impl_->info.n_embd);
    rows += r.want == Logits::all ? n : r.want == Logits::last ? 1 : 0;
  }
  return rows;
}

void Model::forward(std::span<const Request> requests, std::span<float> logits,
                    const ForwardOptions& options) {
  detail::ModelImpl& m = *impl_;
  WKV_CHECK(!requests.empty(), invalid_argument, "[forward] no requests");
  std::vector<detail::Stream> streams;
  streams.reserve(requests.size());
  std::int64_t total = 0;
  for (const Request& r : requests) {
    const std::size_t rows =
        r.tokens.size() + r.vectors.size() / static_cast<std::size_t>(m.info.n_embd);
    streams.push_back(
        {r, r.state != nullptr ? r.state->impl_.get() : nullptr, static_cast<std::int64_t>(rows)});
    total += streams.back().rows;
    detail::check_stream(m, streams.back(), streams.size() - 1, !requests[0].vectors.empty());
  }
  const std::size_t rows = logits_rows(requests);
  detail::check_outputs(m, rows, logits.size(), options);

  const bool long_work = total > static_cast<std::int64_t>(streams.size());
  detail::Transaction transaction(streams, long_work || !requests[0].vectors.empty());
  detail::check_context(m, streams);
  const std::lock_guard lock(m.mutex);
  detail::Poll poll(options.progress, "[forward]");
  std::int64_t done = 0;
  const std::function<void()> on_block = [&] {
    if (long_work) poll.report(done, total);
  };
  Batch batch;
  batch.raw_inputs = options.raw_vectors;
  detail::Steps steps(streams, m.max_rows, m.info.n_embd);
  detail::Outputs out{logits.data(), options, rows};
  while (steps.next(batch)) {
    detail::fill_up(m, batch);
    detail::run_step(m, batch, on_block, out);
    done += batch.rows - batch.idle;
  }
  if (long_work) poll.report(done, total, true);
  transaction.commit();
}

void Model::forward(std::span<const Token> tokens, State& state, std::span<float> logits) {
  const Request request{.tokens = tokens, .state = &state};
  forward({&request, 1}, logits);
}

}  // namespace wkv
