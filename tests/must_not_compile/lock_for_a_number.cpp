// A number says nothing of its unit, and the message names that.
// says: TtlWithoutUnit
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

#ifdef MISTAKE
void lock_for_a_number(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", 10}; }
#else
void lock_for_a_number(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", 10s}; }
#endif
