// A lock at the primary of a service, as its sentinels name it. `examples/with-redis --sentinel` starts such a service.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>

int main() try {
    const char* const url = std::getenv("REDIS_URL");
    if (url == nullptr) {
        std::cerr << "usage: REDIS_URL=redis+sentinel://host,host,host/service 80_sentinel\n";
        return 64;
    }
    // [sentinel]
    using namespace std::chrono_literals;
    redislock::Redis redis{url, {.restart_delay = 10s}}; // redis+sentinel://a,b,c:26380/service
    redislock::RedisLock lock{redis, "orders:42", {.ttl = 10s, .request_timeout = 3s, .min_replicas = 1}};
    // [sentinel]
    std::cout << redis.name() << " has granted it.\n";
    return lock.unlock() == redislock::Outcome::confirmed ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
