/// Which connection a renewal travels on. It knows nothing of what a connection does; tests/session_test.cpp goes red
/// if it is wrong.
#pragma once

#include "../system/clock.hpp"

#include <deque>
#include <vector>

namespace redislock::detail {

/// Channels to a place, which may be several servers: others for each group of requests (see Renewal), and where one is
/// in doubt, another one: a connection that is dead must not hold up what is asked from now on, and those under way on
/// one that is only slow are not to lose it for the sake of an impatient one.
template <class Channel, class Place>
class RenewalChannels {
public:
    explicit RenewalChannels(Place& place) noexcept : place_{place} {}

    /// The channel for the next request of a group to this one of the servers. The first one that is not in doubt, or a
    /// new one; where that would be more than `most`, the last: in time the others are given up, and then used anew.
    Channel& to(unsigned group, std::size_t server = 0) {
        Channel* last = nullptr;
        unsigned count = 0;
        for (std::size_t i = 0; i < groups_.size(); ++i) {
            if (groups_[i] != group) continue;
            last = &all[i];
            if (++count == most || !last->in_doubt(server)) return *last;
        }
        groups_.reserve(groups_.size() + 1); // both, or none
        all.emplace_back(place_);
        groups_.push_back(group);
        return all.back();
    }

    TimePoint due() const noexcept {
        TimePoint due = TimePoint::max();
        for (const Channel& channel : all) due = std::min(due, channel.due());
        return due;
    }

    std::deque<Channel> all;

private:
    static constexpr unsigned most = 4;

    Place& place_;
    std::vector<unsigned> groups_; ///< of each channel
};

} // namespace redislock::detail
