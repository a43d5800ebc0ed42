// Matrix products. gemv: few rows, weights streamed once and converted in registers. gemm: many
// rows, panels of weights expanded to fp32 once per 256 rows. See kernels_matmul.h.
#include "cpu/kernels/matmul_gemm.inl"
#include "cpu/kernels/matmul_gemv.inl"
#include "cpu/kernels/matmul_sparse.inl"

namespace wkv::cpu {
namespace {

const MatmulKernels kMatmul = {
    kGemmMinRows, kSparseRows, gemv_scratch, gemv,         sparse_scratch, sparse,
    packed_bytes, pack_units,  pack,         gemm_scratch, gemm,
};

}  // namespace
}  // namespace wkv::cpu
