// A lease is taken over with its proof, and not by saying so.
// error: no matching.*RedisLock
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void adopt_without_a_token(redislock::Memory& memory, const redislock::Token& token) {
#ifdef MISTAKE
    redislock::RedisLock<redislock::Memory> lock{memory, "key", {}, std::adopt_lock};
#else
    redislock::RedisLock<redislock::Memory> lock{memory, "key", {}, std::adopt_lock, token};
#endif
}
