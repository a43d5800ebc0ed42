// The pool: every index once per run, nothing lost over many runs, sleep and wake, more threads
// than CPUs, forked children. What threads share beside it: units of work, weights to ask for, and
// the memory of weights.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/buffer.h"
#include "core/cpu_set.h"
#include "core/thread_pool.h"
#include "cpu/read_ahead.h"
#include "cpu/shares.h"
#include "ops/quantize.h"
#include "wkv/types.h"

using wkv::ThreadPool;
using wkv::cpu::Shares;

namespace {

/// Runs `count` times; checks that every index was executed once per run and that writes of one run
/// are seen by the next.
void check_runs(ThreadPool& pool, int count) {
  const auto n = static_cast<std::size_t>(pool.threads());
  std::vector<std::int64_t> plain(n * 16);  // one cache line each, not atomic on purpose
  std::int64_t total = 0;
  for (int i = 0; i < count; ++i) {
    auto add = [&](int index, int threads) noexcept {
      if (threads == pool.threads()) plain[static_cast<std::size_t>(index) * 16] += 1 + i;
    };
    pool.run(add);
    total += 1 + i;
  }
  for (std::size_t index = 0; index < n; ++index) CHECK(plain[index * 16] == total);
}

}  // namespace

TEST_CASE("every index runs once per run") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    check_runs(pool, 2000);
  }
}

TEST_CASE("more threads than CPUs") {
  ThreadPool pool(4 * wkv::schedulable_cpus() + 1);
  check_runs(pool, 500);
}

TEST_CASE("workers that fell asleep wake up") {
  ThreadPool pool(3);
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
    check_runs(pool, 1 + static_cast<int>(random() % 3));
  }
}

TEST_CASE("the caller does not wait for workers that have not come") {
  ThreadPool pool(3);
  const auto caller = std::this_thread::get_id();
  // Once is proof. How often depends on who else runs: 50 times were once too few.
  bool alone = false;
  for (int i = 0; i < 20000 && !alone; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // they sleep, and take long to wake
    std::thread::id by[3];
    auto note = [&](int index, int) noexcept { by[index] = std::this_thread::get_id(); };
    pool.run(note);
    for (const auto& id : by) CHECK(id != std::thread::id());
    alone = by[1] == caller && by[2] == caller;
    check_runs(pool, 2);  // the late ones find nothing left of that run
  }
  CHECK(alone);
}

TEST_CASE("uneven work: the run ends when the slowest index does") {
  ThreadPool pool(3);
  std::atomic<int> finished{0};
  auto work = [&](int index, int) noexcept {
    std::this_thread::sleep_for(std::chrono::milliseconds(index == 2 ? 5 : 0));
    finished.fetch_add(1);
  };
  for (int i = 1; i <= 5; ++i) {
    pool.run(work);
    CHECK(finished.load() == 3 * i);
  }
}

TEST_CASE("pools come and go") {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 2 != 0) check_runs(pool, 3);
  }
}

TEST_CASE("two pools side by side") {
  std::thread other([] {
    ThreadPool pool(2);
    check_runs(pool, 1000);
  });
  ThreadPool pool(2);
  check_runs(pool, 1000);
  other.join();
}

#if !defined(__SANITIZE_THREAD__)
TEST_CASE("a forked child runs every index itself") {
  ThreadPool pool(3);
  check_runs(pool, 10);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int mask = 0;
    auto mark = [&](int index, int threads) noexcept { mask |= threads == 3 ? 1 << index : 64; };
    {
      ThreadPool lost(2);  // a pool of the child itself works as ever
      auto nothing = [](int, int) noexcept {};
      lost.run(nothing);
    }
    pool.run(mark);
    _exit(mask == 7 ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  check_runs(pool, 10);
}
#endif

TEST_CASE("bad numbers of threads are refused") {
  CHECK_THROWS_AS(ThreadPool(0), wkv::Error);
  CHECK_THROWS_AS(ThreadPool(-3), wkv::Error);
}

TEST_CASE("usable cores are within what may be scheduled") {
  CHECK(wkv::usable_cores() >= 1);
  CHECK(wkv::usable_cores() <= wkv::schedulable_cpus());
}

TEST_CASE("parts of a whole, which may throw") {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const int n : {0, 1, 2, 1000}) {
      std::vector<int> times(static_cast<std::size_t>(n));
      pool.run_parts(n, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
      });
      for (const int t : times) CHECK(t == 1);
    }
    // A failed allocation on a worker must not end the process.
    const auto starve = [](int, int) { throw std::bad_alloc(); };
    try {
      pool.run_parts(8, starve);
      FAIL("nothing was thrown");
    } catch (const wkv::Error& e) {
      CHECK(e.code() == wkv::ErrorCode::out_of_memory);
    }
    CHECK_THROWS_AS(pool.run_parts(8, [](int, int) { throw std::range_error("x"); }),
                    std::range_error);
    check_runs(pool, 10);
  }
}

TEST_CASE(
    "what a thread does while it spins is asked for again until there is none, and harms nothing") {
  struct Work {
    std::atomic<int> left{0}, asked{0};
  } work;
  ThreadPool pool(2, {[](void* context, int index) noexcept {
                        auto& w = *static_cast<Work*>(context);
                        if (index == 0 || w.left.load() == 0) return false;
                        w.left.fetch_sub(1);
                        w.asked.fetch_add(1);
                        return true;
                      },
                      &work});
  check_runs(pool, 2000);
  CHECK(work.asked == 0);
  const bool spins = wkv::schedulable_cpus() >= 2;
  for (int i = 0; spins && i < 1000 && work.asked < 100; ++i) {
    work.left = 100 - work.asked;
    check_runs(pool, 1);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  CHECK(work.asked == (spins ? 100 : 0));
}

TEST_CASE("weights are asked for in the order of the last round, and no more than there are") {
  wkv::cpu::ReadAhead ahead(2);
  std::vector<std::byte> a(4096), b(600), c(1 << 20);
  const auto enter = [&](const std::vector<std::byte>& group) {
    ahead.enter(group.data(), [&](int index) {
      const std::size_t half = group.size() / 2, at = index == 0 ? 0 : half;
      return wkv::cpu::ReadAhead::Range{group.data() + at, half};
    });
  };
  const auto asks = [&](int index) {
    int n = 0;
    for (ahead.done(index); ahead.ask(index); ++n) CHECK(n < 1000);
    return n;
  };
  for (const auto* group : {&a, &b, &c}) {
    enter(*group);
    CHECK(asks(0) == 0);  // nothing is known of the first round
  }
  enter(a);
  CHECK(asks(1) == 1);  // b, 300 bytes
  enter(b);
  CHECK(asks(0) == asks(1));
  const int most = asks(0);
  CHECK(most > 1);
  CHECK(most < 1024);  // a part of c
  ahead.forget();
  CHECK(asks(0) == 0);
  enter(a);
  CHECK(asks(0) == 1);
}

TEST_CASE("weights side by side in blocks that live as long as their buffers") {
  wkv::Buffer kept;
  {
    wkv::HugePages pages;
    std::vector<wkv::Buffer> buffers;
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{3} << 20,
                                    std::size_t{0}, std::size_t{1} << 20, std::size_t{5} << 20}) {
      buffers.push_back(pages.allocate(bytes));
      CHECK(buffers.back().bytes() == bytes);
      CHECK(reinterpret_cast<std::uintptr_t>(buffers.back().data()) % 64 == 0);
      std::fill_n(static_cast<unsigned char*>(buffers.back().data()), bytes,
                  static_cast<unsigned char>(buffers.size()));
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const auto* data = static_cast<const unsigned char*>(buffers[i].data());
      CHECK(std::all_of(data, data + buffers[i].bytes(), [&](int x) { return x == int(i) + 1; }));
    }
    kept = buffers[2];
    CHECK_THROWS_AS(pages.allocate(~std::size_t{0}), wkv::Error);
    CHECK(pages.allocate(10).bytes() == 10);
  }
  CHECK(static_cast<const unsigned char*>(kept.data())[kept.bytes() - 1] == 3);
}

TEST_CASE("every unit of shared work is taken once, by whoever has time") {
  ThreadPool pool(4);
  Shares shares(4);
  for (const int units : {0, 1, 3, 64, 1001}) {
    for (const int least : {1, 4, 100}) {
      for (int i = 0; i < 4; ++i) shares.give(i, units * i / 4, units * (i + 1) / 4);
      std::vector<int> taken(static_cast<std::size_t>(units));  // not atomic on purpose
      auto work = [&](int index, int) noexcept {
        int begin = 0;
        int end = 0;
        while (shares.take(index, least, begin, end))
          for (int unit = begin; unit < end; ++unit) ++taken[static_cast<std::size_t>(unit)];
      };
      pool.run(work);
      CHECK(std::count(taken.begin(), taken.end(), 1) == units);
    }
  }
}

std::vector<int> pieces_of_first(Shares& shares, int parts) {
  int begin = 0;
  int end = 0;
  std::vector<int> owned;
  while (shares.take(0, 2, begin, end, parts)) owned.push_back(end - begin);
  CHECK(!shares.take(1, 2, begin, end, parts));
  return owned;
}

TEST_CASE("a thread finishes what another has not begun") {
  Shares shares(2);
  shares.give(0, 0, 10);
  shares.give(1, 10, 20);
  CHECK(pieces_of_first(shares, 2) == std::vector<int>{5, 3, 2, 5, 3, 2});
}

TEST_CASE("a thread may begin with more than half of its share") {
  Shares shares(2);
  shares.give(0, 0, 16);
  shares.give(1, 16, 26);
  CHECK(pieces_of_first(shares, 4) == std::vector<int>{12, 3, 1, 5, 3, 2});
}

TEST_CASE("quantising a matrix asks between its pieces whether to go on") {
  constexpr int kOut = 3000, kIn = 1000;  // pieces of 2^20 / 1000 rows
  std::vector<float> values(static_cast<std::size_t>(kOut) * kIn);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17) - 8;
  const wkv::HostTensor w{values.data(), wkv::DType::f32, {kOut, kIn}, nullptr};
  for (const wkv::DType want : {wkv::DType::int8, wkv::DType::mm8, wkv::DType::int4}) {
    int polls = 0;
    const auto count = [&polls] { ++polls; };
    wkv::ThreadPool pool(2);
    const wkv::quantize::Parallel parallel = wkv::quantize::polled(
        [&pool](int n, const auto& work) { pool.run_parts(n, work); }, count, kIn);
    wkv::Buffer whole, pieces, none;
    const wkv::Matrix a = wkv::quantize::quantize(w, want, whole);
    const wkv::Matrix b = wkv::quantize::quantize(w, want, pieces, parallel);
    std::vector<float> row(kIn), same(kIn);
    for (int o = 0; o < kOut; o += 7) {
      wkv::quantize::decode_row(a, o, row.data());
      wkv::quantize::decode_row(b, o, same.data());
      REQUIRE(row == same);
    }
    CHECK(polls >= 6);  // at least two passes, three pieces each

    std::vector<unsigned char> codes;
    const auto sink = [&](int first, int n, const unsigned char* at) {
      const std::size_t bytes = wkv::quantize::row_bytes(want, kIn);
      CHECK(codes.size() == static_cast<std::size_t>(first) * bytes);
      CHECK(n <= 700);
      codes.insert(codes.end(), at, at + static_cast<std::size_t>(n) * bytes);
    };
    wkv::Buffer scales;
    wkv::Matrix c = wkv::quantize::quantize_in_pieces(w, want, scales, 700, sink);
    CHECK(c.data == nullptr);
    CHECK(scales.bytes() < whole.bytes() / 2);
    c.data = codes.data();
    for (int o = 0; o < kOut; o += 7) {
      wkv::quantize::decode_row(a, o, row.data());
      wkv::quantize::decode_row(c, o, same.data());
      REQUIRE(row == same);
    }
    const auto stop = wkv::quantize::polled(
        wkv::quantize::serial,
        [&polls] {
          if (--polls == 1) throw wkv::Error(wkv::ErrorCode::cancelled, "stop");
        },
        kIn);
    CHECK_THROWS_AS(wkv::quantize::quantize(w, want, none, stop), wkv::Error);
    CHECK(polls == 1);
  }
}
