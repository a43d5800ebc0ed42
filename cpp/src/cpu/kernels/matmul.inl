// Matrix products. gemv: few rows, weights streamed once and converted in registers. gemm: many
// rows, panels of weights expanded to fp32 once per 256 rows. See kernels_matmul.h.
#include "cpu/kernels/matmul_gemm.inl"
#include "cpu/kernels/matmul_gemv.inl"
#include "cpu/kernels/matmul_sparse.inl"
#if defined(__AVX512VNNI__)
#include "cpu/kernels/matmul_int8.inl"
#endif
#if defined(__AVX2__)
#include "cpu/kernels/matmul_words.inl"
#endif

namespace wkv::cpu {
namespace {

// Where gemm overtakes gemv with weights in cache, in the order of WeightType. Expanding a panel
// pays late where gemv's conversions are cheap and registers many.
#if defined(__AVX512F__)
#define WKV_GEMM_MIN_ROWS {20, 48, 48, 64, 64, 64}
#elif defined(__AVX2__)
#define WKV_GEMM_MIN_ROWS {28, 32, 18, 24, 24, 24}
#else
#define WKV_GEMM_MIN_ROWS {12, 12, 12, 12, 12, 12}
#endif

#if defined(__AVX512VNNI__)
const GemmKernels* narrow(const MatmulArgs& a) {
  const GemmKernels* codes = tiles::vnni_gemm(a);
  return codes ? codes : words_gemm(a);
}
#elif defined(__AVX2__)
const GemmKernels* narrow(const MatmulArgs& a) { return words_gemm(a); }
#else
const GemmKernels* narrow(const MatmulArgs&) { return nullptr; }
#endif

const MatmulKernels kMatmul = {
    WKV_GEMM_MIN_ROWS,
    kSparseMaxRows,
    gemv_scratch,
    gemv_prepare,
    gemv,
    sparse_sums,
    sparse_scratch,
    sparse_part,
    sparse_finish,
    {packed_bytes, pack_units, pack, gemm_scratch, gemm, 2},
    narrow,
};

}  // namespace
}  // namespace wkv::cpu
