# Warnings and debug definitions of our own targets. Never -ffast-math: GCC then links a start-up
# file that changes the floating-point mode of the whole host process.
add_library(wkv_flags INTERFACE)
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(wkv_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion)
  if(WKV_WERROR)
    target_compile_options(wkv_flags INTERFACE -Werror)
  endif()
endif()
if(WKV_DEBUG_CHECKS)
  target_compile_definitions(wkv_flags INTERFACE WKV_DEBUG_CHECKS)
endif()

# Of the files that are compiled once per ISA; tests/ops compiles one of them as well. GCC 12 warns
# falsely inside avx512fintrin.h (uninitialized). WKV_MORE_KERNEL_FLAGS: the fuzz preset takes
# sanitizers away, with which Clang compiles them 2 to 5 times as long for readers that run none.
set(WKV_KERNEL_FLAGS -ffp-contract=fast -fno-math-errno -fno-exceptions
  -Wno-maybe-uninitialized -Wno-uninitialized -Wno-conversion ${WKV_MORE_KERNEL_FLAGS})
set(WKV_AVX512_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c
  -mprefer-vector-width=512)
set(WKV_AMX_FLAGS -mamx-tile -mamx-bf16 -mamx-int8 -mavx512bf16)

# AMX needs a compiler and an assembler that know it (GCC 11, Clang 12, binutils 2.35).
set(WKV_AMX OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  include(CheckCXXSourceCompiles)
  list(JOIN WKV_AMX_FLAGS " " CMAKE_REQUIRED_FLAGS)
  check_cxx_source_compiles("int main() { asm volatile(\"tdpbf16ps %tmm2, %tmm1, %tmm0\"); asm volatile(\"tdpbsud %tmm2, %tmm1, %tmm0\"); }" WKV_AMX_COMPILES)
  unset(CMAKE_REQUIRED_FLAGS)
  if(WKV_AMX_COMPILES)
    set(WKV_AMX ON)
  endif()
endif()
