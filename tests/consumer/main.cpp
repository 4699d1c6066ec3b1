// A user's program, as far as a build is concerned: it takes a lock, and it needs every header and the library hiredis.
#include <redislock/redislock.hpp>

#include <cstdio>

#if defined(EXPECTS_HIREDIS_STUB) && !defined(HIREDIS_STUB)
#error "<hiredis/hiredis.h> is not the header of the target hiredis"
#endif

int main() {
    redislock::Memory memory;
    const redislock::RedisLock lock{memory, "consumer"};
    redislock::Redis server{"redis://127.0.0.1"};
    const redislock::RedisLock never_asked_for{server, "consumer", {}, std::defer_lock};
#ifdef REDISLOCK_TLS
    redislock::Redis by_tls{"rediss://127.0.0.1"};
#endif
    std::printf("redislock %d.%d.%d with hiredis %d.%d.%d\n", REDISLOCK_VERSION_MAJOR, REDISLOCK_VERSION_MINOR,
                REDISLOCK_VERSION_PATCH, HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH);
    return lock.owns_lock() && !never_asked_for.owns_lock() ? 0 : 1;
}
