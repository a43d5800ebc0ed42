// Fork-join over a fixed team of threads.
#pragma once

#include <functional>
#include <memory>

namespace wkv {

/// `threads - 1` workers plus the caller. run() executes fn(context, index, threads) once per index
/// in [0, threads) and returns when all are done. Workers spin for a short while after a run and
/// then sleep. fn must not throw. One run at a time (the Model serialises); runs do not nest.
class ThreadPool {
 public:
  using Function = void (*)(void* context, int index, int threads) noexcept;

  /// What a thread that spins does meanwhile, again and again while it returns true; it should be
  /// done in 0.1 us. `index`: the last one that this thread owned.
  struct Idle {
    bool (*function)(void* context, int index) noexcept;
    void* context;
  };

  /// threads >= 1. Throws Error(internal) if the system refuses a thread.
  explicit ThreadPool(int threads, Idle idle = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept;
  void run(Function fn, void* context) noexcept;

  template <class F>
  void run(F& f) noexcept {
    run([](void* context, int index, int n) noexcept { (*static_cast<F*>(context))(index, n); },
        &f);
  }

  /// work(begin, end) for parts that make up [0, n), one per thread. It may throw: the first
  /// exception is thrown here when all parts have ended, a failed allocation as
  /// Error(out_of_memory).
  void run_parts(int n, const std::function<void(int begin, int end)>& work);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Physical cores that this process may use: affinity mask and cgroup quota respected; at least 1.
int usable_cores() noexcept;

}  // namespace wkv
