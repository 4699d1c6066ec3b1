/// How long to pause before asking again: of those who poll, and of those whose server is in trouble; and how long an
/// answer may take. It knows a backend's clock and nothing of what is asked. tests/lock_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../../backend.hpp"

#include <charconv>

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

/// Grows from 1 ms to `longest`; the pause itself is random up to that ("full jitter", M. Brooker 2015), and its
/// randomness a fresh token's.
template <Backend B>
class Backoff {
public:
    Backoff(B& backend, Millis longest) noexcept : backend_{backend}, longest_{longest} {}

    /// Blocks, but neither beyond `limit` nor for much longer than the holder has.
    void rest(const Deadline& limit, std::optional<Millis> holder_left = {}) {
        using Fine = std::chrono::microseconds;
        const Fine cap = std::min(next_, holder_left.value_or(next_)) + Millis{1};
        next_ = std::min(next_ * 2, longest_);
        const Token dice = backend_.fresh();
        std::uint32_t random = 0;
        std::from_chars(dice.hex().data(), dice.hex().data() + 8, random, 16);
        const Fine pause{static_cast<std::int64_t>(static_cast<double>(cap.count()) * random / 4294967296.0)};
        const TimePoint until = later(backend_.now(), pause + Fine{1});
        backend_.pause(limit.by(until));
    }

private:
    B& backend_;
    Millis longest_;
    Millis next_{1};
};

} // namespace redislock::detail
