// Work of unknown length under a lease that is renewed in the background, and stopped when it is lost.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>
#include <thread>

namespace {

// [renewed]
using namespace std::chrono_literals;
bool import_all(redislock::Redis& redis, int steps) {
    redislock::RedisLock lock{redis, "import:renewed", 3s};
    const std::stop_token lost = lock.lost();
    for (int step = 1; step <= steps && !lost.stop_requested(); ++step) std::this_thread::sleep_for(100ms); // the work
    return lock.unlock() == redislock::Outcome::confirmed; // it was ours until now
}
// [renewed]

} // namespace

int main() try {
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    const bool done = import_all(redis, 40);
    std::cout << (done ? "All is imported, in more time than a lease has.\n" : "The lease was lost: import again.\n");
    return done ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
