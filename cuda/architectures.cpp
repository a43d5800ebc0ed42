#include "cuda/architectures.h"

#include "core/check.h"

namespace wkv::cuda {

std::string why_not(int capability) {
  const std::initializer_list<int> cubins = {WKV_CUDA_CUBINS}, ptx = {WKV_CUDA_PTX};
  if (runs_on(capability, cubins, ptx)) return "";
  std::string built;
  for (const int code : cubins) built += str(built.empty() ? "sm_" : ", sm_", code);
  for (const int code : ptx)
    built += str(built.empty() ? "" : ", ", "PTX for sm_", code, " and on");
  return str("it is an sm_", capability, " and this build has code for ", built,
             "; build with WKV_CUDA_ARCHS=", capability, " or release");
}

}  // namespace wkv::cuda
