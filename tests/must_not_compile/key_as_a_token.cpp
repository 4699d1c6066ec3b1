// A string is no proof of ownership; what another process sent goes through Token::from_hex().
// error: no matching.*RedisLock
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

void key_as_a_token(redislock::Memory& memory, std::string_view text) {
#ifdef MISTAKE
    redislock::RedisLock<redislock::Memory> lock{memory, "key", {}, std::adopt_lock, text};
#else
    redislock::RedisLock<redislock::Memory> lock{memory, "key", {}, std::adopt_lock, *redislock::Token::from_hex(text)};
#endif
}
