// The AMX kernels on emulated tile registers, and gemm kernels on memory between guards.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "ops_module.h"

#if defined(WKV_EMULATED)
namespace wkv::test {
struct AmxCounters {
  int faults, configured;
  long long products;
};
extern AmxCounters amx_counters;
}  // namespace wkv::test
namespace wkv::cpu {
extern const KernelTable kernels_avx512_emulated;
extern const NarrowKernels kernels_amx_emulated;
}  // namespace wkv::cpu
#endif

namespace wkv::test {
namespace {

bool runs(const std::string& name) {
  for (const IsaInfo& isa : cpu::list_isas())
    if (isa.name == name) return isa.runnable;
  return false;
}

#if defined(WKV_EMULATED)
/// A table of which some instructions are software; null for another name.
const cpu::KernelTable* emulated_table(const std::string& isa) {
  static const cpu::KernelTable amx = [] {
    cpu::KernelTable t = cpu::kernels_avx512;
    t.isa = kEmulatedAmx;
    t.matmul.narrow = cpu::kernels_amx_emulated.narrow;
    return t;
  }();
  if (isa == kEmulatedAmx) return &amx;
  return isa == kEmulatedAvx512 ? &cpu::kernels_avx512_emulated : nullptr;
}

py::dict counters() {
  py::dict all;
  all["faults"] = amx_counters.faults;
  all["configured"] = amx_counters.configured;
  all["products"] = amx_counters.products;
  return all;
}
#else
const cpu::KernelTable* emulated_table(const std::string&) { return nullptr; }

py::dict counters() { return {}; }
#endif

/// Memory of exactly `bytes` with a guard on either side, all of it NaN as floats and far from zero
/// as integers.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : bytes_(bytes), all_(allocate_host(bytes + 2 * kGuard)) {
    std::memset(all_.data(), kPoison, all_.bytes());
  }
  char* data() { return static_cast<char*>(all_.data()) + kGuard; }
  bool intact() const {
    const auto* p = static_cast<const unsigned char*>(all_.data());
    for (std::size_t i = 0; i < kGuard; ++i)
      if (p[i] != kPoison || p[kGuard + bytes_ + i] != kPoison) return false;
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 4096;
  static constexpr unsigned char kPoison = 0xff;
  std::size_t bytes_;
  Buffer all_;
};

cpu::WeightType type_named(const std::string& type) {
  static constexpr std::pair<const char*, cpu::WeightType> kTypes[] = {
      {"fp32", cpu::kWeightF32}, {"fp16", cpu::kWeightF16}, {"bf16", cpu::kWeightBF16},
      {"int8", cpu::kWeightI8},  {"mm8", cpu::kWeightU8},   {"int4", cpu::kWeightI4}};
  for (const auto& [name, code] : kTypes)
    if (type == name) return code;
  fail(ErrorCode::internal, "[test] there is no weight type '", type, "'");
}

/// y [rows, out] = x W^T by the gemm that the table chooses, its scratch and packed x of exactly
/// the sizes it asks for. x and y are inside wider memory; outputs in ranges of `range`. int4
/// weights that are not input-major come in strips, with their number of outputs.
py::tuple gemm(const std::string& isa, const std::string& precision, const Array& x,
               const py::array& codes, const std::string& type, bool input_major,
               const std::optional<Array>& in_scale, const std::optional<Array>& out_scale,
               const std::optional<py::array>& group_scale, float zero, int range, int out) {
  const cpu::MatmulKernels& kernels = table_named(isa).matmul;
  cpu::MatmulArgs a{};
  a.type = type_named(type);
  a.precision = static_cast<int>(parse_matmul_precision(precision));
  a.input_major = input_major;
  a.rows = static_cast<int>(x.shape(0));
  a.in = static_cast<int>(x.shape(1));
  const auto w_rows = static_cast<std::size_t>(codes.shape(0));
  const auto w_bytes = static_cast<std::size_t>(codes.nbytes());
  a.out = static_cast<int>(input_major ? codes.nbytes() / codes.shape(0) / codes.itemsize()
                                       : codes.shape(0));
  if (input_major && a.type == cpu::kWeightI4) a.out *= 2;
  if (out > 0) a.out = out;  // int4: what fills up the last strip is no output
  a.row_bytes = static_cast<std::ptrdiff_t>(w_bytes / w_rows);
  Guarded w(w_bytes);
  std::memcpy(w.data(), codes.data(), w_bytes);
  a.w = w.data();
  if (in_scale) a.scales.in_scale = in_scale->data();
  if (out_scale) a.scales.out_scale = out_scale->data();
  if (group_scale) a.scales.group_scale = group_scale->data();
  a.scales.zero = zero;

  const auto wide = [&](int columns) {
    return Guarded(static_cast<std::size_t>(a.rows) * static_cast<std::size_t>(columns + 3) *
                   sizeof(float));
  };
  Guarded x_memory = wide(a.in), y_memory = wide(a.out);
  auto* x_at = reinterpret_cast<float*>(x_memory.data());
  auto* y_at = reinterpret_cast<float*>(y_memory.data());
  a.x_stride = a.in + 3;
  a.y_stride = a.out + 3;
  for (int m = 0; m < a.rows; ++m)
    std::memcpy(x_at + m * a.x_stride, x.data(m, 0), static_cast<std::size_t>(a.in) * 4);
  a.x = x_at;
  a.y = y_at;

  const cpu::GemmKernels* narrow = kernels.narrow(a);
  const cpu::GemmKernels& g = narrow != nullptr ? *narrow : kernels.gemm;
  Guarded packed((g.packed_bytes(a) + 63) / 64 * 64), scratch((g.scratch(a) + 63) / 64 * 64);
  const int units = g.pack_units(a);
  for (int unit = units; unit-- > 0;) g.pack(a, unit, unit + 1, packed.data());
  for (int begin = 0; begin < a.out; begin += range)
    g.multiply(a, packed.data(), begin, std::min(begin + range, a.out), scratch.data());
  for (const Guarded* memory : {&w, &x_memory, &y_memory, &packed, &scratch})
    WKV_CHECK(memory->intact(), internal, "[test] the kernel wrote outside of its memory");
  Array y({a.rows, a.out});
  for (int m = 0; m < a.rows; ++m) {
    for (int i = 0; i < 3; ++i)
      WKV_CHECK(std::isnan(y_at[m * a.y_stride + a.out + i]), internal,
                "[test] the kernel wrote behind row ", m);
    std::memcpy(y.mutable_data(m, 0), y_at + m * a.y_stride, static_cast<std::size_t>(a.out) * 4);
  }
  return py::make_tuple(y, narrow != nullptr);
}

/// y [out] = W x of one row, by gemv. Weights are asked for `ahead` bytes before their use, into L2
/// and into L1; int4 lies in strips. `streams`: how many there are and how far ahead each is asked
/// for. Threads of `range` outputs each.
Array gemv_row(const std::string& isa, const Array& x, const py::array& codes,
               const std::string& type, int out, std::pair<int, int> ahead,
               const std::optional<py::array>& group_scale, std::pair<int, int> streams,
               int range) {
  const cpu::MatmulKernels& kernels = table_named(isa).matmul;
  cpu::MatmulArgs a{};
  a.type = type_named(type);
  a.rows = 1;
  a.in = static_cast<int>(x.shape(0));
  a.out = out;
  a.row_bytes = codes.nbytes() / codes.shape(0);
  a.w = codes.data();
  if (group_scale) a.scales.group_scale = group_scale->data();
  a.x = x.data();
  Guarded y(static_cast<std::size_t>(out) * sizeof(float));
  a.y = reinterpret_cast<float*>(y.data());
  a.ahead = {ahead.first, ahead.second};
  a.streams = {streams.first, streams.second};
  a.segment = cpu::kSegment;
  Guarded scratch((kernels.gemv_scratch(a) + 63) / 64 * 64);
  kernels.gemv_prepare(a, scratch.data());
  for (int begin = 0; begin < out; begin += range)
    kernels.gemv(a, begin, std::min(out, begin + range), scratch.data());
  for (const Guarded* memory : {&y, &scratch})
    WKV_CHECK(memory->intact(), internal, "[test] the kernel wrote outside of its memory");
  return Array(out, a.y);
}

}  // namespace

const cpu::KernelTable& table_named(const std::string& isa) {
  if (const cpu::KernelTable* table = emulated_table(isa); table != nullptr) return *table;
  return isa.empty() ? cpu::select_isa() : cpu::select_isa(isa.c_str());
}

std::vector<std::pair<std::string, bool>> all_isas() {
  std::vector<std::pair<std::string, bool>> list;
  for (const IsaInfo& isa : cpu::list_isas()) list.emplace_back(isa.name, isa.runnable);
#if defined(WKV_EMULATED)
  list.emplace_back(kEmulatedAvx512, runs("avx2") && !runs("avx512"));
  list.emplace_back(kEmulatedAmx, runs("avx512"));
#endif
  return list;
}

void bind_gemm(py::module_& m) {
  using py::arg;
  m.def("isas", &all_isas);
  m.def("amx_counters", &counters);
  m.def("why_no_amx",
        [](unsigned features, unsigned features_1, std::uint64_t saved_states, int refusal) {
          return cpu::why_no_amx({features, features_1, saved_states, refusal});
        });
  m.def("gemm", &gemm, arg("isa"), arg("precision"), arg("x"), arg("codes"), arg("type"),
        arg("input_major") = false, arg("in_scale") = py::none(), arg("out_scale") = py::none(),
        arg("group_scale") = py::none(), arg("zero") = 0.0f, arg("range") = 1 << 30,
        arg("out") = 0);
  m.def("gemv_row", &gemv_row, arg("isa"), arg("x"), arg("codes"), arg("type"), arg("out"),
        arg("ahead"), arg("group_scale") = py::none(), arg("streams") = std::pair(1, 0),
        arg("range") = 1 << 30);
}

}  // namespace wkv::test
