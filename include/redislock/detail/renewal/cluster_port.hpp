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
        Request request = renewal.request();
        Known owner = table_.owner(key_slot(request.key));
        if (owner && !owner->is_doubted) return send(std::move(request), {std::move(renewal), std::move(owner)});
        auto route = std::make_unique<ClusterRoute<Node>>(table_, std::move(request), now);
        go_on({std::move(renewal), {}, std::move(route)}, now);
    }

    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (RoutedRenewal& routed : take_rested(now)) go_on(std::move(routed), now);
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

    /// A renewal, and who was asked for it last. Its route is made where the first answer does not settle it.
    struct RoutedRenewal {
        Renewal renewal;
        Known node;
        std::unique_ptr<ClusterRoute<Node>> route{};
    };
    using Answers = std::vector<std::pair<RoutedRenewal, Answer>>;

    struct WorkerQuestion final : Question {
        WorkerQuestion(Request what, RoutedRenewal of, SlotTable<Node>& nodes, std::shared_ptr<Answers> into)
            : Question{std::move(what)}, routed{std::move(of)}, table{nodes}, answers{std::move(into)} {}
        RoutedRenewal routed;
        SlotTable<Node>& table;
        const std::shared_ptr<Answers> answers;
        void answered(std::size_t, Answer answer) override {
            auto& [renewal, node, route] = routed;
            node->node.pool().count(request, answer);
            if (!route && !answer.is_about_the_key()) {
                route = std::make_unique<ClusterRoute<Node>>(table, request, renewal.asked);
                route->has_asked(node, renewal.asked);
            }
            answers->emplace_back(std::move(routed), std::move(answer));
        }
    };

    std::vector<RoutedRenewal> take_rested(TimePoint now) {
        std::vector<RoutedRenewal> rested;
        for (auto one = resting_.begin(); one != resting_.end() && one->first <= now; one = resting_.erase(one))
            rested.push_back(std::move(one->second));
        return rested;
    }

    /// To the node that is next on its route.
    void go_on(RoutedRenewal routed, TimePoint now) {
        routed.node = routed.route->next(now);
        Request request = routed.route->request();
        send(std::move(request), std::move(routed));
    }

    void send(Request request, RoutedRenewal routed) {
        auto channels = channels_.find(routed.node);
        if (channels == channels_.end())
            channels = channels_.try_emplace(routed.node, std::vector<ChannelPool*>{&routed.node->node.pool()}).first;
        BorrowedChannel& channel = channels->second.to(0, routed.renewal.channel_group());
        channel.send(std::make_shared<WorkerQuestion>(std::move(request), std::move(routed), table_, answers_));
    }

    /// What has come: to who asked, or on to another node. Whether something is to be sent now.
    template <class Answered>
    bool pass_on(TimePoint now, Answered& answered) {
        bool any = false;
        for (auto& [routed, answer] : std::exchange(*answers_, {})) {
            if (is_over(routed, answer, now)) {
                answered(routed.renewal, answer);
            } else if (routed.route->at() <= now) {
                go_on(std::move(routed), now);
                any = true;
            } else {
                const TimePoint at = routed.route->at();
                resting_.emplace(at, std::move(routed));
            }
        }
        return any;
    }

    bool is_over(RoutedRenewal& routed, Answer& answer, TimePoint now) {
        if (routed.route) return routed.route->is_over(answer, now);
        routed.node->has_answered();
        return true;
    }

    SlotTable<Node>& table_;
    const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();
    std::map<Known, RenewalChannels<BorrowedChannel, ChannelPool>> channels_; ///< with something under channel
    std::multimap<TimePoint, RoutedRenewal> resting_;
};

} // namespace redislock::detail
