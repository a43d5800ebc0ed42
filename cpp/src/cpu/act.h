// wkv::Act as plain constants: the kernel files include no STL and none of our classes.
// cpu_backend.cpp asserts that both enumerations agree.
#pragma once

namespace wkv::cpu {

enum ActCode : int {
  kActNone,
  kActTanh,
  kActSigmoid,
  kActSilu,
  kActReluSquared,
  kActExpNegExp,
  kActDecay7,
  kActMish,
};

}  // namespace wkv::cpu
