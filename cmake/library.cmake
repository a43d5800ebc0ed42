# The library itself and its package: `cmake --install` and the wheel lay out the same files.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(wkv $<TARGET_OBJECTS:wkv_objects>)
add_library(wkv::wkv ALIAS wkv)
target_include_directories(wkv PUBLIC
  "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include>"
  "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
target_compile_features(wkv PUBLIC cxx_std_20)
target_link_libraries(wkv PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(wkv PROPERTIES EXPORT_NAME wkv INSTALL_RPATH "$ORIGIN")
if(BUILD_SHARED_LIBS AND UNIX AND NOT APPLE)
  target_link_options(wkv PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/wkv.map")
  set_property(TARGET wkv PROPERTY LINK_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/wkv.map")
endif()

install(TARGETS wkv EXPORT wkv-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/cpp/include/wkv" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT wkv-targets NAMESPACE wkv:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wkv)
configure_package_config_file(cmake/wkv-config.cmake.in
  "${PROJECT_BINARY_DIR}/wkv-config.cmake"
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wkv)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/wkv-config-version.cmake"
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES
  "${PROJECT_BINARY_DIR}/wkv-config.cmake" "${PROJECT_BINARY_DIR}/wkv-config-version.cmake"
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wkv)
