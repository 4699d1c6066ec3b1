// What two libraries with hidden symbols do with each other's locks and errors.
#include <redislock/redislock.hpp>

#include <optional>

namespace {
struct Held {
    redislock::Redis redis;
    std::optional<redislock::RedisLock<redislock::Redis>> lock;
};
} // namespace

#define VISIBLE extern "C" [[gnu::visibility("default")]]

VISIBLE void refuse_a_key() {
    redislock::Memory memory;
    const redislock::RedisLock lock{memory, ""};
}
VISIBLE bool is_bad_key(void (*fails)()) try {
    fails();
    return false;
} catch (const std::system_error& error) {
    return error.code() == redislock::Errc::bad_key;
}

VISIBLE void* lock(const char* uri) {
    auto* held = new Held{redislock::Redis{uri}, {}};
    held->lock.emplace(held->redis, "k", redislock::Options{.ttl = std::chrono::seconds{60}});
    return held;
}
VISIBLE bool holds(const void* held) { return static_cast<const Held*>(held)->lock->owns_lock(); }
VISIBLE void unlock(void* held) { delete static_cast<Held*>(held); }
