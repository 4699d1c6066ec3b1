/// The scripts that the server runs for a lock, the keys that they keep beside it, the commands that carry them, and what they
/// return. What is in here knows bytes alone: it neither sends nor receives them.
#pragma once

#include "connection.hpp"

namespace redislock::detail {

/// The keys beside a lock's key while somebody waits for it, in the same slot of a cluster as far as a key allows that:
/// `waiting` announces waiters by its presence; on the list `turn` they block, and an element in it is the turn of the
/// first; `given` tells that a turn was given just now, and may not have been taken yet, though the lock's key is free.
/// They are passed as arguments, and not as keys, so that a user who may touch the lock's key alone is not refused the
/// whole script for their sake.
struct Companions {
    explicit Companions(std::string_view key) {
        const auto open = key.find('{');
        const auto close = open == key.npos ? key.npos : key.find('}', open + 1);
        const bool tagged = close != key.npos && close > open + 1;
        const std::string name{key}; // whose companions are no other key's: k has {k}:redislock:..., and so has {k} not
        const std::string prefix = tagged ? name + ":redislock:tagged:" : "{" + name + "}:redislock:";
        waiting = prefix + "waiting";
        turn = prefix + "turn";
        given = prefix + "given";
    }

    std::string waiting, turn, given;
};

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] to ARGV[4] the companions.
/// Returns 1: it was ours and is deleted, and if somebody waits it's the turn of the first; 0: it is another's; -1: there
/// is none.
inline constexpr std::string_view release_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
  return holder and 0 or -1
end
redis.call('DEL', KEYS[1])
local announced = redis.pcall('PTTL', ARGV[2])
if type(announced) == 'number' and announced > 0 then
  if redis.pcall('RPUSH', ARGV[3], '') == 1 then
    redis.pcall('PEXPIRE', ARGV[3], announced)
  else
    redis.pcall('LPOP', ARGV[3])
  end
  redis.pcall('SET', ARGV[4], '', 'PX', 20)
end
return 1
)lua";

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] the time to live in ms.
/// Returns 1: it is ours, and lives for that long or longer; 0: it is another's; -1: there is none.
inline constexpr std::string_view extend_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
  return holder and 0 or -1
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
)lua";

/// KEYS[1] the lock's key, ARGV[1] the life of an announcement in ms, ARGV[2] to ARGV[4] the companions.
/// Announces a waiter; and if the key is free, so that no release is to come, it is the turn of the first. Returns what PTTL
/// says of the key, or its type if it is no string; a key that is free, but somebody's turn already, is as good as held.
inline constexpr std::string_view announce_script = R"lua(local announced = redis.call('PTTL', ARGV[2])
if announced < 0 then
  redis.call('SET', ARGV[2], '', 'PX', ARGV[1])
elseif announced < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', ARGV[2], ARGV[1])
end
local left = redis.call('PTTL', KEYS[1])
if left == -2 then
  local given = redis.call('PTTL', ARGV[4])
  if given > 0 then
    return given
  end
  if redis.call('RPUSH', ARGV[3], '') == 1 then
    redis.call('PEXPIRE', ARGV[3], ARGV[1])
  else
    redis.call('LPOP', ARGV[3])
  end
  redis.call('SET', ARGV[4], '', 'PX', 20)
  return left
end
local kind = redis.pcall('TYPE', KEYS[1])
if kind.ok and kind.ok ~= 'string' then
  return kind
end
return left
)lua";

/// The scripts' SHA1, by which EVALSHA knows them; a test compares them with what the server says.
inline constexpr std::string_view release_sha = "0218b9e4d44afcf518274f0bdcb805d4703b45f4";
inline constexpr std::string_view extend_sha = "0c8369d15cf0e3be0a5b56371717efbacfbd4546";
inline constexpr std::string_view announce_sha = "e899370538c28546346795b5e9519790c65ce4ff";

/// What the scripts that extend and release have returned; nothing if they can't have.
inline std::optional<Answer> settlement(const Reply& reply) {
    if (reply.type != REDIS_REPLY_INTEGER || reply.integer < -1 || reply.integer > 1) return std::nullopt;
    if (reply.integer == 1) return Answer{Verdict::yes};
    return Answer{Verdict::no, {reply.integer == 0 ? Errc::stolen : Errc::expired, {}}};
}

/// A command that differs from its last use, as a rule, in the token alone: then only that is written over.
class PreparedCommand {
public:
    std::string_view operator()(const Request& request, std::string (*format)(const Request&)) {
        if (bytes_.empty() || key_ != request.key || ttl_ != request.ttl) {
            bytes_ = format(request);
            key_ = request.key;
            ttl_ = request.ttl;
            token_at_ = bytes_.rfind(request.token.hex());
        }
        request.token.hex().copy(bytes_.data() + token_at_, Token::digits);
        return bytes_;
    }

private:
    std::string bytes_;
    std::string key_;
    Millis ttl_{};
    std::size_t token_at_ = 0;
};

inline std::string set_command(const Request& r) {
    return formatted({"SET", r.key, r.token.hex(), "NX", "PX", std::to_string(r.ttl.count())});
}
inline std::string extend_by_sha(const Request& r) {
    return formatted({"EVALSHA", extend_sha, "1", r.key, r.token.hex(), std::to_string(r.ttl.count())});
}
inline std::string extend_by_body(const Request& r) {
    return formatted({"EVAL", extend_script, "1", r.key, r.token.hex(), std::to_string(r.ttl.count())});
}
inline std::string release_command(const Request& r, std::string_view verb, std::string_view script) {
    const Companions companions{r.key};
    return formatted({verb, script, "1", r.key, r.token.hex(), companions.waiting, companions.turn, companions.given});
}
inline std::string release_by_sha(const Request& r) { return release_command(r, "EVALSHA", release_sha); }
inline std::string release_by_body(const Request& r) { return release_command(r, "EVAL", release_script); }

/// An announcement outlives the next look of the one who made it, and no longer.
inline std::string announce_command(const Request& r, std::string_view verb, std::string_view script) {
    const Companions companions{r.key};
    const std::string life = std::to_string(2 * r.recheck.count());
    return formatted({verb, script, "1", r.key, life, companions.waiting, companions.turn, companions.given});
}
inline std::string announce_by_sha(const Request& r) { return announce_command(r, "EVALSHA", announce_sha); }
inline std::string announce_by_body(const Request& r) { return announce_command(r, "EVAL", announce_script); }

/// Waits for a turn. A server counts from the arrival, and lets go a millisecond or two late: hence some less than the
/// patience. In seconds; none at all would mean for ever.
inline std::string block_command(const Request& r) {
    const auto span = std::max(r.patience - Millis{2}, Millis{1}).count();
    const std::string seconds = std::to_string(span / 1000) + "." + std::to_string(1000 + span % 1000).substr(1);
    return formatted({"BLPOP", Companions{r.key}.turn, seconds});
}

} // namespace redislock::detail
