// Any bytes through the .pth reader: a source of tensors or wkv::Error, nothing else.
#include "fuzz_source.h"
#include "io/open.h"
#include "io/pth.h"
#include "io/zip.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::vector<std::byte> bytes = fuzz::to_bytes(data, size);
  if (!wkv::is_zip(bytes) && !wkv::is_legacy_pth(bytes)) return 0;
  return fuzz::read_everything(bytes, wkv::open_checkpoint_bytes);
}
