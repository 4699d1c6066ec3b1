/// For operators and their tools: who has a key, and to take it from a holder who can't give it back. It holds nothing
/// itself.
/// tests/conformance.hpp goes red if it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/system/threads.hpp"
#include "options.hpp"

namespace redislock {

/// Who has the key now; nothing if it is free. What is told may be over as it is read. Of a long value there is the
/// beginning. Blocks for at most `request_timeout`. Throws std::system_error as RedisLock does, and Errc::bad_key.
template <Backend B, class Rep = Millis::rep, class Period = Millis::period>
[[nodiscard]] std::optional<Holder> inspect(B& backend, std::string_view key,
                                            std::chrono::duration<Rep, Period> request_timeout = Millis{1'000}) {
    detail::check_key(key);
    const detail::Uncancelled call;
    Holder holder{};
    const Answer answer = backend.inspect(key, later(backend.now(), request_timeout), holder);
    if (answer.verdict == Verdict::yes) return holder;
    if (answer.verdict == Verdict::no && answer.why.code == Errc::expired) return std::nullopt;
    raise(answer.why);
}

/// Deletes the key, if it holds this token: compare-and-delete, so that a lease that was granted meanwhile is left
/// alone. The holder, if it still lives, learns of it at its next renewal or release; those who wait have their turn at
/// once. Blocks for at most `request_timeout`. Throws Errc::bad_key.
template <Backend B, class Rep = Millis::rep, class Period = Millis::period>
Outcome force_unlock(B& backend, std::string_view key, const Token& token,
                     std::chrono::duration<Rep, Period> request_timeout = Millis{1'000}) {
    detail::check_key(key);
    const detail::Uncancelled call;
    const Answer answer = backend.ask(
        {Verb::release, std::string{key}, token, Options::shortest_ttl, later(backend.now(), request_timeout)});
    if (answer.verdict == Verdict::yes) return Outcome::confirmed;
    if (answer.verdict == Verdict::no && answer.why.code == Errc::expired) return Outcome::expired;
    return answer.verdict == Verdict::no && answer.why.code == Errc::stolen ? Outcome::stolen : Outcome::unknown;
}

} // namespace redislock
