// A token is no key: whoever swaps the two locks nothing, and releases nothing.
// error: no matching.*Token
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void token_as_a_key(redislock::Memory& memory, const redislock::Token& token) {
#ifdef MISTAKE
    redislock::RedisLock<redislock::Memory> lock{memory, token};
#else
    redislock::RedisLock<redislock::Memory> lock{memory, token.hex()};
#endif
}
