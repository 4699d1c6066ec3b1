/// How the worker asks a cluster. tests/cluster_test.cpp goes red if it is wrong.
#pragma once

#include "../net/channel_pool.hpp"
#include "../net/cluster_route.hpp"
#include "renewal_channels.hpp"
#include "renewer.hpp"

namespace redislock::detail {

/// The way of the worker's requests through a cluster: each to the node that has its key, over that node's connections,
/// and on from there. It pauses one request without holding up another.
template <class Node>
class ClusterPort {
public:
    using Engine = System;

    explicit ClusterPort(SlotTable<Node>& table) : table_{table} {}

    void send(Renewal renewal) { begin(std::make_shared<Errand>(std::move(renewal), table_)); }

    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (auto& errand : take_rested(now)) ask(std::move(errand), now);
        do
            for (auto& [node, ways] : ways_)
                for (BorrowedChannel& way : ways.all) way.advance(now);
        while (pass_on(now, answered));
        std::erase_if(ways_, [](const auto& entry) { return entry.second.due() == TimePoint::max(); });
    }

    TimePoint due() const noexcept {
        TimePoint due = resting_.empty() ? TimePoint::max() : resting_.begin()->first;
        for (const auto& [node, ways] : ways_) due = std::min(due, ways.due());
        return due;
    }

    void wait(const Alarm& alarm) const {
        ChannelWait wait{{TimePoint::max(), alarm.fd()}};
        for (const auto& [node, ways] : ways_)
            for (const BorrowedChannel& way : ways.all) way.add_to(wait);
        wait();
    }

private:
    using Known = typename SlotTable<Node>::Known;

    /// A renewal on its way from node to node.
    struct Errand {
        Errand(Renewal of, SlotTable<Node>& table)
            : renewal{std::move(of)}, route{table, renewal.request(), renewal.asked} {}
        const Renewal renewal;
        ClusterRoute<Node> route;
    };
    using Answers = std::vector<std::pair<std::shared_ptr<Errand>, Answer>>;

    struct WorkerQuestion final : Question {
        WorkerQuestion(std::shared_ptr<Errand> of, Known at, std::shared_ptr<Answers> into)
            : Question{of->route.request()}, errand{std::move(of)}, node{std::move(at)}, answers{std::move(into)} {}
        const std::shared_ptr<Errand> errand;
        const Known node;
        const std::shared_ptr<Answers> answers;
        void answered(std::size_t, Answer answer) override {
            node->node.pool().count(request, answer);
            answers->emplace_back(errand, std::move(answer));
        }
    };

    /// With the next advance().
    void begin(std::shared_ptr<Errand> errand) {
        const TimePoint at = errand->route.at();
        resting_.emplace(at, std::move(errand));
    }

    std::vector<std::shared_ptr<Errand>> take_rested(TimePoint now) {
        std::vector<std::shared_ptr<Errand>> rested;
        for (auto one = resting_.begin(); one != resting_.end() && one->first <= now; one = resting_.erase(one))
            rested.push_back(std::move(one->second));
        return rested;
    }

    void ask(std::shared_ptr<Errand> errand, TimePoint now) {
        const Known node = errand->route.next(now);
        auto ways = ways_.find(node);
        if (ways == ways_.end()) ways = ways_.try_emplace(node, std::vector<ChannelPool*>{&node->node.pool()}).first;
        BorrowedChannel& way = ways->second.to(0, errand->renewal.channel_group());
        way.send(std::make_shared<WorkerQuestion>(std::move(errand), node, answers_));
    }

    /// What has come: to who asked, or on to another node. Whether something is to be sent now.
    template <class Answered>
    bool pass_on(TimePoint now, Answered& answered) {
        bool any = false;
        for (auto& [errand, answer] : std::exchange(*answers_, {})) {
            if (errand->route.is_over(answer, now)) {
                answered(errand->renewal, answer);
            } else if (errand->route.at() <= now) {
                ask(std::move(errand), now);
                any = true;
            } else {
                begin(std::move(errand));
            }
        }
        return any;
    }

    SlotTable<Node>& table_;
    const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();
    std::map<Known, RenewalChannels<BorrowedChannel, ChannelPool>> ways_; ///< with something under way
    std::multimap<TimePoint, std::shared_ptr<Errand>> resting_;
};

} // namespace redislock::detail
