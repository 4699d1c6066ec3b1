/// What becomes of locks, told to whoever counts or logs it: a table of functions, and what each of them is told. It
/// knows neither locks nor backends. tests/observer_test.cpp goes red if it is wrong.
#pragma once

#include "outcome.hpp"

namespace redislock {

/// Why a lease was lost while it was held.
enum class Loss {
    deleted,   ///< the key was gone when the lease was to be extended, before its time: deleted, evicted, forgotten
    stolen,    ///< the key held something else
    timed_out, ///< it was not extended in time: it was not to be renewed, or nobody answered, or the server refused
    max_hold,  ///< it was renewed for `Options::max_hold`; it can still be used until its end
};

/// The name of the enumerator.
constexpr std::string_view to_string(Loss loss) noexcept {
    switch (loss) {
    case Loss::deleted: return "deleted";
    case Loss::stolen: return "stolen";
    case Loss::timed_out: return "timed_out";
    case Loss::max_hold: return "max_hold";
    }
    return "(no loss)";
}

/// Why a lock was not acquired.
enum class Missed {
    busy,      ///< it was asked for once, and somebody else had it
    timed_out, ///< somebody else had it until the wait's time was up
    stopped,   ///< a stop was requested
    error,     ///< the server could not be asked, or refused: what is thrown
};

/// The name of the enumerator.
constexpr std::string_view to_string(Missed reason) noexcept {
    switch (reason) {
    case Missed::busy: return "busy";
    case Missed::timed_out: return "timed_out";
    case Missed::stopped: return "stopped";
    case Missed::error: return "error";
    }
    return "(no reason)";
}

/// A table of functions for an application's metrics, for Options::observer to point to. Each may be left out: that
/// costs a comparison. Nothing is allocated for a call, and no mutex of ours is held. What a view refers to lives as
/// long as the call.
///
/// Make the table and its context static, as a rule: they must outlive the backend, and `lost` may still be running
/// when the lock is gone, even after `released`.
///
/// Several functions may be called at the same time. `waiting`, `acquired`, `not_acquired` and `released` are called by
/// the lock's own thread, and may destroy the lock. `renewed`, `not_renewed`, `voted` and `server` must return at once:
/// they are called by the thread that renews all leases of a backend, `renewed` by the lock's own too, in extend().
/// `lost` may block: it is called by one of the threads that run the callbacks of RedisLock::lost(). Each may call
/// std::exit(), whose destructors of static locks and backends then run in that thread.
struct Observer {
    using Span = LeaseClock::duration;

    /// Once for a wait, as it begins: somebody has the key, or had it when it was asked for last. And once where there
    /// is trouble that time may mend, and it is asked again. Who asks only once does not wait. A thread that was told
    /// of `acquired` with this key, and not of `released`, waits for itself.
    struct Waiting {
        std::string_view key;
        std::optional<Millis> holder_left; ///< of the holder's lease, if that is known; he may renew it
        std::error_code why;               ///< of the trouble; none: somebody has the key
    };
    struct Acquired {
        std::string_view key;
        Span waited;                 ///< from the call until it was held
        unsigned attempts;           ///< how many questions were asked, the last one included
        std::uint64_t fencing_token; ///< 0: the grant is not numbered
    };
    struct NotAcquired {
        std::string_view key;
        Missed reason;
        std::error_code why; ///< of an error
        Span waited;         ///< from the call until it was given up
        unsigned attempts;   ///< how many questions were asked
    };
    struct Renewed {
        std::string_view key;
        Span round_trip; ///< from the question to the answer
        Span left;       ///< what had been left of the lease when the answer came
    };
    struct NotRenewed {
        std::string_view key;
        std::error_code why; ///< nobody was there, or answered in time; or what the server had against it
        Span left;           ///< of the lease: while there is some, it is tried again; 0 or less if it is over
    };
    struct Voted {
        std::string_view key;
        unsigned votes, servers; ///< so many of a majority's servers have extended the lease
    };
    struct Server {
        std::string_view key, server; ///< the server's name
        std::error_code why;          ///< it does not vote any more, for this reason; none: it votes again
    };
    struct Lost {
        std::string_view key;
        Loss why;
    };
    struct Released {
        std::string_view key;
        Span held; ///< from the grant to the call of unlock()
        Outcome outcome;
        std::error_code why; ///< of an unknown outcome; none if it was not to be confirmed
    };

    void* context = nullptr; ///< the first argument of each
    void (*waiting)(void* context, const Waiting& event) noexcept = nullptr;
    void (*acquired)(void* context, const Acquired& event) noexcept = nullptr;
    void (*not_acquired)(void* context, const NotAcquired& event) noexcept = nullptr;
    void (*renewed)(void* context, const Renewed& event) noexcept = nullptr;
    void (*not_renewed)(void* context, const NotRenewed& event) noexcept = nullptr;
    void (*lost)(void* context, const Lost& event) noexcept = nullptr;
    void (*released)(void* context, const Released& event) noexcept = nullptr;
    void (*voted)(void* context,
                  const Voted& event) noexcept = nullptr; ///< when all have answered, or have not in time
    void (*server)(void* context,
                   const Server& event) noexcept = nullptr; ///< of one of the leases that are renewed there
};

namespace detail {
template <class Event>
void tell(const Observer* observer, void (*Observer::*function)(void*, const Event&) noexcept,
          const std::type_identity_t<Event>& event) noexcept {
    if (observer != nullptr && observer->*function != nullptr) (observer->*function)(observer->context, event);
}
} // namespace detail

} // namespace redislock
