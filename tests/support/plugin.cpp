// What a program loads, runs and unloads; all of the library is in it.
#include <redislock/redislock.hpp>

extern "C" bool renew_a_lease() {
    redislock::Memory memory{redislock::Memory::Time::real};
    return redislock::RedisLock{memory, "k"}.lost().stop_possible();
}

/// Asks a server that does not answer. The socket then lingers for as long as the Redis lives.
extern "C" bool give_up(const char* uri) try {
    redislock::Redis redis{uri};
    const redislock::Options impatient{.request_timeout = std::chrono::milliseconds{10}};
    static_cast<void>(redislock::RedisLock(redis, "k", impatient, std::try_to_lock));
    return false;
} catch (const std::system_error&) {
    return true;
}
