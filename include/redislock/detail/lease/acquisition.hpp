/// How a lease is asked for, extended and released over a backend that may be silent, slow or in trouble: what is
/// asked, until when, when once more, and how what may have been granted unknown to us is undone. It knows nothing of
/// guards, nor of who renews the lease. tests/lock_test.cpp and tests/memory_test.cpp go red if it is wrong.
#pragma once

#include "../system/timers.hpp"
#include "backoff.hpp"

namespace redislock::detail {

/// One holder's dealings with his backend. Not thread-safe, but for what HeldLease shares with a renewer; errors are
/// std::system_error.
template <Backend B>
class Acquisition : public HeldLease {
public:
    Acquisition(B& where, std::string what, const Options& how) : HeldLease{std::move(what), how}, backend{where} {}

    B& backend;

    /// The one loop of all ways to lock. Contention is waited out until `give_up`; trouble, from when it is noticed,
    /// for the request timeout; and each question has that timeout too, or what is left until the last word. Returns
    /// how many questions it took; 0: the lease is not ours.
    unsigned acquire(TimePoint started, TimePoint give_up, const std::stop_token& stop) {
        const Millis request_timeout = options.effective_request_timeout();
        const StopSignal signal{stop};
        const TimePoint last_word = give_up > started ? give_up : later(started, request_timeout);
        unsigned attempts = 0;
        std::optional<Answer> busy, trouble;
        TimePoint trouble_ends = TimePoint::max();
        const auto for_an_answer = [&] {
            return std::min<TimePoint::duration>(round_trip_.upper_bound() + Millis{1}, options.recheck());
        };
        const auto last_question = [&](TimePoint now) {
            return last_word - std::min((last_word - now) / 2, for_an_answer());
        };
        for (Backoff backoff{backend, options.max_retry_delay}; !stop.stop_requested();) {
            const TimePoint asked = backend.now();
            ++attempts;
            // That there's a holder to wait for is known, or expected, and that the server answers.
            const bool waits = (busy || (had_to_wait_ && give_up > started)) && !trouble;
            Millis patience{0};
            if (waits) patience = std::min(std::chrono::floor<Millis>(last_question(asked) - asked), longest_queue);
            const TimePoint in_full = later(asked, patience + request_timeout);
            const TimePoint deadline = std::min({last_word, in_full, trouble_ends});
            Answer answer = attempt({deadline, signal.fd()}, patience);
            const TimePoint now = backend.now();
            if (lease.held(now)) return attempts;
            if (stop.stop_requested()) break;
            if (answer.verdict == Verdict::yes) answer = {Verdict::unknown, {Errc::timed_out, "granted too late"}};
            const bool is_late = answer.why.code == Errc::timed_out && waits && deadline == last_word;
            if (now >= asked + patience && (answer.is_busy() || is_late)) round_trip_.measured(now - asked - patience);
            if (answer.is_busy()) {
                if (give_up <= started) return 0;
                if (patience > Millis{0} || !busy) busy = answer; // a plain question tells less
                trouble.reset();
                trouble_ends = TimePoint::max();
            } else {
                if (!answer.is_trouble()) fail(answer.why);
                if (!busy && answer.was_held) busy = Answer{Verdict::no, {Errc::busy, {}}, answer.holder_left};
                if (busy && answer.never_ends()) busy->why = answer.why;
                if (!trouble) trouble_ends = later(now, request_timeout);
                // What was cut short tells less; but that nobody is there tells more than that a connection was lost.
                const bool is_gone = answer.why.code == Errc::unreachable;
                if (!trouble || deadline == in_full || (is_gone && trouble->why.code == Errc::disconnected))
                    trouble = answer;
                if (now >= trouble_ends) fail(trouble->why);
            }
            const TimePoint::duration too_little = waits && answer.is_busy() ? for_an_answer() : Millis{1};
            if (last_word - now <= too_little) {
                backend.pause({last_word, signal.fd()});
                if (!busy) fail(trouble->why);
                if (busy->why.code != Errc::busy) fail(busy->why); // the holder has no lease that ends: worth an error
                break;
            }
            if (!answer.is_busy() || (waits && !answer.queued))
                backoff.rest({std::min(last_question(now), trouble_ends), signal.fd()}, answer.holder_left);
        }
        undo_unheard();
        return 0;
    }

    /// Takes over the lease that `token` proves, or throws.
    void adopt(const Token& token) {
        const TimePoint asked = backend.now();
        const TimePoint deadline = later(asked, options.effective_request_timeout());
        const Answer answer = insist(extension(token, options.ttl, deadline), [](const Answer& last) { return last; });
        if (answer.verdict == Verdict::yes) { // until then it is the giver's, and none of ours to undo
            lease.ask(token, asked, options.ttl);
            lease.answered(answer, backend.now());
        }
        if (lease.held(backend.now())) return;
        lease = Lease{options};
        complain(answer.why ? answer.why : Failure{Errc::timed_out, "adopted too late to be of use"});
    }

    /// `was`: the lease as it is now, and held.
    Outcome extend(const Lease& was, Millis ttl) {
        const TimePoint asked = backend.now();
        const TimePoint deadline = std::min(was.end(), asked + options.effective_request_timeout());
        const Outcome outcome = insist(extension(was.token(), ttl, deadline), [&](const Answer& answer) {
            return extended(was.token(), answer, asked, ttl, backend.now());
        });
        const TimePoint now = backend.now();
        if (outcome == Outcome::confirmed) tell_renewed(now - asked, was.end() - now);
        return outcome;
    }

    struct Ended {
        Outcome outcome;
        std::error_code why{}; ///< of an unknown outcome
    };

    /// Whether the answer to a release is waited for, and asked for again while there is trouble.
    enum class Release { until_answered, once, unconfirmed };

    /// Ends the lease, and says what had become of it. What could not be released is left to the backend's worker.
    Ended let_go(TimePoint now, Release how) {
        const Lease::State was = lease.state(now);
        lease.let_go();
        if (was == Lease::State::lost) return {lease.loss()};
        if (was == Lease::State::held || was == Lease::State::lapsed)
            return release(later(now, options.effective_request_timeout()), how);
        undo_unheard();
        return {Outcome::not_held};
    }

    /// Throws what it is about, with the lock's key.
    [[noreturn]] void complain(const Failure& why) const {
        raise({why.code, "lock \"" + printable(key) + "\"" + (why.detail.empty() ? "" : ": " + why.detail)});
    }

private:
    /// How long a waiter stands in line at most, before he asks anew from its end. One whose machine has vanished is
    /// given his turn, in vain, for as long as that, if the server does not notice it by itself.
    static constexpr Millis longest_queue{std::chrono::hours{1}};

    /// With the lease's own token.
    Request request(Verb verb, const Deadline& deadline) const {
        Request request = HeldLease::request(verb, lease.token(), options.ttl, deadline);
        request.nodes = lease.nodes();
        request.was_granted = verb == Verb::release && request.token == granted_;
        return request;
    }

    Request extension(const Token& token, Millis ttl, const Deadline& deadline) const {
        return HeldLease::request(Verb::extend, token, ttl, deadline);
    }

    /// Asks until there is an answer that time won't mend, or no time is left. Each answer is put before `judge`. What
    /// was cut short tells less than the trouble before it.
    template <class Judge>
    auto insist(const Request& request, Judge judge, bool again = true) {
        Failure trouble;
        for (Backoff backoff{backend, options.max_retry_delay};;) {
            Answer answer = backend.ask(request);
            if (trouble && answer.why.code == Errc::timed_out) answer.why = trouble;
            trouble = answer.why;
            const auto judged = judge(answer);
            if (!again || !answer.is_trouble() || backend.now() >= request.deadline.at) return judged;
            backoff.rest(request.deadline);
        }
    }

    /// One question, with a token of its own; before it the undoing of what an earlier one may have left behind.
    Answer attempt(const Deadline& deadline, Millis patience) {
        if (lease.unsettled(backend.now())) {
            lease.let_go();
            const Answer undone = backend.ask(request(Verb::release, soon(deadline)));
            lease.released(undone);
            if (lease.unsettled(backend.now())) return undone;
        }
        const TimePoint asked = backend.now();
        lease.ask(backend.fresh(), asked, options.ttl);
        Request question = request(Verb::acquire, deadline);
        question.patience = patience;
        Answer answer = backend.ask(question);
        if (answer.verdict == Verdict::yes) granted_ = question.token;
        had_to_wait_ = answer.queued && answer.holder_left != Millis::zero();
        const bool aged = backend.now() - asked > options.ttl / 10;
        if (answer.verdict == Verdict::yes && answer.queued && aged && !made_young(deadline))
            answer = {Verdict::no, {Errc::busy, {}}, {}, true};
        lease.answered(answer, backend.now());
        return answer;
    }

    /// A grant that was waited for is as old as its question, for all that we know: an extension makes it young. False
    /// if it has ended by now.
    bool made_young(const Deadline& deadline) {
        const TimePoint asked = backend.now();
        const Answer answer = backend.ask(extension(lease.token(), options.ttl, soon(deadline)));
        if (answer.verdict == Verdict::yes) lease.ask_anew(asked, options.ttl);
        return answer.why.code != Errc::expired && answer.why.code != Errc::stolen;
    }

    /// In the request timeout, if that isn't later.
    Deadline soon(const Deadline& deadline) const noexcept {
        return deadline.by(later(backend.now(), options.effective_request_timeout()));
    }

    Ended release(TimePoint deadline, Release how) {
        Request question = request(Verb::release, deadline);
        question.wants_answer = how != Release::unconfirmed;
        std::error_code why;
        bool is_open = false;
        const auto judge = [&](const Answer& answer) {
            if (!answer.is_about_the_key()) why = answer.why.code; // to which it may have been deleted
            is_open = answer.is_trouble();
            return lease.released(answer);
        };
        const Outcome outcome = insist(question, judge, how != Release::once);
        if (is_open) leave_behind(std::move(question));
        return {outcome, outcome == Outcome::unknown ? why : std::error_code{}};
    }

    /// Where there is no memory, or no thread, the key goes with its ttl.
    void leave_behind(Request release) noexcept try {
        if (std::exchange(left_behind_, release.token) == release.token) return;
        const TimePoint now = backend.now();
        const auto rest = std::make_shared<HeldLease>(key, options);
        rest->leave_behind(std::move(release), std::max(lease.end(), later(now, options.ttl)));
        backend.keep(rest, now);
    } catch (...) {
    }

    /// There is no time left to hear of it, but what may have been granted can still be undone.
    void undo_unheard() {
        const TimePoint now = backend.now();
        if (!lease.unsettled(now)) return;
        lease.let_go();
        release(now, Release::unconfirmed);
    }

    [[noreturn]] void fail(const Failure& why) {
        undo_unheard();
        complain(why);
    }

    RoundTrip round_trip_{options.effective_request_timeout()};
    Token granted_{};          ///< of the last grant
    Token left_behind_{};      ///< of the last one that was left to the backend's worker
    bool had_to_wait_ = false; ///< for the last grant: then it will be so again, as a rule
};

} // namespace redislock::detail
