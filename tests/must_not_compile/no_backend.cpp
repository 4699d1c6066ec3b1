// What is no backend is called so by the first error, and not found out deep within the lock.
// says: a lock is made over a Redis, a Quorum, a Memory or another Backend
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

#include <string>

#ifdef MISTAKE
void no_backend(redislock::Memory&) {
    redislock::RedisLock lock{std::string{"redis://localhost"}, "k", {.renew = false}};
}
#else
void no_backend(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", {.renew = false}}; }
#endif
