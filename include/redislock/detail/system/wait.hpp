/// The one way to wait for descriptors. It knows nothing of what they are. tests/connection_test.cpp goes red if it is
/// wrong.
#pragma once

#include "clock.hpp"

#include <poll.h>

#include <cerrno>
#include <span>

namespace redislock::detail {

/// Blocks until one of the entries is ready (then true), or until then. Signals don't shorten or prolong it. An fd of
/// -1 is never ready. Readiness is looked for at least once, however late it is.
inline bool wait(std::span<pollfd> entries, TimePoint until) noexcept {
    constexpr Millis longest{60'000};
    for (;;) {
        const TimePoint time = now();
        const auto left = time < until ? std::chrono::ceil<Millis>(until - time) : Millis::zero();
        const int ready = ::poll(entries.data(), entries.size(), static_cast<int>(std::min(left, longest).count()));
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR && errno != EAGAIN) return false;
        if (left == Millis::zero()) return false;
    }
}

/// The same for `fd` and `events`, or until it is stopped, which is false.
inline bool wait(int fd, short events, const Deadline& deadline) noexcept {
    pollfd entries[] = {{fd, events, 0}, {deadline.stop, POLLIN, 0}};
    return wait(entries, deadline.at) && entries[0].revents != 0;
}

inline bool readable(int fd) noexcept { return wait(fd, POLLIN, TimePoint{}); }
inline bool stopped(const Deadline& deadline) noexcept { return deadline.stop != -1 && readable(deadline.stop); }

inline bool over(const Deadline& deadline) noexcept { return now() >= deadline.at || stopped(deadline); }

} // namespace redislock::detail
