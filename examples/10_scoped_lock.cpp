// A lock for a scope: of all processes that run this against one server, one at a time does the work.
// [scoped_lock]
#include <cstdlib>
#include <iostream>
#include <redislock/redislock.hpp>
#include <thread>

int main() try {
    using namespace std::chrono_literals;
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    redislock::RedisLock lock{redis, "orders:42", 10s}; // waits while another process holds it
    const std::stop_token lost = lock.lost();           // requested when it is lost, at its lease's end at the latest
    for (int step = 1; step <= 3 && !lost.stop_requested(); ++step) {
        std::cout << "Step " << step << ": order 42 is ours for " << lock.remaining().count() << " ms.\n";
        std::this_thread::sleep_for(200ms); // the work: the lease is renewed for as long as it takes
    }
    return lock.unlock() == redislock::Outcome::confirmed ? 0 : 1; // it was ours until now
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n'; // the destructor has released the lock by now
    return 1;
}
// [scoped_lock]
