// Draws a token for each row of logits: penalties, greedy or top-k, top-p and temperature, with the
// choices of the CPU's sampler (cpp/src/text) to the last bit. One block per row. Where the order
// of a sum matters it is the CPU's: 16 lanes for each chunk of 256, then chunk after chunk.
// Compiled without fused multiply-adds, as the CPU's is.
#include "cuda/kernels.h"
#include "cuda/platform.cuh"
#include "text/philox.h"
#include "text/scalar_math.h"

namespace wkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = kSampleChunk;
constexpr int kLanes = 16;  // sums of a chunk
constexpr int kBuckets = 2048;

WKV_DEV std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
WKV_DEV float float_of(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
WKV_DEV float minus_infinity() { return float_of(0xff800000u); }

/// Orders floats as unsigned integers, the largest first; and back.
WKV_DEV std::uint32_t descending_key(float x) {
  const std::uint32_t bits = bits_of(x + 0.0f);  // -0 equals 0
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}
WKV_DEV float from_descending_key(std::uint32_t key) {
  return float_of(key >> 31 ? key : ~key & 0x7fffffffu);
}

/// What the threads of a block share.
struct Shared {
  unsigned long long bucket[kBuckets];
  float lanes[4][kThreads];
  int start[kSampleMaxChunks];  // of a chunk in a list
  int ties[kSampleMaxChunks];   // before a chunk
  float maximum;
  double total, sums[4], before;
  std::uint32_t key;
  int count, token, found, few;
};

/// One row's sampling; every method is called by all threads of its block.
class Row {
 public:
  WKV_DEV Row(const SampleParams& p, Shared& s)
      : s_(s), thread_(static_cast<int>(threadIdx.x)), vocab_(p.vocab) {
    const std::int64_t row = blockIdx.x;
    const std::int64_t size = std::int64_t{sample_chunks(p.vocab)} * kChunk;
    chunks_ = sample_chunks(p.vocab);
    logits_ = p.logits + row * p.ldlogits;
    x_ = p.x + row * size;
    e_ = p.e + row * size;
    weights_ = p.weights + row * size;
    ids_ = p.ids + row * 2 * size;
    spare_ = ids_ + size;
    sums_ = p.sums + row * chunks_;
    maxima_ = p.maxima + row * chunks_;
    seen_tokens_ = p.seen_tokens + row * p.vocab;
    seen_counts_ = p.seen_counts + row * p.vocab;
    sampler_ = p.sampler + row;
    out_ = p.out + row;
  }

  WKV_DEV void run() {
    adjust();
    find_maxima();
    if (!(s_.maximum > minus_infinity()) || s_.maximum > 3.4028235e38f) return give_up();
    if (sampler_->temperature == 0.0) {
      take_greedy();
    } else {
      const bool cut_k = sampler_->top_k > 0 && sampler_->top_k < vocab_;
      const bool cut_p = sampler_->top_p < 1.0;
      if (cut_k) cut_top_k();
      if (cut_p) cut_top_p();
      weigh();
      pick();
    }
    accept();
  }

 private:
  WKV_DEV bool penalised() const {
    return sampler_->presence_penalty != 0.0 || sampler_->frequency_penalty != 0.0;
  }

  WKV_DEV void adjust() {
    for (int i = thread_; i < chunks_ * kChunk; i += kThreads)
      x_[i] = i < vocab_ ? logits_[i] : minus_infinity();
    __syncthreads();
    if (penalised())
      for (int i = thread_; i < sampler_->seen; i += kThreads)
        x_[seen_tokens_[i]] -= static_cast<float>(sampler_->presence_penalty +
                                                  seen_counts_[i] * sampler_->frequency_penalty);
    __syncthreads();
  }

  /// The largest logit of every chunk and of all; NaN if there is one.
  WKV_DEV void find_maxima() {
    for (int c = thread_; c < chunks_; c += kThreads) {
      float largest = x_[c * kChunk];
      bool ordered = largest == largest;
      for (int i = 1; i < kChunk; ++i) {
        const float v = x_[c * kChunk + i];
        ordered = ordered && v == v;
        if (v > largest) largest = v;
      }
      maxima_[c] = ordered ? largest : float_of(0x7fc00000u);
    }
    __syncthreads();
    if (thread_ == 0) {
      float largest = maxima_[0];
      for (int c = 1; c < chunks_; ++c)
        if (!(maxima_[c] <= largest)) largest = maxima_[c];  // NaN wins, and stays
      s_.maximum = largest;
    }
    __syncthreads();
  }

  WKV_DEV void give_up() {
    if (thread_ == 0) *out_ = -1;
  }

  WKV_DEV void take_greedy() {
    if (thread_ == 0) {
      int i = 0;
      while (maxima_[i / kChunk] != s_.maximum) i += kChunk;
      while (x_[i] != s_.maximum) ++i;
      s_.token = i;
      ++sampler_->draws;
    }
    __syncthreads();
  }

  /// sums[c] = the sum over chunk c of value(i), in the CPU's order; then s_.total of all.
  template <class Value>
  WKV_DEV void sum_chunks(int chunks, Value&& value) {
    for (int base = 0; base < chunks * kLanes; base += kThreads) {
      const int c = (base + thread_) / kLanes, lane = thread_ % kLanes;
      float sum = 0.0f;
      if (c < chunks)
        for (int j = 0; j < kChunk; j += kLanes) sum += value(c * kChunk + j + lane);
      s_.lanes[0][thread_] = sum;
      __syncthreads();
      if (lane == 0 && c < chunks) sums_[c] = sum_lanes(s_.lanes[0] + thread_);
      __syncthreads();
    }
    if (thread_ == 0) {
      double total = 0.0;
      for (int c = 0; c < chunks; ++c) total += sums_[c];
      s_.total = total;
    }
    __syncthreads();
  }
  WKV_DEV static double sum_lanes(const float* lane) {
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = (lane[i] + lane[i + 4]) + (lane[i + 8] + lane[i + 12]);
    return (static_cast<double>(four[0]) + static_cast<double>(four[1])) +
           (static_cast<double>(four[2]) + static_cast<double>(four[3]));
  }

  WKV_DEV void clear_buckets() {
    for (int b = thread_; b < kBuckets; b += kThreads) s_.bucket[b] = 0;
    __syncthreads();
  }

  /// Keeps the k largest; of those that equal the k-th the ones with higher ids, as variant pip.
  WKV_DEV void cut_top_k() {
    const auto k = static_cast<unsigned long long>(sampler_->top_k);
    std::uint32_t prefix = 0;
    unsigned long long above = 0, at = 0;
    for (int level = 0; level < 3; ++level) {
      const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
      const std::uint32_t mask = level == 2 ? 1023u : 2047u;
      clear_buckets();
      for (int i = thread_; i < vocab_; i += kThreads) {
        const std::uint32_t key = descending_key(x_[i]);
        if (level > 0 && key >> (level == 1 ? 21 : 10) != prefix) continue;
        add_shared(&s_.bucket[(key >> shift) & mask], 1);
      }
      __syncthreads();
      // Every thread finds the same bucket.
      std::uint32_t b = 0;
      while (above + s_.bucket[b] < k) above += s_.bucket[b++];
      at = s_.bucket[b];
      prefix = level == 0 ? b : prefix << (level == 1 ? 11 : 10) | b;
      __syncthreads();
    }
    const float bound = from_descending_key(prefix);
    if (!(bound > minus_infinity())) return;
    const auto keep = static_cast<int>(k - above), equal = static_cast<int>(at);
    list_from(bound, equal - keep, keep);
  }

  /// Lists the tokens from `bound` on, ascending; of those that equal it, `keep` after `skip`.
  WKV_DEV void list_from(float bound, int skip, int keep) {
    const auto kept_ties = [&](int first, int last) {  // of ties number first .. last - 1
      const int from = first > skip ? first : skip;
      const int to = last < skip + keep ? last : skip + keep;
      return to > from ? to - from : 0;
    };
    for (int c = thread_; c < chunks_; c += kThreads) {
      int above = 0, equal = 0;
      for (int i = c * kChunk; i < (c + 1) * kChunk && i < vocab_; ++i) {
        above += x_[i] > bound ? 1 : 0;
        equal += x_[i] == bound ? 1 : 0;
      }
      s_.start[c] = above;
      s_.ties[c] = equal;
    }
    __syncthreads();
    if (thread_ == 0) {
      int start = 0, ties = 0;
      for (int c = 0; c < chunks_; ++c) {
        const int n = s_.start[c] + kept_ties(ties, ties + s_.ties[c]);
        const int equal = s_.ties[c];
        s_.start[c] = start;
        s_.ties[c] = ties;
        start += n;
        ties += equal;
      }
      s_.count = start;
    }
    __syncthreads();
    for (int c = thread_; c < chunks_; c += kThreads) {
      int to = s_.start[c], tie = s_.ties[c];
      for (int i = c * kChunk; i < (c + 1) * kChunk && i < vocab_; ++i) {
        bool in = x_[i] > bound;
        if (x_[i] == bound) {
          in = kept_ties(tie, tie + 1) == 1;
          ++tie;
        }
        if (in) ids_[to++] = i;
      }
    }
    listed_ = true;
    __syncthreads();
  }

  /// Leaves those of the list whose e is at least `low`.
  WKV_DEV void filter_list(float low) {
    const int n = s_.count, parts = (n + kChunk - 1) / kChunk;
    for (int c = thread_; c < parts; c += kThreads) {
      int kept = 0;
      for (int i = c * kChunk; i < (c + 1) * kChunk && i < n; ++i)
        kept += e_[ids_[i]] >= low ? 1 : 0;
      s_.start[c] = kept;
    }
    __syncthreads();
    if (thread_ == 0) {
      int start = 0;
      for (int c = 0; c < parts; ++c) {
        const int kept = s_.start[c];
        s_.start[c] = start;
        start += kept;
      }
      s_.count = start;
    }
    __syncthreads();
    for (int c = thread_; c < parts; c += kThreads) {
      int to = s_.start[c];
      for (int i = c * kChunk; i < (c + 1) * kChunk && i < n; ++i)
        if (e_[ids_[i]] >= low) spare_[to++] = ids_[i];
    }
    __syncthreads();
    std::int32_t* const other = ids_;
    ids_ = spare_;
    spare_ = other;
  }

  /// Where the sum of e, the largest first, reaches `bound`: its key in s_.key, if s_.found. Items:
  /// e(i) for i < n, those outside [low, end) and zeros left out. Values in one of the 2048 buckets
  /// have one exponent, so sums of their mantissas are exact in any order.
  template <class Value>
  WKV_DEV void cross(int n, Value&& e, float low, float end, double bound, double before,
                     bool must) {
    if (thread_ == 0) {
      s_.before = before;
      s_.key = 0;
      s_.found = 1;
    }
    for (int level = 0; level < 3; ++level) {
      const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
      const std::uint32_t mask = level == 2 ? 1023u : 2047u;
      clear_buckets();
      const std::uint32_t prefix = s_.key;
      for (int i = thread_; i < n; i += kThreads) {
        const float v = e(i);
        if (!(v > 0.0f && v >= low && v < end)) continue;
        const std::uint32_t key = descending_key(v);
        if (level > 0 && key >> (level == 1 ? 21 : 10) != prefix) continue;
        add_shared(&s_.bucket[(key >> shift) & mask], (bits_of(v) & 0x7fffffu) | 0x800000u);
      }
      __syncthreads();
      if (thread_ == 0) find_bucket(level, mask, bound, must || level > 0);
      __syncthreads();
      if (s_.found == 0) return;
    }
  }
  WKV_DEV void find_bucket(int level, std::uint32_t mask, double bound, bool surely) {
    double so_far = s_.before;
    int found = -1, last = -1;
    double before_last = so_far;
    for (std::uint32_t b = 0; b <= mask; ++b) {
      if (s_.bucket[b] == 0) continue;
      // The exponent of the values in it: the upper bits of their keys are those of the prefix.
      const std::uint32_t top = level == 0 ? b : level == 1 ? s_.key : s_.key >> 11;
      const std::uint32_t exponent = (~(top << 21) & 0x7fffffffu) >> 23;
      const std::uint64_t scale = static_cast<std::uint64_t>(exponent + 1023 - 150) << 52;
      double unit;
      memcpy(&unit, &scale, sizeof unit);
      const double sum = so_far + static_cast<double>(s_.bucket[b]) * unit;
      last = static_cast<int>(b);
      before_last = so_far;
      if (sum >= bound) {
        found = last;
        break;
      }
      so_far = sum;
    }
    if (found < 0 && surely) found = last;
    s_.found = found >= 0 ? 1 : 0;
    s_.before = before_last;
    if (found < 0) return;
    const auto b = static_cast<std::uint32_t>(found);
    s_.key = level == 0 ? b : s_.key << (level == 1 ? 11 : 10) | b;
  }

  /// The same over all tokens, narrowed down first as the CPU does, whose sums are rounded.
  WKV_DEV void cross_all(double bound) {
    std::uint32_t low = 0, end = bits_of(1.0f) + 1, try_from = end - (15u << 23);
    double above_end = 0.0;
    for (int pass = 0; (pass < 4 || low == 0) && end - low > 64; ++pass) {
      const std::uint32_t from = low > 0 ? low : try_from;
      std::uint32_t at[4];
      for (std::uint32_t k = 0; k < 4; ++k)
        at[k] = low > 0 ? from + (end - from) / 5 * (4 - k) : from + (end - from) / 4 * (3 - k);
      mass_above(at);
      for (int k = 0; k < 4; ++k) {
        if (s_.sums[k] > 0.0 && s_.sums[k] >= bound) {
          low = at[k];
          break;
        }
        end = at[k];
        above_end = s_.sums[k];
      }
      __syncthreads();
      if (low > 0) continue;
      if (try_from == 1) {
        if (thread_ == 0) s_.found = 0;
        __syncthreads();
        return;
      }
      try_from = try_from > 40u << 23 ? try_from - (40u << 23) : 1;
    }
    cross(
        vocab_, [this](int i) { return e_[i]; }, float_of(low), float_of(end), bound, above_end,
        true);
  }
  /// s_.sums[k] = the sum of those e that are at least the float of bits[k].
  WKV_DEV void mass_above(const std::uint32_t (&bits)[4]) {
    double totals[4] = {};
    for (int base = 0; base < chunks_ * kLanes; base += kThreads) {
      const int c = (base + thread_) / kLanes, lane = thread_ % kLanes;
      float sum[4] = {};
      if (c < chunks_)
        for (int j = 0; j < kChunk; j += kLanes) {
          const float v = e_[c * kChunk + j + lane];
          for (int k = 0; k < 4; ++k) sum[k] += v >= float_of(bits[k]) ? v : 0.0f;
        }
      for (int k = 0; k < 4; ++k) s_.lanes[k][thread_] = sum[k];
      __syncthreads();
      if (thread_ == 0)
        for (int k = 0; k < 4; ++k)
          for (int i = 0; i < kThreads / kLanes && base / kLanes + i < chunks_; ++i)
            totals[k] += sum_lanes(s_.lanes[k] + i * kLanes);
      __syncthreads();
    }
    if (thread_ == 0)
      for (int k = 0; k < 4; ++k) s_.sums[k] = totals[k];
    __syncthreads();
  }

  WKV_DEV void cut_top_p() {
    sum_chunks(chunks_, [this](int i) {
      e_[i] = detail::exp_nonpositive(x_[i] - s_.maximum);
      return e_[i];
    });
    const double bound = sampler_->top_p * s_.total;
    const auto of_list = [this](int i) { return e_[ids_[i]]; };
    constexpr float kAll = 2.0f;
    bool found = false;
    if (listed_) {
      cross(s_.count, of_list, 0.0f, kAll, bound, 0.0, false);
      found = s_.found != 0;
    } else {
      // Most text needs few tokens: look among those above e^-8 first, if few chunks have such.
      const float likely = s_.maximum - 8.0f;
      if (thread_ == 0) {
        int hits = 0;
        for (int c = 0; c < chunks_; ++c) hits += maxima_[c] >= likely ? 1 : 0;
        s_.few = hits * 4 <= chunks_ ? 1 : 0;
      }
      __syncthreads();
      if (s_.few != 0) {
        list_from(likely, 0, vocab_);
        cross(s_.count, of_list, 0.0f, kAll, bound, 0.0, false);
        found = s_.found != 0;
        listed_ = found;
      }
      if (!found) {
        cross_all(bound);
        found = s_.found != 0;
      }
    }
    if (!found) return;
    const float cutoff = from_descending_key(s_.key);
    __syncthreads();
    if (listed_)
      filter_list(cutoff);
    else
      least_ = cutoff;
  }

  /// Weights and their sums, of the list or of all tokens.
  WKV_DEV void weigh() {
    const double inverse = 1.0 / sampler_->temperature;
    const auto scale = static_cast<float>(inverse < 1e30 ? inverse : 1e30);
    if (!listed_) {
      sum_chunks(chunks_, [&](int i) {
        float w = detail::exp_nonpositive((x_[i] - s_.maximum) * scale);
        if (least_ > 0.0f && !(e_[i] >= least_)) w = 0.0f;
        weights_[i] = w;
        return w;
      });
      count_ = chunks_ * kChunk;
      return;
    }
    const int n = s_.count, parts = (n + kChunk - 1) / kChunk;
    if (thread_ == 0) {
      float largest = minus_infinity();
      for (int i = 0; i < n; ++i) largest = x_[ids_[i]] > largest ? x_[ids_[i]] : largest;
      s_.maximum = largest;
    }
    __syncthreads();
    sum_chunks(parts, [&](int i) {
      const float w = i < n ? detail::exp_nonpositive((x_[ids_[i]] - s_.maximum) * scale) : 0.0f;
      weights_[i] = w;
      return w;
    });
    count_ = parts * kChunk;
  }

  WKV_DEV void pick() {
    if (thread_ == 0) {
      double target = detail::uniform(sampler_->seed, sampler_->draws) * s_.total;
      ++sampler_->draws;
      const int parts = count_ / kChunk;
      int chunk = 0;
      while (chunk + 1 < parts && target >= sums_[chunk]) target -= sums_[chunk++];
      int i = chunk * kChunk;
      for (; i < count_; ++i) {
        target -= static_cast<double>(weights_[i]);
        if (target < 0.0) break;
      }
      if (i == count_) {  // the sums' rounding left a grain beyond the last token
        --i;
        while (i > 0 && weights_[i] <= 0.0f) --i;
      }
      s_.token = listed_ ? ids_[i] : i;
    }
    __syncthreads();
  }

  WKV_DEV void accept() {
    const int token = s_.token;
    if (thread_ == 0) {
      *out_ = token;
      s_.few = 1;
    }
    if (!penalised()) return;
    __syncthreads();
    for (int i = thread_; i < sampler_->seen; i += kThreads) {
      seen_counts_[i] *= sampler_->penalty_decay;
      if (seen_tokens_[i] != token) continue;
      seen_counts_[i] += 1.0;
      s_.few = 0;
    }
    __syncthreads();
    if (thread_ != 0 || s_.few == 0) return;
    seen_tokens_[sampler_->seen] = token;
    seen_counts_[sampler_->seen] = 1.0;
    ++sampler_->seen;
  }

  Shared& s_;
  int thread_, vocab_, chunks_;
  const float* logits_;
  float *x_, *e_, *weights_, *maxima_;
  std::int32_t *ids_, *spare_;
  double* sums_;
  std::int32_t* seen_tokens_;
  double* seen_counts_;
  SamplerState* sampler_;
  std::int32_t* out_;
  bool listed_ = false;
  float least_ = 0.0f;  // e of a token that stays, without a list
  int count_ = 0;       // of weights
};

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParams p) {
  __shared__ Shared shared;
  wait_for_previous_kernel();
  Row(p, shared).run();
}

}  // namespace

void sample(Launch& out, const SampleParams& p) {
  make_launch(out, sample_kernel, static_cast<unsigned>(p.rows), 1, 1, kThreads, 0, p);
}

}  // namespace wkv::cuda
