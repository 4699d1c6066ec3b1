/// The time scale of leases, its clock, and deadlines on it. It knows nothing of what is waited for.
/// tests/types_test.cpp goes red if it is wrong.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>

namespace redislock {

/// Every duration of the interface. A finer one (900us) does not compile, so no lease is ever cut down to 0 ms.
using Millis = std::chrono::milliseconds;

/// The time scale on which leases are judged. It has no now(): a backend owns its clock, the judgement is told the
/// time.
struct LeaseClock {
    using duration = std::chrono::nanoseconds;
    using rep = duration::rep;
    using period = duration::period;
    using time_point = std::chrono::time_point<LeaseClock>;
    static constexpr bool is_steady = true;
};

using TimePoint = LeaseClock::time_point;

namespace detail {
inline constexpr std::chrono::duration<double> a_century{3.15e9};

/// A parameter that takes any duration that is no finer than milliseconds. Where that would overflow it is the longest:
/// to be refused, not to be wrapped around.
struct ClampedMillis : Millis {
    template <class Rep, class Period>
    requires std::convertible_to<std::chrono::duration<Rep, Period>, Millis>
    constexpr ClampedMillis(std::chrono::duration<Rep, Period> span) noexcept : Millis{clamped(span)} {}

private:
    template <class Span>
    static constexpr Millis clamped(Span span) noexcept {
        const std::chrono::duration<double> seconds{span};
        if (seconds > a_century) return Millis::max();
        return seconds < -a_century ? Millis::min() : Millis{span};
    }
};
} // namespace detail

/// `start + span`, or the end of time where that would overflow.
template <class Rep, class Period>
constexpr TimePoint later(TimePoint start, std::chrono::duration<Rep, Period> span) noexcept {
    if (std::chrono::duration<double>{span} > detail::a_century) return TimePoint::max();
    return start + std::chrono::ceil<TimePoint::duration>(std::max(span, std::chrono::duration<Rep, Period>::zero()));
}

/// When a wait is over: at a moment, or as soon as the descriptor `stop` can be read. A wait that is stopped ends like
/// one whose time is up.
struct Deadline {
    constexpr Deadline(TimePoint moment, int stop_descriptor = -1) noexcept : at{moment}, stop{stop_descriptor} {}

    /// The same, but no later than `moment`.
    constexpr Deadline by(TimePoint moment) const noexcept { return {std::min(at, moment), stop}; }

    TimePoint at;
    int stop; ///< -1: there is none
};

namespace detail {
/// The clock of leases. On Linux it runs on while the machine sleeps, as a server's expiry does; elsewhere it's the
/// monotonic clock.
#if defined(CLOCK_BOOTTIME)
inline constexpr clockid_t lease_clock = CLOCK_BOOTTIME;
#else
inline constexpr clockid_t lease_clock = CLOCK_MONOTONIC;
#endif

/// Some 30 ns a call.
inline TimePoint now() noexcept {
    timespec time{};
    ::clock_gettime(lease_clock, &time);
    return TimePoint{std::chrono::seconds{time.tv_sec} + std::chrono::nanoseconds{time.tv_nsec}};
}
} // namespace detail

} // namespace redislock
