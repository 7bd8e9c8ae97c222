# Package `relax_inplace`: the builtins that modules with in-place transforms call.
#
#   find_package(tvm_ffi CONFIG REQUIRED)        # or leave it to this package
#   find_package(relax_inplace CONFIG REQUIRED)
#   target_link_libraries(host PRIVATE relax_inplace::shared)
#
# Where it is: `python -m relax_inplace --cmakedir`. It defines
#
#   relax_inplace::shared  librelax_inplace, which has to be loaded before a module is
#   relax_inplace::static  the same, linked into the target whole
#
# Nothing refers to the library by a symbol: it registers its functions with tvm-ffi when it is
# loaded. So both are linked in a way that the linker does not leave them out.

include(CMakeFindDependencyMacro)
find_dependency(Threads)
# Beside this package, where both were installed by pip.
find_dependency(tvm_ffi CONFIG HINTS
                "${CMAKE_CURRENT_LIST_DIR}/../../../../tvm_ffi/share/cmake/tvm_ffi")

get_filename_component(_relax_inplace_lib "${CMAKE_CURRENT_LIST_DIR}/../../../lib" ABSOLUTE)
set(_relax_inplace_archive
    "${_relax_inplace_lib}/${CMAKE_STATIC_LIBRARY_PREFIX}relax_inplace${CMAKE_STATIC_LIBRARY_SUFFIX}")

if(NOT TARGET relax_inplace::shared)
  add_library(relax_inplace::shared SHARED IMPORTED)
  set_target_properties(
    relax_inplace::shared
    PROPERTIES
      IMPORTED_LOCATION
      "${_relax_inplace_lib}/${CMAKE_SHARED_LIBRARY_PREFIX}relax_inplace${CMAKE_SHARED_LIBRARY_SUFFIX}"
      IMPORTED_SONAME
      "${CMAKE_SHARED_LIBRARY_PREFIX}relax_inplace${CMAKE_SHARED_LIBRARY_SUFFIX}"
      INTERFACE_LINK_LIBRARIES tvm_ffi::shared)
  if(NOT APPLE) # the linker of macOS leaves none out
    set_property(TARGET relax_inplace::shared APPEND PROPERTY
                 INTERFACE_LINK_OPTIONS -Wl,--no-as-needed)
  endif()

  add_library(relax_inplace::static INTERFACE IMPORTED)
  if(APPLE)
    set(_relax_inplace_whole "-Wl,-force_load,${_relax_inplace_archive}")
  else()
    set(_relax_inplace_whole
        "-Wl,--whole-archive,${_relax_inplace_archive},--no-whole-archive")
  endif()
  set_target_properties(
    relax_inplace::static
    PROPERTIES INTERFACE_LINK_LIBRARIES
               "${_relax_inplace_whole};tvm_ffi::shared;${CMAKE_DL_LIBS};Threads::Threads")
  unset(_relax_inplace_whole)
endif()

unset(_relax_inplace_lib)
unset(_relax_inplace_archive)
