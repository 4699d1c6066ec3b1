// A ttl that is finer than a millisecond, and the message names that.
// says: TtlFinerThanMilliseconds
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

#ifdef MISTAKE
void lock_for_microseconds(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", 900us}; }
#else
void lock_for_microseconds(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", 900ms}; }
#endif
