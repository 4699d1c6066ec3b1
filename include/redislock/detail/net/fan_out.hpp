/// How one question is put to several servers at once: over which connections, to whom not, and for how long their
/// answers are waited for. What the votes amount to the VoteCount says; what a question is for is the quorum's affair.
/// tests/quorum_test.cpp goes red if it is wrong, and tests/wire_test.cpp.
#pragma once

#include "../lease/vote_count.hpp"
#include "../system/wait.hpp"

#include <atomic>
#include <deque>
#include <vector>

namespace redislock::detail {

/// When a server that did not answer is asked again, and what its trouble is. Of all threads; a vote more or less makes
/// no difference.
struct Health {
    static constexpr TimePoint::duration least = Millis{10}, longest = Millis{1'000};
    std::atomic<TimePoint::rep> rests_until{0}, pause{0};
    std::atomic<Errc> trouble{};

    TimePoint until() const noexcept { return TimePoint{TimePoint::duration{rests_until.load()}}; }
    bool rests(TimePoint now) const noexcept { return now < until(); }
    void failed(TimePoint now) noexcept {
        if (rests(now)) return;
        const TimePoint::duration next{std::clamp(2 * pause.load(), least.count(), longest.count())};
        pause = next.count();
        rests_until = (now + next).time_since_epoch().count();
    }
    void answered() noexcept {
        if (pause.load(std::memory_order_relaxed) != 0) pause = rests_until = 0;
    }
    void says(Errc what) noexcept {
        if (trouble.load(std::memory_order_relaxed) != what) trouble = what;
    }
};

/// The servers that vote, and what is known of each.
template <class Node>
struct NodeSet {
    explicit NodeSet(std::vector<Node*> all) : nodes{std::move(all)}, health(nodes.size()) {}

    TimePoint now() const noexcept { return nodes.front()->now(); }

    /// Those who rest are left in peace if the others are a majority.
    bool can_spare_who_rests(TimePoint now) const noexcept {
        const auto resting =
            std::count_if(health.begin(), health.end(), [&](const Health& one) { return one.rests(now); });
        return nodes.size() - static_cast<std::size_t>(resting) > nodes.size() / 2;
    }

    const std::vector<Node*> nodes;
    std::vector<Health> health;
};

/// A connection to each server, for one question at a time. Answers may still be owed to it when it is put aside. Not
/// thread-safe.
template <class Node>
class FanOut {
public:
    explicit FanOut(NodeSet<Node>& node_set) : node_set_{node_set} {
        for (Node* node : node_set.nodes) links_.emplace_back(*node);
    }

    /// Puts the question to all servers that are not at rest, and counts their answers until those still to come can't
    /// change the result, or it is `end`, or a server at rest may be asked again, for it may be needed in place of a
    /// silent one. A release whose answer isn't wanted goes to those alone that may have the key; and as long as one of
    /// them is still being connected to, the vote goes on.
    std::shared_ptr<VoteCount> vote(const Request& request, Deadline end) {
        advance(); // else who has hung up behind an answer that nobody has read is not noticed
        auto votes = std::make_shared<Poll>(node_set_, request);
        const TimePoint now = node_set_.now();
        const bool spares = node_set_.can_spare_who_rests(now);
        for (std::size_t n = 0; n < links_.size(); ++n) {
            const Health& health = node_set_.health[n];
            const bool needs_it =
                request.verb == Verb::release ? (request.nodes >> n & 1) != 0 : request.verb == Verb::extend;
            if (!needs_it && (!request.wants_answer || (spares && health.rests(now)))) {
                if (request.verb == Verb::acquire)
                    end.at = std::min(end.at, std::max(health.until(), now + Health::least));
                const std::string silent = node_set_.nodes[n]->name() + ": no answer of late";
                votes->count(n, {Verdict::no, {Errc::unreachable, silent}});
            } else {
                links_[n].send(votes, n);
            }
        }
        advance();
        const auto is_done = [&] {
            if (request.wants_answer && !votes->is_decided()) return false;
            return request.verb != Verb::release || is_sent(request, now);
        };
        const auto arrives = [&] { return advance(), is_done(); };
        while (!is_done() && node_set_.now() < end.at && !spin_wait_(arrives) && !stopped(end)) {
            Link::wait(end, links_);
            advance();
        }
        if (!is_done()) advance(); // we may have been paused meanwhile, and the answers are here
        return votes;
    }

    void advance() {
        const TimePoint now = node_set_.now();
        for (std::size_t n = 0; n < links_.size(); ++n)
            if (const std::size_t owed = links_[n].owed(); owed > 0) {
                links_[n].advance(now);
                if (links_[n].is_closed() || links_[n].in_doubt())
                    node_set_.health[n].failed(now);
                else if (links_[n].owed() < owed)
                    node_set_.health[n].answered();
            }
    }

    /// Whether an answer is still to come to an acquire, with this token or with any.
    bool is_owed(const Token& token) const noexcept {
        return std::any_of(links_.begin(), links_.end(), [&](const Link& link) { return link.owes_an_acquire(token); });
    }
    bool is_owed() const noexcept {
        return std::any_of(links_.begin(), links_.end(), [](const Link& link) { return link.owes_an_acquire(); });
    }

    /// So that the connections of one who will not answer in time are not multiplied until that is certain.
    void suspect_the_silent() noexcept {
        for (std::size_t n = 0; n < links_.size(); ++n)
            if (links_[n].owes_an_acquire()) node_set_.health[n].failed(node_set_.now());
    }

private:
    using Link = typename Node::Link;

    /// A votes that also tells the node_set what became of each server.
    struct Poll final : VoteCount {
        Poll(NodeSet<Node>& of, Request what)
            : VoteCount{static_cast<unsigned>(of.nodes.size()), std::move(what)}, node_set{of} {}
        NodeSet<Node>& node_set;

        void answered(std::size_t node, Answer answer) override {
            if (!answer.is_busy()) locate(answer.why, *node_set.nodes[node]);
            node_set.health[node].says(answer.is_about_the_key() ? Errc{} : Errc{answer.why.code.value()});
            count(node, answer);
        }
    };

    /// Whether the release does not wait for a connection, for nobody may come again to send it. It is not needed by a
    /// server to which the acquire has not been sent either, and servers that are known to be silent are not waited
    /// for.
    bool is_sent(const Request& release, TimePoint now) const noexcept {
        for (std::size_t n = 0; n < links_.size(); ++n) {
            const bool needs_it = (release.nodes >> n & 1) != 0 && !links_[n].owes_an_acquire(release.token);
            if (needs_it && links_[n].is_opening() && !node_set_.health[n].rests(now)) return false;
        }
        return true;
    }

    NodeSet<Node>& node_set_;
    std::deque<Link> links_;
    typename Node::Engine::SpinWait spin_wait_{};
};

} // namespace redislock::detail
