/// A release that was not answered, for the worker to ask for again. tests/cleanup_test.cpp goes red if it is wrong.
#pragma once

#include "../../options.hpp"
#include "worker_task.hpp"

#include <limits>
#include <mutex>

namespace redislock::detail {

/// It is asked for until it is answered, or until the key is gone by itself. One that undoes an acquire has to be told
/// twice, with a pause, that the key is not ours: a server that was silent may have read it before the acquire.
class PendingRelease final : public WorkerTask {
public:
    /// By `now + release.ttl` the key is gone.
    PendingRelease(Request release, const Options& options, TimePoint now)
        : release_{std::move(release)}, timeout_{std::max(options.effective_request_timeout(), Millis{1'000})},
          gone_by_{later(now, release_.ttl)} {
        release_.wants_answer = true;
        release_.released = 0; // all are asked: a majority that says that the key is gone ends it
    }

    Step step(TimePoint now) noexcept override {
        const std::lock_guard guard{mutex_};
        if (now >= gone_by_) return {Step::Act::nothing, TimePoint::max()};
        if (now < ask_at_) return {Step::Act::nothing, next()};
        ask_at_ = later(now, timeout_);
        return {Step::Act::ask, next(), release_.token, ask_at_};
    }

    Request worker_request(const Token&, TimePoint deadline) const override {
        Request request = release_;
        request.deadline = deadline;
        return request;
    }

    /// Not that of renewals: a release that is overdue ends the connection.
    unsigned channel_group() const noexcept override { return std::numeric_limits<unsigned>::max(); }

    /// The pause doubles; so that not all clients of a server that comes back ask at once, it is cut by what the
    /// clock's last digits say.
    std::optional<Progress> answered(const Token&, const Answer& answer, TimePoint, TimePoint now) noexcept override {
        constexpr TimePoint::duration least = Millis{10}, longest = Millis{1'000};
        const std::lock_guard guard{mutex_};
        const bool is_absent = answer.why.code == Errc::expired || answer.why.code == Errc::stolen;
        if (is_absent && !release_.was_granted && !std::exchange(was_absent_, true)) {
            ask_at_ = now + Millis{2};
            return Progress{next()};
        }
        was_tried_ = true;
        if (!answer.is_trouble()) return Progress{gone_by_ = now};
        pause_ = std::clamp(2 * pause_, least, longest);
        ask_at_ = now + pause_ / 2 + TimePoint::duration{now.time_since_epoch() % (pause_ / 2)};
        return Progress{next()};
    }

    bool is_untried() const noexcept override {
        const std::lock_guard guard{mutex_};
        return !was_tried_;
    }

private:
    TimePoint next() const noexcept { return std::min(gone_by_, ask_at_); }

    mutable std::mutex mutex_{};
    Request release_;
    const Millis timeout_; ///< nobody waits for it: no shorter than a server may need
    TimePoint gone_by_;
    TimePoint ask_at_{};
    TimePoint::duration pause_{};
    bool was_tried_ = false, was_absent_ = false;
};

} // namespace redislock::detail
