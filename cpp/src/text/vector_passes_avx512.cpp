#include <stddef.h>

namespace wkv::detail {
namespace {
constexpr size_t kLanes = 16;
}
}  // namespace wkv::detail

#include "text/vector_passes.inl"

namespace wkv::detail {

const VectorPasses kAvx512Passes = kPasses;

}  // namespace wkv::detail
