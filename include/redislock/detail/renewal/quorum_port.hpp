/// How a worker reaches all servers of a majority, and what it tells of them. tests/quorum_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../lease/vote_count.hpp"
#include "../net/fan_out_pool.hpp"
#include "renewal_channels.hpp"
#include "renewer.hpp"

#include <functional>

namespace redislock::detail {

/// Renewals to all nodes: over the connections that are there, or else over new ones.
template <class Node>
class QuorumPort {
public:
    using Engine = typename Node::Engine;

    QuorumPort(NodeSet<Node>& node_set, FanOutPool<Node>& pool)
        : node_set_{node_set}, news_{std::make_shared<News>(nodes_.size())}, channels_{pool} {}

    void send(Renewal renewal) {
        const unsigned group = renewal.channel_group();
        const auto vote = std::make_shared<Vote>(node_set_, std::move(renewal), news_);
        for (std::size_t n = 0; n < nodes_.size(); ++n) channels_.to(group, n).send(vote, n);
        awaited_.reserve(channels_.all.size() * nodes_.size()); // for wait(), where nothing may fail
    }

    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (BorrowedFanOut<Node>& fan_out : channels_.all) fan_out.advance(now);
        for (const auto& [renewal, answer] : std::exchange(news_->decided, {})) answered(renewal, answer);
        for (const auto& [task, node, trouble] : std::exchange(news_->changes, {}))
            task->tell_server(nodes_[node]->name(), trouble == Errc{} ? std::error_code{} : make_error_code(trouble));
        for (const auto& [task, votes] : std::exchange(news_->complete, {}))
            task->tell_votes(votes, static_cast<unsigned>(nodes_.size()));
    }

    TimePoint due() const noexcept { return channels_.due(); }

    bool may_move() const noexcept requires requires(const Node& node) { node.locator(); }
    {
        return std::any_of(nodes_.begin(), nodes_.end(), [](const Node* node) { return node->locator().is_service(); });
    }
    /// Of nodes that are services: see Locator::watch(); and whether one is another server since this was asked last.
    TimePoint watch(TimePoint now) const requires requires(const Node& node) { node.locator(); }
    {
        TimePoint due = TimePoint::max();
        for (const Node* node : nodes_) due = std::min(due, node->locator().watch(now));
        return due;
    }
    bool has_moved() requires requires(const Node& node) { node.locator(); }
    {
        unsigned moves = 0;
        for (const Node* node : nodes_) moves += node->locator().moves();
        return std::exchange(moves_, moves) != moves;
    }
    void wait(const typename Engine::Alarm& alarm) {
        awaited_.clear();
        for (const BorrowedFanOut<Node>& fan_out : channels_.all)
            awaited_.insert(awaited_.end(), fan_out.links().begin(), fan_out.links().end());
        Link::wait({TimePoint::max(), alarm.fd()}, awaited_);
    }

private:
    using Link = typename Node::Link;

    /// What has come of renewals since it was looked at last, and what the trouble with each server is.
    struct News {
        explicit News(std::size_t nodes) : troubles(nodes) {}
        struct Change {
            std::shared_ptr<WorkerTask> task;
            std::size_t node;
            Errc trouble; ///< 0: there is none any more
        };
        AnsweredRenewals decided{};
        std::vector<Change> changes{};
        std::vector<std::pair<std::shared_ptr<WorkerTask>, unsigned>> complete{}; ///< and its votes
        std::vector<Errc> troubles;
    };

    struct Vote final : VoteCount {
        Vote(NodeSet<Node>& of, Renewal what, std::shared_ptr<News> into)
            : VoteCount{static_cast<unsigned>(of.nodes.size()), what.request()}, node_set{of}, renewal{std::move(what)},
              news{std::move(into)} {}
        NodeSet<Node>& node_set;
        const Renewal renewal;
        const std::shared_ptr<News> news;
        bool is_told = false;
        Nodes lost = 0; ///< of a release

        void answered(std::size_t node, Answer answer) override {
            const Errc trouble = node_set.heard(node, answer);
            const Errc before = std::exchange(news->troubles[node], trouble);
            if ((before == Errc{}) != (trouble == Errc{})) news->changes.push_back({renewal.task, node, trouble});
            count(node, answer);
            if (request.verb == Verb::release) hand_over(node, answer);
            if (is_decided() && !std::exchange(is_told, true)) news->decided.emplace_back(renewal, result());
            if (is_complete()) news->complete.emplace_back(renewal.task, votes());
        }
        /// A release is not asked for again here once a majority has carried it out: servers that could not are left to
        /// their own workers.
        void hand_over(std::size_t node, const Answer& answer) {
            if (answer.is_trouble()) lost |= Nodes{1} << node;
            if (!is_decided() || result().is_trouble()) return;
            node_set.hand_over(std::exchange(lost, Nodes{0}), request);
        }
    };

    NodeSet<Node>& node_set_;
    const std::vector<Node*>& nodes_ = node_set_.nodes;
    const std::shared_ptr<News> news_;
    unsigned moves_ = 0; ///< at first that is the truth, or costs a renewal that is early
    RenewalChannels<BorrowedFanOut<Node>, FanOutPool<Node>> channels_;
    std::vector<std::reference_wrapper<const Link>> awaited_{};
};

} // namespace redislock::detail
