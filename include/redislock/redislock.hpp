/// The whole library: distributed locks on Redis, as scoped locks. Include this one; it is some 6,000 lines of code,
/// and needs hiredis.
#pragma once

#include "any_backend.hpp"
#include "check.hpp"
#include "inspect.hpp"
#include "lock.hpp"
#include "memory.hpp"
#include "quorum.hpp"
#include "redis.hpp"

#ifdef REDISLOCK_TLS
#include "tls.hpp"
#endif

#define REDISLOCK_VERSION_MAJOR 0
#define REDISLOCK_VERSION_MINOR 1
#define REDISLOCK_VERSION_PATCH 0
