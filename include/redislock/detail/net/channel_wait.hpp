/// The one wait for channels. tests/session_test.cpp goes red if it is wrong.
#pragma once

#include "channel.hpp"

#include <array>

namespace redislock::detail {

/// Blocks until one of the channels can go on, one of their answers is overdue, or the deadline.
class ChannelWait {
public:
    explicit ChannelWait(const Deadline& deadline) noexcept
        : entries_{{{deadline.stop, POLLIN, 0}}}, until_{deadline.at} {}

    template <class... Channels>
    ChannelWait(const Deadline& deadline, const Channels&... channels) noexcept : ChannelWait{deadline} {
        (add(channels), ...);
    }

    template <class Channels>
    void add(const Channels& channels) noexcept {
        for (const Channel& channel : channels) add(channel);
    }
    /// One that is idle is not waited for.
    void add(const Channel& channel) noexcept {
        if (channel.owed() == 0) return;
        until_ = std::min(until_, channel.due());
        if (count_ < entries_.size())
            entries_[count_++] = channel.entry();
        else
            until_ = std::min(until_, now() + Millis{1});
    }

    void operator()() noexcept { detail::wait(std::span{entries_}.first(count_), until_); }

private:
    std::array<pollfd, 64> entries_;
    std::size_t count_ = 1;
    TimePoint until_;
};

} // namespace redislock::detail
