// What is no backend is called so by the first error, and not found out deep within the lock.
// error: (template constraint failure|constraints not satisfied).*Backend
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

#ifdef MISTAKE
using NoBackend = redislock::RedisLock<std::string>;
#else
using NoBackend = redislock::RedisLock<redislock::Memory>;
#endif
