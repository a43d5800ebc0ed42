// Model and State through the public interface: states as values, transactions, threads.
#include <doctest/doctest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "wkv/wkv.hpp"

namespace {

using wkv::ErrorCode;
using wkv::Logits;
using wkv::Model;
using wkv::Request;
using wkv::State;
using wkv::Token;

Model small_model(const char* spec = "v7:2x128:97", int threads = 2, int max_rows = 0) {
  wkv::Options options;
  options.device = "cpu";
  options.threads = threads;
  options.max_rows = max_rows;
  return Model::load(wkv::synthetic_checkpoint(spec, wkv::DType::f32), options);
}

std::vector<Token> some_tokens(std::size_t n, int vocab = 97) {
  std::vector<Token> tokens(n);
  for (std::size_t i = 0; i < n; ++i)
    tokens[i] = static_cast<Token>((i * 31 + 7) % static_cast<std::size_t>(vocab));
  return tokens;
}

std::vector<float> last_logits(Model& model, std::span<const Token> tokens, State& state) {
  std::vector<float> logits(static_cast<std::size_t>(model.info().n_vocab));
  model.forward(tokens, state, logits);
  return logits;
}

template <class F>
ErrorCode code_of(F f) {
  try {
    f();
  } catch (const wkv::Error& e) {
    return e.code();
  }
  return ErrorCode::internal;
}

}  // namespace

TEST_CASE("a copied state goes its own way") {
  Model model = small_model();
  State a = model.new_state();
  last_logits(model, some_tokens(5), a);
  State b = a;
  const auto one = last_logits(model, some_tokens(3), a);
  CHECK(b.position() == 5);
  const auto two = last_logits(model, some_tokens(3), b);
  CHECK(one == two);
  CHECK(a.to_bytes() == b.to_bytes());
}

TEST_CASE("state parts go out and in") {
  for (const char* spec : {"v4:2x64:50", "v5.2:2x128:50", "v6:2x128:50", "v7:2x128:50"}) {
    Model model = small_model(spec);
    State a = model.new_state();
    last_logits(model, some_tokens(4, 50), a);
    State b = model.new_state();
    for (const wkv::StatePart& part : a.parts()) {
      std::size_t n = 1;
      for (const auto d : part.shape) n *= static_cast<std::size_t>(d);
      std::vector<float> values(n);
      a.get(part.name, values);
      b.set(part.name, values);
    }
    CHECK(last_logits(model, some_tokens(2, 50), a) == last_logits(model, some_tokens(2, 50), b));
    std::vector<float> wrong(3);
    CHECK(code_of([&] { a.get("blocks.0.ffn.shift", wrong); }) == ErrorCode::invalid_argument);
    CHECK(code_of([&] { a.get("blocks.9.ffn.shift", wrong); }) == ErrorCode::invalid_argument);
  }
}

TEST_CASE("state blobs: a round trip, and nothing else is accepted") {
  Model model = small_model();
  State a = model.new_state();
  last_logits(model, some_tokens(6), a);
  const std::vector<std::byte> blob = a.to_bytes();
  State b = model.state_from_bytes(blob);
  CHECK(b.position() == 6);
  CHECK(last_logits(model, some_tokens(2), a) == last_logits(model, some_tokens(2), b));

  for (std::size_t n = 0; n < 80; ++n)
    CHECK(code_of([&] { model.state_from_bytes(std::span(blob).first(n)); }) ==
          ErrorCode::invalid_argument);
  for (std::size_t i = 0; i < blob.size(); i += i < 80 ? 1 : 997) {
    if (i >= 40 && i < 48) continue;  // the position: any value is a position
    if (i >= 56 && i < 64) continue;  // reserved
    std::vector<std::byte> bad = blob;
    bad[i] ^= std::byte{0x10};
    CAPTURE(i);
    CHECK(code_of([&] { model.state_from_bytes(bad); }) == ErrorCode::invalid_argument);
  }
  Model other = small_model("v7:3x128:97");
  CHECK(code_of([&] { other.state_from_bytes(blob); }) == ErrorCode::invalid_argument);
  Model older = small_model("v6:2x128:97");
  CHECK(code_of([&] { older.state_from_bytes(blob); }) == ErrorCode::invalid_argument);
}

TEST_CASE("compressed blobs: smaller, rounded, of any version") {
  for (const char* spec : {"v1:2x16:20", "v2:2x16:20", "v4:2x16:20", "v6:2x64:20", "v7:2x64:20"}) {
    CAPTURE(spec);
    wkv::Options options;
    options.device = "cpu";
    wkv::Model model = wkv::Model::load(wkv::synthetic_checkpoint(spec, wkv::DType::f32), options);
    wkv::State state = model.new_state();
    std::vector<float> logits(20);
    for (const wkv::Token token : {1, 2, 3}) model.forward(std::array{token}, state, logits);
    const std::size_t plain = state.to_bytes().size();
    for (const wkv::DType storage : {wkv::DType::f16, wkv::DType::int8}) {
      const std::vector<std::byte> blob = state.to_bytes(storage);
      CHECK(blob.size() < plain);
      const wkv::State back = model.state_from_bytes(blob);
      CHECK(back.position() == 3);
      for (const wkv::StatePart& part : state.parts()) {
        std::size_t n = 1;
        for (const std::int64_t d : part.shape) n *= static_cast<std::size_t>(d);
        std::vector<float> want(n), got(n);
        state.get(part.name, want);
        back.get(part.name, got);
        float largest = 0.0f;
        for (const float x : want) largest = std::max(largest, std::abs(x));
        for (std::size_t i = 0; i < n; ++i) CHECK(std::abs(got[i] - want[i]) <= largest / 253.0f);
      }
      for (std::size_t cut = 0; cut < blob.size(); cut += 7)
        CHECK_THROWS_AS(model.state_from_bytes(std::span(blob).first(cut)), wkv::Error);
    }
    CHECK_THROWS_AS(state.to_bytes(wkv::DType::bf16), wkv::Error);
  }
}

TEST_CASE("a cancelled forward leaves the state as it was") {
  Model model = small_model("v7:2x128:97", 2, 8);
  State state = model.new_state();
  last_logits(model, some_tokens(3), state);
  const auto before = state.to_bytes();
  const std::vector<Token> tokens = some_tokens(500);
  const Request request{.tokens = tokens, .state = &state, .want = Logits::none};
  const wkv::ForwardOptions stop{
      .progress = [](std::int64_t done, std::int64_t) { return done < 1; }};
  CHECK(code_of([&] { model.forward({&request, 1}, {}, stop); }) == ErrorCode::cancelled);
  CHECK(state.to_bytes() == before);
  CHECK(state.position() == 3);
  last_logits(model, some_tokens(2), state);  // and it is not locked
}

TEST_CASE("a cancelled batch puts back streams of one token as well") {
  Model model = small_model("v7:2x128:97", 2, 8);
  State one = model.new_state(), many = model.new_state();
  last_logits(model, some_tokens(3), one);
  const auto before = one.to_bytes(), new_one = many.to_bytes();
  const std::vector<Token> single{5}, prompt = some_tokens(500);
  const std::vector<Request> batch{{.tokens = single, .state = &one, .want = Logits::none},
                                   {.tokens = prompt, .state = &many, .want = Logits::none}};
  for (const std::int64_t rows : {1, 500}) {  // early, and when all is done
    CAPTURE(rows);
    const wkv::ForwardOptions stop{
        .progress = [rows](std::int64_t done, std::int64_t) { return done < rows; }};
    CHECK(code_of([&] { model.forward(batch, {}, stop); }) == ErrorCode::cancelled);
    CHECK(one.to_bytes() == before);
    CHECK(many.to_bytes() == new_one);
  }
}

TEST_CASE("a state at an impossible position is refused") {
  for (const char* spec : {"v1:2x64:50", "v7:2x128:97"}) {
    Model model = small_model(spec);
    std::vector<std::byte> blob = model.new_state().to_bytes();
    for (const std::int64_t position : {std::int64_t{-1}, INT64_MIN, INT64_MAX, INT64_MAX - 7}) {
      CAPTURE(position);
      std::memcpy(blob.data() + 40, &position, sizeof position);
      CHECK(code_of([&] { model.state_from_bytes(blob); }) == ErrorCode::invalid_argument);
    }
  }
}

TEST_CASE("bad requests are refused and change nothing") {
  Model model = small_model();
  State state = model.new_state();
  const auto before = state.to_bytes();
  std::vector<float> logits(97);
  const auto forward = [&](std::vector<Token> tokens) {
    return code_of([&] { model.forward(tokens, state, logits); });
  };
  CHECK(forward({}) == ErrorCode::invalid_argument);
  CHECK(forward({97}) == ErrorCode::invalid_argument);
  CHECK(forward({1, -1}) == ErrorCode::invalid_argument);
  const std::vector<Token> one{1};
  const std::vector<Request> twice{{.tokens = one, .state = &state},
                                   {.tokens = one, .state = &state}};
  std::vector<float> two(2 * 97);
  CHECK(code_of([&] { model.forward(twice, two); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { model.forward(twice, logits); }) == ErrorCode::invalid_argument);
  State foreign = small_model("v7:3x128:97").new_state();
  CHECK(code_of([&] { model.forward(one, foreign, logits); }) == ErrorCode::invalid_argument);
  CHECK(state.to_bytes() == before);
}

TEST_CASE("hidden states and vectors in place of tokens") {
  Model model = small_model();
  State a = model.new_state();
  const auto tokens = some_tokens(4);
  const Request request{.tokens = tokens, .state = &a, .want = Logits::all};
  std::vector<float> logits(4 * 97), hidden(2 * 4 * 128);
  wkv::ForwardOptions options;
  options.hidden_layers = {0, 2};
  options.hidden = hidden;
  model.forward({&request, 1}, logits, options);
  CHECK(std::accumulate(hidden.begin(), hidden.end(), 0.0f) != 0.0f);

  // the embedding rows themselves, given as vectors, are the same input
  const auto source = wkv::synthetic_checkpoint("v7:2x128:97", wkv::DType::f32);
  const wkv::HostTensor emb = source->get("emb.weight");
  std::vector<float> vectors;
  for (const Token t : tokens) {
    const float* row = static_cast<const float*>(emb.data) + t * 128;
    vectors.insert(vectors.end(), row, row + 128);
  }
  State b = model.new_state();
  const Request by_vector{.tokens = {}, .state = &b, .want = Logits::all, .vectors = vectors};
  std::vector<float> again(4 * 97);
  model.forward({&by_vector, 1}, again);
  CHECK(again == logits);
}

TEST_CASE("threads share a model, not a state") {
  Model model = small_model();
  const auto tokens = some_tokens(40);
  State reference = model.new_state();
  const auto expected = last_logits(model, tokens, reference);
  std::atomic<int> wrong{0}, refused{0};
  State shared = model.new_state();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 5; ++repeat) {
        State own = model.new_state();
        if (last_logits(model, tokens, own) != expected) ++wrong;
        try {
          last_logits(model, tokens, shared);
        } catch (const wkv::Error& e) {
          if (e.code() == ErrorCode::invalid_argument) ++refused;
        }
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(shared.position() == (20 - refused) * 40);
}

TEST_CASE("a state outlives its model") {
  auto model = std::make_unique<Model>(small_model());
  State state = model->new_state();
  model.reset();
  State copy = state;
  CHECK(copy.to_bytes() == state.to_bytes());
}

TEST_CASE("a model converted to int4 loads as one") {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("wkv-convert-" + std::to_string(static_cast<long>(::getpid())));
  std::filesystem::create_directory(folder);
  const auto golden =
      std::filesystem::path(WKV_SOURCE_DIR) / "tests/golden/v7" / "model.safetensors";
  const auto file = folder / "int4.safetensors";
  const wkv::DTypePlan plan = wkv::parse_dtype_plan("int4, blocks.0.*=int8");
  CHECK(plan.str() == "int4,blocks.0.*=int8");
  wkv::convert_checkpoint(golden, file, plan);
  wkv::Options options;
  options.device = "cpu";
  Model saved = Model::load(file, options);
  options.dtype = plan;
  Model loaded = Model::load(golden, options);
  CHECK(saved.weight_types() == loaded.weight_types());
  State a = saved.new_state(), b = loaded.new_state();
  CHECK(last_logits(saved, some_tokens(9, 64), a) == last_logits(loaded, some_tokens(9, 64), b));
  const wkv::HostTensor codes = wkv::open_checkpoint(file)->get("head.weight");
  CHECK(codes.dtype == wkv::DType::int8);
  CHECK(codes.parts.size() == 2);
  CHECK(wkv::dequantize(codes).dtype == wkv::DType::f32);
  std::filesystem::remove_all(folder);
}
