// libFuzzer target: state blobs. A blob is a state of this model or an Error, nothing else.
#include <cstddef>
#include <cstdint>
#include <span>

#include "wkv/wkv.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static wkv::Model model = [] {
    wkv::Options options;
    options.device = "cpu";
    options.threads = 1;
    return wkv::Model::load(wkv::synthetic_checkpoint("v7:1x64:8", wkv::DType::f32), options);
  }();
  try {
    const wkv::State state = model.state_from_bytes(std::as_bytes(std::span(data, size)));
    static_cast<void>(state.position());
  } catch (const wkv::Error&) {
  }
  return 0;
}
