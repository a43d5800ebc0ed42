// How row and state ops are cut into units of work and the units given to threads. Which thread
// runs a unit never changes its result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/thread_pool.h"
#include "cpu/kernels_rows.h"
#include "ops/step.h"

namespace wkv::cpu {

constexpr int kChannelBlock =
    64;  // channels of one unit of work where heads do not set it: 4 lines
constexpr std::int64_t kRowGrain = 1 << 15;  // element operations that pay for waking the team

/// Operands of one unit of work: from row `row` and column `col` on.
inline RowsIn in(Tensor x, int row, int col) {
  if (!x) return {nullptr, 0};
  return {x.row(row) + col, static_cast<std::ptrdiff_t>(x.stride)};
}

inline RowsOut out(Tensor y, int row, int col) {
  return {y.row(row) + col, static_cast<std::ptrdiff_t>(y.stride)};
}

template <class F>
void dispatch(ThreadPool& pool, std::int64_t work, F f) {
  if (work < kRowGrain || pool.threads() == 1) {
    f(0, 1);
  } else {
    pool.run(f);
  }
}

/// f(row) for every row, in contiguous slabs. `work`: element operations in all.
template <class F>
void for_rows(ThreadPool& pool, int rows, std::int64_t work, F f) {
  dispatch(pool, work, [&](int index, int threads) {
    const auto begin = static_cast<int>(std::int64_t{rows} * index / threads);
    const auto end = static_cast<int>(std::int64_t{rows} * (index + 1) / threads);
    for (int t = begin; t < end; ++t) f(t);
  });
}

/// Every sequence has `units` independent parts (heads) that cost its number of rows each. f(index,
/// sequence, begin, end) gets ranges of parts such that threads get equal cost up to one part.
template <class F>
void for_units(ThreadPool& pool, const Batch& batch, int units, std::int64_t work, F f) {
  dispatch(pool, work, [&](int index, int threads) {
    const std::int64_t total = std::int64_t{batch.rows} * units;
    const std::int64_t begin = total * index / threads;
    const std::int64_t end = total * (index + 1) / threads;
    std::int64_t base = 0;
    for (const Sequence& s : batch.sequences) {
      const auto first_from = [&](std::int64_t cost) {
        const std::int64_t inside = std::max<std::int64_t>(cost - base, 0);
        return static_cast<int>(std::min<std::int64_t>((inside + s.rows - 1) / s.rows, units));
      };
      const int from = first_from(begin), to = first_from(end);
      if (from < to) f(index, s, from, to);
      base += std::int64_t{s.rows} * units;
    }
  });
}

/// f(head, first row, rows) for heads [begin, end) of a sequence, some tokens of all of them before
/// the next tokens of the first: rows of a head lie pages apart, its neighbours' on the same pages.
/// The prefetcher that follows a page brings those to L2, where they wait for 32 tokens, not for a
/// prompt (3 to 5 % of v6 and v7 with AVX-512 on Granite Rapids).
template <class F>
void for_head_tokens(const Sequence& s, int begin, int end, F f) {
  constexpr int kTokens = 32;
  for (int t = 0; t < s.rows; t += kTokens)
    for (int h = begin; h < end; ++h) f(h, s.row + t, std::min(kTokens, s.rows - t));
}

inline std::size_t floats(int n) { return static_cast<std::size_t>(n) * sizeof(float); }

}  // namespace wkv::cpu
