/// The way of one request through a cluster: which node is asked, and which one next, if that one says so or is not
/// there. It asks nobody and waits for nothing: time and answers come in as arguments. tests/cluster_route_test.cpp
/// goes red if it is wrong.
#pragma once

#include "../../options.hpp"
#include "../lease/request.hpp"
#include "../protocol/redirect.hpp"
#include "slot_table.hpp"

namespace redislock::detail {

/// | the node's answer                       | what is known then        | next                                     |
/// |-----------------------------------------|---------------------------|------------------------------------------|
/// | of the key, whoever was asked           | it has the slot           | over; a waiter asks it anew, in line     |
/// | of the key, to ASKING                   |                           | over                                     |
/// | MOVED, and nothing was done             | the other has the slot    | the other                                |
/// | MOVED to itself                         | its connections are wrong | the same over new ones, after a pause    |
/// | ASK, and nothing was done               |                           | the other, with ASKING                   |
/// | MOVED, ASK; something may have been done | as above                 | over                                     |
/// | down, loading, no connection            | it is in doubt            | one that is not; all were: after a pause |
/// | trouble; something may have been done   | it is in doubt            | over                                     |
/// | anything else                           |                           | over                                     |
///
/// To be sent to one that was asked before is followed after a pause, which doubles. It is over in any case when there
/// is no time left. A token is never asked for at a second node unless it is certain that the first has not granted it.
///
/// Nobody stands in line where a slot is being moved to: if that is called off, the old node goes on to grant the key,
/// and the new one must not. So each attempt asks the old one first. Not thread-safe.
template <class Node>
class ClusterRoute {
public:
    using Known = typename SlotTable<Node>::Known;

    ClusterRoute(SlotTable<Node>& table, Request request, TimePoint now)
        : table_{table}, slot_{key_slot(request.key)}, request_{std::move(request)}, deadline_{request_.deadline},
          patience_ends_{later(now, request_.patience)},
          is_patient_{request_.patience > Millis::zero()}, target_{table_.owner(slot_)} {
        if (target_ && target_->is_doubted) target_ = nullptr;
    }

    /// When to ask next: at once, or after a pause.
    TimePoint at() const noexcept { return at_; }

    /// Whom to ask, and what: see request().
    const Known& next(TimePoint now) {
        is_guess_ = !target_;
        if (is_guess_) target_ = choose();
        has_asked(std::exchange(target_, nullptr), now);
        request_.asking = is_asking_;
        request_.deadline = deadline_;
        if (is_patient_) request_.patience = std::max(std::chrono::floor<Millis>(patience_ends_ - now), shortest);
        cut_ = is_patient_ && (is_guess_ || is_asking_);
        if (cut_) request_.patience = shortest;
        // One that may be dead has half of the time, where there is another one.
        if (is_guess_ && table_.guess(slot_, tried_)) request_.deadline.at = now + (time_for_answer(now) - now) / 2;
        return node_;
    }
    const Request& request() const noexcept { return request_; }

    /// In place of the first next(): who is known to have the slot was asked before there was a route.
    void has_asked(Known node, TimePoint when) {
        asked_ = when;
        target_ = nullptr;
        tried_.push_back(node_ = std::move(node));
    }

    /// Whether that is the answer to the request. If not, next() has another one to ask.
    bool is_over(Answer& answer, TimePoint now) {
        const bool was_asking = std::exchange(is_asking_, false);
        if (answer.is_about_the_key()) {
            node_->has_answered();
            if (!was_asking && is_guess_) table_.remember(slot_, node_);
            return !(cut_ && !was_asking && answer.is_busy() && patience_ends_ > later(now, shortest));
        }
        if (now > later(asked_, 2 * request_.recheck)) trouble_ends_ = TimePoint::max(); // it stood in line meanwhile
        trouble_ends_ = std::min(trouble_ends_, time_for_answer(now));
        if (const auto redirect = redirect_in(answer)) {
            follow(*redirect, now);
        } else if (is_doubtful(answer) || (is_guess_ && is_full(answer))) {
            node_->is_doubted = true;
            if (answer.why.code == Errc::cluster_down || !table_.guess(slot_, tried_)) rest(now);
        } else {
            return true;
        }
        if (answer.verdict == Verdict::no && std::max(at_, now) < trouble_ends_) return false;
        // It was not the right node that has said no.
        if (answer.why.code == Errc::moved && request_.verb != Verb::acquire) answer.verdict = Verdict::unknown;
        return true;
    }

private:
    static constexpr Millis shortest{1}; ///< of a patience, so that a busy key is told of in full
    static constexpr unsigned most_hops = 6;
    static constexpr Millis first_pause{2}, longest_pause{64};

    TimePoint time_for_answer(TimePoint now) const noexcept {
        if (!is_patient_) return deadline_.at;
        return std::min(deadline_.at, later(now, 2 * request_.recheck));
    }

    Known choose() {
        Known owner = table_.owner(slot_);
        if (owner && !owner->is_doubted) {
            is_guess_ = false;
            return owner;
        }
        if (Known one = table_.guess(slot_, tried_)) return one;
        tried_.clear();
        return table_.guess(slot_, tried_);
    }

    void follow(const Redirect& redirect, TimePoint now) {
        node_->has_answered();
        const Address& own = node_->address;
        const std::string& local = own.path.empty() ? own.host : loopback;
        const std::string& host = redirect.host.empty() ? local : redirect.host;
        const bool is_same = !redirect.asks && host == own.host && redirect.port == own.port;
        target_ = is_same ? table_.renew(node_) : table_.at(host, redirect.port);
        is_asking_ = redirect.asks;
        if (!redirect.asks) table_.remember(slot_, target_);
        const bool was_tried = std::find(tried_.begin(), tried_.end(), target_) != tried_.end();
        if (is_same || was_tried || tried_.size() >= most_hops) rest(now);
    }

    static std::optional<Redirect> redirect_in(const Answer& answer) {
        return answer.why.code == Errc::moved ? Redirect::in(answer.why.detail) : std::nullopt;
    }

    void rest(TimePoint now) noexcept {
        pause_ = pause_ == Millis::zero() ? first_pause : std::min(2 * pause_, longest_pause);
        at_ = later(now, pause_);
    }

    /// Whether another node may know better.
    static bool is_doubtful(const Answer& answer) noexcept {
        if (answer.why.code.category() != category()) return false;
        switch (static_cast<Errc>(answer.why.code.value())) {
        case Errc::unreachable:
        case Errc::unresolved:
        case Errc::disconnected:
        case Errc::timed_out:
        case Errc::protocol_error:
        case Errc::loading:
        case Errc::read_only:
        case Errc::cluster_down:
        case Errc::master_down: return true;
        default: return false;
        }
    }

    /// Where it is not certain that this one has the key, another one may have room.
    static bool is_full(const Answer& answer) noexcept {
        return answer.why.code == Errc::max_clients || answer.why.code == Errc::script_running;
    }

    inline static const std::string loopback = "127.0.0.1";

    SlotTable<Node>& table_;
    const unsigned slot_;
    Request request_;
    const Deadline deadline_;
    const TimePoint patience_ends_;
    const bool is_patient_;
    Known target_, node_{};      ///< who is asked next, if that is settled; and who was asked last
    std::vector<Known> tried_{}; ///< since all were
    TimePoint at_{}, asked_{}, trouble_ends_ = TimePoint::max();
    Millis pause_{0};
    bool is_guess_ = false, is_asking_ = false, cut_ = false;
};

} // namespace redislock::detail
