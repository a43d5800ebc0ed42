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
