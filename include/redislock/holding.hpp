/// A lease in the hands of its holder, as the guard and whoever renews it share it: when to renew, when it is lost, and whom
/// to tell. It asks nobody and waits for nothing: time and answers come in as arguments.
#pragma once

#include "lease.hpp"

#include <memory>
#include <mutex>
#include <stop_token>

namespace redislock::detail {

/// What the guard holds on to, and between keep() and drop() shares with a renewer. Its methods are thread-safe; the lease
/// itself is the guard's alone while it isn't kept, and else only to be touched under the mutex.
class Holding {
public:
    Holding(std::string what, const Options& how) : key{std::move(what)}, options{how}, lease{how} {}
    Holding(const Holding&) = delete;
    Holding& operator=(const Holding&) = delete;

    const std::string key;
    const Options options;
    mutable std::mutex mutex{};
    Lease lease;

    /// What a renewer is to do, and when to come again.
    struct Step {
        enum class Act { nothing, renew, tell } act;
        TimePoint next;
    };

    /// From now on it is renewed, and its loss told. Only while the lease is held.
    void keep(TimePoint asked) {
        const std::lock_guard guard{mutex};
        kept_ = true;
        asking_ = false;
        granted_ = asked;
        renew_at_ = options.renew ? renewal_after(asked) : TimePoint::max();
    }

    /// The lease is the guard's alone again: what is answered later makes no difference.
    void drop() noexcept {
        const std::lock_guard guard{mutex};
        kept_ = false;
        lost_.reset();
    }

    bool kept() const noexcept {
        const std::lock_guard guard{mutex};
        return kept_;
    }

    /// Requested when the lease is lost; at once, if it isn't held.
    std::stop_token lost(TimePoint now) {
        const std::lock_guard guard{mutex};
        if (!lost_) lost_.emplace();
        if (!lease.held(now)) lost_->request_stop(); // nobody has it yet, so that no callback runs here
        return lost_->get_token();
    }

    Step step(TimePoint now) noexcept {
        const std::lock_guard guard{mutex};
        if (!kept_) return {Step::Act::nothing, TimePoint::max()};
        if (!lease.held(now) || now >= give_up()) return {Step::Act::tell, TimePoint::max()};
        const TimePoint end = std::min(lease.end(), give_up());
        if (asking_) return {Step::Act::nothing, end};
        if (now < renew_at_) return {Step::Act::nothing, std::min(end, renew_at_)};
        asking_ = true;
        return {Step::Act::renew, end};
    }

    /// An extension with this token, asked at `asked`, was answered. Says when to look again: at once, if the lease is lost.
    TimePoint answered(const Token& token, const Answer& answer, TimePoint asked, TimePoint now) noexcept {
        const std::lock_guard guard{mutex};
        if (!kept_ || lease.token() != token) return TimePoint::max();
        asking_ = false;
        const Outcome outcome = lease.extended(answer, asked, options.ttl, now);
        if (!lease.held(now)) return now;
        renew_at_ = outcome == Outcome::confirmed ? renewal_after(asked) : now + (lease.end() - now) / 16;
        return std::min(renew_at_, lease.end());
    }

    /// Whom to tell that it is lost; nobody, if nobody has asked.
    std::optional<std::stop_source> listeners() {
        const std::lock_guard guard{mutex};
        return lost_;
    }

    Token token() const noexcept {
        const std::lock_guard guard{mutex};
        return lease.token();
    }

private:
    /// A third of the ttl leaves time to try again; a tenth of that earlier, so that many renewals can travel together.
    TimePoint renewal_after(TimePoint asked) const noexcept { return asked + options.ttl / 3; }
    TimePoint give_up() const noexcept {
        return options.max_hold ? later(granted_, *options.max_hold) : TimePoint::max();
    }

    bool kept_ = false;
    bool asking_ = false; ///< an extension is under way
    TimePoint granted_{}, renew_at_{};
    std::optional<std::stop_source> lost_{};
};

} // namespace redislock::detail
