# Looks like the package that hiredis installs, down to the variable that all such files set in their user's scope.
set(PACKAGE_PREFIX_DIR "${CMAKE_CURRENT_LIST_DIR}")
find_library(INSTALLED_HIREDIS hiredis REQUIRED)
find_path(INSTALLED_HIREDIS_INCLUDE hiredis/hiredis.h REQUIRED)
if(NOT TARGET hiredis::hiredis)
  add_library(hiredis::hiredis UNKNOWN IMPORTED)
  set_target_properties(hiredis::hiredis PROPERTIES IMPORTED_LOCATION "${INSTALLED_HIREDIS}"
                        INTERFACE_INCLUDE_DIRECTORIES "${INSTALLED_HIREDIS_INCLUDE}")
endif()
