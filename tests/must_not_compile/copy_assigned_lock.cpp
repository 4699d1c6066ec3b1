// Nor can one lock be assigned to another, unless it is moved.
// error: .*deleted
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void copy_assigned_lock(redislock::RedisLock<redislock::Memory>& lock, redislock::RedisLock<redislock::Memory>& other) {
#ifdef MISTAKE
    other = lock;
#else
    other = std::move(lock);
#endif
}
