/// What a backend's worker comes back to from time to time: a lease that is held, or a release that is pending. It
/// knows nothing of threads and connections. tests/renewal_test.cpp and tests/cleanup_test.cpp go red if it is wrong.
#pragma once

#include "../../observer.hpp"
#include "request.hpp"

#include <optional>
#include <stop_token>

namespace redislock::detail {

/// It asks nobody and waits for nothing: time and answers come in as arguments. Thread-safe.
class WorkerTask {
public:
    WorkerTask() = default;
    WorkerTask(const WorkerTask&) = delete;
    WorkerTask& operator=(const WorkerTask&) = delete;
    virtual ~WorkerTask() = default;

    /// What the worker is to do now, and when to come back.
    struct Step {
        enum class Act { nothing, ask, tell };
        Act act;
        TimePoint next;
        Token token{};                               ///< to ask for: see worker_request()
        TimePoint deadline{};                        ///< of its answer; or of telling: the end of the lease
        Loss why = Loss::deleted;                    ///< to tell
        std::optional<std::stop_source> listeners{}; ///< of this loss, outside the mutex; none, if nobody has asked
    };
    virtual Step step(TimePoint now) noexcept = 0;

    /// What Step::Act::ask asks for.
    virtual Request worker_request(const Token& token, TimePoint deadline) const = 0;

    /// Which requests may travel on one connection: those of the same group.
    virtual unsigned channel_group() const noexcept = 0;

    /// What an answer has changed.
    struct Progress {
        TimePoint next;             ///< when to come back: at once, if the lease is lost
        bool confirmed = false;     ///< the lease was extended
        TimePoint::duration left{}; ///< of the lease as it had been
    };

    /// What was asked for with this token, at `asked`, was answered. Nothing, if it was another lease's.
    virtual std::optional<Progress> answered(const Token& token, const Answer& answer, TimePoint asked,
                                             TimePoint now) noexcept = 0;

    /// For the observer, outside all mutexes.
    virtual void tell(const Progress&, const Answer&, TimePoint::duration) const noexcept {}
    virtual void tell_lost(Loss) const noexcept {}
    virtual void tell_votes(unsigned /*votes*/, unsigned /*servers*/) const noexcept {}
    virtual void tell_server(std::string_view /*server*/, std::error_code /*why*/) const noexcept {}

    /// The backend's server has become another one: what that knows of the lease is to be asked now. Returns when to
    /// come back.
    virtual TimePoint ask_anew(TimePoint) noexcept { return due; }

    /// Whether somebody is to be told of a loss.
    virtual bool has_listeners() const noexcept { return false; }

    /// So many others may be lost at the same time, and each has to be told. Returns when to come back at the latest.
    virtual TimePoint make_room(std::size_t) noexcept { return TimePoint::max(); }

    /// By how much a request may be early, so that many travel together.
    virtual TimePoint::duration slack() const noexcept { return {}; }

    /// It is to be asked once even if the backend ends.
    virtual bool is_untried() const noexcept { return false; }

    TimePoint due{}; ///< when the worker comes back to it: the worker's own note
};

} // namespace redislock::detail
