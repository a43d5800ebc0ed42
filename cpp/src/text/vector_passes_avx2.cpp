#include <stddef.h>

namespace wkv::detail {
namespace {
constexpr size_t kLanes = 8;
}
}  // namespace wkv::detail

#include "text/vector_passes.inl"

namespace wkv::detail {

const VectorPasses kAvx2Passes = kPasses;

}  // namespace wkv::detail
