// Work of unknown length, in steps: before each we make sure that the lease will outlast it.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>
#include <thread>

using namespace std::chrono_literals;
using redislock::Outcome;

constexpr redislock::Millis lease_time = 3s, longest_step = 2s; // no step takes longer than that

/// False: the lease can't be relied upon for another step. It may have ended, so somebody else may have the lock.
template <class Lock>
bool has_time_for_a_step(Lock& lock) {
    if (lock.remaining() >= longest_step) return true; // asks the clock, and not the server
    const Outcome outcome = lock.extend(lease_time);
    if (outcome == Outcome::confirmed) std::cout << "The lease is extended to " << lock.remaining().count() << " ms.\n";
    return outcome == Outcome::confirmed && lock.remaining() >= longest_step;
}

bool import_all(redislock::Redis& redis, int steps) {
    redislock::RedisLock lock{redis, "import", {.ttl = lease_time, .renew = false}};
    for (int step = 1; step <= steps; ++step) {
        if (!has_time_for_a_step(lock)) return false;
        std::this_thread::sleep_for(100ms); // the work
    }
    return lock.owns_lock(); // what was done last was done in time
}

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    const bool done = import_all(redis, 15);
    std::cout << (done ? "All is imported.\n" : "Stopped half-way, as the lease could not be extended.\n");
    return done ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
