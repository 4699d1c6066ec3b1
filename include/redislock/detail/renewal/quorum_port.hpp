/// How a worker reaches all servers of a majority, and what it tells of them. tests/quorum_test.cpp and
/// tests/cleanup_test.cpp go red if it is wrong.
#pragma once

#include "../lease/vote_count.hpp"
#include "../net/fan_out_pool.hpp"
#include "renewal_channels.hpp"
#include "renewer.hpp"

namespace redislock::detail {

/// Renewals to all nodes, over connections of its own. What a server could not be asked over these is asked over a
/// fan-out that nobody uses at the moment: a server or a process that has no room for another connection must not cost
/// a lease that was granted.
template <class Node>
class QuorumPort {
public:
    using Engine = typename Node::Engine;

    QuorumPort(NodeSet<Node>& node_set, FanOutPool<Node>& fan_outs)
        : node_set_{node_set}, fan_outs_{fan_outs}, news_{std::make_shared<News>(nodes_.size())}, channels_{nodes_} {}

    void send(Renewal renewal) {
        const unsigned group = renewal.channel_group();
        const auto vote = std::make_shared<Vote>(node_set_, std::move(renewal), news_);
        for (std::size_t n = 0; n < nodes_.size(); ++n) channels_.to(n, group).send(vote, n);
    }

    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (Link& channel : channels_.all) channel.advance(now);
        for (const auto& [vote, node, answer] : std::exchange(news_->refusals, {})) ask_by_spare(vote, node, answer);
        advance_spare(now);
        for (const auto& [renewal, answer] : std::exchange(news_->decided, {})) answered(renewal, answer);
        for (const auto& [task, node, trouble] : std::exchange(news_->changes, {}))
            task->tell_server(nodes_[node]->name(), trouble == Errc{} ? std::error_code{} : make_error_code(trouble));
        for (const auto& [task, votes] : std::exchange(news_->complete, {}))
            task->tell_votes(votes, static_cast<unsigned>(nodes_.size()));
    }

    TimePoint due() const noexcept {
        TimePoint due = channels_.due();
        for (const Link& link : spare_links()) due = std::min(due, link.due());
        return due;
    }

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
        Link::wait({TimePoint::max(), alarm.fd()}, channels_.all, spare_links());
    }

private:
    using Link = typename Node::Link;
    struct Vote;

    /// What has come of renewals since it was looked at last, and what the trouble with each server is.
    struct News {
        explicit News(std::size_t nodes) : troubles(nodes) {}
        struct Change {
            std::shared_ptr<WorkerTask> task;
            std::size_t node;
            Errc trouble; ///< 0: there is none any more
        };
        /// A renewal that one server has not carried out, or was not sent, and why.
        struct Refusal {
            std::shared_ptr<Vote> vote;
            std::size_t node;
            Answer answer;
        };
        AnsweredRenewals decided{};
        std::vector<Refusal> refusals{}; ///< of connections of our own
        bool spare_served = false;       ///< an answer about the key came over it
        std::vector<Change> changes{};
        std::vector<std::pair<std::shared_ptr<WorkerTask>, unsigned>> complete{}; ///< and its votes
        std::vector<Errc> troubles;
    };

    struct Vote final : VoteCount, std::enable_shared_from_this<Vote> {
        Vote(NodeSet<Node>& of, Renewal what, std::shared_ptr<News> into)
            : VoteCount{static_cast<unsigned>(of.nodes.size()), what.request()}, node_set{of}, renewal{std::move(what)},
              news{std::move(into)} {}
        NodeSet<Node>& node_set;
        const Renewal renewal;
        const std::shared_ptr<News> news;
        bool is_told = false;
        Nodes heard = 0; ///< who is heard again was asked by the spare
        Nodes lost = 0;  ///< of a release

        void answered(std::size_t node, Answer answer) override {
            const bool is_by_spare = (heard >> node & 1) != 0;
            heard |= Nodes{1} << node;
            if (!is_by_spare && answer.verdict == Verdict::no && !answer.is_about_the_key())
                return news->refusals.push_back({this->shared_from_this(), node, std::move(answer)});
            news->spare_served |= is_by_spare && answer.is_about_the_key();
            settled(node, std::move(answer));
        }
        void settled(std::size_t node, Answer answer) {
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

    /// Only over a connection that is there.
    void ask_by_spare(const std::shared_ptr<Vote>& vote, std::size_t node, const Answer& answer) {
        const bool has_time = Engine::now() < vote->request.deadline.at;
        if (!spare_ && has_time && (spare_ = fan_outs_.take_idle(Token{}))) spare_->advance(); // as vote() does
        if (!spare_ || !has_time || spare_->links()[node].is_closed()) return vote->settled(node, answer);
        spare_->links()[node].send(vote, node);
        is_spare_asked_ = true;
    }

    void advance_spare(TimePoint now) {
        if (!spare_) return;
        for (Link& link : spare_->links()) link.advance(now);
        const auto is_idle = [](const Link& link) { return link.owed() == 0; };
        if (!std::all_of(spare_->links().begin(), spare_->links().end(), is_idle)) return;
        const bool has_failed = std::exchange(is_spare_asked_, false) && !std::exchange(news_->spare_served, false);
        fan_outs_.give_back(std::move(spare_), !has_failed);
    }

    const std::deque<Link>& spare_links() const noexcept { return spare_ ? std::as_const(*spare_).links() : none_; }

    NodeSet<Node>& node_set_;
    FanOutPool<Node>& fan_outs_;
    const std::vector<Node*>& nodes_ = node_set_.nodes;
    const std::shared_ptr<News> news_;
    unsigned moves_ = 0; ///< at first that is the truth, or costs a renewal that is early
    RenewalChannels<Link, Node> channels_;
    std::unique_ptr<FanOut<Node>> spare_{}; ///< for as long as answers are owed to it
    bool is_spare_asked_ = false;
    const std::deque<Link> none_{};
};

} // namespace redislock::detail
