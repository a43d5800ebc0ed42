#include "cpu/isa.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "core/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace wkv::cpu {
namespace {

#if defined(__x86_64__)
#define WKV_X86 1
#else
#define WKV_X86 0
#endif

#if WKV_X86
// Clang up to 14 does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

/// A built table. __builtin_cpu_supports asks the processor and, through XGETBV, whether the system
/// saves the wide registers.
struct Tier {
  const KernelTable* table;
  const char* needs;
  bool (*runnable)();
};

constexpr Tier kTiers[] = {
    {&kernels_generic, "any processor", [] { return true; }},
#if WKV_X86
    {&kernels_avx2, "AVX2, FMA and F16C",
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              has_f16c();
     }},
    {&kernels_avx512, "AVX-512 F, BW, VL, DQ and VNNI",
     [] {
       return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
              __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
              __builtin_cpu_supports("avx512vnni") != 0;
     }},
#endif
};

std::string runnable_names() {
  std::string names;
  for (const Tier& tier : kTiers) {
    if (!tier.runnable()) continue;
    if (!names.empty()) names += ", ";
    names += tier.table->isa;
  }
  return names;
}

/// `asked` empty: the best. `where` begins an error.
const KernelTable& select(std::string_view asked, std::string_view where) {
  const KernelTable* best = nullptr;
  for (const Tier& tier : kTiers) {
    if (asked.empty()) {
      if (tier.runnable()) best = tier.table;
    } else if (asked == tier.table->isa) {
      WKV_CHECK(tier.runnable(), unsupported, where, '\'', asked,
                "' cannot run on this machine, which would need ", tier.needs, "; use one of ",
                runnable_names());
      best = tier.table;
    }
  }
  WKV_CHECK(best != nullptr, unsupported, where, '\'', asked,
            "' is not built into this library; use one of ", runnable_names());
  return *best;
}

std::string_view forced() {
  const char* name = std::getenv("WKV_ISA");
  return name != nullptr ? name : "";
}

}  // namespace

std::vector<IsaInfo> list_isas() {
  const KernelTable* active = nullptr;
  try {
    active = &select_isa();
  } catch (const Error&) {  // WKV_ISA names nothing that runs: nothing is active
  }
  std::vector<IsaInfo> list;
  for (const Tier& tier : kTiers)
    list.push_back({tier.table->isa, tier.runnable(), tier.table == active});
  return list;
}

std::ptrdiff_t stream_ahead() noexcept {
  // Two threads, bf16, GB/s. Zen 4, of 65: 62 without, 53 with 3 KiB. Granite Rapids, of 33: 31
  // without, 34 with 2 KiB.
#if WKV_X86
  static const std::ptrdiff_t ahead = __builtin_cpu_is("amd") != 0 ? 0 : 3072;
  return ahead;
#else
  return 0;
#endif
}

const KernelTable& select_isa() { return select(forced(), "[isa] WKV_ISA="); }

const KernelTable& select_isa(const char* name) {
  return select(name != nullptr ? name : "", "[isa] ");
}

}  // namespace wkv::cpu
