#include <stddef.h>

namespace wkv::detail {
namespace {
constexpr size_t kLanes = 4;  // what every x86-64 has
}
}  // namespace wkv::detail

#include "text/vector_passes.inl"

namespace wkv::detail {

const VectorPasses kGenericPasses = kPasses;

const VectorPasses& vector_passes() noexcept {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  static const bool avx512 = __builtin_cpu_supports("avx512f");
  if (avx512) return kAvx512Passes;
  if (avx2) return kAvx2Passes;
#endif
  return kGenericPasses;
}

}  // namespace wkv::detail
