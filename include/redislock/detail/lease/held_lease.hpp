/// A lease in the hands of its holder, as the guard and the worker that renews it share it: when to renew it, when it
/// is lost, and whom to tell. tests/renewal_test.cpp goes red if it is wrong.
#pragma once

#include "lease.hpp"
#include "worker_task.hpp"

#include <memory>
#include <mutex>

namespace redislock::detail {

/// Between keep() and drop() the guard shares it with a renewer, and the lease is only to be touched under the mutex;
/// else it is the guard's alone. The methods lock the mutex themselves.
class HeldLease : public WorkerTask {
public:
    HeldLease(std::string what, const Options& how) : key{std::move(what)}, options{how}, lease{how} {}

    const std::string key;
    const Options options;
    mutable std::mutex mutex{};
    Lease lease;

    /// The one place where a lock's requests are made.
    Request request(Verb verb, const Token& token, Millis ttl, const Deadline& deadline) const {
        Request request{.verb = verb, .key = key, .token = token, .ttl = ttl, .deadline = deadline};
        request.recheck = options.recheck();
        request.replicas = verb == Verb::release ? 0 : options.min_replicas;
        request.fencing = verb == Verb::acquire && options.fencing;
        return request;
    }

    /// At least `ttl`, and so long that the key does not end before the lease: for servers that set what is left, and
    /// do not look whether that is less than before.
    Millis covering(Millis ttl, const Lease& held, TimePoint now) const noexcept {
        const std::chrono::duration<double, std::milli> left = held.end() - now + Millis{3};
        return std::max(ttl, std::chrono::ceil<Millis>(left / (1 - options.drift)));
    }

    /// A lease that is held, and was asked for at `asked`, is shared from now on. Returns when to come first.
    TimePoint keep(TimePoint asked) noexcept {
        const std::lock_guard guard{mutex};
        kept_ = true;
        latest(asked);
        asking_ = told_ = false;
        sooner_ = {};
        renew_at_ = options.renew ? asked + third() : TimePoint::max();
        give_up_ = options.max_hold ? later(asked, *options.max_hold) : TimePoint::max();
        return next();
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

    Step step(TimePoint time) noexcept override {
        const std::lock_guard guard{mutex};
        if (!kept_ || told_) return {Step::Act::nothing, TimePoint::max()};
        const TimePoint now = latest(time), end = lease.end();
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

    /// An extension.
    Request worker_request(const Token& token, TimePoint deadline) const override {
        const std::lock_guard guard{mutex};
        return request(Verb::extend, token, covering(options.ttl, lease, latest_), deadline);
    }

    /// WAIT blocks everything behind it.
    unsigned channel_group() const noexcept override { return options.min_replicas; }

    std::optional<Progress> answered(const Token& token, const Answer& answer, TimePoint asked,
                                     TimePoint time) noexcept override {
        const std::lock_guard guard{mutex};
        if (!kept_ || token != lease.token()) return std::nullopt;
        const TimePoint now = latest(time);
        asking_ = false;
        const TimePoint::duration left = lease.end() - now;
        const Outcome outcome = lease.extended(answer, asked, options.ttl, now);
        if (!lease.held(now)) return Progress{now};
        const auto pause = std::max<TimePoint::duration>(left / 16, Millis{1}); // ever shorter to the end
        const bool confirmed = outcome == Outcome::confirmed;
        renew_at_ = confirmed ? asked + third() : now + pause + slack();
        return Progress{next(), confirmed, left};
    }

    /// It is renewed, where that is wanted; else nothing is asked before its end.
    TimePoint ask_anew(TimePoint time) noexcept override {
        const std::lock_guard guard{mutex};
        if (kept_ && options.renew) renew_at_ = std::min(renew_at_, latest(time));
        return kept_ ? next() : TimePoint::max();
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
    bool has_listeners() const noexcept override {
        const std::lock_guard guard{mutex};
        return lost_ || (options.observer && options.observer->lost);
    }
    TimePoint make_room(std::size_t others) noexcept override {
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

    /// For the observer, outside the mutex, as all that is told.
    void tell_renewed(TimePoint::duration round_trip, TimePoint::duration left) const noexcept {
        detail::tell(options.observer, &Observer::renewed, {key, round_trip, left});
    }
    void tell(const Progress& progress, const Answer& answer, TimePoint::duration round_trip) const noexcept override {
        if (progress.confirmed) return tell_renewed(round_trip, progress.left);
        const std::error_code why =
            answer.why ? answer.why.code : make_error_code(Errc::timed_out); // a yes was too late
        detail::tell(options.observer, &Observer::not_renewed, {key, why, progress.left});
    }
    void tell_lost(Loss why) const noexcept override { detail::tell(options.observer, &Observer::lost, {key, why}); }
    void tell_votes(unsigned votes, unsigned servers) const noexcept override {
        detail::tell(options.observer, &Observer::voted, {key, votes, servers});
    }
    void tell_server(std::string_view server, std::error_code why) const noexcept override {
        detail::tell(options.observer, &Observer::server, {key, server, why});
    }

    TimePoint::duration slack() const noexcept override {
        return std::min<TimePoint::duration>(third() / 10, Millis{1'000});
    }

private:
    /// A time that was read before the mutex was waited for may be older than one by which the lease was judged
    /// already. So that what was over for somebody stays over, the latest one counts.
    TimePoint latest(TimePoint now) const noexcept { return latest_ = std::max(latest_, now); }

    /// Of what can be used of a lease: after so long it is renewed.
    TimePoint::duration third() const noexcept { return TimePoint::duration{options.usable()} / 3; }

    Loss loss(TimePoint now) const noexcept {
        if (lease.held(now)) return Loss::max_hold;
        if (lease.state(now) != Lease::State::lost) return Loss::timed_out;
        return lease.loss() == Outcome::stolen ? Loss::stolen : Loss::deleted;
    }

    /// When a lease that was not extended is given up: so long before its end that threads which have to wait for a
    /// processor still hear of it in time.
    TimePoint last_call() const noexcept {
        const TimePoint::duration usable{options.usable()};
        return lease.end() - std::min(std::min<TimePoint::duration>(usable / 16, Millis{4}) + sooner_, usable / 8);
    }

    TimePoint next() const noexcept { return std::min({last_call(), give_up_, asking_ ? ask_again_ : renew_at_}); }

    bool kept_ = false;
    bool asking_ = false; ///< an extension is under way
    bool told_ = false;   ///< the loss of this lease
    TimePoint::duration sooner_{};
    mutable TimePoint latest_{};
    TimePoint renew_at_{}, give_up_{};
    TimePoint ask_again_{}; ///< by then an extension under way has been answered, or was never sent, for want of memory
    std::optional<std::stop_source> lost_{};
};

} // namespace redislock::detail
