/// How long to pause before asking again: of those who poll, and of those whose server is in trouble. It knows a
/// backend's clock and nothing of what is asked. tests/lock_test.cpp goes red if it is wrong.
#pragma once

#include "../../backend.hpp"

#include <charconv>

namespace redislock::detail {

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
