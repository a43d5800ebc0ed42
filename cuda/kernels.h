// Every kernel: its parameters and the function that says how to launch it. Pointers are device
// memory; sizes are run-time arguments, never template arguments. Rows of activations are fp32,
// `ld*` floats apart.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/backend.h"

namespace wkv::cuda {

/// The batch in device memory, uploaded by begin(); addresses stay the same from step to step.
struct BatchView {
  const std::int32_t* tokens;    ///< [T]
  const std::int32_t* first_of;  ///< [T] the sequence whose first row this is, or -1
  const std::int32_t* seq_row;   ///< [B]
  const std::int32_t* seq_rows;  ///< [B]
  float* const* state;           ///< [B]
  const std::int32_t* wanted;    ///< rows whose logits are wanted
  const std::int32_t* seq_of;    ///< [T] the row's sequence
  const std::int32_t* position;  ///< [T] the row's place in its stream
};

/// How stored elements are read.
enum class Element : std::int32_t { f32, f16, bf16 };

struct EmbedParams {
  const void* table;
  float* y;
  const std::int32_t* tokens;
  std::int64_t ldy;
  Element element;
  std::int32_t rows, cols;
};
void embed(Launch& out, const EmbedParams& p);

constexpr int kMaxMix = 8;
/// y_g = x + dx mu_g with dx given, or from the row before (`shift`: writes the slot too), or y_0 =
/// dx alone (`delta`).
struct MixParams {
  BatchView batch;
  const float* x;
  const float* dx;
  float* y[kMaxMix];
  void* y16[kMaxMix];  ///< null: not wanted. y rounded, rows of `cols`
  const float* mu[kMaxMix];
  std::int64_t ldx, lddx, ldy, slot;
  std::int32_t rows, cols, outputs;
  std::int32_t shift, delta;
  std::int32_t vectors;  ///< every row starts 16-byte aligned and cols % 4 == 0
  std::int32_t bf16;     ///< what y16 is
};
void mix(Launch& out, const MixParams& p);

/// y = a + b or a * b.
struct BinaryParams {
  const float* a;
  const float* b;
  float* y;
  std::int64_t lda, ldb, ldy;
  std::int32_t rows, cols, product;
};
void binary(Launch& out, const BinaryParams& p);

/// y_i = x_{index_i}.
struct GatherParams {
  const float* x;
  float* y;
  const std::int32_t* index;
  std::int64_t ldx, ldy;
  std::int32_t rows, cols;
};
void gather(Launch& out, const GatherParams& p);

/// Elements between fp32, fp16 and bf16: [rows, cols] to rows of `to_cols`, padded with zeros.
struct ConvertParams {
  const void* from;
  void* to;
  std::int64_t ld_from, ld_to;  ///< elements
  Element from_element, to_element;
  std::int32_t rows, cols, to_cols;
};
void convert(Launch& out, const ConvertParams& p);

/// Columns of activations as the tensor cores want them, the last ones zeros.
constexpr int kPadTo = 128;
constexpr int padded_cols(int cols) { return (cols + kPadTo - 1) / kPadTo * kPadTo; }
/// Activations as the tensor cores want them, several at once: x16 = round(x scale), rows padded
/// with zeros to `padded` columns.
struct RoundJob {
  const float* x;
  const float* in_scale;   ///< null: 1
  const float* in_offset;  ///< for `sums`
  void* x16;
  float* sums;  ///< null: not wanted. Of each row: sum x in_scale, sum x, sum x in_offset
  std::int64_t ldx;
  std::int32_t cols, padded;
  float scale;
  std::int32_t bf16;
};
struct RoundParams {
  RoundJob job[16];
  std::int32_t rows, jobs;
};
void round_rows(Launch& out, const RoundParams& p);
/// The `sums` of those jobs that want them.
void sum_rows(Launch& out, const RoundParams& p);

struct LayerNormParams {
  const float* x;
  float* y;
  const float* weight;
  const float* bias;
  std::int64_t ldx, ldy;
  std::int32_t rows, cols;
  float eps;
};
void layer_norm(Launch& out, const LayerNormParams& p);

/// layer_norm and the token shift of its result in one pass, for batches of one row per sequence.
struct NormMixParams {
  LayerNormParams norm;
  MixParams mix;  ///< x is norm.y
};
void norm_mix(Launch& out, const NormMixParams& p);

/// y = act(y + bias) * gate + add, in place: what the library's products leave to do.
struct FinishParams {
  float* y;
  void* y16;  ///< null: not wanted. y * y16_scale rounded, rows of `cols`
  float y16_scale;
  std::int32_t bf16;
  const float *bias, *gate, *add;
  std::int64_t ldy, ldgate, ldadd;
  std::int32_t rows, cols, act;
};
void finish(Launch& out, const FinishParams& p);

struct Wkv4Params {
  BatchView batch;
  const float *r, *k, *v;
  const float *decay, *bonus;
  float* y;
  std::int64_t ldr, ldk, ldv, ldy, slot;
  std::int32_t sequences, cols;
};
void wkv4(Launch& out, const Wkv4Params& p);

/// wkv6 (version 6: bonus is u) and wkv7 with everything around it.
struct WkvParams {
  BatchView batch;
  const float *r, *w, *k, *v, *a, *v_first, *v_mix, *gate;
  const float *k_k, *k_a, *r_k;          ///< [C]; v6: r_k is the bonus u
  const float *norm_weight, *norm_bias;  ///< null: no GroupNorm
  float* y;
  void* y16;  ///< null: not wanted. y rounded, rows of all heads
  std::int64_t ldr, ldw, ldk, ldv, lda, ldv_first, ldv_mix, ldgate, ldy, slot;  ///< ldw 0: constant
  std::int32_t version, rows, sequences, heads, head_size;
  std::int32_t split;    ///< blocks that share a head; wkv_split only
  std::int32_t crowded;  ///< more heads than a processor's usual two each, one token each; wkv only
  std::int32_t bf16;     ///< what y16 is
  float eps;
};
/// One head of one sequence per block.
void wkv(Launch& out, const WkvParams& p);
/// The same for few long sequences, in two kernels: the recurrence leaves its raw y for the second.
void wkv_split(Launch& out, const WkvParams& p);
void wkv_finish(Launch& out, const WkvParams& p);

constexpr int kSampleChunk = 256;
constexpr int kSampleMaxChunks = 1024;  // vocabularies of up to 262144
constexpr int sample_chunks(int vocab) { return (vocab + kSampleChunk - 1) / kSampleChunk; }

/// A stream's sampler, in device memory: SamplingParams of variant pip, and what it remembers.
struct SamplerState {
  double temperature, top_p, presence_penalty, frequency_penalty, penalty_decay;
  std::uint64_t seed, draws;
  std::int32_t top_k;
  std::int32_t seen;  ///< tokens counted
};
/// Row i of the logits is sampled and accepted by sampler i. Scratch is per row, `padded` being
/// whole chunks of the vocabulary.
struct SampleParams {
  const float* logits;
  SamplerState* sampler;
  std::int32_t* seen_tokens;  ///< [rows][vocab]
  double* seen_counts;        ///< [rows][vocab]
  float *x, *e, *weights;     ///< [rows][padded]
  float* maxima;              ///< [rows][chunks]
  double* sums;               ///< [rows][chunks]
  std::int32_t* ids;          ///< [rows][2][padded]
  std::int32_t* out;          ///< [rows] the token; -1: NaN, infinity, or nothing to choose from
  std::int64_t ldlogits;
  std::int32_t rows, vocab;
};
void sample(Launch& out, const SampleParams& p);

/// The ops of v1 to v3 and of the variants; which members they use is in cuda_history.cpp.
enum class HistoryOp : std::uint8_t {
  wkv1,
  wkv2,
  by_position,
  remember,
  copy_logits,
  attention,
  linear_attention,
  row_matvec,
};
struct HistoryParams {
  BatchView batch;
  const float *q, *k, *v, *curve[3];
  float* y;
  std::int64_t ldq, ldk, ldv, ldy, slot, slot2;
  std::int32_t rows, cols, sequences, width, context;
  std::int32_t selected;  ///< rows of y are the wanted ones
  float scale;
};
void history(Launch& out, HistoryOp op, const HistoryParams& p);

/// Stored forms of a matrix [out, in]. f16 and bf16 rows are padded with zeros to a multiple of 32
/// inputs. u8: blocks of 64 inputs, u4: of 128, in the order of codec.cuh.
enum class Codec : std::int32_t { f32, f16, bf16, u8, u4 };

/// Inputs per 16-byte load of four lanes: the unit in which inputs are split. Not for f32.
constexpr int load_inputs(Codec codec) {
  return codec == Codec::u4 ? 128 : codec == Codec::u8 ? 64 : 32;
}
constexpr int packed_row_bytes(Codec codec, int in) {
  return (in + load_inputs(codec) - 1) / load_inputs(codec) * 64;
}
/// Of all codes, rounded up: where scales and offsets begin.
constexpr std::int64_t packed_bytes(Codec codec, int out, int in) {
  return (std::int64_t{out} * packed_row_bytes(codec, in) + 255) / 256 * 256;
}

constexpr int kMaxJobs = 16;

/// One product y = epilogue(x W^T) of a group; see Epilogue in ops/backend.h.
struct LinearJobParams {
  const void* w;
  const float* x;
  /// The rows as the matrix wants them, [rows][padded_cols(in)], of more than kSplitRows.
  const void* x16;
  float* y;
  /// null: not wanted. y * y16_scale rounded, as the x16 of a product that reads y.
  void* y16;
  const float *bias, *gate, *add;
  /// Quantised weights: W[o][i] = (q + zero) out_scale[o] in_scale[i] + out_offset[o] +
  /// in_offset[i], q as the codec gives it; all but out_scale may be null. u4 has group_scale
  /// instead, fp16, [out][groups of 32, rounded up to a multiple of 4].
  const float *out_scale, *out_offset, *in_scale, *in_offset;
  const std::uint16_t* group_scale;
  const float* sums;  ///< [rows][3] of the rounded rows: see input_sums; gemm with offsets only
  std::int32_t ldx, ldy, ldgate, ldadd;
  std::int32_t in, out;
  std::int32_t row_bytes;     ///< of the stored matrix
  std::int32_t splits;        ///< blocks that share one output tile, each a part of the inputs
  std::int32_t tile_bits;     ///< log2 of the output tiles of a block
  std::int32_t parts;         ///< warps that share a tile's inputs; skinny only
  std::int32_t last_block;    ///< one past this job's last block
  std::int32_t first_ticket;  ///< of the counters that find the last block of a tile group
  std::int64_t partial;       ///< offset of this job's partial sums in the workspace, floats
  std::int32_t groups;        ///< scales per output, u4
  float x_scale;              ///< x is multiplied by it before rounding, the sum divided
  float y16_scale;
  std::int32_t bf16;  ///< what y16 is
  float zero;
  std::int32_t act;
  std::int32_t into;  ///< add to what y holds
};

struct LinearParams {
  float* workspace;
  unsigned* tickets;
  std::int32_t jobs, rows;
  /// Blocks of a cluster, which every job's `splits` is then, or 0: none. skinny only.
  std::int32_t clusters;
  LinearJobParams job[kMaxJobs];
};
/// Of which the jobs' are set.
constexpr std::size_t used_bytes(const LinearParams& p) {
  return offsetof(LinearParams, job) + static_cast<std::size_t>(p.jobs) * sizeof(LinearJobParams);
}

/// Up to 64 rows, weights streamed from memory straight into tensor-core fragments. x of up to 8
/// rows in two halves (hi + lo), so the product is that of fp32 activations; beyond rounded, x16.
constexpr int kSplitRows = 8;
constexpr int kSkinnyRows = 64;
constexpr int kSkinnyOutputs = 16;  ///< outputs per tile
struct SkinnyShape {
  int warps;  ///< of a block: 8 or 16, always 16 of more than 16 rows
  int blocks;
  std::uint32_t shared_bytes;
};
void skinny(Launch& out, Codec codec, const LinearParams& p, const SkinnyShape& shape);
/// Of a block with `sums` tiles times parts, in a cluster with its outputs; inputs_per_split in
/// whole loads.
std::uint32_t skinny_shared_bytes(int rows, int inputs_per_split, int sums, int cluster_outputs);

/// Quantised weights as the library reads them: W scale in fp16, [out][padded_cols(in)].
struct ExpandParams {
  const void* w;
  void* to;
  const float *out_scale, *out_offset, *in_scale, *in_offset;  ///< as in LinearJobParams
  const std::uint16_t* group_scale;
  std::int32_t in, out, row_bytes, groups;
  float zero, scale;
};
void expand(Launch& out, Codec codec, const ExpandParams& p);

/// More rows: tiles of `out_tile` x `row_tile`, operands through shared memory.
struct GemmShape {
  int out_tile, row_tile, inputs;  ///< inputs per stage
};
/// `shared_bytes` are what a block may have: 64 KB on sm_75, 99 KB on sm_86, sm_89 and sm_120.
GemmShape gemm_shape(Codec codec, int rows, int shared_bytes);
void gemm(Launch& out, Codec codec, const LinearParams& p, int blocks, int shared_bytes);

/// fp32 weights: plain fused multiply-adds.
constexpr int kF32Rows = 8, kF32Outputs = 32;
void linear_f32(Launch& out, const LinearParams& p, int blocks);

}  // namespace wkv::cuda
