#include "cuda/device_sampler.h"

#include "core/check.h"

namespace wkv::cuda {

DeviceSampler::DeviceSampler(CudaBackend& backend, int rows, int vocab)
    : backend_(backend), params_(zeroed<SampleParams>()) {
  const int chunks = sample_chunks(vocab);
  WKV_CHECK(rows > 0 && vocab > 0 && chunks <= kSampleMaxChunks, unsupported, "[sample] ", rows,
            " rows of ", vocab, " logits; the device takes up to ",
            kSampleMaxChunks * kSampleChunk);
  const auto n = static_cast<std::size_t>(rows), v = static_cast<std::size_t>(vocab);
  const auto c = static_cast<std::size_t>(chunks), padded = c * kSampleChunk;
  constexpr std::size_t kAlign = 256;
  std::size_t bytes = 0;
  const auto take = [&](std::size_t size) {
    const std::size_t at = bytes;
    bytes += (size + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  const std::size_t sampler = take(n * sizeof(SamplerState)), counts = take(n * v * sizeof(double)),
                    sums = take(n * c * sizeof(double)), tokens = take(n * v * 4),
                    x = take(n * padded * 4), e = take(n * padded * 4),
                    weights = take(n * padded * 4), maxima = take(n * c * 4),
                    ids = take(n * 2 * padded * 4), out = take(n * 4);
  memory_ = backend.allocate(bytes);
  const auto at = [&]<class T>(T*& pointer, std::size_t offset) {
    pointer = reinterpret_cast<T*>(static_cast<char*>(memory_.data()) + offset);
  };
  at(params_.sampler, sampler);
  at(params_.seen_counts, counts);
  at(params_.sums, sums);
  at(params_.seen_tokens, tokens);
  at(params_.x, x);
  at(params_.e, e);
  at(params_.weights, weights);
  at(params_.maxima, maxima);
  at(params_.ids, ids);
  at(params_.out, out);
  params_.rows = rows;
  params_.vocab = vocab;
}

bool DeviceSampler::supports(const SamplingParams& p) noexcept {
  return p.variant == SamplerVariant::pip && p.min_p == 0 && p.typical >= 1 && p.top_a == 0 &&
         p.top_p_x == 0 && p.uncounted.empty() && p.bias.empty() && p.ban.empty();
}

void DeviceSampler::start(int row, const SamplingParams& p, std::uint64_t draws) {
  WKV_CHECK(row >= 0 && row < params_.rows, invalid_argument, "[sample] row ", row, " of ",
            params_.rows);
  WKV_CHECK(supports(p), unsupported,
            "[sample] the device knows temperature, top-k, top-p and "
            "penalties of variant pip; sample on the CPU");
  auto state = zeroed<SamplerState>();
  state.temperature = p.temperature;
  state.top_p = p.top_p;
  state.top_k = p.top_k;
  state.presence_penalty = p.presence_penalty;
  state.frequency_penalty = p.frequency_penalty;
  state.penalty_decay = p.penalty_decay;
  state.seed = p.seed;
  state.draws = draws;
  backend_.write(params_.sampler + row, &state, sizeof state);
}

void DeviceSampler::sample(Tensor logits) {
  WKV_CHECK(logits.rows == params_.rows && logits.cols == params_.vocab, internal, "[sample] [",
            logits.rows, ", ", logits.cols, "] logits where [", params_.rows, ", ", params_.vocab,
            "] are needed");
  SampleParams p = params_;
  p.logits = logits.f32();
  p.ldlogits = logits.stride;
  backend_.sample(p);
}

std::vector<Token> DeviceSampler::tokens() {
  std::vector<Token> result(static_cast<std::size_t>(params_.rows));
  backend_.read(result.data(), params_.out, result.size() * sizeof(Token));
  for (std::size_t i = 0; i < result.size(); ++i)
    WKV_CHECK(result[i] >= 0, invalid_argument, "[sample] row ", i, " of the logits holds NaN or ",
              "infinity, or nothing above -infinity");
  return result;
}

}  // namespace wkv::cuda
