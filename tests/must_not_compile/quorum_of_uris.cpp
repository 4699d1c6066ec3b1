// A majority is one of servers, which outlive it: of URIs it would have to make them.
// error: (class template argument deduction failed|no viable constructor)
#include <redislock/redislock.hpp>

#include <string>

void quorum_of_uris(std::vector<redislock::Redis*> servers, std::vector<std::string> uris) {
#ifdef MISTAKE
    redislock::Quorum quorum{uris};
#else
    redislock::Quorum quorum{servers};
#endif
}
