/// A lease in the hands of its holder, as the guard and the worker that renews it share it: when to renew it, when it
/// is lost, and whom to tell; or what is left of a lease, for the worker to release. It asks nobody and waits for
/// nothing: time and answers come in as arguments. tests/renewal_test.cpp goes red if it is wrong.
#pragma once

#include "../../observer.hpp"
#include "lease.hpp"

#include <memory>
#include <mutex>
#include <stop_token>

namespace redislock::detail {

/// Between keep() and drop() the guard shares it with a renewer, and the lease is only to be touched under the mutex;
/// else it is the guard's alone. The methods lock the mutex themselves.
class HeldLease {
public:
    HeldLease(std::string what, const Options& how) : key{std::move(what)}, options{how}, lease{how} {}
    HeldLease(const HeldLease&) = delete;
    HeldLease& operator=(const HeldLease&) = delete;

    const std::string key;
    const Options options;
    mutable std::mutex mutex{};
    Lease lease;
    TimePoint due{}; ///< when the renewer comes back to it: his own note

    /// The one place where a lock's requests are made.
    Request request(Verb verb, const Token& token, Millis ttl, const Deadline& deadline) const {
        Request request{.verb = verb, .key = key, .token = token, .ttl = ttl, .deadline = deadline};
        request.recheck = options.recheck();
        request.replicas = verb == Verb::release ? 0 : options.min_replicas;
        request.fencing = verb == Verb::acquire && options.fencing;
        return request;
    }

    /// What the worker is to do now, and when to come back.
    struct Step {
        enum class Act { nothing, ask, tell };
        Act act;
        TimePoint next;
        Token token{};                               ///< to ask for: see worker_request()
        TimePoint deadline{};                        ///< of its answer; or of telling: the end of the lease
        Loss why = Loss::expired;                    ///< to tell
        std::optional<std::stop_source> listeners{}; ///< of this loss, outside the mutex; none, if nobody has asked
    };

    /// A lease that is held, and was asked for at `asked`, is shared from now on. Returns when to come first.
    TimePoint keep(TimePoint asked) noexcept {
        const std::lock_guard guard{mutex};
        kept_ = true;
        asking_ = told_ = false;
        sooner_ = {};
        renew_at_ = options.renew ? asked + third() : TimePoint::max();
        give_up_ = options.max_hold ? later(asked, *options.max_hold) : TimePoint::max();
        return next();
    }

    /// In place of keep(): the lease is not held any more, and its release was not answered. The worker asks for it
    /// again until it is, or until the key is gone by itself. Nobody else has a part in it.
    void release_later(Request release, TimePoint gone_by) {
        pending_release_ = std::move(release);
        pending_release_->wants_answer = true;
        kept_ = true;
        give_up_ = gone_by;
    }
    bool is_pending_release() const noexcept { return pending_release_.has_value(); }

    /// Nobody has tried yet to release what was left behind.
    bool is_untried() const noexcept {
        const std::lock_guard guard{mutex};
        return is_pending_release() && !was_tried_;
    }

    /// What Step::Act::ask asks for.
    Request worker_request(const Token& token, TimePoint deadline) const {
        if (!pending_release_) return request(Verb::extend, token, options.ttl, deadline);
        Request release = *pending_release_;
        release.deadline = deadline;
        return release;
    }

    /// The lease is the guard's alone again, and what is answered later makes no difference. What was lost() before is
    /// forgotten: the next lease has its own. False: it was not shared.
    bool drop() noexcept {
        const std::lock_guard guard{mutex};
        lost_.reset();
        return std::exchange(kept_, false);
    }

    bool kept() const noexcept {
        const std::lock_guard guard{mutex};
        return kept_;
    }

    bool held(TimePoint now) const noexcept {
        const std::lock_guard guard{mutex};
        return lease.held(latest(now));
    }
    Millis remaining(TimePoint now) const noexcept {
        const std::lock_guard guard{mutex};
        return lease.remaining(latest(now));
    }

    std::uint64_t fencing_token(TimePoint now) const noexcept {
        const std::lock_guard guard{mutex};
        return lease.fencing_token(latest(now));
    }

    Lease copy() const noexcept {
        const std::lock_guard guard{mutex};
        return lease;
    }

    /// Nil if it isn't held.
    Token token(TimePoint now) const noexcept {
        const std::lock_guard guard{mutex};
        return lease.held(latest(now)) ? lease.token() : Token{};
    }

    Step step(TimePoint time) noexcept {
        const std::lock_guard guard{mutex};
        if (!kept_ || told_) return {Step::Act::nothing, TimePoint::max()};
        const TimePoint now = latest(time), end = lease.end();
        if (is_pending_release()) return step_of_release(now);
        if (now >= last_call()) lease.cut_short(now);
        if (!lease.held(now) || now >= give_up_) {
            told_ = true;
            return {Step::Act::tell, TimePoint::max(), {}, end, loss(now), lost_};
        }
        if (now >= ask_again_) asking_ = false;
        if (asking_ || now < renew_at_ - slack()) return {Step::Act::nothing, next()};
        const TimePoint deadline = std::min({last_call(), give_up_, now + options.effective_request_timeout()});
        asking_ = true;
        ask_again_ = std::max(deadline, now + third());
        return {Step::Act::ask, next(), lease.token(), deadline};
    }

    /// What became of it.
    struct Renewed {
        TimePoint next;           ///< when to come back: at once, if the lease is lost
        bool confirmed;           ///< it was extended
        TimePoint::duration left; ///< of the lease as it had been
    };

    /// What was asked for with this token, at `asked`, was answered. Nothing, if it was another lease's.
    std::optional<Renewed> answered(const Token& token, const Answer& answer, TimePoint asked,
                                    TimePoint time) noexcept {
        const std::lock_guard guard{mutex};
        if (!kept_ || token != (pending_release_ ? pending_release_->token : lease.token())) return std::nullopt;
        const TimePoint now = latest(time);
        asking_ = false;
        if (is_pending_release()) return Renewed{release_again(answer, now), false, TimePoint::duration::zero()};
        const TimePoint::duration left = lease.end() - now;
        const Outcome outcome = lease.extended(answer, asked, options.ttl, now);
        if (!lease.held(now)) return Renewed{now, false, TimePoint::duration::zero()};
        const auto pause = std::max<TimePoint::duration>(left / 16, Millis{1}); // ever shorter to the end
        const bool confirmed = outcome == Outcome::confirmed;
        renew_at_ = confirmed ? asked + third() : now + pause + slack();
        return Renewed{next(), confirmed, left};
    }

    /// The holder's own extension of the lease with this token, to `ttl`.
    Outcome extended(const Token& token, const Answer& answer, TimePoint asked, Millis ttl, TimePoint time) noexcept {
        const std::lock_guard guard{mutex};
        const TimePoint now = latest(time);
        const bool ended = told_ && !lease.held(now);
        return ended || lease.token() != token ? Outcome::expired : lease.extended(answer, asked, ttl, now);
    }

    /// What is requested when the lease is lost, and whether it's new. If so, a renewer that found the lease over()
    /// before has told nobody; and any other is to know that there is somebody to tell.
    std::pair<std::stop_source, bool> listen() {
        const std::lock_guard guard{mutex};
        const bool fresh = !lost_;
        if (fresh) lost_.emplace();
        return {*lost_, fresh};
    }
    void unlisten() noexcept {
        const std::lock_guard guard{mutex};
        lost_.reset();
    }
    bool has_listeners() const noexcept {
        const std::lock_guard guard{mutex};
        return !pending_release_ && (lost_ || (options.observer && options.observer->lost));
    }
    /// So many others may be lost at the same time, and each has to be told. Returns when to come back at the latest.
    TimePoint make_room(std::size_t others) noexcept {
        const std::lock_guard guard{mutex};
        sooner_ = others * std::chrono::microseconds{20};
        return next();
    }

    /// When a renewer comes back at the latest.
    TimePoint next_step() const noexcept {
        const std::lock_guard guard{mutex};
        return next();
    }
    bool over(TimePoint now) const noexcept {
        const std::lock_guard guard{mutex};
        return !lease.held(latest(now)) || (kept_ && latest_ >= give_up_);
    }

    /// For the observer: what became of an extension, or that the lease was lost. Outside the mutex, as all of them.
    void tell_renewed(TimePoint::duration round_trip, TimePoint::duration left) const noexcept {
        detail::tell(options.observer, &Observer::renewed, {key, round_trip, left});
    }
    void tell(const Renewed& renewed, const Answer& answer, TimePoint::duration round_trip) const noexcept {
        if (is_pending_release()) return; // the outcome of its release has been told
        if (renewed.confirmed) return tell_renewed(round_trip, renewed.left);
        const std::error_code why =
            answer.why ? answer.why.code : make_error_code(Errc::timed_out); // a yes was too late
        detail::tell(options.observer, &Observer::not_renewed, {key, why, renewed.left});
    }
    void tell_lost(Loss why) const noexcept { detail::tell(options.observer, &Observer::lost, {key, why}); }

    /// By how much a renewal may be early, so that many travel together.
    TimePoint::duration slack() const noexcept { return std::min<TimePoint::duration>(third() / 10, Millis{1'000}); }

private:
    /// A time that was read before the mutex was waited for may be older than one by which the lease was judged
    /// already. So that what was over for somebody stays over, the latest one counts.
    TimePoint latest(TimePoint now) const noexcept { return latest_ = std::max(latest_, now); }

    /// Of what can be used of a lease: after so long it is renewed.
    TimePoint::duration third() const noexcept { return TimePoint::duration{options.usable()} / 3; }

    Loss loss(TimePoint now) const noexcept {
        if (lease.held(now)) return Loss::max_hold;
        if (lease.state(now) != Lease::State::lost) return Loss::timed_out;
        return lease.loss() == Outcome::stolen ? Loss::stolen : Loss::expired;
    }

    Step step_of_release(TimePoint now) noexcept {
        if (now >= give_up_) return {Step::Act::nothing, TimePoint::max()};
        if (now < (asking_ ? ask_again_ : renew_at_)) return {Step::Act::nothing, next()};
        asking_ = true;
        ask_again_ = later(now, std::max(options.effective_request_timeout(), Millis{1'000})); // nobody waits for it
        return {Step::Act::ask, next(), pending_release_->token, ask_again_};
    }

    /// When, and never if it is answered. The pause doubles; so that not all clients of a server that comes back ask at
    /// once, it is cut by what the clock's last digits say.
    TimePoint release_again(const Answer& answer, TimePoint now) noexcept {
        constexpr TimePoint::duration least = Millis{10}, longest = Millis{1'000};
        was_tried_ = true;
        if (!answer.is_trouble()) return give_up_ = now;
        pause_ = std::clamp(2 * pause_, least, longest);
        renew_at_ = now + pause_ / 2 + TimePoint::duration{now.time_since_epoch() % (pause_ / 2)};
        return next();
    }

    /// When a lease that was not extended is given up: so long before its end that threads which have to wait for a
    /// processor still hear of it in time.
    TimePoint last_call() const noexcept {
        const TimePoint::duration usable{options.usable()};
        return lease.end() - std::min(std::min<TimePoint::duration>(usable / 16, Millis{4}) + sooner_, usable / 8);
    }

    TimePoint next() const noexcept {
        const TimePoint end = is_pending_release() ? give_up_ : std::min(last_call(), give_up_);
        return std::min(end, asking_ ? ask_again_ : renew_at_);
    }

    bool kept_ = false;
    bool asking_ = false; ///< an extension is under way
    bool told_ = false;   ///< the loss of this lease
    TimePoint::duration sooner_{};
    mutable TimePoint latest_{};
    TimePoint renew_at_{}, give_up_{};
    TimePoint ask_again_{}; ///< by then an extension under way has been answered, or was never sent, for want of memory
    TimePoint::duration pause_{}; ///< before a release is asked for again
    std::optional<Request> pending_release_{};
    bool was_tried_ = false;
    std::optional<std::stop_source> lost_{};
};

} // namespace redislock::detail
