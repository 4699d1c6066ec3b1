// Two guards of one lease would release it twice.
// error: .*deleted
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void copied_lock(redislock::RedisLock<redislock::Memory>& lock) {
#ifdef MISTAKE
    redislock::RedisLock other{lock};
#else
    redislock::RedisLock other{std::move(lock)};
#endif
}
