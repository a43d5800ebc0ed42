#include "cpu/isa.h"

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "core/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif
#if defined(WKV_AMX)
#include <sys/syscall.h>
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

/// Or what came after it: the first with PREFETCHI. Hypervisors hide the number of the model.
bool is_granite_rapids() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__builtin_cpu_is("intel") == 0 || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  return (d >> 14 & 1) != 0 && __builtin_cpu_supports("avx512f") != 0;
}

/// AVX-512 but for the products of many rows that `narrow` takes.
KernelTable with_narrow(const char* isa, const NarrowKernels& narrow) {
  KernelTable t = kernels_avx512;
  t.isa = isa;
  t.matmul.narrow = narrow.narrow;
  return t;
}

const KernelTable& kernels_avx512_bf16_whole() {
  static const KernelTable table = with_narrow("avx512_bf16", kernels_avx512_bf16);
  return table;
}
#endif

#if defined(WKV_AMX)
/// The kernel saves the 8 KiB of tile registers for those processes alone that asked (Linux 5.16).
/// Asked once; it holds for every thread, and for good.
AmxProbe probe_amx() {
  AmxProbe probe;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) probe.features = d;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) probe.features_1 = a;
  if (__get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_OSXSAVE) != 0) {
    unsigned low = 0;
    unsigned high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    probe.saved_states = low;
  }
  if (!why_no_amx(probe).empty()) return probe;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) probe.refusal = errno;
  return probe;
}

const std::string& amx_missing() {
  static const std::string missing = why_no_amx(probe_amx());
  return missing;
}

const KernelTable& kernels_amx_whole() {
  static const KernelTable table = with_narrow("amx", kernels_amx);
  return table;
}
#endif

std::string unless(bool runnable, const char* needs) { return runnable ? "" : needs; }

/// A built table. __builtin_cpu_supports asks the processor and, through XGETBV, whether the system
/// saves the wide registers.
struct Tier {
  const char* isa;
  const KernelTable& (*table)();
  std::string (*missing)();    ///< what it would need that is not here; empty if it runs
  bool (*slower)() = nullptr;  ///< than the one before it on this processor: chosen by name alone

  bool runnable() const { return missing().empty(); }
};

#if WKV_X86
std::string avx512_missing() {
  return unless(__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                    __builtin_cpu_supports("avx512vl") != 0 &&
                    __builtin_cpu_supports("avx512dq") != 0 &&
                    __builtin_cpu_supports("avx512vnni") != 0,
                "AVX-512 F, BW, VL, DQ and VNNI");
}
#endif

constexpr Tier kTiers[] = {
    {"generic", []() -> const KernelTable& { return kernels_generic; },
     [] { return std::string(); }},
#if WKV_X86
    {"avx2", []() -> const KernelTable& { return kernels_avx2; },
     [] {
       return unless(
           __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c(),
           "AVX2, FMA and F16C");
     }},
    {"avx512", []() -> const KernelTable& { return kernels_avx512; }, avx512_missing},
    {"avx512_bf16", kernels_avx512_bf16_whole,
     [] {
       std::string missing = avx512_missing();
       return missing.empty() ? unless(__builtin_cpu_supports("avx512bf16") != 0, "AVX512-BF16")
                              : missing;
     },
     // Emerald Rapids: 172 GFLOP/s of bf16 in dot products, 351 of fp32 in multiply-adds.
     [] { return __builtin_cpu_is("intel") != 0; }},
#if defined(WKV_AMX)
    {"amx", kernels_amx_whole,
     [] {
       std::string missing = avx512_missing();
       return missing.empty() ? amx_missing() : missing;
     }},
#endif
#endif
};

std::string runnable_names() {
  std::string names;
  for (const Tier& tier : kTiers) {
    if (!tier.runnable()) continue;
    if (!names.empty()) names += ", ";
    names += tier.isa;
  }
  return names;
}

/// `asked` empty: the best. `where` begins an error.
const KernelTable& select(std::string_view asked, std::string_view where) {
  const KernelTable* best = nullptr;
  for (const Tier& tier : kTiers) {
    if (asked.empty()) {
      if (tier.runnable() && (tier.slower == nullptr || !tier.slower())) best = &tier.table();
    } else if (asked == tier.isa) {
      const std::string missing = tier.missing();
      WKV_CHECK(missing.empty(), unsupported, where, '\'', asked,
                "' cannot run on this machine, which would need ", missing, "; use one of ",
                runnable_names());
      best = &tier.table();
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

std::string why_no_amx(const AmxProbe& probe) {
  constexpr unsigned kFeatures = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, -TILE, -INT8
  constexpr std::uint64_t kStates = 1u << 17 | 1u << 18;          // XTILECFG, XTILEDATA
  constexpr unsigned kBF16 = 1u << 5;                             // AVX512-BF16
  if ((probe.features & kFeatures) != kFeatures || (probe.features_1 & kBF16) == 0)
    return "AMX-TILE, AMX-BF16, AMX-INT8 and AVX512-BF16, of which this processor has not all or a "
           "hypervisor shows not all";
  if ((probe.saved_states & kStates) != kStates)
    return "a system that saves the tile registers of AMX (XCR0 has no tile state)";
  if (probe.refusal != 0)
    return str("the permission to use the tile registers of AMX, which the kernel refused: ",
               std::strerror(probe.refusal));
  return "";
}

std::vector<IsaInfo> list_isas() {
  const KernelTable* active = nullptr;
  try {
    active = &select_isa();
  } catch (const Error&) {  // WKV_ISA names nothing that runs: nothing is active
  }
  std::vector<IsaInfo> list;
  for (const Tier& tier : kTiers)
    list.push_back({tier.isa, tier.runnable(),
                    active != nullptr && active->isa == std::string_view(tier.isa)});
  return list;
}

StreamAhead stream_ahead(int type) noexcept {
  // A prefetch of a line that a load needs at once is worse than none: it takes the miss that
  // would have trained the processor's own prefetcher. GB/s of two threads but where it says other:
  // Zen 3, of 35: bf16 29 without any, 32 with 1 KiB, 25 with 3; fp32 33 without, 27 with 1 KiB.
  // int4 there, times as fast as with 8 KiB and 0.75: 1.01 to 1.03 with 4 KiB into L2 alone, 1.00
  // to 1.03 with 3 or 8, 0.99 to 1.04 with 2 to 4 into L1 alone, 0.86 to 0.89 without.
  // Zen 4, of 35 to 58, share of it: fp16 88 % without, 69 with 8 KiB into L2, 76 with 4 and 0.75;
  // bf16 87, 80 and 85, AVX2 94 and 57; fp32 82 without, 84 with 2 KiB into L2, 92 with 4 and 0.75;
  // one thread, of 29: fp16 27 without, 14 with 8 KiB into L2. int8 on another Zen 4, of 64: 29
  // without, 25 with 4 KiB into L1 alone, 58 with 8 and 0.75.
  // Zen 5, of 80: int8 59 without, 60 with 16 and 1 KiB, 76 with 8 and none; bf16 73 without, 76
  // with 2 KiB into L1 alone. Emerald Rapids, bf16, of 23.6: 19.7 without, 22.5 with 3 KiB into L1
  // alone, 25.9 with 8 and 3; fp32 25.2, 27.2 and 29.1 of 25.3; int8 as well with 8 and 0.75 as
  // with anything. Granite Rapids, of 34: int8 27.3 with 8 and 0.75, 28.4 with 6 and 3; bf16 26.4
  // with 8 and 3, 28.9 with 4 and 2, 29.3 with 6 and 3; fp16 30.3 and 30.7 with the last two; fp32
  // 26.4 with 4 and 2, 28.0 with 4 and 3, 25.1 with 6 and 3. Times as fast as 5.5 and 4 KiB for
  // fp32 and 6 and 3 for others, two tokens each by turns: fp32 1.00 to 1.01 with 6 and 4.5;
  // bf16 1.00 to 1.02 with 5 and 2.5; fp16 1.01 with 6 and 3.75; int8 0.98 with 5 and 3,
  // 0.92 with 4 and 3, 0.97 with 8 and 4.
  constexpr StreamAhead kNone{0, 0}, kCodes{8192, 768};
  const bool codes = type == kWeightI8 || type == kWeightU8 || type == kWeightI4;
#if WKV_X86
  static const bool zen3 = __builtin_cpu_is("znver3") != 0, amd = __builtin_cpu_is("amd") != 0;
  // GCC 12 has no name for Zen 5, the only one of AMD's with this instruction.
  static const bool zen5 = amd && __builtin_cpu_supports("avx512vp2intersect") != 0;
  if (amd && !zen3) {
    if (type == kWeightF32) return zen5 ? StreamAhead{2048, 0} : StreamAhead{4096, 768};
    if (codes) return zen5 ? StreamAhead{8192, 0} : StreamAhead{16384, 1024};
    return zen5 ? StreamAhead{0, 2048} : kNone;
  }
  static const bool granite_rapids = is_granite_rapids();
  if (granite_rapids) {
    if (type == kWeightF32) return {6144, 4608};
    if (type == kWeightF16) return {6144, 3840};
    return type == kWeightBF16 ? StreamAhead{5120, 2560} : StreamAhead{6144, 3072};
  }
  // What eight streams leave; times as fast as 8 KiB and 3, 768 bytes with codes: fp32 1.01 to
  // 1.02, 16-bit floats 1.02, int8 1.05, int4 1.01 to 1.07.
  static const bool ice_lake = __builtin_cpu_is("icelake-server") != 0;
  if (ice_lake) return {0, 3072};
  if (zen3 && type == kWeightI4) return {4096, 0};
  if (codes) return kCodes;
  if (amd) return type == kWeightF32 ? kNone : StreamAhead{0, 1024};
  if (__builtin_cpu_supports("avx512f")) return {8192, 3072};
  return type == kWeightF32 ? kNone : StreamAhead{0, 3072};
#endif
  return codes ? kCodes : kNone;
}

Streams streams([[maybe_unused]] int type) noexcept {
#if WKV_X86
  // Granite Rapids, int4, times as fast as one stream, 4096 rows of 2048: two with 2 KiB 1.19, with
  // 1 KiB 1.16. bf16, fp16 and int8 gain nothing from two.
  static const bool granite_rapids = is_granite_rapids();
  if (granite_rapids && type == kWeightI4) return {2, 2048};
  // Ice Lake, two threads, 2048 rows of 2048, times as fast as one stream with 3 KiB: fp32 1.22,
  // bf16 1.27, int8 1.31, int4 1.26; four streams 1.16, 1.17, 1.21 and (1 KiB) 1.21, sixteen as
  // eight or less. 512 bytes to 1.5 KiB ahead are within 1 % of each other. AVX2: fp32 1.32, bf16
  // 1.31, int8 (four) 1.26.
  static const bool ice_lake = __builtin_cpu_is("icelake-server") != 0;
  if (ice_lake) return {8, type == kWeightI4 ? 512 : 1024};
  // Zen 3, two threads, 2048 rows of 2048, times as fast as one stream: bf16 1.45, fp16 1.17, fp32
  // 1.13, int8 1.05 to 1.33; 2048 of 8192: 1.10, 1.12, 1.07, 1.16. Codes of int4 are bound by
  // arithmetic: 0.77 unasked, 0.9 with 2 KiB into L2 or two streams with 1 KiB into L1. 384 bytes
  // ahead, times as fast as unasked: 16-bit floats 1.01 to 1.06, fp32 0.99 to 1.02, int8 0.97 to
  // 0.99.
  static const bool zen3 = __builtin_cpu_is("znver3") != 0;
  const bool floats16 = type == kWeightF16 || type == kWeightBF16;
  if (zen3 && type != kWeightI4) return {4, floats16 ? 384 : 0};
#endif
  return {1, 0};
}

int segment_inputs() noexcept {
  // Of 32 KiB, x of 8192 inputs would leave none. Zen 5 (48 KiB), two threads, bf16, 2048 outputs
  // of 8192 inputs: 56 GB/s of 82 four rows at a time and 65 row by row, 42 and 49 of 54.
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool large = sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48L << 10;
  if (large) return 2 * kSegment;
#endif
  return kSegment;
}

const KernelTable& select_isa() { return select(forced(), "[isa] WKV_ISA="); }

const KernelTable& select_isa(const char* name) {
  return select(name != nullptr ? name : "", "[isa] ");
}

}  // namespace wkv::cpu
