# Says whether libwkv and its CUDA plugin belong together: the version, the compiler and a hash of
# every header that describes what passes between them.
set(_wkv_boundary
  cpp/include/wkv/types.h cpp/include/wkv/wkv.hpp cpp/src/core/buffer.h cpp/src/core/tensor.h
  cpp/src/core/arena.h cpp/src/ops/backend.h cpp/src/ops/step.h cpp/src/ops/weights.h cuda/plugin.h)
set(_wkv_hashes "")
foreach(header ${_wkv_boundary})
  file(SHA256 "${PROJECT_SOURCE_DIR}/${header}" _wkv_hash)
  string(APPEND _wkv_hashes "${_wkv_hash}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${header}")
endforeach()
string(SHA256 _wkv_hash "${_wkv_hashes}")
string(SUBSTRING "${_wkv_hash}" 0 12 _wkv_hash)
set(WKV_BUILD_ID "${PROJECT_VERSION}-${_wkv_hash}")
