// A null pointer is no URI.
// error: .*deleted
#include <redislock/redis.hpp>

#ifdef MISTAKE
redislock::Redis null_uri{nullptr};
#else
redislock::Redis null_uri{"redis://127.0.0.1"};
#endif
