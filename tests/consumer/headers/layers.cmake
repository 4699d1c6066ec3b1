# Includes point down: no header includes one of a higher layer, and none, by way of others, itself. Users' headers are reached from the
# front page, or are named here because they are not in it.
#
# The layers, the lowest first. A header is of the last layer whose name its path begins with. A lock is below all connections: a file
# with a lock over an AnyBackend compiles none of them.
set(layers
    "errors detail/system/ token outcome"
    "options observer uri redis_options"
    "detail/lease/ backend"
    "inspect lock any_backend"
    "detail/protocol/"
    "detail/net/"
    "detail/renewal/"
    "redis quorum memory tls"
    "check"
    "cluster redislock")
set(not_on_the_front_page cluster.hpp)

cmake_minimum_required(VERSION 3.22)
file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/*.hpp")

# layer_of(HEADER VARIABLE)
function(layer_of header variable)
  set(found "")
  set(number 0)
  foreach(layer ${layers})
    separate_arguments(names UNIX_COMMAND "${layer}")
    foreach(name ${names})
      string(FIND "${header}" "${name}" at)
      if((name MATCHES "/$" AND at EQUAL 0) OR header STREQUAL "${name}.hpp")
        set(found ${number})
      endif()
    endforeach()
    math(EXPR number "${number} + 1")
  endforeach()
  if(found STREQUAL "")
    message(FATAL_ERROR "${header} is in none of the layers: see ${CMAKE_CURRENT_LIST_FILE}")
  endif()
  set(${variable} ${found} PARENT_SCOPE)
endfunction()

foreach(header ${headers})
  get_filename_component(folder "${INCLUDE}/${header}" DIRECTORY)
  layer_of(${header} own)
  file(STRINGS "${INCLUDE}/${header}" lines REGEX "^#include \"")
  set(included_by_${header} "")
  foreach(line ${lines})
    string(REGEX REPLACE "^#include \"([^\"]*)\".*" "\\1" path "${line}")
    get_filename_component(path "${path}" ABSOLUTE BASE_DIR "${folder}")
    file(RELATIVE_PATH other "${INCLUDE}" "${path}")
    layer_of(${other} its)
    if(its GREATER own)
      message(SEND_ERROR "${header} includes ${other}, which is of a higher layer")
    endif()
    list(APPEND included_by_${header} ${other})
  endforeach()
endforeach()

# reach(HEADER VARIABLE): all that it includes, directly or not.
function(reach header variable)
  set(reached "")
  set(open ${included_by_${header}})
  while(open)
    list(POP_FRONT open next)
    if(NOT next IN_LIST reached)
      list(APPEND reached ${next})
      list(APPEND open ${included_by_${next}})
    endif()
  endwhile()
  set(${variable} "${reached}" PARENT_SCOPE)
endfunction()

foreach(header ${headers})
  reach(${header} reached)
  if(header IN_LIST reached)
    message(SEND_ERROR "${header} includes itself, by way of others")
  endif()
endforeach()

# Of users' headers each is included by a user's header.
set(from_outside ${not_on_the_front_page} redislock.hpp)
foreach(header ${headers})
  if(NOT header MATCHES "^detail/")
    list(APPEND from_outside ${included_by_${header}})
  endif()
endforeach()
foreach(header ${headers})
  if(NOT header MATCHES "^detail/" AND NOT header IN_LIST from_outside)
    message(SEND_ERROR "${header} is a user's header that no other one includes")
  endif()
endforeach()
