// A lock refers to its backend, and would outlive a temporary one.
// error: no matching.*Memory
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void temporary_backend(redislock::Memory& memory) {
#ifdef MISTAKE
    redislock::RedisLock<redislock::Memory> lock{redislock::Memory{}, "key"};
#else
    redislock::RedisLock<redislock::Memory> lock{memory, "key"};
#endif
}
