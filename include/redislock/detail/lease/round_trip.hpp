/// How long an answer takes. It knows nothing of what is asked. tests/acquisition_test.cpp goes red if it is wrong.
#pragma once

#include "../system/clock.hpp"

#include <cstdint>

namespace redislock::detail {

/// For how long an answer is waited for that nearly always comes: the smoothed round-trip time and four times its
/// variation, as TCP has it (RFC 6298, section 2).
class RoundTrip {
public:
    explicit RoundTrip(TimePoint::duration first_bound) noexcept : bound_{first_bound} {}

    /// An answer took that long, or has not come in that time. With the first one a connection may have been opened: if
    /// the second one is faster, that is the first that counts.
    void measured(TimePoint::duration span) noexcept {
        if (++count_ == 1 || (count_ == 2 && span < smoothed_)) {
            smoothed_ = span;
            variation_ = span / 2;
        } else {
            variation_ += (std::chrono::abs(span - smoothed_) - variation_) / 4;
            smoothed_ += (span - smoothed_) / 8;
        }
        bound_ = smoothed_ + 4 * variation_;
    }
    TimePoint::duration upper_bound() const noexcept { return bound_; }

private:
    TimePoint::duration smoothed_{}, variation_{}, bound_;
    std::uint64_t count_ = 0;
};

} // namespace redislock::detail
