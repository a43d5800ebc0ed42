#include <stddef.h>

namespace wkv::detail {
namespace {
constexpr size_t kLanes = 16;
}
}  // namespace wkv::detail

#include "text/vector_passes.inl"

namespace wkv::detail {

const VectorPasses kAvx512Passes = {
    chunk_maxima, exp_pass, exp_sums, moment, nearness, mass_above, collect, keep_above,
};

}  // namespace wkv::detail
