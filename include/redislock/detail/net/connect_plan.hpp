/// Which of a server's addresses a connection is tried at, and for how long each. It knows no socket and no clock.
/// tests/locator_test.cpp and tests/connection_test.cpp go red if it is wrong.
#pragma once

#include "locator.hpp"

namespace redislock::detail {

/// Each address has its share of the time. Where they may have changed, they are looked up before the first attempt, if
/// they are unknown or in doubt, and again, by a look-up that begins then, when all attempts have failed. Not
/// thread-safe.
class ConnectPlan {
public:
    enum class Step { look_up, connect, over };

    explicit ConnectPlan(const Locator& locator) noexcept : locator_{locator} {}

    /// For an answer that is due by then.
    Step begin(TimePoint now, TimePoint due) {
        rounds_ = 0;
        failed_ = {};
        return begin_round(now, due);
    }

    /// The present step has failed, has ended, or has had its time. Over: if it has only had its time, it may go on.
    Step next(TimePoint now, TimePoint due) {
        if (const auto look_up = std::exchange(known_.look_up, nullptr)) {
            if (look_up->has_ended()) known_.failure = look_up->failure();
            if (look_up->has_ended() && look_up->found()) known_.location = look_up->found();
            // Of a primary that was named a moment ago no more is known yet. And a look-up that began for another
            // connection, before ours failed, may have found what was true before.
            const bool is_half_known = known_.location && known_.location->endpoints.empty();
            const bool is_outdated = look_up->has_ended() && known_.begun < failed_;
            return is_outdated || (is_half_known && rounds_ < most_rounds) ? begin_round(now, due) : try_next(now, due);
        }
        ++nth_;
        const Step next = try_next(now, due);
        if (next != Step::over) return next;
        if (locator_.may_change() && rounds_ < most_rounds) {
            const auto before = known_.location;
            locator_.doubt();
            failed_ = now;
            const Step step = begin_round(now, due);
            const bool is_new = step == Step::look_up || (step == Step::connect && known_.location != before);
            if (is_new) return step;
            known_.location = before; // which a slow connection leads to
        }
        --nth_;
        until_ = TimePoint::max();
        return Step::over;
    }

    /// When the present step has had its time: never, if it is the last one.
    TimePoint until() const noexcept { return until_; }

    /// Of Step::look_up.
    bool is_looked_up() const noexcept { return known_.look_up && known_.look_up->has_ended(); }
    int fd() const noexcept { return known_.look_up ? known_.look_up->fd() : -1; }

    /// Of Step::connect.
    const Endpoint& endpoint() const noexcept {
        return known_.location->endpoints[nth_ % known_.location->endpoints.size()];
    }
    const Location& location() const noexcept { return *known_.location; }

    /// Whether sentinels have named another primary since.
    bool has_moved() const { return locator_.has_moved(location()); }

    /// Why the look-up has found nothing.
    const Failure& failure() const noexcept { return known_.failure; }

    /// The connection that was made has failed: the next one begins with another address, and in doubt.
    void has_failed() {
        ++nth_;
        locator_.doubt();
    }

private:
    static constexpr unsigned most_rounds = 2;

    Step begin_round(TimePoint now, TimePoint due) {
        ++rounds_;
        tried_ = 0;
        known_ = locator_.ask(now);
        if (!known_.look_up) return try_next(now, due);
        until_ = known_.location ? now + span(now, due) / 4 : TimePoint::max();
        return Step::look_up;
    }

    Step try_next(TimePoint now, TimePoint due) {
        const std::size_t addresses = known_.location ? known_.location->endpoints.size() : 0;
        if (tried_ == addresses) return Step::over;
        const bool has_another_round = locator_.may_change() && rounds_ < most_rounds;
        const std::size_t left = addresses - tried_++ + has_another_round;
        until_ = left == 1 ? TimePoint::max() : now + span(now, due) / static_cast<int>(left);
        return Step::connect;
    }

    static TimePoint::duration span(TimePoint now, TimePoint due) noexcept { return std::max(due, now) - now; }

    const Locator& locator_;
    Locator::Known known_{};
    TimePoint until_ = TimePoint::max();
    TimePoint failed_{}; ///< when all attempts had, and it was looked up again
    std::size_t nth_ = 0, tried_ = 0;
    unsigned rounds_ = 0;
};

} // namespace redislock::detail
