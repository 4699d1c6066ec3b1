// An extension is as strict as the options are.
// error: .*(cannot convert|no viable conversion)
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

using namespace std::chrono_literals;

void extend_by_below_a_millisecond(redislock::RedisLock<redislock::Memory>& lock) {
#ifdef MISTAKE
    lock.extend(900us);
#else
    lock.extend(900ms);
#endif
}
