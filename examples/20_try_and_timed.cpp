// To ask once, to wait for a while, and to look at what became of the lease in the end.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>

using redislock::Errc;
using redislock::Outcome;

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};

    // [try_and_timed]
    using namespace std::chrono_literals;
    redislock::RedisLock lock{redis, "reports:daily", 10s, std::try_to_lock}; // asks once
    if (!lock) {
        std::cout << "Somebody else writes the report.\n";
        return 0;
    }

    redislock::RedisLock rival{redis, "reports:daily", 10s, std::defer_lock}; // asks nothing yet
    if (!rival.try_lock_for(100ms)) std::cout << "The rival has waited for 100 ms, and does something else.\n";
    // [try_and_timed]

    switch (lock.unlock()) {
    case Outcome::confirmed: std::cout << "The report is written, and the lock was ours until now.\n"; break;
    case Outcome::expired:
    case Outcome::stolen: std::cout << "The lease was over before we were: check the report.\n"; break;
    case Outcome::unknown: std::cout << "Nobody answered: the key may stay until its 10 s are over.\n"; break;
    case Outcome::not_held: break; // there was none to end
    }
    return 0;
} catch (const std::system_error& error) {
    // That somebody else holds the lock is no error: the server could not be asked, or we asked for nonsense.
    if (error.code() == Errc::unreachable || error.code() == Errc::timed_out) std::cerr << "Try again later: ";
    std::cerr << error.what() << '\n';
    return 1;
}
