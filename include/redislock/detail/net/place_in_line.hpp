/// How one who waits for a majority stands in line at one of its servers, and what makes him leave it.
/// tests/majority_waiting_test.cpp goes red if it is wrong.
#pragma once

#include "fan_out.hpp"

#include <span>

namespace redislock::detail {

/// Has a connection of its own. For a look it borrows a fan-out: while it blocks those are free for the holder, who
/// would have to make new connections else, and be heard by the servers in any order. Not thread-safe.
template <class Node>
class PlaceInLine {
public:
    PlaceInLine(NodeSet<Node>& node_set, std::size_t at) : node_set_{node_set}, at_{at}, link_{*node_set.nodes[at]} {}

    /// At which server.
    std::size_t at() const noexcept { return at_; }
    /// The connection is good for another wait.
    bool is_idle() const noexcept { return link_.owed() == 0 && !link_.is_closed(); }

    /// Yes: it is our turn, or the key is seen to be free at a majority. No, and busy: the patience is over. Anything
    /// else: the place is worth nothing, and others had better stand elsewhere. `fan_outs` lends one by take(token) and
    /// give_back().
    template <class FanOuts>
    Answer wait(const Request& request, FanOuts& fan_outs) {
        const auto turn = std::make_shared<AwaitedQuestion>(request);
        const TimePoint started = node_set_.now(), patience_ends = later(started, request.patience);
        auto& line = link_.stand_in_line(turn, started); // until there is an answer
        const std::span own{&link_, 1};
        bool has_place = false;
        std::shared_ptr<Look> look;
        std::unique_ptr<FanOut<Node>> looking; // while a look is under way
        unsigned seen_free = 0;                // looks in a row
        while (advance(looking.get()), !turn->answer) {
            const TimePoint now = node_set_.now();
            has_place = has_place || line.look_at() != TimePoint::max();
            if (stopped(request.deadline)) {
                link_.abandon({Errc::timed_out, "stopped"});
            } else if (!has_place && now >= patience_ends) {
                link_.abandon({Errc::timed_out, "no answer of late"});
            } else if (look && look->is_over()) {
                fan_outs.give_back(std::move(looking), look->here->is_busy());
                seen_free = look->is_free() ? seen_free + 1 : 0;
                const bool is_free = seen_free == 2; // once it may be about to be handed on
                Failure lost = line.looked(std::move(*look->here), now);
                look.reset();
                if (is_free) lost = {Errc::timed_out, "free elsewhere"};
                if (lost) link_.abandon(lost);
                if (is_free) turn->answer = {.verdict = Verdict::yes, .queued = true};
            } else if (!look && line.look_at() <= now) {
                looking = fan_outs.take(request.token);
                look = looking->look_around(request, at_);
            } else if (look) {
                Link::wait({TimePoint::max(), request.deadline.stop}, own, looking->links());
            } else {
                Link::wait({has_place ? line.look_at() : patience_ends, request.deadline.stop}, own);
            }
        }
        if (looking) fan_outs.give_back(std::move(looking), false); // its look was not answered
        const bool is_of_use = turn->answer->verdict == Verdict::yes || turn->answer->is_busy();
        if (!is_of_use && !stopped(request.deadline)) node_set_.health[at_].has_no_line(node_set_.now());
        if (turn->answer->verdict == Verdict::unknown) turn->answer->verdict = Verdict::no; // the key was not asked for
        return *turn->answer;
    }

private:
    using Link = typename Node::Link;

    void advance(FanOut<Node>* looking) {
        node_set_.advance(link_, at_, node_set_.now());
        if (looking) looking->advance();
    }

    NodeSet<Node>& node_set_;
    const std::size_t at_;
    Link link_;
};

} // namespace redislock::detail
