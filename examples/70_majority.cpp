// A lock that outlives its servers: it is held by a majority of them. Takes the URIs of three, five or more.
#include <redislock/redislock.hpp>

#include <deque>
#include <iostream>

int main(int argc, char** argv) try {
    if (argc < 4) {
        std::cerr << "usage: 70_majority URI URI URI...\n"
                     "Takes a lock of a majority of Redis servers that know nothing of one another.\n";
        return 64;
    }
    std::deque<redislock::Redis> servers;
    std::vector<redislock::Redis*> nodes;
    for (int n = 1; n < argc; ++n) nodes.push_back(&servers.emplace_back(argv[n]));
    // [majority]
    redislock::Quorum quorum{nodes}; // or Quorum quorum{one, two, three};
    redislock::RedisLock lock{quorum, "orders:42", {.fencing = true}};
    // [majority]
    std::cout << "A majority of " << nodes.size() << " servers has granted it, as number " << lock.fencing_token()
              << ".\n";
    return lock.unlock() == redislock::Outcome::confirmed ? 0 : 1;
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
