/// How a lease is asked for, extended and released over a backend that may be silent, slow or in trouble: what is
/// asked, until when, when once more, and how what may have been granted unknown to us is undone. It knows nothing of
/// guards, nor of who renews the lease. tests/lock_test.cpp and tests/memory_test.cpp go red if it is wrong.
#pragma once

#include "../system/timers.hpp"
#include "acquisition.hpp"
#include "backoff.hpp"
#include "held_lease.hpp"
#include "pending_release.hpp"

namespace redislock::detail {

/// One holder's dealings with his backend. Not thread-safe, but for what HeldLease shares with a renewer; errors are
/// std::system_error.
template <Backend B>
class LeaseHolder : public HeldLease {
public:
    LeaseHolder(B& where, std::string what, const Options& how) : HeldLease{std::move(what), how}, backend{where} {}

    B& backend;

    /// The one loop of all ways to lock: runs the Acquisition. Returns how many questions it took; 0: the lease is not
    /// ours.
    unsigned acquire(TimePoint started, TimePoint give_up, const std::stop_token& stop) {
        using Act = Acquisition::Step::Act;
        trouble_ = {};
        unsigned attempts = 0;
        Missed reason = Missed::stopped;
        Failure why;
        bool told = false, told_trouble = false;
        std::optional<Millis> holder_left;
        const StopSignal signal{stop};
        Acquisition acquisition{options, round_trip_, had_to_wait_ || is_contended(backend, key), started, give_up};
        Backoff backoff{backend, options.max_retry_delay};
        while (!stop.stop_requested()) {
            ++attempts;
            const auto [deadline, patience] = acquisition.ask(backend.now());
            if (patience > Millis::zero() && !std::exchange(told, true))
                detail::tell(options.observer, &Observer::waiting, {key, holder_left, {}});
            const Answer answer = attempt({deadline, signal.fd()}, patience);
            const TimePoint now = backend.now();
            if (lease.held(now)) return attempts;
            if (stop.stop_requested()) break;
            holder_left = answer.holder_left;
            const Acquisition::Step step = acquisition.answered(answer, now);
            const bool goes_on = step.act == Act::ask || step.act == Act::rest;
            if (goes_on && answer.is_trouble() && give_up > started && !std::exchange(told_trouble, true))
                detail::tell(options.observer, &Observer::waiting, {key, {}, answer.why.code});
            if (step.act == Act::rest) backoff.rest({step.until, signal.fd()}, step.holder_left);
            if (goes_on) continue;
            if (step.until > now) backend.pause({step.until, signal.fd()});
            reason = step.act == Act::failed ? Missed::error : give_up > started ? Missed::timed_out : Missed::busy;
            why = step.why;
            break;
        }
        undo_unheard();
        detail::tell(options.observer, &Observer::not_acquired,
                     {key, reason, why.code, backend.now() - started, attempts});
        if (reason == Missed::error) complain(why);
        return 0;
    }

    /// Takes over the lease that `token` proves, or throws.
    void adopt(const Token& token) {
        const TimePoint asked = backend.now();
        const TimePoint deadline = later(asked, options.effective_request_timeout());
        Request question = extension(token, options.ttl, deadline);
        question.was_granted = true;
        const Answer answer = insist(question, [](const Answer& last) { return last; });
        if (answer.verdict == Verdict::yes) { // until then it is the giver's, and none of ours to undo
            granted_ = token;
            lease.ask(token, asked, options.ttl);
            lease.answered(answer, backend.now());
        }
        if (lease.held(backend.now())) return;
        lease = Lease{options};
        complain(answer.why ? answer.why : Failure{Errc::timed_out, "adopted too late to be of use"});
    }

    /// Of one that has ended: what had become of it.
    Outcome extend(Millis ttl) {
        trouble_ = {};
        const TimePoint asked = backend.now();
        const Lease was = copy();
        switch (was.state(asked)) {
        case Lease::State::held: break;
        case Lease::State::lost: return was.loss();
        case Lease::State::lapsed: return Outcome::expired;
        default: return Outcome::not_held;
        }
        longest_ = std::max(longest_, later(asked, ttl + options.effective_request_timeout()));
        const TimePoint deadline = std::min(was.end(), asked + options.effective_request_timeout());
        const auto judge = [&](const Answer& answer) {
            trouble_ = answer.why;
            return extended(was.token(), answer, asked, ttl, backend.now());
        };
        const Outcome outcome = insist(extension(was.token(), covering(ttl, was, asked), deadline), judge);
        if (outcome != Outcome::unknown) trouble_ = {};
        const TimePoint now = backend.now();
        if (outcome == Outcome::confirmed) tell_renewed(now - asked, was.end() - now);
        return outcome;
    }

    /// Why the last extension or release is unknown.
    const Failure& trouble() const noexcept { return trouble_; }

    /// Whether the answer to a release is waited for, and asked for again while there is trouble.
    enum class Release { until_answered, once, unconfirmed };

    /// Ends the lease, and says what had become of it. What could not be released is left to the backend's worker.
    Outcome let_go(TimePoint now, Release how) {
        const Lease::State was = lease.state(now);
        trouble_ = {};
        lease.let_go();
        if (was == Lease::State::lost) return lease.loss();
        if (was == Lease::State::held || was == Lease::State::lapsed)
            return release(later(now, options.effective_request_timeout()), how);
        undo_unheard();
        return Outcome::not_held;
    }

    /// Throws what it is about, with the lock's key.
    [[noreturn]] void complain(const Failure& why) const {
        raise({why.code, "lock \"" + printable(key) + "\"" + (why.detail.empty() ? "" : ": " + why.detail)});
    }

private:
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
        if (answer.asked) lease.ask_anew(*answer.asked, options.ttl);
        const bool aged = backend.now() - answer.asked.value_or(asked) > options.ttl / 10;
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

    Outcome release(TimePoint deadline, Release how) {
        Request question = request(Verb::release, deadline);
        question.ttl =
            std::max(options.ttl, std::chrono::ceil<Millis>(std::max(lease.end(), longest_) - backend.now()));
        question.wants_answer = how != Release::unconfirmed;
        question.is_retried = how == Release::until_answered;
        bool is_open = false;
        const auto judge = [&](const Answer& answer) {
            question.released |= answer.released; // for the next time
            question.nodes &= ~answer.released;
            if (!answer.is_about_the_key()) trouble_ = answer.why; // to which it may have been deleted
            is_open = answer.is_trouble();
            return lease.released(answer);
        };
        const Outcome outcome = insist(question, judge, how == Release::until_answered);
        if (is_open) release_later(std::move(question));
        if (outcome != Outcome::unknown) trouble_ = {};
        return outcome;
    }

    /// Where there is no memory, or no thread, the key goes with its ttl.
    void release_later(Request release) noexcept try {
        const Token token = release.token;
        if (handed_over_ == token) return;
        const TimePoint now = backend.now();
        backend.keep(std::make_shared<PendingRelease>(std::move(release), options, now), now);
        handed_over_ = token;
    } catch (...) {
    }

    /// There is no time left to hear of it, but what may have been granted can still be undone.
    void undo_unheard() {
        const TimePoint now = backend.now();
        if (!lease.unsettled(now)) return;
        lease.let_go();
        release(now, Release::unconfirmed);
        trouble_ = {};
    }

    Failure trouble_{};
    RoundTrip round_trip_{options.effective_request_timeout()};
    TimePoint longest_{};      ///< when a lease ends at the latest for which an extension was asked
    Token granted_{};          ///< of the last grant
    Token handed_over_{};      ///< of the last one that was left to the backend's worker
    bool had_to_wait_ = false; ///< for the last grant: then it will be so again, as a rule
};

} // namespace redislock::detail
