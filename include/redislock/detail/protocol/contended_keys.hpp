/// For which keys somebody was in line when they were released. It knows no server and no clock. tests/types_test.cpp
/// goes red if it is wrong.
#pragma once

#include "../system/clock.hpp"

#include <array>
#include <atomic>
#include <string_view>

namespace redislock::detail {

/// As far as a few slots can tell: a key may be taken for another one. Thread-safe.
class ContendedKeys {
public:
    void note(std::string_view key, TimePoint now) noexcept { noted_[slot(key)] = now.time_since_epoch().count(); }

    /// Of late: whoever asks at once for what he has just released is to be behind those in line.
    bool has(std::string_view key, TimePoint now) const noexcept {
        const TimePoint noted{TimePoint::duration{noted_[slot(key)].load(std::memory_order_relaxed)}};
        return noted != TimePoint{} && now < later(noted, Millis{1'000});
    }

private:
    static constexpr std::size_t slots = 64;
    static std::size_t slot(std::string_view key) noexcept { return std::hash<std::string_view>{}(key) % slots; }

    std::array<std::atomic<TimePoint::rep>, slots> noted_{};
};

} // namespace redislock::detail
