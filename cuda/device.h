// What the backend needs of a GPU, as an interface: the CUDA runtime implements it, and so does the
// host shim of the tests, which runs the same kernels on a CPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "cuda/launch.h"

namespace wkv::cuda {

/// Launches of one step in order, in one block of bytes that can be compared.
class LaunchList {
 public:
  void push(const Launch& launch);
  void clear() noexcept { bytes_.clear(), count_ = 0; }
  std::size_t size() const noexcept { return count_; }
  bool operator==(const LaunchList& other) const noexcept { return bytes_ == other.bytes_; }
  std::uint64_t hash() const noexcept;

  struct Entry {
    const LaunchHeader* header;
    const void* params;
  };
  /// visit(const LaunchHeader&, const void* params), which stay until the list changes.
  template <class F>
  void each(F&& visit) const {
    const unsigned char* p = bytes_.data();
    const unsigned char* end = p + bytes_.size();
    while (p < end) {
      const LaunchHeader& header = *reinterpret_cast<const LaunchHeader*>(p);
      visit(header, p + kHeaderBytes);
      p += kHeaderBytes + padded(header.params_bytes);
    }
  }

 private:
  static constexpr std::size_t kAlignment = 16;
  static constexpr std::size_t padded(std::size_t n) {
    return (n + kAlignment - 1) / kAlignment * kAlignment;
  }
  static constexpr std::size_t kHeaderBytes =
      (sizeof(LaunchHeader) + kAlignment - 1) / kAlignment * kAlignment;

  std::vector<unsigned char> bytes_;
  std::size_t count_ = 0;
};

/// A captured list of launches.
class Graph {
 public:
  virtual ~Graph() = default;
};

/// A matrix product of the vendor's library: y (+)= x w^T.
struct LibraryProduct {
  const void* w;
  const void* x16;
  float* y;
  std::int64_t ldw, ldx, ldy;  ///< elements
  std::int32_t in, out, rows;
  float scale;  ///< of the product
  std::int32_t bf16, into;
};

/// One GPU and one in-order stream of work on it. Everything but allocate() is asynchronous unless
/// it says otherwise; the caller serialises calls. allocate() may be called from any thread. Errors
/// are Error(device).
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;         ///< "cuda:0"
  virtual std::string description() const = 0;  ///< "NVIDIA H200"
  virtual int processors() const noexcept = 0;
  virtual int capability() const noexcept = 0;  ///< 90 for sm_90
  /// Shared memory that a block may have, static and dynamic together.
  virtual int shared_bytes() const noexcept = 0;

  /// Throws Error(out_of_memory) with figures.
  virtual Buffer allocate(std::size_t bytes) = 0;
  /// Host memory that the GPU reads at full speed.
  virtual Buffer allocate_pinned(std::size_t bytes) = 0;

  virtual void copy_in(void* to, const void* pinned, std::size_t bytes) = 0;
  virtual void copy_out(void* pinned, const void* from, std::size_t bytes) = 0;
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void zero(void* to, std::size_t bytes) = 0;
  /// Notes the present end of the stream as number 0 or 1.
  virtual void mark(int number) = 0;
  /// Returns when what precedes the mark is done; at once if there is no mark.
  virtual void wait(int number) = 0;
  virtual void synchronize() = 0;

  /// A kernel, or with `header.kernel` null the LibraryProduct at `params`, which was accepted.
  virtual void launch(const LaunchHeader& header, const void* params) = 0;
  /// Null if this list cannot be captured.
  virtual std::unique_ptr<Graph> capture(const LaunchList& list) = 0;
  virtual void replay(Graph& graph) = 0;
  /// Whether there is a library and it does this product better than our own kernels.
  virtual bool accepts(const LibraryProduct& product) = 0;
};

/// Opens GPU `index`. Throws Error(unsupported) with the reason.
std::unique_ptr<Device> open_device(int index);

}  // namespace wkv::cuda
