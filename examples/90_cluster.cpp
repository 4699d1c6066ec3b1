// A lock on a Redis Cluster. `examples/with-redis --cluster` starts one.
#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <iostream>

int main() try {
    const char* const any_node = std::getenv("REDIS_URL");
    if (any_node == nullptr) {
        std::cerr << "usage: REDIS_URL=redis://host:port 90_cluster\n";
        return 64;
    }
    // [cluster]
    redislock::Cluster cluster{any_node}; // #include <redislock/cluster.hpp>
    redislock::RedisLock lock{cluster, "orders:42", {.min_replicas = 1}};
    // [cluster]
    std::cout << "The node that has the key's slot has granted it.\n";
    return lock.unlock() == redislock::Outcome::confirmed ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
