/// Which connection a renewal travels on. It knows nothing of what a connection does; tests/session_test.cpp goes red if it is wrong.
#pragma once

#include "types.hpp"

#include <deque>
#include <vector>

namespace redislock::detail {

/// Channels to each of some places, and others for each number of replicas, so that who waits for replicas holds up only his like.
template <class Channel, class Place>
class Ways {
public:
    explicit Ways(std::vector<Place*> places) : places_{std::move(places)} {}

    /// The index of the first of those for so many replicas: one for each place, in their order.
    std::size_t first(unsigned replicas) {
        const auto at = std::find(counts_.begin(), counts_.end(), replicas) - counts_.begin();
        const std::size_t first = static_cast<std::size_t>(at) * places_.size();
        while (all.size() < first + places_.size()) all.emplace_back(*places_[all.size() - first]);
        if (at == std::ssize(counts_)) counts_.push_back(replicas);
        return first;
    }

    TimePoint due() const noexcept {
        TimePoint due = TimePoint::max();
        for (const Channel& channel : all) due = std::min(due, channel.due());
        return due;
    }

    std::deque<Channel> all;

private:
    const std::vector<Place*> places_;
    std::vector<unsigned> counts_;
};

} // namespace redislock::detail
