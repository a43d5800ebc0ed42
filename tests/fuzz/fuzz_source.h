// What both reader targets do with their input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "io/mapped_file.h"
#include "wkv/types.h"

namespace fuzz {

inline std::vector<std::byte> to_bytes(const std::uint8_t* data, std::size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  return {bytes, bytes + size};
}

/// Opens the bytes and touches every byte of every tensor. Errors of a bad file are fine.
template <class Open>
int read_everything(std::vector<std::byte> bytes, Open open) {
  try {
    const auto source = open(wkv::MappedFile::from_bytes(std::move(bytes), "fuzz"));
    unsigned sum = 0;
    for (const std::string& name : source->names()) {
      const std::vector<std::int64_t> shape = source->shape(name);
      try {
        const wkv::HostTensor tensor = source->get(name);
        if (tensor.shape != shape) std::abort();
        const auto* p = static_cast<const unsigned char*>(tensor.data);
        const std::size_t n =
            static_cast<std::size_t>(tensor.numel()) * wkv::dtype_size(tensor.dtype);
        for (std::size_t i = 0; i < n; ++i) sum += p[i];
      } catch (const wkv::Error& e) {
        if (e.code() != wkv::ErrorCode::bad_model) std::abort();
      }
    }
    static volatile unsigned sink;
    sink = sink + sum;
  } catch (const wkv::Error& e) {
    if (e.code() != wkv::ErrorCode::bad_model && e.code() != wkv::ErrorCode::io) std::abort();
  }
  return 0;
}

}  // namespace fuzz
