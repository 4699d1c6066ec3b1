// A lock for a scope: of all processes that run this against one server, one at a time prints its line.
// [scoped_lock]
#include <cstdlib>
#include <iostream>
#include <redislock/redislock.hpp>

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    const redislock::RedisLock lock{redis, "orders:42", std::chrono::seconds{10}}; // waits for its turn
    std::cout << "Order 42 is ours for " << lock.remaining().count() << " ms.\n";
} catch (const std::system_error& error) { // the lock has been released by now, here as well as at the scope's end
    std::cerr << error.what() << '\n';
    return 1;
}
// [scoped_lock]
