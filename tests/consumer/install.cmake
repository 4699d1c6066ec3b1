# Installs BUILD into an empty PREFIX, and checks that what is there is the whole package and no more, and can be moved.
file(REMOVE_RECURSE "${PREFIX}")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${PREFIX}" --config "${CONFIG}"
                COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE expected RELATIVE "${SOURCE}/include" "${SOURCE}/include/redislock/*.hpp")
list(TRANSFORM expected PREPEND "${INCLUDE}/")
foreach(file redislock-config.cmake redislock-config-version.cmake redislock-hiredis.cmake)
  list(APPEND expected "${LIB}/cmake/redislock/${file}")
endforeach()
file(GLOB_RECURSE installed RELATIVE "${PREFIX}" "${PREFIX}/*")
# Where hiredis was fetched it's installed with us, for the package needs it.
list(FILTER installed EXCLUDE REGEX "/(hiredis|libhiredis|native)[^/]*(/|$)|/hiredis\\.pc$")
list(SORT expected)
list(SORT installed)
if(NOT installed STREQUAL expected)
  message(FATAL_ERROR "installed: ${installed}\nexpected: ${expected}")
endif()

foreach(file ${installed})
  file(READ "${PREFIX}/${file}" text)
  foreach(folder "${SOURCE}" "${BUILD}" "${PREFIX}")
    string(FIND "${text}" "${folder}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} names the folder ${folder}")
    endif()
  endforeach()
endforeach()
