/// How a lock behaves, and the bounds of each option. tests/types_test.cpp goes red if it is wrong.
#pragma once

#include "detail/system/clock.hpp"
#include "errors.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace redislock {

struct Observer;

/// The part of a lease that can't be relied upon: `drift` of it, and 2 ms for the server's and our own rounding.
inline Millis allowance(Millis lease, double drift) noexcept {
    const std::chrono::duration<double, std::milli> part{static_cast<double>(lease.count()) * drift};
    return std::chrono::ceil<Millis>(part) + Millis{2};
}

/// How a lock behaves. An aggregate, for designated initialisers: `{.ttl = 30s, .confirm_release = false}`.
struct Options {
    static constexpr Millis shortest_ttl{10};
    static constexpr Millis longest_ttl{std::chrono::hours{24}};

    /// How long the server keeps the key for us: 10 ms to 24 h. It bounds how long a dead holder blocks the others.
    Millis ttl{10'000};

    /// Whether the lease is renewed in the background, every third of its usable part, until the lock is unlocked.
    bool renew = true;

    /// For how long a lease is renewed at most, from its asking; then lost() is requested, and the lease ends by
    /// itself. Not set: for as long as the lock is held. At least 1 ms.
    std::optional<Millis> max_hold{};

    /// How long one question may stay unanswered. At least 1 ms, and less than the usable lease. Not set: a third of
    /// that, 1 s at most.
    std::optional<Millis> request_timeout{};

    /// How long a wait for the lock rides out trouble with the server, such as a restart, before that is an error; it
    /// is counted from when the trouble is noticed. Not set: try_lock_for() and try_lock_until() until their time is
    /// over, and lock() for the request timeout. What time does not mend, such as a wrong password, is an error at
    /// once.
    std::optional<Millis> retry_for{};

    /// The part of a ttl, 0 to 0.5, by which the clocks of client and server may differ while a lease lasts.
    double drift = 0.01;

    /// Where a waiter can't stand in line for its turn, it asks again and again: the longest pause between two
    /// attempts, 1 ms to 1 h. Pauses are random, to scatter the waiters.
    Millis max_retry_delay{50};

    /// False: the destructor writes the release and does not wait for its answer. Faster; but if the server or the
    /// connection fails just then, nobody learns that the key stays until its ttl has run out.
    bool confirm_release = true;

    /// Whether each grant is numbered, for RedisLock::fencing_token(). A lock that is free costs a script instead of a
    /// SET then.
    bool fencing = false;

    /// How many replicas of the server must have a grant, and each extension of it, before it counts (WAIT): 0 to 100.
    /// A grant that too few have in time is undone, and is Errc::no_replicas when the request timeout is over.
    unsigned min_replicas = 0;

    /// Whom to tell what becomes of the lock; static, as a rule: see observer.hpp.
    const Observer* observer = nullptr;

    /// What can be relied upon of a lease of `ttl`.
    Millis usable() const noexcept { return ttl - allowance(ttl, drift); }
    Millis effective_request_timeout() const noexcept {
        return request_timeout.value_or(std::min(usable() / 3, Millis{1'000}));
    }

    /// How often a waiter looks whether the key is still held, and the server still there: half the request timeout,
    /// but not more often than is any good.
    Millis recheck() const noexcept { return std::max(effective_request_timeout() / 2, std::min(ttl / 2, Millis{10})); }
};

namespace detail {
inline std::string in_ms(Millis value) { return std::to_string(value.count()) + " ms"; }

/// What is out of bounds is refused, never repaired, and the message names the value and the bound.
[[noreturn]] inline void refuse(const char* what, const std::string& value, const std::string& allowed) {
    raise({Errc::bad_option, std::string{what} + " is " + value + ", allowed is " + allowed});
}

inline void check_ttl(Millis ttl) {
    if (ttl < Options::shortest_ttl || ttl > Options::longest_ttl)
        refuse("ttl", in_ms(ttl), in_ms(Options::shortest_ttl) + " to " + in_ms(Options::longest_ttl));
}

inline void check(const Options& options) {
    check_ttl(options.ttl);
    if (!(options.drift >= 0 && options.drift <= 0.5)) refuse("drift", std::to_string(options.drift), "0 to 0.5");
    if (options.effective_request_timeout() < Millis{1} || options.effective_request_timeout() >= options.usable())
        refuse("request_timeout", in_ms(options.effective_request_timeout()),
               "1 ms to less than " + in_ms(options.usable()) + ", the usable part of the ttl of " +
                   in_ms(options.ttl));
    if (options.retry_for && *options.retry_for < Millis::zero())
        refuse("retry_for", in_ms(*options.retry_for), "0 ms or more");
    if (options.max_hold && *options.max_hold < Millis{1}) refuse("max_hold", in_ms(*options.max_hold), "1 ms or more");
    if (options.min_replicas > 100) refuse("min_replicas", std::to_string(options.min_replicas), "0 to 100");
    if (options.max_retry_delay < Millis{1} || options.max_retry_delay > std::chrono::hours{1})
        refuse("max_retry_delay", in_ms(options.max_retry_delay), "1 ms to 3600000 ms");
}

inline constexpr std::size_t longest_key = 512;

inline void check_key(std::string_view key) {
    if (key.empty() || key.size() > longest_key)
        raise({Errc::bad_key, "the key has " + std::to_string(key.size()) + " bytes, allowed are 1 to " +
                                  std::to_string(longest_key)});
}
} // namespace detail

} // namespace redislock
