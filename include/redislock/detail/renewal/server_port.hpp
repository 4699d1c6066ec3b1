/// How the worker asks one server. tests/session_test.cpp and tests/cleanup_test.cpp go red if it is wrong.
#pragma once

#include "../net/channel_pool.hpp"
#include "renewal_channels.hpp"
#include "renewer.hpp"

namespace redislock::detail {

/// The worker's requests to a server: over the connections that are there, or else over new ones.
class ServerPort {
public:
    using Engine = System;

    explicit ServerPort(ChannelPool& pool) : pool_{pool}, channels_{{&pool}} {}

    void send(Renewal renewal) {
        BorrowedChannel& channel = channels_.to(0, renewal.channel_group());
        channel.send(std::make_shared<WorkerQuestion>(std::move(renewal), pool_, answered_));
    }
    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (BorrowedChannel& channel : channels_.all) channel.advance(now);
        for (const auto& [renewal, answer] : std::exchange(*answered_, {})) answered(renewal, answer);
    }
    TimePoint due() const noexcept { return channels_.due(); }

    bool may_move() const noexcept { return pool_.locator().is_service(); }
    /// See Locator::watch(); and whether the server is another one since this was asked last.
    TimePoint watch(TimePoint now) const { return pool_.locator().watch(now); }
    bool has_moved() {
        const unsigned moves = pool_.locator().moves();
        return std::exchange(moves_, moves) != moves;
    }
    void wait(const Alarm& alarm) const {
        ChannelWait wait{{TimePoint::max(), alarm.fd()}};
        for (const BorrowedChannel& channel : channels_.all) channel.add_to(wait);
        wait();
    }

private:
    struct WorkerQuestion final : Question {
        WorkerQuestion(Renewal of, ChannelPool& over, std::shared_ptr<AnsweredRenewals> into)
            : Question{of.request()}, renewal{std::move(of)}, pool{over}, answers{std::move(into)} {}
        Renewal renewal;
        ChannelPool& pool;
        const std::shared_ptr<AnsweredRenewals> answers;
        void answered(std::size_t, Answer answer) override {
            pool.count(request, answer);
            answers->emplace_back(std::move(renewal), std::move(answer));
        }
    };

    const std::shared_ptr<AnsweredRenewals> answered_ = std::make_shared<AnsweredRenewals>();
    ChannelPool& pool_;
    unsigned moves_ = pool_.locator().moves();
    RenewalChannels<BorrowedChannel, ChannelPool> channels_;
};

} // namespace redislock::detail
