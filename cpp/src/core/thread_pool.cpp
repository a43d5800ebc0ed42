// Fork-join with an epoch: the caller publishes a new epoch that all workers watch, each worker
// answers in a cache line of its own with a plain store, and the caller reads those lines. Two
// threads on one socket need about 0.3 us; a condition variable needs about 80.
//
// Workers spin for kSpin after a run, longer than the pauses inside a token and between two, then
// sleep in the kernel. Nobody spins when there are more threads than CPUs they may use: a spinning
// thread would only keep the one it waits for from running.
//
// An index belongs to one worker, but whoever claims it for an epoch first executes it. A caller
// that is done takes those whose worker has not come yet: other programs may keep it from its CPU
// for milliseconds, a hundred times a token.
//
// fork(): a child has the memory of the pool but none of its workers. It is noticed, and run() then
// executes every index on the caller, one after the other, with the same results; the destructor
// leaves the lost threads alone. Forking while a run is in progress is the caller's mistake.
#include "core/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/cpu_set.h"

namespace wkv {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(250);

std::atomic<std::uint32_t> fork_generation{0};

void count_forks() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1); });
  (void)registered;  // without the handler a forked child would hang, which is no worse than fork()
}

inline void pause() noexcept {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Word = std::atomic<std::int32_t>;  // the type that futexes take, so that wait() is one

/// Waits until `word` is not `old`; spins first if `spin`, with `idle` while that has work for
/// `index`. `sleepers` counts those who sleep, so that the other side wakes only if somebody does.
void wait_while(const Word& word, std::int32_t old, bool spin, Word& sleepers,
                const ThreadPool::Idle& idle, int index) noexcept {
  if (spin) {
    if (idle.function != nullptr)
      while (idle.function(idle.context, index))
        if (word.load(std::memory_order_acquire) != old) return;
    for (int i = 0; i < 16; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      pause();
    }
    const auto deadline = Clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        pause();
      }
    } while (Clock::now() < deadline);
  }
  sleepers.fetch_add(1);
  while (word.load() == old) word.wait(old);
  sleepers.fetch_sub(1);
}

struct Done {
  alignas(64) Word epoch{0};  // the last epoch this worker has finished
  Word sleepers{0};           // 1 while the caller sleeps on it
  // The last epoch in which somebody took this index. A line of its own: the caller looks at it
  // only when it would have to wait.
  alignas(64) Word claimed{0};

  /// Whether the index is ours to execute in epoch `now`. A late worker may ask for one that is
  /// over: claims only go forward. (Epochs wrap, so they are compared by their distance.)
  bool claim(std::int32_t now) noexcept {
    std::int32_t last = claimed.load(std::memory_order_relaxed);
    const auto ahead = static_cast<std::uint32_t>(now) - static_cast<std::uint32_t>(last);
    return static_cast<std::int32_t>(ahead) > 0 &&
           claimed.compare_exchange_strong(last, now, std::memory_order_acq_rel);
  }
};

}  // namespace

struct ThreadPool::Impl {
  Impl(int n, Idle what)
      : threads(n),
        idle(what),
        spin(n <= schedulable_cpus()),
        generation(fork_generation.load()),
        done(static_cast<std::size_t>(n)) {}

  void work(int index) noexcept {
    Done& mine = done[static_cast<std::size_t>(index)];
    for (std::int32_t seen = 0;;) {
      wait_while(epoch, seen, spin, sleepers, idle, index);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      // Once claimed the caller waits for us; before that `function` may already be the next one.
      if (!mine.claim(seen)) continue;
      function(context, index, threads);
      mine.epoch.store(seen);
      if (mine.sleepers.load() != 0) mine.epoch.notify_one();
    }
  }

  void publish() noexcept {
    epoch.fetch_add(1);
    if (sleepers.load() != 0) epoch.notify_all();
  }

  bool lost_workers() const noexcept { return generation != fork_generation.load(); }

  const int threads;
  const Idle idle;
  const bool spin;
  const std::uint32_t generation;
  alignas(64) Word epoch{0};
  Function function = nullptr;
  void* context = nullptr;
  std::atomic<bool> stop{false};
  alignas(64) Word sleepers{0};
  std::vector<Done> done;
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(int threads, Idle idle) {
  WKV_CHECK(threads >= 1, invalid_argument, "[threads] a pool of ", threads, " threads");
  count_forks();
  impl_ = std::make_unique<Impl>(threads, idle);
  impl_->workers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i)
      impl_->workers.emplace_back([impl = impl_.get(), i] { impl->work(i); });
  } catch (const std::system_error& e) {
    const std::size_t started = impl_->workers.size();
    impl_->stop.store(true);
    impl_->publish();
    for (std::thread& worker : impl_->workers) worker.join();
    fail(ErrorCode::internal, "[threads] the system refuses thread ", started + 2, " of ", threads,
         ": ", e.what());
  }
}

ThreadPool::~ThreadPool() {
  if (impl_->lost_workers()) {
    static_cast<void>(impl_.release());  // std::thread objects that belong to the parent process
    return;
  }
  impl_->stop.store(true);
  impl_->publish();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::threads() const noexcept { return impl_->threads; }

void ThreadPool::run(Function fn, void* context) noexcept {
  Impl& p = *impl_;
  if (p.threads == 1) return fn(context, 0, 1);
  if (p.lost_workers()) {
    for (int i = 0; i < p.threads; ++i) fn(context, i, p.threads);
    return;
  }
  p.function = fn;
  p.context = context;
  p.publish();
  const std::int32_t now = p.epoch.load(std::memory_order_relaxed);
  fn(context, 0, p.threads);
  for (std::size_t i = 1; i < p.done.size(); ++i) {
    Done& d = p.done[i];
    if (d.epoch.load(std::memory_order_acquire) == now) continue;
    if (d.claim(now)) {
      fn(context, static_cast<int>(i), p.threads);
      continue;
    }
    for (std::int32_t e = d.epoch.load(std::memory_order_acquire); e != now;
         e = d.epoch.load(std::memory_order_acquire))
      wait_while(d.epoch, e, p.spin, d.sleepers, p.idle, 0);
  }
}

void ThreadPool::run_parts(int n, const std::function<void(int begin, int end)>& work) {
  std::exception_ptr thrown;
  std::mutex mutex;
  auto part = [&](int index, int threads) noexcept {
    const auto bound = [&](int i) { return static_cast<int>(std::int64_t{n} * i / threads); };
    try {
      work(bound(index), bound(index + 1));
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!thrown) thrown = std::current_exception();
    }
  };
  run(part);
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, "a thread of the pool could not allocate memory");
  }
}

}  // namespace wkv
