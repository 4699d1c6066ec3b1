// What a timer starts on every machine, and one machine does: at most once in a window of time, however short the work
// is and however far the machines' clocks are apart.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>

namespace {

void make_backup() { std::cout << "The backup is made.\n"; }

int nightly(redislock::Redis& redis) {
    // [once_per_window]
    using namespace std::chrono_literals;
    redislock::RedisLock lock{redis, "backup:nightly", {.ttl = 600s, .renew = false}, std::try_to_lock};
    if (!lock) {
        std::cout << "Another machine makes the backup, or has made it.\n";
        return 0;
    }
    make_backup();                    // what it throws releases the lock: another machine may try
    static_cast<void>(lock.detach()); // done: the key stays until the 600 s are over
    // [once_per_window]
    return 0;
}

} // namespace

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    nightly(redis);
    return nightly(redis); // as another machine
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
