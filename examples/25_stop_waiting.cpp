// A wait that ends when the program does, or when anybody else asks for it.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>
#include <thread>

using namespace std::chrono_literals;

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    const redislock::RedisLock busy{redis, "reports:weekly", 10s};

    std::jthread worker{[&](std::stop_token stop) {
        redislock::RedisLock lock{redis, "reports:weekly", 10s, std::defer_lock};
        if (!lock.lock(stop)) {
            std::cout << "The worker was asked to stop, and waits no longer.\n";
            return;
        }
        std::cout << "The worker writes the report.\n";
    }};
    std::this_thread::sleep_for(100ms);
    worker.request_stop(); // as its destructor would do
    return 0;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
