#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"

namespace wkv::cuda {
namespace {

// The part of cuBLASLt 13's interface that is used, by its documented values.
using Handle = void*;
using Description = void*;
using Layout = void*;
using Preference = void*;
struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};
constexpr int kCompute32F = 68, kR32F = 0, kR16F = 2, kR16BF = 14;
constexpr int kTransA = 3, kOpT = 1;
constexpr int kMaxWorkspaceBytes = 1;
constexpr std::size_t kMostWorkspace = std::size_t{32} << 20;  // of a branch
constexpr const char* kFileName = "libcublasLt.so.13";

struct Api {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*matmul)(Handle, Description, const void* alpha, const void* a, Layout, const void* b,
                Layout, const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*,
                void* workspace, std::size_t, cudaStream_t);
  int (*description_create)(Description*, int compute, int scale);
  int (*description_destroy)(Description);
  int (*description_set)(Description, int attribute, const void*, std::size_t);
  int (*layout_create)(Layout*, int type, std::uint64_t rows, std::uint64_t cols, std::int64_t ld);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void*, std::size_t);
  int (*heuristic)(Handle, Description, Layout, Layout, Layout, Layout, Preference, int wanted,
                   Heuristic*, int* found);
};

void* open_library() {
  const char* named = std::getenv("WKV_CUBLASLT");
  if (named != nullptr && std::string(named) == "0") return nullptr;
  if (named != nullptr && *named != '\0') return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  if (void* loaded = dlopen(kFileName, RTLD_NOW | RTLD_NOLOAD)) return loaded;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&open_library), &info) != 0 && info.dli_fname) {
    std::filesystem::path folder = std::filesystem::path(info.dli_fname).parent_path();
    for (int level = 0; level < 4 && folder.has_relative_path(); ++level) {
      const auto file = folder / "nvidia" / "cu13" / "lib" / kFileName;
      std::error_code ignored;
      if (std::filesystem::exists(file, ignored))
        if (void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
      folder = folder.parent_path();
    }
  }
  return dlopen(kFileName, RTLD_NOW | RTLD_LOCAL);
}

bool fill(Api& api, void* library) {
  bool whole = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    whole = whole && function != nullptr;
  };
  find(api.create, "cublasLtCreate");
  find(api.destroy, "cublasLtDestroy");
  find(api.matmul, "cublasLtMatmul");
  find(api.description_create, "cublasLtMatmulDescCreate");
  find(api.description_destroy, "cublasLtMatmulDescDestroy");
  find(api.description_set, "cublasLtMatmulDescSetAttribute");
  find(api.layout_create, "cublasLtMatrixLayoutCreate");
  find(api.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(api.preference_create, "cublasLtMatmulPreferenceCreate");
  find(api.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(api.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(api.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  return whole;
}

/// How one shape is done; found once.
struct Plan {
  Description description = nullptr;
  Layout w = nullptr, x = nullptr, y = nullptr;
  Algorithm algorithm{};
  std::size_t workspace_bytes = 0;
  bool usable = false;
};
using Shape = std::tuple<int, int, int, std::int64_t, std::int64_t, std::int64_t, bool>;

}  // namespace

struct CublasLt::Impl {
  Api api{};
  Handle handle = nullptr;
  /// Graphs hold the addresses of those that were outgrown.
  std::vector<void*> workspaces;
  std::size_t workspace_bytes = 0;  // of a branch, in the last one
  std::map<Shape, Plan> plans;

  /// Row-major y = x w^T is, column by column, y^T = w x^T with w transposed.
  Plan make_plan(const LibraryProduct& p) const {
    Plan plan;
    const int type = p.bf16 != 0 ? kR16BF : kR16F;
    const auto in = static_cast<std::uint64_t>(p.in), out = static_cast<std::uint64_t>(p.out),
               rows = static_cast<std::uint64_t>(p.rows);
    Preference preference = nullptr;
    Heuristic best{};
    int found = 0;
    plan.usable = api.description_create(&plan.description, kCompute32F, kR32F) == 0 &&
                  api.description_set(plan.description, kTransA, &kOpT, sizeof kOpT) == 0 &&
                  api.layout_create(&plan.w, type, in, out, p.ldw) == 0 &&
                  api.layout_create(&plan.x, type, in, rows, p.ldx) == 0 &&
                  api.layout_create(&plan.y, kR32F, out, rows, p.ldy) == 0 &&
                  api.preference_create(&preference) == 0 &&
                  api.preference_set(preference, kMaxWorkspaceBytes, &kMostWorkspace,
                                     sizeof kMostWorkspace) == 0 &&
                  api.heuristic(handle, plan.description, plan.w, plan.x, plan.y, plan.y,
                                preference, 1, &best, &found) == 0 &&
                  found > 0 && best.status == 0;
    if (preference != nullptr) api.preference_destroy(preference);
    plan.algorithm = best.algorithm;
    plan.workspace_bytes = best.workspace_bytes;
    return plan;
  }

  /// Not while a graph is captured.
  bool reserve(std::size_t bytes) {
    if (bytes <= workspace_bytes) return true;
    const std::size_t larger = std::bit_ceil(std::max(bytes, std::size_t{1} << 20));
    void* memory = nullptr;
    if (cudaMalloc(&memory, larger * kBranches) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    workspaces.push_back(memory);
    workspace_bytes = larger;
    return true;
  }

  const Plan& plan(const LibraryProduct& p) {
    const Shape shape{p.in, p.out, p.rows, p.ldw, p.ldx, p.ldy, p.bf16 != 0};
    auto found = plans.find(shape);
    if (found == plans.end()) {
      found = plans.emplace(shape, make_plan(p)).first;
      Plan& made = found->second;
      made.usable = made.usable && reserve(made.workspace_bytes);
    }
    return found->second;
  }

  ~Impl() {
    for (auto& [shape, plan] : plans) {
      if (plan.w != nullptr) api.layout_destroy(plan.w);
      if (plan.x != nullptr) api.layout_destroy(plan.x);
      if (plan.y != nullptr) api.layout_destroy(plan.y);
      if (plan.description != nullptr) api.description_destroy(plan.description);
    }
    if (handle != nullptr) api.destroy(handle);
    for (void* memory : workspaces) static_cast<void>(cudaFree(memory));
  }
};

CublasLt::CublasLt(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CublasLt::~CublasLt() = default;

std::unique_ptr<CublasLt> CublasLt::open() {
  void* library = open_library();  // stays open: other models may use it
  if (library == nullptr) return nullptr;
  auto impl = std::make_unique<Impl>();
  if (!fill(impl->api, library) || impl->api.create(&impl->handle) != 0) return nullptr;
  return std::unique_ptr<CublasLt>(new CublasLt(std::move(impl)));
}

bool CublasLt::accepts(const LibraryProduct& p) {
  // Multiplications; smaller products of a group share a launch of our own. (RWKV-7 1.5B on an
  // H200, 32 streams: 9.6k tokens a second, with our own kernels up to 127 rows 7.6k.)
  constexpr std::int64_t kWorthwhile = 1 << 26;
  return std::int64_t{p.in} * p.out * p.rows >= kWorthwhile && impl_->plan(p).usable;
}

void CublasLt::multiply(const LibraryProduct& p, cudaStream_t stream, int branch) {
  const Plan& plan = impl_->plan(p);
  const float alpha = p.scale, beta = p.into != 0 ? 1.0f : 0.0f;
  void* workspace = nullptr;
  if (plan.workspace_bytes > 0)
    workspace = static_cast<char*>(impl_->workspaces.back()) +
                static_cast<std::size_t>(branch) * impl_->workspace_bytes;
  const int status = impl_->api.matmul(impl_->handle, plan.description, &alpha, p.w, plan.w, p.x16,
                                       plan.x, &beta, p.y, plan.y, p.y, plan.y, &plan.algorithm,
                                       workspace, plan.workspace_bytes, stream);
  WKV_CHECK(status == 0, device, "[cublasLt] a product [", p.rows, ", ", p.in, "] x [", p.out, ", ",
            p.in, "] failed with status ", status);
}

}  // namespace wkv::cuda
