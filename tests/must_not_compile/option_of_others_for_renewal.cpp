// The same, with a tag behind it.
// says: there is no option with this name.*`renew`
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

#ifdef MISTAKE
void option_of_others_for_renewal(redislock::Memory& memory) {
    redislock::RedisLock lock{memory, "k", {.auto_renew = true}, std::defer_lock};
}
#else
void option_of_others_for_renewal(redislock::Memory& memory) {
    redislock::RedisLock lock{memory, "k", {.renew = true}, std::defer_lock};
}
#endif
