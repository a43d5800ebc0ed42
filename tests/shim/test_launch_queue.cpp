// When lists of launches become graphs, on a device that only writes down what it is told.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "cuda/architectures.h"
#include "cuda/cuda_backend.h"
#include "cuda/launch_queue.h"

namespace wkv::cuda {
namespace {

struct Params {
  int value;
};
void kernel(Params) {}

/// "3" for a launch with value 3, "[3 4]" for a graph of two.
class FakeDevice final : public Device {
 public:
  std::vector<std::string> log;
  int captures = 0, live_graphs = 0;
  bool refuses = false, fails = false;

  struct FakeGraph final : Graph {
    FakeGraph(std::string t, int& l) : text(std::move(t)), live(l) { ++live; }
    ~FakeGraph() override { --live; }
    std::string text;
    int& live;
  };

  std::string name() const override { return "fake"; }
  std::string description() const override { return "fake"; }
  int processors() const noexcept override { return 1; }
  int capability() const noexcept override { return 90; }
  int shared_bytes() const noexcept override { return 0; }
  Buffer allocate(std::size_t) override { return {}; }
  Buffer allocate_pinned(std::size_t) override { return {}; }
  void copy_in(void*, const void*, std::size_t) override {}
  void copy_out(void*, const void*, std::size_t) override {}
  void copy(void*, const void*, std::size_t) override {}
  void zero(void*, std::size_t) override {}
  void mark(int) override {}
  void wait(int) override {}
  void synchronize() override {}
  bool accepts(const LibraryProduct&) override { return false; }

  void launch(const LaunchHeader&, const void* params) override {
    WKV_CHECK(!fails, device, "it fails");
    log.push_back(std::to_string(static_cast<const Params*>(params)->value));
  }
  std::unique_ptr<Graph> capture(const LaunchList& list) override {
    ++captures;
    WKV_CHECK(!fails, device, "it fails");
    if (refuses) return nullptr;
    std::string text;
    list.each([&](const LaunchHeader&, const void* params) {
      text += str(text.empty() ? "" : " ", static_cast<const Params*>(params)->value);
    });
    return std::make_unique<FakeGraph>(str('[', text, ']'), live_graphs);
  }
  void replay(Graph& graph) override { log.push_back(static_cast<FakeGraph&>(graph).text); }
  std::vector<std::string> take() { return std::exchange(log, {}); }
};

/// A step of `n` launches, the last one with `last`.
void step(LaunchQueue& queue, int n, int last, bool defer = true) {
  queue.start(defer);
  for (int i = 1; i <= n; ++i) {
    Launch launch;
    make_launch(launch, kernel, 1, 1, 1, 32, 0, Params{i == n ? last : i});
    queue.push(launch);
  }
  queue.flush();
}

using Log = std::vector<std::string>;
const Log kEach = {"1", "2", "3", "4", "5", "6", "7", "8", "100"};
const Log kGraph = {"[1 2 3 4 5 6 7 8 100]"};

TEST_CASE("the first time launches, the second captures, from then on a graph") {
  FakeDevice device;
  LaunchQueue queue(device);
  step(queue, 9, 100);
  CHECK(device.take() == kEach);
  CHECK(device.captures == 0);
  for (int i = 0; i < 3; ++i) {
    step(queue, 9, 100);
    CHECK(device.take() == kGraph);
  }
  CHECK(device.captures == 1);
  CHECK(queue.graphs() == 1);
  CHECK(queue.replays() == 3);
}

TEST_CASE("other parameters are another list; both are kept") {
  FakeDevice device;
  LaunchQueue queue(device);
  for (int round = 0; round < 2; ++round)
    for (const int last : {100, 200}) step(queue, 9, last);
  CHECK(device.captures == 2);
  device.take();
  step(queue, 9, 100);
  CHECK(device.take() == kGraph);
  step(queue, 8, 100);
  CHECK(device.take().size() == 8);
}

TEST_CASE("nothing is gathered unless asked for, and order is kept at the change") {
  FakeDevice device;
  LaunchQueue queue(device);
  for (int i = 0; i < 4; ++i) step(queue, 9, 100, false);
  CHECK(device.take().size() == 36);
  CHECK(device.captures == 0);
  queue.start(true);
  Launch launch;
  make_launch(launch, kernel, 1, 1, 1, 32, 0, Params{1});
  queue.push(launch);
  CHECK(device.log.empty());
  queue.start(false);  // what was gathered comes first
  CHECK(device.take() == Log{"1"});
}

TEST_CASE("short lists are never captured") {
  FakeDevice device;
  LaunchQueue queue(device);
  for (int i = 0; i < 4; ++i) step(queue, 7, 100);
  CHECK(device.take().size() == 28);
  CHECK(device.captures == 0);
}

TEST_CASE("what cannot be captured is launched, and not tried again") {
  FakeDevice device;
  device.refuses = true;
  LaunchQueue queue(device);
  for (int i = 0; i < 4; ++i) {
    step(queue, 9, 100);
    CHECK(device.take() == kEach);
  }
  CHECK(device.captures == 1);
  CHECK(queue.graphs() == 0);
}

TEST_CASE("a failure leaves nothing to run later") {
  FakeDevice device;
  LaunchQueue queue(device);
  device.fails = true;
  CHECK_THROWS_AS(step(queue, 9, 100), Error);
  device.fails = false;
  queue.flush();
  CHECK(device.take().empty());
  device.fails = true;  // now the list is known: the capture fails
  CHECK_THROWS_AS(step(queue, 9, 100), Error);
  CHECK(device.captures == 1);
  device.fails = false;
  queue.flush();
  CHECK(device.take().empty());
  step(queue, 9, 100);
  CHECK(device.take() == kEach);
}

TEST_CASE("decoding steps have few sizes, all of which have a graph at once") {
  int sizes = 0;
  for (int rows = 1; rows <= 512; ++rows) {
    CAPTURE(rows);
    const int size = filled_up(rows);
    CHECK(size >= rows);
    CHECK(size < 2 * rows);
    if (rows > 64) CHECK(2 * size < 3 * rows);  // 65 rows to 96: the worst
    CHECK(filled_up(size) == size);
    CHECK(size >= filled_up(rows - 1));
    if (size == rows) ++sizes;
  }
  CHECK(sizes == 23);
  CHECK(filled_up(513) == 513);
}

TEST_CASE("code runs on its major version from its minor one on, PTX on all that is newer") {
  CHECK(runs_on(86, {80}, {}));
  CHECK_FALSE(runs_on(80, {86}, {}));
  CHECK_FALSE(runs_on(90, {80, 89}, {}));
  CHECK(runs_on(90, {80}, {80}));
  CHECK(runs_on(121, {90, 120}, {}));
  CHECK_FALSE(runs_on(75, {80}, {80}));
  for (const int device : {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121})
    CHECK(why_not(device) == "");
  CHECK(why_not(70).find("sm_70") == 9);
  CHECK(why_not(70).find("sm_75, sm_80, sm_86") != std::string::npos);
}

TEST_CASE("a long list is several graphs, and what may run beside its neighbour stays with it") {
  FakeDevice device;
  LaunchQueue queue(device);
  const auto run = [&](int beside) {
    queue.start(true);
    for (int i = 0; i < 100; ++i) {
      Launch launch;
      make_launch(launch, kernel, 1, 1, 1, 32, 0, Params{i});
      launch.header.beside = i == beside ? 1 : 0;
      queue.push(launch);
      if (i == 12) CHECK(device.log.empty() == (beside == 12));  // the first 12 are on their way
    }
    queue.flush();
  };
  for (const int beside : {-1, 12, 13}) {
    CAPTURE(beside);
    for (int round = 0; round < 3; ++round) {
      device.take();
      run(beside);
    }
    const Log log = device.take();
    CHECK(log.size() == 3);
    std::string all, expected;
    for (const std::string& part : log) all += part;
    for (int i = 0; i < 100; ++i)
      expected += str(i == 0                                                 ? "["
                      : i == 12 + (beside == 12) || i == 72 + (beside == 12) ? "]["
                                                                             : " ",
                      i);
    CHECK(all == expected + ']');
  }
}

TEST_CASE("graphs are dropped, the least recently used first") {
  FakeDevice device;
  LaunchQueue queue(device);
  for (int round = 0; round < 2; ++round) step(queue, 9, -1);
  for (int last = 0; last < 191; ++last)
    for (int round = 0; round < 2; ++round) step(queue, 9, last);
  CHECK(queue.graphs() == 192);
  step(queue, 9, -1);  // used again: the list of 0 is now the oldest
  for (int round = 0; round < 2; ++round) step(queue, 9, 1000);
  CHECK(device.live_graphs == 192);
  device.take();
  step(queue, 9, -1);
  CHECK(device.take().size() == 1);
  step(queue, 9, 0);
  CHECK(device.take().size() == 9);
  queue.reset();
  CHECK(device.live_graphs == 0);
  CHECK(queue.graphs() == 0);
}

}  // namespace
}  // namespace wkv::cuda
