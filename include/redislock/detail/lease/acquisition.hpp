/// Waiting for a lock, as a state machine: how long each question may take, and what follows from its answer. It asks
/// nobody and waits for nothing: time and answers come in as arguments. tests/acquisition_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../../options.hpp"
#include "request.hpp"
#include "round_trip.hpp"

namespace redislock::detail {

/// Contention is waited out until `give_up`; so is trouble, or from when it is noticed for `retry_for`, which is the
/// request timeout where there is no `give_up`. Each question has that timeout, and its patience, or what is left until
/// the last word: that is `give_up`, or one request timeout for who asks only once.
///
/// | state    | event                                     | next     | act                                         |
/// |----------|-------------------------------------------|----------|---------------------------------------------|
/// | any      | busy, and asked only once                 |          | busy                                        |
/// | any      | busy, to a question without patience      | waiting  | ask                                         |
/// | waiting  | busy                                      | waiting  | ask, if it stood in line; else rest         |
/// | any      | an error that time will not mend          |          | failed: the error                           |
/// | any      | trouble                                   | troubled | rest                                        |
/// | troubled | trouble, for `retry_for`                  |          | failed: the first, or one that tells more   |
/// | any      | the last word is near, a holder was seen  |          | busy; failed, if that has no lease that ends |
/// | any      | the last word is near, none was seen      |          | failed: the trouble                         |
/// | troubled | the same, or the holder's lease is over   |          | failed: the trouble                         |
///
/// A holder's lease is taken to be over when that has passed which he had left when he was last seen.
///
/// A waiting question has patience: it may stand in line. The first one has it where the last grant had to be waited
/// for, or somebody was in line when the key was released last.
class Acquisition {
public:
    Acquisition(const Options& options, RoundTrip& round_trip, bool expects_to_wait, TimePoint started,
                TimePoint give_up) noexcept
        : request_timeout_{options.effective_request_timeout()}, recheck_{options.recheck()}, round_trip_{round_trip},
          retry_for_{options.retry_for.value_or(give_up == TimePoint::max() ? request_timeout_ : Millis::max())},
          asks_once_{give_up <= started}, last_word_{asks_once_ ? later(started, request_timeout_) : give_up},
          state_{expects_to_wait && !asks_once_ ? State::waiting : State::asking} {}

    struct Asking {
        TimePoint deadline;
        Millis patience;
    };

    /// The next question, asked now.
    Asking ask(TimePoint now) noexcept {
        asked_ = now;
        patience_ = Millis::zero();
        if (state_ == State::waiting)
            patience_ = std::min(std::chrono::floor<Millis>(last_question(now) - now), longest_queue);
        in_full_ = later(now, patience_ + request_timeout_);
        deadline_ = std::min({last_word_, in_full_, trouble_ends_});
        return {deadline_, patience_};
    }

    struct Step {
        enum class Act {
            ask,    ///< at once
            rest,   ///< by the backoff, and then ask
            busy,   ///< it is over: somebody has the key
            failed, ///< it is over: `why`
        } act;
        TimePoint until{}; ///< of the rest; or when to say that it is over
        std::optional<Millis> holder_left{};
        Failure why{};
    };

    /// Of a question that has not led to a lease.
    Step answered(Answer answer, TimePoint now) {
        const bool waited = state_ == State::waiting;
        if (answer.verdict == Verdict::yes) answer = {Verdict::unknown, {Errc::timed_out, "granted too late"}};
        const bool is_late = answer.why.code == Errc::timed_out && waited && deadline_ == last_word_;
        if (now >= asked_ + patience_ && (answer.is_busy() || is_late)) round_trip_.measured(now - asked_ - patience_);
        if (answer.is_busy()) {
            if (asks_once_) return {Step::Act::busy, now};
            was_busy(answer, now);
        } else {
            if (!answer.is_trouble()) return {Step::Act::failed, now, {}, answer.why};
            was_trouble(answer, now);
            if (now >= trouble_ends_) return {Step::Act::failed, now, {}, trouble_->why};
        }
        if (last_word_ - now <= (waited && answer.is_busy() ? for_an_answer() : Millis{1})) return the_end();
        if (answer.is_busy() && (!waited || answer.queued)) return {Step::Act::ask};
        return {Step::Act::rest, std::min(last_question(now), trouble_ends_), answer.holder_left};
    }

private:
    enum class State { asking, waiting, troubled };

    /// How long a waiter stands in line at most, before he asks anew from its end. One whose machine has vanished is
    /// given his turn, in vain, for as long as that, if the server does not notice it by itself.
    static constexpr Millis longest_queue{std::chrono::hours{1}};

    TimePoint::duration for_an_answer() const noexcept {
        return std::min<TimePoint::duration>(round_trip_.upper_bound() + Millis{1}, recheck_);
    }
    TimePoint last_question(TimePoint now) const noexcept {
        return last_word_ - std::min((last_word_ - now) / 2, for_an_answer());
    }

    void was_busy(const Answer& answer, TimePoint now) {
        if (patience_ > Millis::zero() || !busy_) busy_ = answer; // a plain question tells less
        saw_holder(answer, now);
        trouble_.reset();
        trouble_ends_ = TimePoint::max();
        state_ = State::waiting;
    }

    void saw_holder(const Answer& answer, TimePoint now) {
        held_until_ = answer.holder_left ? later(now, *answer.holder_left) : TimePoint::max();
    }

    void was_trouble(const Answer& answer, TimePoint now) {
        if (answer.was_held) saw_holder(answer, now);
        if (!busy_ && answer.was_held) busy_ = Answer{Verdict::no, {Errc::busy, {}}, answer.holder_left};
        if (busy_ && answer.never_ends()) busy_->why = answer.why;
        if (!trouble_) trouble_ends_ = later(now, retry_for_);
        // What was cut short tells less; but that nobody is there tells more than that a connection was lost.
        const bool is_gone = answer.why.code == Errc::unreachable;
        if (!trouble_ || deadline_ == in_full_ || (is_gone && trouble_->why.code == Errc::disconnected))
            trouble_ = answer;
        state_ = State::troubled;
    }

    /// A holder who has no lease that ends is worth an error.
    Step the_end() const {
        if (!busy_ || (trouble_ && last_word_ > held_until_)) return {Step::Act::failed, last_word_, {}, trouble_->why};
        if (busy_->why.code != Errc::busy) return {Step::Act::failed, last_word_, {}, busy_->why};
        return {Step::Act::busy, last_word_};
    }

    const Millis request_timeout_, recheck_;
    RoundTrip& round_trip_;
    const Millis retry_for_;
    const bool asks_once_;
    const TimePoint last_word_;
    State state_;
    TimePoint asked_{}, in_full_{}, deadline_{};
    Millis patience_{0};
    TimePoint trouble_ends_ = TimePoint::max(), held_until_ = TimePoint::max();
    std::optional<Answer> busy_{}, trouble_{}; ///< what is known of the holder, and of the trouble
};

} // namespace redislock::detail
