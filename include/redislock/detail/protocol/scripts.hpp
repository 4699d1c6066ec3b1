/// The scripts that the server runs for a lock, and the commands that carry them.
/// What is in here knows bytes alone: it neither sends nor receives them. tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include "../../outcome.hpp"
#include "../lease/request.hpp"
#include "auxiliary_keys.hpp"
#include "command.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>

namespace redislock::detail {

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] the time to live in ms; and for a grant that is numbered ARGV[3]
/// the counter, ARGV[4] a step in us.
/// The number is the last one plus 1, or the server's time, in us and rounded down to the step, if that is more;
/// without a last one it is the time itself. So it grows even if the counter is lost, as long as the time does not go
/// back behind the last number. A counter that has had no grant for a day is of no more use, and goes. Lua's numbers
/// are doubles: from 2^53 on they do not rise by 1, so that a counter which is there, or is no number that has a next
/// one (inf, nan), is an error, and nothing is granted.
/// Returns OK, or the number: it's ours now; 0: it is held without an expiry; -1 - n: it is held for n ms; nil: the
/// same, for nobody knows how long; another status: it is of that type.
inline constexpr std::string_view acquire_script = R"lua(local fence
if ARGV[3] then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local last = tonumber(redis.pcall('GET', ARGV[3]))
  if last and not (last < 9007199254740991) then
    return redis.error_reply('FENCE no number follows ' .. string.format('%.0f', last) .. ', which is in ' .. ARGV[3])
  end
  fence = last and math.max(last + 1, now - now % ARGV[4]) or now
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  if not fence then
    return redis.status_reply('OK')
  end
  local counted = redis.pcall('SET', ARGV[3], string.format('%.0f', fence), 'PX', 86400000)
  if counted.err then
    redis.call('DEL', KEYS[1])
    return counted
  end
  return fence
end
local kind = redis.pcall('TYPE', KEYS[1])
if kind.ok and kind.ok ~= 'string' then
  return kind
end
local left = redis.pcall('PTTL', KEYS[1])
return type(left) == 'number' and left > -2 and -1 - left
)lua";

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] to ARGV[4] the auxiliary keys. ARGV[5], if there is one: it is
/// only tried whether a release is permitted, so that DEL is run also where there is nothing to delete.
/// Returns 1: it was ours and is deleted; 2: the same, and as somebody waits it is the turn of the first; 0: it is
/// another's; -1: there is none. Then it is the turn of the first too, unless it has been somebody's just now: who held
/// the lock by a majority of servers may not have had it of this one. Without the auxiliary keys it is nobody's turn.
inline constexpr std::string_view release_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if holder or ARGV[5] then
  redis.call('DEL', KEYS[1])
end
local done = holder and 1 or -1
local announced = ARGV[2] and redis.pcall('PTTL', ARGV[2])
if type(announced) ~= 'number' or announced <= 0 then
  return done
end
if not holder and redis.call('PTTL', ARGV[4]) > 0 then
  return done
end
if redis.pcall('RPUSH', ARGV[3], '') == 1 then
  redis.pcall('PEXPIRE', ARGV[3], announced)
else
  redis.pcall('LPOP', ARGV[3])
end
redis.pcall('SET', ARGV[4], '', 'PX', 20)
return holder and 2 or done
)lua";

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] the time to live in ms; where later grants are to have higher
/// numbers than ARGV[4], ARGV[3] is the counter.
/// It writes in any case, so that WAIT tells who knows how long the key lives. A counter that is no number is written
/// over, as by a grant.
/// Returns 1: it is ours, and lives for that long or longer; 0: it is another's; -1: there is none.
inline constexpr std::string_view extend_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
  return holder and 0 or -1
end
local left = redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2], left))
if ARGV[3] then
  local last = tonumber(redis.pcall('GET', ARGV[3]))
  if not (last and last >= tonumber(ARGV[4])) then
    redis.call('SET', ARGV[3], ARGV[4], 'PX', 86400000)
  end
end
return 1
)lua";

/// KEYS[1] the lock's key, ARGV[1] the life of an announcement in ms, ARGV[2] to ARGV[4] the auxiliary keys. If the key
/// is free, so that no release is to come, it is the turn of the first in line; else it announces a waiter, for one who
/// does not have to wait is not to be seen as one. Returns what PTTL says of the key, or its type if it is no string;
/// -2 - n: it is free, and has been somebody's turn already, which he has for n ms yet.
inline constexpr std::string_view announce_script = R"lua(local left = redis.call('PTTL', KEYS[1])
local given = left == -2 and redis.call('PTTL', ARGV[4])
if given and given <= 0 then
  if redis.call('RPUSH', ARGV[3], '') == 1 then
    redis.call('PEXPIRE', ARGV[3], ARGV[1])
  else
    redis.call('LPOP', ARGV[3])
  end
  redis.call('SET', ARGV[4], '', 'PX', 20)
  return left
end
local announced = redis.call('PTTL', ARGV[2])
if announced < 0 then
  redis.call('SET', ARGV[2], '', 'PX', ARGV[1])
elseif announced < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', ARGV[2], ARGV[1])
end
if given then
  return left - given
end
local kind = redis.pcall('TYPE', KEYS[1])
if kind.ok and kind.ok ~= 'string' then
  return kind
end
return left
)lua";

/// KEYS[1] the key. Returns what it holds, cut to as many bytes as ARGV[1] says; nil: there is none; an error: it is no
/// string.
inline constexpr std::string_view inspect_script = R"lua(local value = redis.call('GET', KEYS[1])
return value and string.sub(value, 1, ARGV[1])
)lua";

/// The scripts' SHA1, by which EVALSHA knows them; a test compares them with what the server says.
inline constexpr std::string_view release_sha = "3de79aad723332abec5e36313cedcd5e7c4ef8f2";
inline constexpr std::string_view acquire_sha = "68ef378ca564f292d121f0c150d7b32256a4d0bd";
inline constexpr std::string_view extend_sha = "12ba3985a0e0421ffa540688a849fba7c4d5e7a4";
inline constexpr std::string_view announce_sha = "c14fee12d6cb74535d211b05dbdc5169b5b1c37b";

/// A command that differs from its last use, as a rule, in the token alone: then only that is written over.
class PreparedCommand {
public:
    std::string_view operator()(const Request& request, std::string (*format)(const Request&)) {
        const bool is_same = format_ == format && key_ == request.key && ttl_ == request.ttl &&
                             fencing_token_ == request.fencing_token && step_ == request.fencing_step &&
                             hands_on_ == request.hands_on;
        if (!is_same) {
            bytes_ = format(request);
            format_ = format;
            key_ = request.key;
            ttl_ = request.ttl;
            fencing_token_ = request.fencing_token;
            step_ = request.fencing_step;
            hands_on_ = request.hands_on;
            token_at_ = argument_at(bytes_, token_of(bytes_));
        }
        request.token.hex().copy(bytes_.data() + token_at_, Token::digits);
        return bytes_;
    }

private:
    /// Which argument the token is: the one behind the key, in `SET key` and `EVAL script 1 key`.
    static std::size_t token_of(std::string_view command) {
        return command.substr(argument_at(command, 0)).starts_with("SET\r\n") ? 2 : 4;
    }

    std::string (*format_)(const Request&) = nullptr;
    std::string bytes_;
    std::string key_;
    Millis ttl_{};
    std::uint64_t fencing_token_ = 0;
    std::chrono::microseconds step_{};
    bool hands_on_ = true;
    std::size_t token_at_ = 0;
};

inline std::string set_command(const Request& r) {
    return formatted({"SET", r.key, r.token.hex(), "NX", "PX", std::to_string(r.ttl.count())});
}
inline std::string acquire_command(const Request& r, std::string_view verb, std::string_view script) {
    const std::string ttl = std::to_string(r.ttl.count());
    if (!r.fencing) return formatted({verb, script, "1", r.key, r.token.hex(), ttl});
    return formatted({verb, script, "1", r.key, r.token.hex(), ttl, AuxiliaryKeys{r.key}.fencing_counter,
                      std::to_string(r.fencing_step.count())});
}
inline std::string acquire_by_sha(const Request& r) { return acquire_command(r, "EVALSHA", acquire_sha); }
inline std::string acquire_by_body(const Request& r) { return acquire_command(r, "EVAL", acquire_script); }

inline std::string extend_command(const Request& r, std::string_view verb, std::string_view script) {
    const std::string ttl = std::to_string(r.ttl.count());
    if (r.fencing_token == 0) return formatted({verb, script, "1", r.key, r.token.hex(), ttl});
    return formatted({verb, script, "1", r.key, r.token.hex(), ttl, AuxiliaryKeys{r.key}.fencing_counter,
                      std::to_string(r.fencing_token)});
}
inline std::string extend_by_sha(const Request& r) { return extend_command(r, "EVALSHA", extend_sha); }
inline std::string extend_by_body(const Request& r) { return extend_command(r, "EVAL", extend_script); }

inline std::string release_command(const Request& r, std::string_view verb, std::string_view script) {
    if (!r.hands_on) return formatted({verb, script, "1", r.key, r.token.hex()});
    const AuxiliaryKeys auxiliary_keys{r.key};
    return formatted(
        {verb, script, "1", r.key, r.token.hex(), auxiliary_keys.waiting, auxiliary_keys.turn, auxiliary_keys.given});
}
inline std::string release_by_sha(const Request& r) { return release_command(r, "EVALSHA", release_sha); }
inline std::string release_by_body(const Request& r) { return release_command(r, "EVAL", release_script); }

/// An announcement outlives the next look of the one who made it, and no longer.
inline std::string announce_command(const Request& r, std::string_view verb, std::string_view script) {
    const AuxiliaryKeys auxiliary_keys{r.key};
    const std::string life = std::to_string(2 * r.recheck.count());
    return formatted(
        {verb, script, "1", r.key, life, auxiliary_keys.waiting, auxiliary_keys.turn, auxiliary_keys.given});
}
inline std::string announce_by_sha(const Request& r) { return announce_command(r, "EVALSHA", announce_sha); }
inline std::string announce_by_body(const Request& r) { return announce_command(r, "EVAL", announce_script); }

inline std::string inspect_command(std::string_view key) {
    return formatted({"EVAL", inspect_script, "1", key, std::to_string(Holder::longest_value)});
}

/// Waits until enough replicas have what was written before on the same connection, and tells how many have: by half of
/// the time left.
inline std::string replicas_command(const Request& r, TimePoint now) {
    const auto half = std::chrono::floor<Millis>((r.deadline.at - std::min(now, r.deadline.at)) / 2);
    return formatted({"WAIT", std::to_string(r.replicas),
                      std::to_string(std::max(std::min(half, r.recheck), Millis{1}).count())}); // 0 would be for ever
}

/// Waits for a turn. A server counts from the arrival, and lets go a millisecond or two late: hence some less than the
/// patience. In seconds; none at all would mean for ever.
inline std::string block_command(const Request& r) {
    const auto span = std::max(r.patience - Millis{2}, Millis{1}).count();
    const std::string seconds = std::to_string(span / 1000) + "." + std::to_string(1000 + span % 1000).substr(1);
    return formatted({"BLPOP", AuxiliaryKeys{r.key}.turn, seconds});
}

} // namespace redislock::detail
