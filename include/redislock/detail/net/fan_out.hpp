/// How one question is put to several servers at once: over which connections, to whom not, and for how long their
/// answers are waited for. What the votes amount to the VoteCount says; what a question is for is the quorum's affair.
/// tests/quorum_test.cpp, tests/wire_test.cpp and tests/majority_waiting_test.cpp go red if it is wrong.
#pragma once

#include "../lease/vote_count.hpp"
#include "../system/wait.hpp"
#include "node_set.hpp"

#include <deque>

namespace redislock::detail {

/// How the key stands at each server, while a turn is waited for at one of them. There it may be held by one who has it
/// nowhere else, and is gone.
struct Look final : Question {
    Look(Request what, std::size_t place, std::size_t servers)
        : Question{std::move(what)}, at{place}, majority{static_cast<unsigned>(servers / 2 + 1)} {}
    const std::size_t at;
    const unsigned majority;
    unsigned asked = 0, heard = 0, free = 0;
    std::optional<Answer> here{};

    void answered(std::size_t node, Answer answer) override {
        ++heard;
        if (node == at)
            here = std::move(answer);
        else
            free += answer.is_busy() && !answer.was_held && !answer.never_ends();
    }
    bool is_over() const noexcept { return heard == asked; }
    bool is_free() const noexcept { return free >= majority && here->was_held; }
};

/// A connection to each server, for one question at a time. Answers may still be owed to it when it is put aside. Not
/// thread-safe.
template <class Node>
class FanOut {
public:
    using Link = typename Node::Link;

    explicit FanOut(NodeSet<Node>& node_set) : node_set_{node_set} {
        for (Node* node : node_set.nodes) links_.emplace_back(*node);
    }

    /// Puts the question to all servers that are not at rest, and counts their answers until those still to come can't
    /// change the result, or it is `end`, or a server at rest may be asked again, for it may be needed in place of a
    /// silent one; and for an acquire not much longer for those that were silent before, nor for a release that no
    /// majority can carry out. A release whose answer isn't wanted goes to those alone that may have the key; and as
    /// long as one of them is still being connected to, the vote goes on. The server where others stand in line comes
    /// last: whoever is woken there finds the key free at the others.
    std::shared_ptr<VoteCount> vote(const Request& request, Deadline end) {
        advance(); // else who has hung up behind an answer that nobody has read is not noticed
        auto votes = std::make_shared<Poll>(node_set_, request);
        const TimePoint now = node_set_.now();
        put_to_all(votes, now, end);
        // So long votes are waited for that make no difference to the result.
        const TimePoint soon = now + (request.is_retried ? longest_grace : 2 * Health::least);
        const auto is_done = [&] {
            if (node_set_.now() >= soon && votes->awaits_only_silent()) return true;
            if (request.wants_answer && !votes->is_decided()) return false;
            if (node_set_.now() < soon && votes->may_be_missed()) return false;
            if (request.verb == Verb::release) return is_sent(request, now);
            return request.verb != Verb::acquire || has_asked_all(now, end);
        };
        const auto arrives = [&] { return advance(), is_done(); };
        while (!is_done() && node_set_.now() < end.at && !spin_wait_(arrives) && !stopped(end)) {
            Link::wait(end.by(node_set_.now() < soon ? std::min(end.at, soon) : end.at), links_);
            advance();
        }
        if (!is_done()) advance(); // we may have been paused meanwhile, and the answers are here
        if (request.verb == Verb::release) {
            for (std::size_t n = 0; n < links_.size(); ++n)
                if (may_come_to_nothing(request, n)) votes->lost |= Nodes{1} << n;
            votes->is_over = true;
            votes->hand_over_lost();
        }
        return votes;
    }

    /// Asks all servers that are not at rest how the key stands, and `at` in any case, for a place in line is there.
    std::shared_ptr<Look> look_around(Request request, std::size_t at) {
        advance(); // as vote() does
        const TimePoint now = node_set_.now();
        request.deadline = request.deadline.by(later(now, request.recheck));
        auto look = std::make_shared<Look>(std::move(request), at, node_set_.nodes.size());
        for (std::size_t n = 0; n < node_set_.nodes.size(); ++n) {
            if (n != at && node_set_.health[n].rests(now)) continue;
            ++look->asked;
            links_[n].announce(look, n);
        }
        return look;
    }

    /// Waits until that server owes no answer, but for 100 ms at most.
    void settle(std::size_t node, Deadline end) {
        end = end.by(node_set_.now() + longest_grace);
        while (advance(), links_[node].owed() > 0 && node_set_.now() < end.at && !stopped(end)) Link::wait(end, links_);
    }

    void advance() {
        const TimePoint now = node_set_.now();
        for (std::size_t n = 0; n < links_.size(); ++n) node_set_.advance(links_[n], n, now);
    }
    const std::deque<Link>& links() const noexcept { return links_; }
    std::deque<Link>& links() noexcept { return links_; }

    /// Whether an answer is still to come to an acquire, with this token or with any.
    bool is_owed(const Token& token) const noexcept {
        return std::any_of(links_.begin(), links_.end(), [&](const Link& link) { return link.owes_an_acquire(token); });
    }
    bool is_owed() const noexcept {
        return std::any_of(links_.begin(), links_.end(), [](const Link& link) { return link.owes_an_acquire(); });
    }

    /// So that the connections of one who will not answer in time are not multiplied until that is certain.
    void suspect_the_silent() noexcept {
        for (std::size_t n = 0; n < node_set_.nodes.size(); ++n)
            if (links_[n].owes_an_acquire()) node_set_.health[n].failed(node_set_.now());
    }

private:
    static constexpr TimePoint::duration longest_grace = 10 * Health::least;
    static constexpr bool tells_identity = requires(Link & link, Identities& of, const Deadline& end) {
        link.identify(of, 0, end);
    };

    /// A count of votes that also tells the node_set what became of each server. A release that a minority did not
    /// carry out is handed over to their workers: when the vote is over, or when that is known. (Of a fan-out that is
    /// idle it is known when that is used next.) What nobody knows the outcome of its holder asks again.
    struct Poll final : VoteCount {
        Poll(NodeSet<Node>& of, Request what)
            : VoteCount{static_cast<unsigned>(of.nodes.size()), std::move(what)}, node_set{of} {}
        NodeSet<Node>& node_set;
        Nodes may_be_silent = 0, heard = 0, unasked = 0, lost = 0;
        bool is_over = false;

        void answered(std::size_t node, Answer answer) override {
            node_set.heard(node, answer);
            // An undo that was not sent is behind an acquire that was not sent.
            const bool is_needed = request.was_granted || answer.verdict == Verdict::unknown;
            if (request.verb == Verb::release && is_needed && answer.is_trouble()) lost |= Nodes{1} << node;
            heard |= Nodes{1} << node;
            count(node, answer);
            if (is_over && lost != 0) hand_over_lost();
        }
        /// Each of them once.
        void hand_over_lost() {
            if (request.wants_answer && result().is_trouble()) return;
            node_set.hand_over(request.nodes & lost & ~handed_over_, request);
            handed_over_ |= lost;
        }
        /// Whether votes are still to come that tell who has carried the release out. When it is asked for again these
        /// servers will say that the key is gone.
        bool may_be_missed() const noexcept { return request.is_retried && !is_complete() && !is_won() && !is_gone(); }
        bool awaits_only_silent() const noexcept {
            const Nodes all = (Nodes{1} << node_set.nodes.size()) - 1;
            return (heard & ~may_be_silent) != 0 && (heard | may_be_silent | unasked) == all;
        }

    private:
        Nodes handed_over_ = 0;
    };

    /// For an acquire it shortens `end` to the time when a server at rest may be asked again.
    void put_to_all(const std::shared_ptr<Poll>& votes, TimePoint now, Deadline& end) {
        const Request& request = votes->request;
        const bool spares = node_set_.can_spare_who_rests(now);
        const std::size_t nodes = node_set_.nodes.size(), last = node_set_.line_of(request.key, now).value_or(0);
        for (std::size_t n = (last + 1) % nodes, i = 0; i < nodes; ++i, n = (n + 1) % nodes) {
            if (request.released >> n & 1) continue;
            const Health& health = node_set_.health[n];
            const bool needs_it =
                request.verb == Verb::release ? (request.nodes >> n & 1) != 0 : request.verb == Verb::extend;
            if (!needs_it && (!request.wants_answer || (spares && health.rests(now)))) {
                if (request.verb == Verb::acquire)
                    end.at = std::min(end.at, std::max(health.until(), now + Health::least));
                const std::string silent = node_set_.nodes[n]->name() + ": no answer of late";
                votes->unasked |= Nodes{1} << n;
                votes->count(n, {Verdict::no, {Errc::unreachable, silent}});
            } else {
                if (request.verb == Verb::acquire && health.is_silent()) votes->may_be_silent |= Nodes{1} << n;
                if constexpr (tells_identity)
                    if (request.verb == Verb::acquire && !node_set_.identities.is_known(n))
                        links_[n].identify(node_set_.identities, n, request.deadline);
                links_[n].send(votes, n);
                node_set_.advance(links_[n], n, now);
            }
        }
    }

    /// Whether the server may never carry the release out: it has not been sent yet, for the server does not read, or
    /// it is behind a WAIT, where it is dropped if the connection ends first. Where the acquire has not been sent
    /// either the two are given up together.
    bool may_come_to_nothing(const Request& release, std::size_t n) const noexcept {
        if constexpr (requires { links_[n].is_flushed(); })
            return links_[n].owed() > 0 && (!links_[n].is_flushed() || links_[n].owes_an_acquire(release.token, 1)) &&
                   !(links_[n].is_opening() && links_[n].owes_an_acquire(release.token));
        return false;
    }

    /// Whether the release does not wait for a connection, for nobody may come again to send it. It is not needed by a
    /// server to which the acquire has not been sent either, and servers that are known to be silent are not waited
    /// for.
    bool is_sent(const Request& release, TimePoint now) const noexcept {
        for (std::size_t n = 0; n < node_set_.nodes.size(); ++n) {
            const bool needs_it = (release.nodes >> n & 1) != 0 && !links_[n].owes_an_acquire(release.token);
            if (needs_it && links_[n].is_opening() && !node_set_.health[n].rests(now)) return false;
        }
        return true;
    }

    /// An acquire that is decided waits as long again for servers to which it has not been sent yet, or that are yet to
    /// say which they are: it is not to be held by a bare majority only because the others were connected to a moment
    /// later. Shortens `end` to that.
    bool has_asked_all(TimePoint began, Deadline& end) const noexcept {
        const TimePoint now = node_set_.now();
        for (std::size_t n = 0; n < node_set_.nodes.size(); ++n) {
            bool has_asked = links_[n].has_asked();
            if constexpr (tells_identity)
                has_asked = has_asked && (links_[n].owed() == 0 || node_set_.identities.is_known(n));
            if (has_asked || node_set_.health[n].rests(now)) continue;
            end.at = std::min(end.at, now + (now - began) + Millis{1});
            return now >= end.at;
        }
        return true;
    }

    NodeSet<Node>& node_set_;
    std::deque<Link> links_; ///< one to each
    typename Node::Engine::SpinWait spin_wait_{};
};

} // namespace redislock::detail
