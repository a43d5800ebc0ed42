# What the plugin and the tests' host shim both compile.
set(_wkv_cuda "${PROJECT_SOURCE_DIR}/cuda")
set(WKV_CUDA_KERNELS
  ${_wkv_cuda}/elementwise.cu
  ${_wkv_cuda}/expand.cu
  ${_wkv_cuda}/gemm.cu
  ${_wkv_cuda}/history.cu
  ${_wkv_cuda}/linear_f32.cu
  ${_wkv_cuda}/norm.cu
  ${_wkv_cuda}/sample.cu
  ${_wkv_cuda}/skinny.cu
  ${_wkv_cuda}/wkv.cu
  ${_wkv_cuda}/wkv_split.cu)
set(WKV_CUDA_HOST
  ${_wkv_cuda}/architectures.cpp
  ${_wkv_cuda}/cuda_backend.cpp
  ${_wkv_cuda}/cuda_history.cpp
  ${_wkv_cuda}/cuda_library.cpp
  ${_wkv_cuda}/cuda_linear.cpp
  ${_wkv_cuda}/cuda_quantised.cpp
  ${_wkv_cuda}/cuda_weights.cpp
  ${_wkv_cuda}/device_sampler.cpp
  ${_wkv_cuda}/launch_queue.cpp
  ${_wkv_cuda}/pack.cpp
  "${PROJECT_SOURCE_DIR}/cpp/src/core/buffer.cpp"
  "${PROJECT_SOURCE_DIR}/cpp/src/core/cpu_set.cpp"
  "${PROJECT_SOURCE_DIR}/cpp/src/core/dtype.cpp"
  "${PROJECT_SOURCE_DIR}/cpp/src/core/thread_pool.cpp"
  "${PROJECT_SOURCE_DIR}/cpp/src/ops/quantize.cpp")
# What a release has code for; see runs_on() in architectures.h.
set(WKV_CUDA_RELEASE_CUBINS 75 80 86 89 90 100 120)
set(WKV_CUDA_RELEASE_PTX 90)
function(wkv_cuda_runs_on target cubins ptx)
  list(JOIN cubins "," _cubins)
  list(JOIN ptx "," _ptx)
  target_compile_definitions(${target} PRIVATE
    "WKV_CUDA_CUBINS=${_cubins}" "WKV_CUDA_PTX=${_ptx}")
endfunction()
