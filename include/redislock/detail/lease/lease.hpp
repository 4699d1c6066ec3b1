/// The one judgement over time: from what was asked, what was answered and what time it is, whether we hold a lease.
/// It does no I/O, reads no clock, and starts no thread: time comes in as an argument.
/// tests/lease_test.cpp goes red if it is wrong.
#pragma once

#include "../../options.hpp"
#include "../../outcome.hpp"
#include "request.hpp"

namespace redislock {

/// One lock's lease, from asking to letting go. Not thread-safe.
///
/// A lease runs from the moment before it was *asked* for, never from the answer, and can be used until
/// `asked + ttl - allowance(ttl, drift)`, the *end*. While it is *unsettled*, that is asking, lapsed or doubtful,
/// it isn't ours to use, yet the server may have a key with our token: only a release can tell.
///
/// | state     | event                                        | next     | outcome    |
/// |-----------|----------------------------------------------|----------|------------|
/// | idle      | ask                                          | asking   |            |
/// | asking    | an extension of the grant is confirmed       | asking   |            |
/// | asking    | granted, before the end                      | held     |            |
/// | asking    | granted, at the end or later                 | doubtful |            |
/// | asking    | no                                           | idle     |            |
/// | asking    | unknown                                      | doubtful |            |
/// | held      | the clock reaches the end, or it's cut short | lapsed   |            |
/// | held      | extended, before the end                     | held     | confirmed  |
/// | held      | extended, at the end or later                | lapsed   | expired    |
/// | held      | extension: the key is gone, or another's     | lost     | the reason |
/// | held      | extension refused, or unknown                | held     | unknown    |
/// | held      | let go                                       | doubtful |            |
/// | lapsed    | extension: the key is gone, or another's     | lost     | the reason |
/// | lapsed, asking | let go                                  | doubtful |            |
/// | doubtful  | release: it was ours                         | idle     | confirmed  |
/// | doubtful  | release: it is gone, or another's            | idle     | the reason |
/// | doubtful  | the same, after a release that was unknown   | idle     | unknown    |
/// | doubtful  | release refused, or unknown                  | doubtful | unknown    |
/// | lost      | let go                                       | idle     |            |
/// | lost      | ask                                          | asking   |            |
class Lease {
public:
    enum class State { idle, asking, held, lapsed, doubtful, lost };

    explicit Lease(const Options& options = {}) noexcept : drift_{options.drift} {}

    /// The end is judged here: no one has to tell the lease that it is over.
    State state(TimePoint now) const noexcept { return state_ == State::held && now >= end_ ? State::lapsed : state_; }
    bool held(TimePoint now) const noexcept { return state(now) == State::held; }
    bool unsettled(TimePoint now) const noexcept {
        return state_ == State::asking || state(now) == State::lapsed || state_ == State::doubtful;
    }
    const Token& token() const noexcept { return token_; }

    /// When a lease that is held can no longer be used.
    TimePoint end() const noexcept { return end_; }

    /// The number of the grant; 0 if it isn't held, or not numbered.
    std::uint64_t fencing_token(TimePoint now) const noexcept { return held(now) ? fencing_token_ : 0; }

    /// Who may have the key, for the release.
    Nodes nodes() const noexcept { return nodes_; }

    /// Rounded down; zero if it isn't held.
    Millis remaining(TimePoint now) const noexcept {
        return held(now) ? std::chrono::floor<Millis>(end_ - now) : Millis::zero();
    }

    /// It ends now, if it hasn't yet: sooner than it had to.
    void cut_short(TimePoint now) noexcept { end_ = std::min(end_, now); }

    /// Why a lease was lost, the last time that one was: expired or stolen.
    Outcome loss() const noexcept { return loss_; }

    /// An acquire is about to be sent, for the first time with this token. Only from idle and lost.
    void ask(const Token& fresh, TimePoint now, Millis ttl) noexcept {
        token_ = fresh;
        end_ = usable_end(now, ttl);
        state_ = State::asking;
        release_unanswered_ = false;
        fencing_token_ = 0;
        nodes_ = all_nodes;
    }

    /// Before a grant that had to be waited for is judged: the key itself was not asked for before `asked`, or an
    /// extension to `ttl`, asked then, has been confirmed.
    void ask_anew(TimePoint asked, Millis ttl) noexcept { end_ = usable_end(asked, ttl); }

    /// The acquire was answered. A grant whose end has passed already is not one.
    void answered(const Answer& answer, TimePoint now) noexcept {
        if (answer.verdict == Verdict::no)
            drop(State::idle);
        else
            state_ = answer.verdict == Verdict::yes && now < end_ ? State::held : State::doubtful;
        fencing_token_ = answer.fencing_token;
        nodes_ = answer.nodes;
    }

    /// An extension to `ttl`, asked at `asked`, was answered. It never brings back a lease that has ended meanwhile.
    Outcome extended(const Answer& answer, TimePoint asked, Millis ttl, TimePoint now) noexcept {
        if (answer.verdict == Verdict::yes) {
            if (state(now) != State::held) return Outcome::expired;
            end_ = std::max(end_, usable_end(asked, ttl));
            return Outcome::confirmed;
        }
        const Outcome outcome = reason(answer);
        if (outcome != Outcome::unknown) {
            loss_ = outcome;
            drop(State::lost);
        }
        return outcome;
    }

    /// The grant ends here, before the release is sent.
    void let_go() noexcept {
        if (state_ == State::held || state_ == State::asking) state_ = State::doubtful;
        if (state_ == State::lost) drop(State::idle);
    }

    /// A release of the doubtful lease was answered.
    Outcome released(const Answer& answer) noexcept {
        Outcome outcome = answer.verdict == Verdict::yes ? Outcome::confirmed : reason(answer);
        if (outcome == Outcome::unknown) {
            release_unanswered_ |= answer.verdict == Verdict::unknown;
            return outcome;
        }
        // It may have been the unanswered release that deleted it, or somebody else before.
        if (outcome != Outcome::confirmed && release_unanswered_) outcome = Outcome::unknown;
        drop(State::idle);
        return outcome;
    }

private:
    TimePoint usable_end(TimePoint asked, Millis ttl) const noexcept { return asked + (ttl - allowance(ttl, drift_)); }

    static Outcome reason(const Answer& answer) noexcept {
        if (answer.verdict != Verdict::no) return Outcome::unknown;
        if (answer.why.code == Errc::expired) return Outcome::expired;
        return answer.why.code == Errc::stolen ? Outcome::stolen : Outcome::unknown;
    }

    void drop(State next) noexcept {
        state_ = next;
        token_ = Token{};
    }

    double drift_;
    Token token_{};
    State state_ = State::idle;
    Nodes nodes_ = all_nodes;
    TimePoint end_{};
    Outcome loss_ = Outcome::not_held;
    bool release_unanswered_ = false;
    std::uint64_t fencing_token_ = 0;
};

} // namespace redislock
