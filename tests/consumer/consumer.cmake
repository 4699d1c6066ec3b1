# What every consumer includes once it has redislock::redislock: builds main.cpp with it, and stops if more came along
# than that. Before that, a consumer puts its CMAKE_CXX_FLAGS into `flags`.
add_executable(consumer "${CMAKE_CURRENT_LIST_DIR}/main.cpp")
target_link_libraries(consumer PRIVATE redislock::redislock)

foreach(option BUILD_TESTING BUILD_SHARED_LIBS REDISLOCK_BUILD_TESTS REDISLOCK_BUILD_EXAMPLES
        REDISLOCK_BUILD_BENCHMARKS REDISLOCK_INSTALL)
  if(${option})
    message(FATAL_ERROR "${option} is on in a consumer")
  endif()
endforeach()
foreach(target Catch2 Catch2::Catch2 CLI11::CLI11 test_support tests)
  if(TARGET ${target})
    message(FATAL_ERROR "the target ${target} reached a consumer")
  endif()
endforeach()
if(NOT CMAKE_CXX_FLAGS STREQUAL flags OR NOT "$CACHE{CMAKE_CXX_FLAGS}" STREQUAL flags)
  message(FATAL_ERROR "the consumer's CMAKE_CXX_FLAGS were ${flags}, and are now ${CMAKE_CXX_FLAGS}")
endif()

if(redislock_SOURCE_DIR)
  get_property(targets DIRECTORY "${redislock_SOURCE_DIR}" PROPERTY BUILDSYSTEM_TARGETS)
  get_property(folders DIRECTORY "${redislock_SOURCE_DIR}" PROPERTY SUBDIRECTORIES)
  if(NOT targets MATCHES "^redislock(;redislock_tls)?$" OR folders MATCHES "/(tests|examples)(;|$)")
    message(FATAL_ERROR "redislock brought the targets ${targets} and the folders ${folders}")
  endif()
endif()
