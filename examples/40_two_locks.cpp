// Two locks at once, without a deadlock, and the other tools that the standard has for its own mutexes.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>
#include <mutex>

using namespace std::chrono_literals;

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};

    redislock::RedisLock alice{redis, "account:alice", 10s, std::defer_lock};
    redislock::RedisLock bob{redis, "account:bob", 10s, std::defer_lock};
    {
        // Both or none: a process that transfers from Bob to Alice meanwhile can't get stuck with this one.
        const std::scoped_lock both{alice, bob};
        // The scoped_lock trusts that what was locked stays so. A lease can end: ask the locks themselves.
        if (alice.owns_lock() && bob.owns_lock()) std::cout << "Alice's money is Bob's.\n";
    } // both are unlocked

    std::unique_lock guard{alice, 250ms}; // waits for that long
    if (guard) std::cout << "Alice's account is ours for " << alice.remaining().count() << " ms.\n";
    return guard ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
