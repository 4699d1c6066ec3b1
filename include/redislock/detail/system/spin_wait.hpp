/// Looking for a reply for a moment before sleeping. tests/connection_test.cpp goes red if it is wrong.
#pragma once

#include "clock.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace redislock::detail {

/// To sleep and be woken takes longer than a near server's answer, on some virtual machines three times as long. So the
/// answer is looked for first, for a moment, with the processor offered to others in between; ever more seldom while
/// that is in vain, as it is with a far server.
class SpinWait {
public:
    /// Whether `arrived()` has come true meanwhile.
    template <class Arrived>
    bool operator()(Arrived arrived) {
        constexpr std::chrono::microseconds moment{100};
        if (waits_ > 0) return --waits_, false;
        for (const TimePoint end = now() + moment; now() < end; ::sched_yield()) {
            if (!arrived()) continue;
            vain_ = 0;
            return true;
        }
        vain_ = std::min(vain_ + 1, 10);
        waits_ = (1 << vain_) - 1;
        return false;
    }

private:
    int vain_ = 0;  ///< looks, in a row
    int waits_ = 0; ///< before the next look
};

} // namespace redislock::detail
