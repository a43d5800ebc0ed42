#include "io/open.h"

#include <array>
#include <filesystem>
#include <string>
#include <system_error>

#include "core/check.h"
#include "io/bytes.h"
#include "io/converted.h"
#include "io/hf.h"
#include "io/pth.h"
#include "io/quantised.h"
#include "io/safetensors.h"
#include "io/zip.h"
#include "wkv/wkv.hpp"

namespace wkv {
namespace {

constexpr std::array<const char*, 2> kSuffixes{".pth", ".safetensors"};

// The path itself, or with one of the suffixes people leave out. A file with a suffix is meant
// rather than a directory of the bare name.
std::filesystem::path find_file(const std::filesystem::path& path) {
  std::error_code ignored;
  const bool exists = std::filesystem::exists(path, ignored);
  if (exists && !std::filesystem::is_directory(path, ignored)) return path;
  std::string tried = path.string();
  for (const char* suffix : kSuffixes) {
    std::filesystem::path longer = path;
    longer += suffix;
    if (std::filesystem::is_regular_file(longer, ignored)) return longer;
    tried += ", " + longer.string();
  }
  WKV_CHECK(exists, io, "[open_checkpoint] no such file; tried ", tried);
  return path;
}

std::shared_ptr<const TensorSource> official(std::shared_ptr<const TensorSource> source) {
  if (is_converted(*source)) return open_converted(std::move(source));
  if (is_hf(*source)) source = open_hf(std::move(source));
  return is_quantised_file(*source) ? open_quantised(std::move(source)) : source;
}

}  // namespace

std::shared_ptr<const TensorSource> read_tensors(std::shared_ptr<const MappedFile> file) {
  const auto bytes = file->bytes();
  if (is_zip(bytes) || is_legacy_pth(bytes)) return open_pth(std::move(file));
  if (is_safetensors(bytes)) return open_safetensors(std::move(file));
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               bytes.size() < 8 ? bytes.size() : 8);
  fail(ErrorCode::bad_model, "[", file->name(), "] is neither .pth nor .safetensors; its ",
       bytes.size(), " bytes begin with ", quote(start));
}

std::shared_ptr<const TensorSource> open_checkpoint_bytes(std::shared_ptr<const MappedFile> file) {
  return official(read_tensors(std::move(file)));
}

std::shared_ptr<const TensorSource> open_checkpoint(const std::filesystem::path& path) {
  const std::filesystem::path found = find_file(path);
  std::error_code ignored;
  if (std::filesystem::is_directory(found, ignored)) return official(open_directory(found));
  return open_checkpoint_bytes(MappedFile::open(found));
}

}  // namespace wkv
