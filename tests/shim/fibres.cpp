// Runs one cluster of blocks after another; its threads are fibres that switch at barriers and warp
// collectives. The order in which runnable fibres go changes from block to block, so that a missing
// barrier shows.
#include "shim/fibres.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/check.h"
#include "shim/device.h"

wkv::shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace wkv::shim {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
// Stacks begin in different lines of the caches: all in one, each switch would miss.
constexpr std::size_t kApart = 9 * 64, kApartBytes = 32 * 1024;
constexpr unsigned kWarp = 32;

struct Copy {
  void* to;
  const void* from;
};

/// Where a fibre goes on: of __builtin_setjmp(), which leaves registers to the compiler. With
/// setjmp(), and states within fibres, tests of models took 1.5 times as long.
using Place = void* [5];

struct Fibre {
  Place resume;
  std::unique_ptr<unsigned char[]> stack;
  bool made = false;  // its stack waits in enter(), or inside a kernel
  unsigned exchanges = 0;
  std::vector<std::vector<Copy>> copies;  // groups, the last one open
};

enum class State : std::uint8_t { ready, done, at_barrier, at_cluster_barrier, in_exchange };

struct Warp {
  Payload payload[2][kWarp];
  Collective kind{};
  unsigned arrived = 0;
};

/// Fibres that are still to be looked at, from `at` on.
struct Round {
  unsigned left = 0, at = 0;
  bool backwards = false;
};

/// The blocks of a cluster, mostly of one, fibre after fibre.
struct Cluster {
  std::vector<Fibre> fibres;
  std::vector<State> states;  // of the fibres, side by side: all are looked at again and again
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::size_t shared_bytes = 0;  // of a block
  const LaunchCall* call = nullptr;
  unsigned first_block = 0;
  unsigned current = 0;
  Round round;
  Place scheduler;
  std::string error;
};
Cluster cluster;

Fibre& self() { return cluster.fibres[cluster.current]; }
unsigned rank() { return cluster.current / blockDim.x; }
unsigned char* shared_of(unsigned rank) {
  return cluster.shared.data() + rank * cluster.shared_bytes;
}

[[noreturn]] void resume_next();
/// Called through a pointer: GCC sees that it does not return, and drops the place to return to.
void (*volatile leave)() = resume_next;

[[gnu::noinline]] void yield(State state) {
  cluster.states[cluster.current] = state;
  if (__builtin_setjmp(self().resume) == 0) leave();
}

void fail_kernel(const char* what) {
  if (cluster.error.empty())
    cluster.error = str(what, " at thread ", threadIdx.x, " of block ", blockIdx.x, ", ",
                        blockIdx.y, ", ", blockIdx.z);
  yield(State::done);
}

/// Runs one kernel after another: a new context for every thread of every block would take two
/// system calls each.
void enter() {
  for (;;) {
    cluster.call->invoke(cluster.call->kernel, cluster.call->params);
    yield(State::done);
  }
}

/// Takes the next fibre of a round that can run, or returns to run_round(), whose round is over.
void resume_next() {
  Round& round = cluster.round;
  unsigned i = 0;
  do {
    if (round.left == 0) __builtin_longjmp(cluster.scheduler, 1);
    --round.left;
    i = round.backwards ? cluster.states.size() - 1 - round.at : round.at;
    if (++round.at == cluster.states.size()) round.at = 0;
  } while (cluster.states[i] != State::ready);
  cluster.current = i;
  const unsigned block = i < blockDim.x ? 0 : i / blockDim.x;
  threadIdx = {i - block * blockDim.x, 0, 0};
  blockIdx.x = cluster.first_block + block;
  Fibre& f = cluster.fibres[i];
  if (f.made) __builtin_longjmp(f.resume, 1);
  f.made = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = f.stack.get() + i * kApart % kApartBytes;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
  __builtin_unreachable();
}

/// Every fibre that can run, once. True if there was one.
[[gnu::noinline]] bool run_round(unsigned first, bool backwards) {
  const bool any = std::ranges::count(cluster.states, State::ready) > 0;
  cluster.round = {static_cast<unsigned>(cluster.states.size()), first, backwards};
  if (any && __builtin_setjmp(cluster.scheduler) == 0) leave();
  return any;
}

/// Lets those go on whose whole block, or whose whole cluster, waits or is done.
bool release(unsigned first, unsigned end, State waiting) {
  bool any = false;
  for (unsigned i = first; i < end; ++i) {
    const State state = cluster.states[i];
    if (state != State::done && state != waiting) return false;
    any = any || state == waiting;
  }
  for (unsigned i = first; i < end; ++i)
    if (cluster.states[i] == waiting) cluster.states[i] = State::ready;
  return any;
}

void run_cluster(unsigned fibres, unsigned seed) {
  for (unsigned i = 0; i < fibres; ++i) {
    Fibre& f = cluster.fibres[i];
    f.exchanges = 0;
    if (f.copies.size() != 1 || !f.copies[0].empty()) f.copies.assign(1, {});
  }
  cluster.states.assign(fibres, State::ready);
  for (Warp& w : cluster.warps) w.arrived = 0;
  while (cluster.error.empty()) {
    if (run_round(seed * 37 % fibres, seed % 2 == 1)) continue;
    if (std::ranges::all_of(cluster.states, [](State s) { return s == State::done; })) return;
    bool released = release(0, fibres, State::at_cluster_barrier);
    for (unsigned first = 0; first < fibres; first += blockDim.x)
      released = release(first, first + blockDim.x, State::at_barrier) || released;
    if (!released) cluster.error = "lanes wait for each other in a collective that not all reach";
  }
}

}  // namespace

void block_barrier() { yield(State::at_barrier); }
void cluster_barrier() { yield(State::at_cluster_barrier); }

const void* in_cluster(const void* mine, int of) {
  const auto at = static_cast<const unsigned char*>(mine) - shared_of(rank());
  if (at < 0 || static_cast<std::size_t>(at) >= cluster.shared_bytes ||
      of >= static_cast<int>(cluster.call->cluster))
    fail_kernel("a read outside the cluster's shared memory");
  return shared_of(static_cast<unsigned>(of)) + at;
}

unsigned char* dynamic_shared() noexcept { return shared_of(rank()); }
int lane() noexcept { return static_cast<int>(cluster.current % kWarp); }

const Payload* exchange(Collective kind, const Payload& mine) {
  Fibre& f = self();
  const unsigned first = cluster.current / kWarp * kWarp;
  Warp& w = cluster.warps[cluster.current / kWarp];
  const unsigned parity = f.exchanges++ % 2;
  if (w.arrived > 0 && w.kind != kind) fail_kernel("different collectives in one warp");
  w.kind = kind;
  w.payload[parity][cluster.current % kWarp] = mine;
  if (++w.arrived == kWarp) {
    w.arrived = 0;
    std::fill_n(cluster.states.begin() + first, kWarp, State::ready);
  } else {
    yield(State::in_exchange);
  }
  return w.payload[parity];
}

void copy_async(void* shared, const void* global) {
  self().copies.back().push_back({shared, global});
}
void copy_async_commit() { self().copies.emplace_back(); }
void copy_async_wait(int pending) {
  auto& groups = self().copies;
  const std::size_t keep = static_cast<std::size_t>(pending) + 1;
  for (std::size_t i = 0; i + keep < groups.size(); ++i)
    for (const Copy& c : std::exchange(groups[i], {})) memcpy(c.to, c.from, 16);
}

void run_kernel(const LaunchCall& call) {
  const unsigned fibres = call.block * call.cluster;
  while (cluster.fibres.size() < fibres) {
    cluster.fibres.emplace_back();
    cluster.fibres.back().stack = std::make_unique<unsigned char[]>(kStackBytes + kApartBytes);
  }
  cluster.warps.resize((fibres + kWarp - 1) / kWarp);
  cluster.call = &call;
  cluster.error.clear();
  cluster.shared_bytes = (call.shared_bytes + 31) / 16 * 16;
  blockDim = {call.block, 1, 1};
  gridDim = {call.grid[0], call.grid[1], call.grid[2]};
  unsigned seed = 0;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; x += call.cluster) {
        blockIdx = {x, y, z};
        cluster.first_block = x;
        cluster.shared.assign(cluster.shared_bytes * call.cluster, 0xff);  // NaN, whatever the type
        run_cluster(fibres, seed++);
        if (cluster.error.empty()) continue;
        for (Fibre& f : cluster.fibres) f.made = false;  // they hang inside the kernel
        fail(ErrorCode::device, "[shim] ", cluster.error);
      }
}

}  // namespace wkv::shim
