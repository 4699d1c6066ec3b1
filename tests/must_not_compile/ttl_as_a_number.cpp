// A number says nothing of its unit.
// error: (could not convert|no viable conversion)
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

#ifdef MISTAKE
const redislock::Options ttl_as_a_number{.ttl = 900};
#else
const redislock::Options ttl_as_a_number{.ttl = redislock::Millis{900}};
#endif
