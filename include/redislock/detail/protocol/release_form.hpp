/// In which form a server takes a release, and an extension. Some refuse scripts, or those that touch more than the
/// lock's own key. tests/exchange_test.cpp and tests/redis_test.cpp go red if it is wrong.
#pragma once

#include "contended_keys.hpp"
#include "meaning.hpp"
#include "scripts.hpp"

#include <atomic>

namespace redislock::detail {

/// The best one first, as they are tried.
enum class ReleaseForm {
    script,      ///< release_script, which wakes the first in line
    bare_script, ///< with nothing but the lock's own key: who waits is not woken, and looks
    delifeq,     ///< the command of Valkey 9
    delex,       ///< the command of Redis 8.4
};

/// How a server takes a release, as far as is known; and after which releases it was somebody's turn.
struct ServersRelease {
    std::atomic<ReleaseForm> form{ReleaseForm::script};
    std::atomic<bool> is_proven{false}; ///< nothing is granted before
    ContendedKeys contended{};
};

/// As release_script; it is only tried where there is an ARGV[2].
inline constexpr std::string_view bare_release_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
if ARGV[2] and not holder then
  redis.call('DEL', KEYS[1])
end
return holder and 0 or -1
)lua";

/// As extend_script.
inline constexpr std::string_view bare_extend_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
  return holder and 0 or -1
end
local left = redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2], left))
return 1
)lua";

/// Whether a release and an extension are commands of the server's, and no scripts.
constexpr bool is_command(ReleaseForm form) noexcept { return form >= ReleaseForm::delifeq; }

inline std::string release_in_full(ReleaseForm form, const Request& r) {
    switch (form) {
    case ReleaseForm::bare_script: return formatted({"EVAL", bare_release_script, "1", r.key, r.token.hex()});
    case ReleaseForm::delifeq: return formatted({"DELIFEQ", r.key, r.token.hex()});
    case ReleaseForm::delex: return formatted({"DELEX", r.key, "IFEQ", r.token.hex()});
    default: return release_by_body(r);
    }
}

/// Tries whether a release is permitted: of a token that nobody has. The acquire's own may be held at this very server,
/// if that has two names, and one of them has granted it.
inline std::string proof_of(ReleaseForm form, Request r) {
    r.token = {};
    if (is_command(form)) return release_in_full(form, r);
    if (form == ReleaseForm::bare_script)
        return formatted({"EVAL", bare_release_script, "1", r.key, r.token.hex(), "proof"});
    const AuxiliaryKeys beside{r.key};
    return formatted(
        {"EVAL", release_script, "1", r.key, r.token.hex(), beside.waiting, beside.turn, beside.given, "proof"});
}

/// Where it is a command it sets what the lease has left: that is `r.ttl`, or what the holder asks for if that is more.
inline std::string extend_in_full(ReleaseForm form, const Request& r) {
    const std::string ttl = std::to_string(r.ttl.count());
    if (is_command(form)) return formatted({"SET", r.key, r.token.hex(), "IFEQ", r.token.hex(), "PX", ttl});
    if (form == ReleaseForm::bare_script)
        return formatted({"EVAL", bare_extend_script, "1", r.key, r.token.hex(), ttl});
    return extend_by_body(r);
}

/// Whether the server objects to the command as such, so that another form may be taken.
inline bool refuses_command(const Answer& answer) noexcept {
    return answer.why.code == Errc::unsupported || answer.why.code == Errc::no_permission ||
           answer.why.code == Errc::server_error;
}

/// What the reply to a release or an extension in this form means. A command does not tell whether the key is gone or
/// another's.
inline Answer meaning_in(ReleaseForm form, const Request& request, const Reply& reply) {
    if (!is_command(form) || reply.is_error()) return meaning_of(request, reply);
    const bool is_done = request.verb == Verb::release ? reply.integer == 1 : reply.type == REDIS_REPLY_STATUS;
    return is_done ? Answer{Verdict::yes} : Answer{Verdict::no, {Errc::expired, {}}};
}

} // namespace redislock::detail
