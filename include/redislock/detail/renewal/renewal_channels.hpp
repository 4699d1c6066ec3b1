/// Which connection a renewal travels on. It knows nothing of what a connection does; tests/session_test.cpp goes red
/// if it is wrong.
#pragma once

#include "../system/clock.hpp"

#include <deque>
#include <utility>
#include <vector>

namespace redislock::detail {

/// Channels to each of some places, others for each group of requests (see Renewal), and where a channel is in doubt,
/// another one to the same place: a connection that is dead must not hold up what is asked from now on, and those under
/// way on one that is only slow are not to lose it for the sake of an impatient one.
template <class Channel, class Place>
class RenewalChannels {
public:
    explicit RenewalChannels(std::vector<Place*> places) : places_{std::move(places)} {}

    /// The channel to the nth place for the next request of a group. The first one that is not in doubt, or a new one;
    /// where that would be more than `most`, the last: in time the others are given up, and then used anew.
    Channel& to(std::size_t nth, unsigned group) {
        const std::pair label{nth, group};
        Channel* last = nullptr;
        unsigned count = 0;
        for (std::size_t i = 0; i < labels_.size(); ++i) {
            if (labels_[i] != label) continue;
            last = &all[i];
            if (++count == most || !last->in_doubt()) return *last;
        }
        labels_.reserve(labels_.size() + 1); // both, or none
        all.emplace_back(*places_[nth]);
        labels_.push_back(label);
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

    const std::vector<Place*> places_;
    std::vector<std::pair<std::size_t, unsigned>> labels_; ///< of each channel: the place, and the group
};

} // namespace redislock::detail
