// What a program loads, runs and unloads; all of the library is in it.
#include <redislock/redislock.hpp>

extern "C" bool renew_a_lease() {
    redislock::Memory memory{redislock::Memory::Time::real};
    return redislock::RedisLock{memory, "k"}.lost().stop_possible();
}
