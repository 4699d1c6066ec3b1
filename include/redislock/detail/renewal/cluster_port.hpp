/// How the worker asks a cluster. tests/cluster_test.cpp goes red if it is wrong.
#pragma once

#include "../net/channel_pool.hpp"
#include "../net/cluster_route.hpp"
#include "renewal_channels.hpp"
#include "renewer.hpp"

namespace redislock::detail {

/// The worker's requests to a cluster: each to the node that has its key, over that node's connections,
/// and on from there. It pauses one request without holding up another.
template <class Node>
class ClusterPort {
public:
    using Engine = System;

    explicit ClusterPort(SlotTable<Node>& table) : table_{table} {}

    void send(Renewal renewal) {
        const TimePoint now = renewal.asked;
        ask(std::make_shared<RoutedRenewal>(std::move(renewal), table_), now);
    }

    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (auto& routed : take_rested(now)) ask(std::move(routed), now);
        do
            for (auto& [node, channels] : channels_)
                for (BorrowedChannel& channel : channels.all) channel.advance(now);
        while (pass_on(now, answered));
        std::erase_if(channels_, [](const auto& entry) { return entry.second.due() == TimePoint::max(); });
    }

    TimePoint due() const noexcept {
        TimePoint due = resting_.empty() ? TimePoint::max() : resting_.begin()->first;
        for (const auto& [node, channels] : channels_) due = std::min(due, channels.due());
        return due;
    }

    void wait(const Alarm& alarm) const {
        ChannelWait wait{{TimePoint::max(), alarm.fd()}};
        for (const auto& [node, channels] : channels_)
            for (const BorrowedChannel& channel : channels.all) channel.add_to(wait);
        wait();
    }

private:
    using Known = typename SlotTable<Node>::Known;

    /// A renewal, and which node is asked for it next.
    struct RoutedRenewal {
        RoutedRenewal(Renewal of, SlotTable<Node>& table)
            : renewal{std::move(of)}, route{table, renewal.request(), renewal.asked} {}
        const Renewal renewal;
        ClusterRoute<Node> route;
    };
    using Answers = std::vector<std::pair<std::shared_ptr<RoutedRenewal>, Answer>>;

    struct WorkerQuestion final : Question {
        WorkerQuestion(std::shared_ptr<RoutedRenewal> of, Known at, std::shared_ptr<Answers> into)
            : Question{of->route.request()}, routed{std::move(of)}, node{std::move(at)}, answers{std::move(into)} {}
        const std::shared_ptr<RoutedRenewal> routed;
        const Known node;
        const std::shared_ptr<Answers> answers;
        void answered(std::size_t, Answer answer) override {
            node->node.pool().count(request, answer);
            answers->emplace_back(routed, std::move(answer));
        }
    };

    std::vector<std::shared_ptr<RoutedRenewal>> take_rested(TimePoint now) {
        std::vector<std::shared_ptr<RoutedRenewal>> rested;
        for (auto one = resting_.begin(); one != resting_.end() && one->first <= now; one = resting_.erase(one))
            rested.push_back(std::move(one->second));
        return rested;
    }

    void ask(std::shared_ptr<RoutedRenewal> routed, TimePoint now) {
        const Known node = routed->route.next(now);
        auto channels = channels_.find(node);
        if (channels == channels_.end())
            channels = channels_.try_emplace(node, std::vector<ChannelPool*>{&node->node.pool()}).first;
        BorrowedChannel& channel = channels->second.to(0, routed->renewal.channel_group());
        channel.send(std::make_shared<WorkerQuestion>(std::move(routed), node, answers_));
    }

    /// What has come: to who asked, or on to another node. Whether something is to be sent now.
    template <class Answered>
    bool pass_on(TimePoint now, Answered& answered) {
        bool any = false;
        for (auto& [routed, answer] : std::exchange(*answers_, {})) {
            if (routed->route.is_over(answer, now)) {
                answered(routed->renewal, answer);
            } else if (routed->route.at() <= now) {
                ask(std::move(routed), now);
                any = true;
            } else {
                const TimePoint at = routed->route.at();
                resting_.emplace(at, std::move(routed));
            }
        }
        return any;
    }

    SlotTable<Node>& table_;
    const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();
    std::map<Known, RenewalChannels<BorrowedChannel, ChannelPool>> channels_; ///< with something under channel
    std::multimap<TimePoint, std::shared_ptr<RoutedRenewal>> resting_;
};

} // namespace redislock::detail
