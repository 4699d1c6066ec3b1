/// For messages of the compiler: options that other libraries have, and that this one has under another name or not at
/// all. tests/must_not_compile goes red if it is wrong.
#pragma once

namespace redislock::detail {

template <class>
inline constexpr bool is_an_option = false;

struct HasNoTimeout {
    constexpr HasNoTimeout() = default;
    template <class Value>
    constexpr HasNoTimeout(Value&&) {
        static_assert(is_an_option<Value>,
                      "there is no option with this name: how long a lease lasts is `ttl`, how long one "
                      "request may take is `request_timeout`, how long to wait for the lock says "
                      "try_lock_for()");
    }
};

struct HasNoRetries {
    constexpr HasNoRetries() = default;
    template <class Value>
    constexpr HasNoRetries(Value&&) {
        static_assert(is_an_option<Value>,
                      "there is no option with this name: a waiter is woken by the release, and one that must "
                      "poll pauses for up to `max_retry_delay`");
    }
};

struct IsCalledRenew {
    constexpr IsCalledRenew() = default;
    template <class Value>
    constexpr IsCalledRenew(Value&&) {
        static_assert(is_an_option<Value>, "there is no option with this name: whether a lease is renewed is `renew`");
    }
};

/// Takes what Options does not, by the names of others.
struct NoSuchOption {
    HasNoTimeout timeout{}, lock_timeout{}, lease{}, lease_time{}, expiry{}, expire{}, wait_time{}, answer_timeout{};
    HasNoRetries retries{}, retry_count{}, retry_delay{}, retry_interval{}, longest_pause{};
    IsCalledRenew auto_renew{}, auto_renewal{}, auto_extend{}, watchdog{};
};

} // namespace redislock::detail
