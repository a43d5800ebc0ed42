// Kernels on rows of activations and on the recurrent state. Plain pointers and counts, no STL: the
// per-ISA files include this. Formulas in ops/ops.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace wkv::cpu {

enum TableType : int { kTableF32, kTableF16, kTableBF16 };

/// Rows of activations, `stride` floats apart. `data` may be null where an operand is optional;
/// stride 0 repeats one row.
struct RowsIn {
  const float* data;
  ptrdiff_t stride;
};
struct RowsOut {
  float* data;
  ptrdiff_t stride;
};

/// Some channels of one sequence. All pointers are at the first of these channels.
struct Wkv4Args {
  RowsOut y;
  RowsIn r, k, v;
  const float* decay;
  const float* bonus;
  float *aa, *bb, *pp;
  int rows, channels;
};

/// GroupNorm over one head, then the gate. Null pointers where absent.
struct HeadFinish {
  const float* weight;  ///< [N], of this head
  const float* bias;
  float eps;
  RowsIn gate;
};

/// One head of one sequence. Pointers are at the head's first channel, `state` is [N key][N value].
struct Wkv6Args {
  RowsOut y;
  RowsIn r, k, v, decay;
  const float* bonus;
  HeadFinish finish;
  float* state;
  int rows, head_size;
};

struct Wkv7Args {
  RowsOut y;
  RowsIn r, w, k, v, a;
  RowsIn v_first, v_mix;  ///< null in layer 0
  const float *k_k, *k_a, *r_k;
  HeadFinish finish;
  float* state;
  ptrdiff_t next_state;  ///< floats from it to the state of the caller's next head; 0 if none
  float* scratch;        ///< wkv7_scratch_floats(N)
  int rows, head_size;
};

/// Tokens of a prompt that wkv7 prepares and finishes together, so that their chains of sums and
/// roots overlap: one by one, 256 tokens take 1.3 times as long (Granite Rapids). More would not
/// fit into 32 KiB of L1 beside S.
constexpr int kTokens7 = 4;

/// Floats that a wkv7 call needs: seven rows of a head, padded to vectors, for each of twice as
/// many tokens.
constexpr size_t wkv7_scratch_floats(int head_size) {
  return 14 * kTokens7 * (((size_t)head_size + 15) / 16 * 16);
}

/// One head of one sequence; pointers are at the head's first channel or at its curve.
struct Wkv1Args {
  RowsOut y;
  RowsIn r, k, v;
  const float *time_w, *time_alpha, *time_beta;  ///< [context]
  float* sum_k;                                  ///< [N]
  RowsOut history;                               ///< [context] rows of N
  float* scratch;                                ///< [context]
  int context, position, rows, head_size;
};

/// Some channels of one sequence. All pointers are at the first of these channels.
struct Wkv2Args {
  RowsOut y;
  RowsIn r, k, v;
  const float* decay;
  const float* bonus;
  float *aa, *bb;
  float eps;
  int rows, channels;
};

/// Some value channels of one sequence; `state` [width] rows of these channels.
struct LinearAttentionArgs {
  RowsOut y;
  RowsIn q, k;  ///< [width]
  RowsIn v;
  RowsOut state;
  float scale;
  int rows, width, channels;
};

struct RowKernels {
  /// y = row `index` of a table [.., n] of `type` (a TableType).
  void (*gather)(float* y, const void* table, int type, size_t index, int n);
  void (*layer_norm)(float* y, const float* x, const float* weight, const float* bias, float eps,
                     int n);
  /// y = a - b, a + b, a * b
  void (*subtract)(float* y, const float* a, const float* b, int n);
  void (*add)(float* y, const float* a, const float* b, int n);
  void (*multiply)(float* y, const float* a, const float* b, int n);
  /// y_g = x + dx * mu_g
  void (*lerp)(float* const* y, const float* x, const float* dx, const float* const* mu, int groups,
               int n);
  /// y_g = x + (prev - x) * mu_g
  void (*shift_mix)(float* const* y, const float* x, const float* prev, const float* const* mu,
                    int groups, int n);
  void (*wkv4)(const Wkv4Args& args);
  void (*wkv6)(const Wkv6Args& args);
  void (*wkv7)(const Wkv7Args& args);
  /// y = x * s
  void (*scale)(float* y, const float* x, float s, int n);
  /// y_u = q . rows_u for `count` rows of n
  void (*dots)(float* y, const float* q, RowsIn rows, int count, int n);
  /// y = sum_u weight_u rows_u over `count` rows of n
  void (*weighted_sum)(float* y, const float* weight, RowsIn rows, int count, int n);
  /// In place.
  void (*softmax)(float* x, int n);
  void (*wkv1)(const Wkv1Args& args);
  void (*wkv2)(const Wkv2Args& args);
  void (*linear_attention)(const LinearAttentionArgs& args);
};

}  // namespace wkv::cpu
