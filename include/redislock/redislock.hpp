/// The whole library: distributed locks on Redis, as scoped locks. Include this one; it is some 4,800 lines of code,
/// and needs hiredis.
#pragma once

#include "inspect.hpp"
#include "lock.hpp"
#include "memory.hpp"
#include "quorum.hpp"
#include "redis.hpp"

#define REDISLOCK_VERSION_MAJOR 0
#define REDISLOCK_VERSION_MINOR 1
#define REDISLOCK_VERSION_PATCH 0
