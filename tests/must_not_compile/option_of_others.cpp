// An option by the name that other libraries have for it: the message says what it is called here.
// says: there is no option with this name.*`ttl`
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

#ifdef MISTAKE
void option_of_others(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", {.timeout = 10s}}; }
#else
void option_of_others(redislock::Memory& memory) { redislock::RedisLock lock{memory, "k", {.ttl = 10s}}; }
#endif
