// Runs one block after another; the threads of a block are fibres that switch at barriers and warp
// collectives. The order in which runnable fibres go changes from block to block, so that a missing
// barrier shows.
#include "shim/fibres.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <utility>
#include <vector>

#include "core/check.h"
#include "shim/device.h"

wkv::shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace wkv::shim {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32;

struct Copy {
  void* to;
  const void* from;
};

struct Fibre {
  ucontext_t context;
  jmp_buf resume;
  std::unique_ptr<unsigned char[]> stack;
  bool made = false;  // its stack waits in enter(), or inside a kernel
  bool done = false, at_barrier = false, in_exchange = false;
  unsigned exchanges = 0;
  std::vector<std::vector<Copy>> copies;  // groups, the last one open
};

struct Warp {
  Payload payload[2][kWarp];
  Collective kind{};
  unsigned arrived = 0;
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  const LaunchCall* call = nullptr;
  unsigned current = 0;
  jmp_buf scheduler;
  std::string error;
};
Block block;

Fibre& self() { return block.fibres[block.current]; }

void yield() {
  if (_setjmp(self().resume) == 0) _longjmp(block.scheduler, 1);
}

void fail_kernel(const char* what) {
  if (block.error.empty())
    block.error = str(what, " at thread ", block.current, " of block ", blockIdx.x, ", ",
                      blockIdx.y, ", ", blockIdx.z);
  self().done = true;
  yield();
}

/// Runs one kernel after another: a new context for every thread of every block would take two
/// system calls each.
void enter() {
  for (;;) {
    block.call->invoke(block.call->kernel, block.call->params);
    self().done = true;
    yield();
  }
}

void run_fibre(unsigned i) {
  block.current = i;
  threadIdx = {i, 0, 0};
  Fibre& f = block.fibres[i];
  if (_setjmp(block.scheduler) != 0) return;
  if (f.made) _longjmp(f.resume, 1);
  f.made = true;
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
  setcontext(&f.context);
}

/// True if a fibre could run.
bool run_round(unsigned threads, unsigned offset, bool backwards) {
  bool progress = false;
  for (unsigned n = 0; n < threads; ++n) {
    const unsigned i = backwards ? (threads - 1 - (n + offset) % threads) : (n + offset) % threads;
    Fibre& f = block.fibres[i];
    if (f.done || f.at_barrier || f.in_exchange) continue;
    run_fibre(i);
    progress = true;
  }
  return progress;
}

void run_block(unsigned threads, unsigned seed) {
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& f = block.fibres[i];
    f.done = f.at_barrier = f.in_exchange = false;
    f.exchanges = 0;
    if (f.copies.size() != 1 || !f.copies[0].empty()) f.copies.assign(1, {});
  }
  for (Warp& w : block.warps) w.arrived = 0;
  while (block.error.empty()) {
    if (run_round(threads, seed * 37 % threads, seed % 2 == 1)) continue;
    bool all_done = true, all_waiting = true;
    for (unsigned i = 0; i < threads; ++i) {
      all_done = all_done && block.fibres[i].done;
      all_waiting = all_waiting && (block.fibres[i].done || block.fibres[i].at_barrier);
    }
    if (all_done) return;
    if (!all_waiting) block.error = "lanes wait for each other in a collective that not all reach";
    for (unsigned i = 0; i < threads; ++i) block.fibres[i].at_barrier = false;
  }
}

}  // namespace

void block_barrier() {
  self().at_barrier = true;
  yield();
}

unsigned char* dynamic_shared() noexcept { return block.shared.data(); }
int lane() noexcept { return static_cast<int>(block.current % kWarp); }

const Payload* exchange(Collective kind, const Payload& mine) {
  Fibre& f = self();
  const unsigned first = block.current / kWarp * kWarp;
  Warp& w = block.warps[block.current / kWarp];
  const unsigned parity = f.exchanges++ % 2;
  if (w.arrived > 0 && w.kind != kind) fail_kernel("different collectives in one warp");
  w.kind = kind;
  w.payload[parity][block.current % kWarp] = mine;
  if (++w.arrived == kWarp) {
    w.arrived = 0;
    for (unsigned i = first; i < first + kWarp; ++i) block.fibres[i].in_exchange = false;
  } else {
    f.in_exchange = true;
    yield();
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
  const unsigned threads = call.block;
  while (block.fibres.size() < threads) {
    block.fibres.emplace_back();
    block.fibres.back().stack = std::make_unique<unsigned char[]>(kStackBytes);
  }
  block.warps.resize((threads + kWarp - 1) / kWarp);
  block.call = &call;
  block.error.clear();
  blockDim = {threads, 1, 1};
  gridDim = {call.grid[0], call.grid[1], call.grid[2]};
  unsigned seed = 0;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        block.shared.assign(call.shared_bytes + 16, 0xff);  // NaN, whatever the type
        run_block(threads, seed++);
        if (block.error.empty()) continue;
        for (Fibre& f : block.fibres) f.made = false;  // they hang inside the kernel
        fail(ErrorCode::device, "[shim] ", block.error);
      }
}

}  // namespace wkv::shim
