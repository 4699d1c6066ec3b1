// The short form, which takes nothing but a ttl, is as strict as the options are.
// error: (use of deleted function|call to deleted constructor).*RedisLock
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

void lock_for_below_a_millisecond(redislock::Memory& memory) {
#ifdef MISTAKE
    redislock::RedisLock<redislock::Memory> lock{memory, "key", 900us};
#else
    redislock::RedisLock<redislock::Memory> lock{memory, "key", 900ms};
#endif
}
