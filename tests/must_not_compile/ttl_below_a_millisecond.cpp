// A ttl that is finer than a millisecond would be cut down to 0 ms, and a server would delete the key.
// error: (could not convert|no viable conversion)
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

#ifdef MISTAKE
const redislock::Options ttl_below_a_millisecond{.ttl = 900us};
#else
const redislock::Options ttl_below_a_millisecond{.ttl = 900ms};
#endif
