/// The lock itself: a guard that holds a lease of a key in some backend, with the words of the standard's locks.
/// How a lease is kept is the backend's affair, how it is asked for, shared and ended the SharedLease's, and whether it
/// still is one the Lease judges. tests/lock_test.cpp goes red if it is wrong.
#pragma once

#include "detail/lease/no_such_option.hpp"
#include "detail/lease/shared_lease.hpp"
#include "detail/system/lifetime.hpp"
#include "detail/system/threads.hpp"
#include "observer.hpp"
#include "options.hpp"
#include "outcome.hpp"
#include "token.hpp"

#include <memory>

namespace redislock {

namespace detail {
/// What may follow the options where a lock is made.
template <class... Tags>
inline constexpr bool are_tags = sizeof...(Tags) == 0;
template <>
inline constexpr bool are_tags<std::defer_lock_t> = true;
template <>
inline constexpr bool are_tags<std::try_to_lock_t> = true;
template <>
inline constexpr bool are_tags<std::adopt_lock_t, Token> = true;
} // namespace detail

/// A scoped lock on a key, over any Backend. It is the guard (it unlocks when it is destroyed) and, being Lockable and
/// TimedLockable, also fits std::unique_lock, std::scoped_lock and std::lock.
///
/// Movable, not copyable. An object belongs to one thread at a time; different objects are independent, and a process
/// holds a key at most once, since each attempt has a token of its own: locks are not recursive. In a forked child no
/// lock of the parent is held, and nothing is sent for it.
///
/// Errors are std::system_error: codes of Errc, EPERM for an object that was moved from, EDEADLK for locking what this
/// object holds already, or while another thread is locking this object, the system's for want of descriptors or
/// threads. That somebody else holds the key is no error but a `false`.
///
/// A wait is ended with a stop_token. pthread_cancel() does not end it: a thread that is cancelled in one of these
/// calls goes on, and ends at its next cancellation point after the call.
template <class B>
class RedisLock {
    static_assert(
        Backend<B>,
        "a lock is made over a Redis, a Quorum, a Memory or another Backend, which is not const; not over its URI");

public:
    /// Waits for the lock, as lock() does. Throws as lock() does, and Errc::bad_key or Errc::bad_option.
    [[nodiscard]] RedisLock(B& backend, std::string_view key, const Options& options = {})
        : RedisLock{backend, key, options, std::defer_lock} {
        lock();
    }

    /// Asks nothing yet.
    [[nodiscard]] RedisLock(B& backend, std::string_view key, const Options& options, std::defer_lock_t) {
        detail::check_key(key);
        detail::check(options);
        detail::check_ttl(backend, options.ttl);
        if constexpr (!FencingBackend<B>)
            if (options.fencing || options.min_replicas > 0)
                detail::refuse("fencing or min_replicas", "set", "neither over this backend");
        state_ = std::make_shared<State>(backend, std::string{key}, options);
        life_ = detail::life_of(backend);
    }

    /// Asks once, as try_lock() does; look at owns_lock().
    [[nodiscard]] RedisLock(B& backend, std::string_view key, const Options& options, std::try_to_lock_t)
        : RedisLock{backend, key, options, std::defer_lock} {
        static_cast<void>(try_lock());
    }

    /// Takes over the lease that `token` proves, from another thread or process, by extending it to `options.ttl`;
    /// whoever gives it detaches it. Throws as lock() does, and Errc::expired or Errc::stolen if there is no such
    /// lease.
    [[nodiscard]] RedisLock(B& backend, std::string_view key, const Options& options, std::adopt_lock_t,
                            const Token& token)
        : RedisLock{backend, key, options, std::defer_lock} {
        const detail::Uncancelled call;
        state_->take_over(token);
    }

    // clang-format off
    /// The last three, with the default options.
    template <class... Tags>
        requires(detail::are_tags<Tags...> && sizeof...(Tags) > 0)
    [[nodiscard]] RedisLock(B& backend, std::string_view key, const Tags&... tags)
        : RedisLock{backend, key, Options{}, tags...} {}

    /// All four, for those who only choose the ttl; `{}` means Options.
    template <class Rep, class Period, class... Tags>
        requires std::convertible_to<std::chrono::duration<Rep, Period>, Millis> &&
                 std::constructible_from<RedisLock, B&, std::string_view, const Options&, const Tags&...>
    [[nodiscard]] RedisLock(B& backend, std::string_view key, std::chrono::duration<Rep, Period> ttl_only,
                            const Tags&... tags)
        : RedisLock{backend, key, Options{.ttl = detail::ClampedMillis{ttl_only}}, tags...} {}

    // What must not compile, so that the compiler says what is wrong.
    template <class Rep, class TtlFinerThanMilliseconds, class... Tags>
        requires(!std::convertible_to<std::chrono::duration<Rep, TtlFinerThanMilliseconds>, Millis>)
    RedisLock(const B&, std::string_view, std::chrono::duration<Rep, TtlFinerThanMilliseconds>,
              const Tags&...) = delete;
    template <class TtlWithoutUnit, class... Tags>
        requires std::is_arithmetic_v<TtlWithoutUnit>
    RedisLock(const B&, std::string_view, TtlWithoutUnit, const Tags&...) = delete;
    template <class... Tags>
        requires detail::are_tags<Tags...>
    RedisLock(const B&, std::string_view, const detail::NoSuchOption&, const Tags&...) {
        static_assert(detail::is_an_option<B>,
                      "an option that there is not; or a backend that is const, or does not outlive the lock");
    }
    // clang-format on

    RedisLock(RedisLock&&) noexcept = default;

    /// Unlocks what it held, as the destructor does.
    RedisLock& operator=(RedisLock&& other) noexcept {
        RedisLock{std::move(other)}.swap(*this);
        return *this;
    }

    /// Unlocks. Blocks for at most the request timeout, and where there is trouble only once; with `confirm_release =
    /// false` not at all, unless a connection has to be made. See unlock() on what could not be released.
    ~RedisLock() { let_go(!state_ || state_->options.confirm_release ? Release::once : Release::unconfirmed); }

    /// Waits for as long as it takes. Throws when the server can't be asked: at once if time won't mend it, else when
    /// trouble has lasted for `retry_for` since it was noticed; by default that is within three request timeouts. What
    /// was granted unknown to us is undone.
    void lock() { acquire(TimePoint::max(), {}); }

    /// The same, until stop is requested: false. The wait ends within milliseconds of the request, from whichever
    /// thread.
    [[nodiscard]] bool lock(std::stop_token stop) { return acquire(TimePoint::max(), stop); }

    /// Asks once; false if someone holds the key. Blocks for at most the request timeout, and throws if that passes
    /// without an answer.
    [[nodiscard]] bool try_lock() { return acquire(TimePoint::min(), {}); }

    /// As lock(), and false when the time is up, or stop is requested. Blocks no longer than `span`, to connect
    /// included; a `span` of zero or less is a try_lock(). Trouble with the server is ridden out until then, or for
    /// `retry_for`. Throws what it was if nobody was seen to hold the key, and Errc::no_expiry or Errc::wrong_type if
    /// the key was held, to the end, in a way that no lease of ours can wait out.
    template <class Rep, class Period>
    [[nodiscard]] bool try_lock_for(const std::chrono::duration<Rep, Period>& span, std::stop_token stop = {}) {
        return span > span.zero() ? acquire(later(own().backend.now(), span), stop) : try_lock();
    }

    /// The same, until a moment on any clock. A clock that is stepped while we wait is not looked at again.
    template <class Clock, class Duration>
    [[nodiscard]] bool try_lock_until(const std::chrono::time_point<Clock, Duration>& moment,
                                      std::stop_token stop = {}) {
        if constexpr (std::is_same_v<std::chrono::time_point<Clock, Duration>, TimePoint>) {
            return acquire(moment, stop);
        } else {
            using Seconds = std::chrono::duration<double>; // exact to the microsecond, and without overflow
            return try_lock_for(Seconds{moment.time_since_epoch()} - Seconds{Clock::now().time_since_epoch()}, stop);
        }
    }

    /// Ends the lease, and says what had become of it. It ends here before the release is sent, so that even an unknown
    /// outcome leaves no lock held. Blocks for at most the request timeout; tries again while there is trouble. A key
    /// whose release was not answered by then is released in the background as soon as the server can be reached, for
    /// as long as the key may be there and the backend lives; when that is destroyed, once more. The outcome stays
    /// unknown.
    Outcome unlock() noexcept { return let_go(Release::until_answered); }

    /// Lets the lease live for at least `ttl` from now; it is never shortened, and one that has ended is not revived.
    /// Blocks for at most the request timeout, and not beyond the end of the lease. Throws Errc::bad_option for a ttl
    /// out of bounds, and EPERM; what becomes of the lease is the outcome, and after unknown it is as it was.
    [[nodiscard]] Outcome extend(detail::ClampedMillis ttl) {
        const detail::Uncancelled call;
        detail::check_ttl(ttl);
        detail::check_ttl(own().backend, ttl);
        const std::shared_ptr<State> state = state_; // a callback may destroy the lock meanwhile
        return state->extend(ttl);
    }

    /// Why the last unlock() or extend() is unknown: the code, and in words which server it was, and what was wrong.
    /// Nothing after any other outcome, and once it was to be locked again.
    [[nodiscard]] Failure last_error() const { return is_ours() ? state_->trouble() : Failure{}; }

    /// Is requested when the lease is lost: when an extension was refused, when it was renewed for `max_hold`, and at
    /// the latest shortly before its end, so that it is heard before the server may give the lease to anyone else. That
    /// is a 16th of the usable lease, 4 ms at most, and 20 us more for each lease of the backend whose lost() somebody
    /// has asked for; an eighth at most. Already, if the lock isn't held. Not by unlock(). Each lease has a token of
    /// its own: ask again after locking again.
    ///
    /// Callbacks run in threads of the backend's, at once, those of one lease one after another. They may block: as
    /// long as fewer than 1,024 do so, all tokens are requested in time. Each has a thread of its own, unless so many
    /// leases end together, or the machine is so busy, that tokens would be late: then up to 128 leases' callbacks run
    /// one after another. They may unlock, if nobody else uses the lock from then on.
    ///
    /// The first call for a lease may start a thread, which stays, idle, for later leases. Throws std::system_error if
    /// there is none to be had.
    [[nodiscard]] std::stop_token lost() const {
        const detail::Uncancelled call;
        check_state();
        if (is_ours()) return state_->lost();
        std::stop_source over;
        over.request_stop();
        return over.get_token();
    }

    /// Gives the lease away without unlocking: whoever adopts the token that is returned has it, and if nobody does,
    /// the key goes with its ttl. Nil if the lock wasn't held. Sends nothing.
    [[nodiscard]] Token detach() noexcept {
        const Token token = this->token();
        if (is_ours()) state_->give_away();
        return token;
    }

    /// Whether the lease can be used at this moment: the clock is asked, and nothing and nobody else. Some 40 ns.
    [[nodiscard]] bool owns_lock() const noexcept { return is_ours() && state_->held(state_->backend.now()); }
    explicit operator bool() const noexcept { return owns_lock(); }

    /// What is left of the lease, rounded down; zero if it isn't held. lost() may come sooner: see there.
    [[nodiscard]] Millis remaining() const noexcept {
        return is_ours() ? state_->remaining(state_->backend.now()) : Millis::zero();
    }

    /// The proof of ownership; nil if the lock isn't held.
    [[nodiscard]] Token token() const noexcept { return is_ours() ? state_->token(state_->backend.now()) : Token{}; }

    /// The number of this grant, greater than that of every earlier grant of the key: for the resource to refuse
    /// whoever comes with a smaller one than it has seen. 0 if the lease isn't held, or was adopted: its number is the
    /// giver's. Throws EPERM if the lock was made without Options::fencing.
    [[nodiscard]] std::uint64_t fencing_token() const requires FencingBackend<B> {
        if (!state_ || !state_->options.fencing)
            raise({std::make_error_code(std::errc::operation_not_permitted),
                   "lock \"" + detail::printable(std::string{key()}) +
                       "\": its grants are not numbered; set Options::fencing"});
        return is_ours() ? state_->fencing_token(state_->backend.now()) : 0;
    }

    /// Empty if the object was moved from.
    std::string_view key() const noexcept { return state_ ? std::string_view{state_->key} : std::string_view{}; }

    void swap(RedisLock& other) noexcept {
        state_.swap(other.state_);
        std::swap(life_, other.life_);
    }
    friend void swap(RedisLock& a, RedisLock& b) noexcept { a.swap(b); }

private:
    using State = detail::SharedLease<B>;
    using Release = typename State::Release;

    /// In a forked child the parent's lease is none of ours.
    bool is_ours() const noexcept {
        if (!state_) return false;
        detail::check_life(state_->backend, life_);
        return state_->generation == detail::generation();
    }

    void check_state() const {
        if (!state_) raise({std::make_error_code(std::errc::operation_not_permitted), "the lock was moved from"});
    }

    State& own() {
        check_state();
        if (!is_ours()) state_ = std::make_shared<State>(state_->backend, state_->key, state_->options);
        return *state_;
    }

    bool acquire(TimePoint give_up, const std::stop_token& stop) {
        const detail::Uncancelled call;
        static_cast<void>(own());
        const std::shared_ptr<State> state = state_; // a callback may destroy the lock meanwhile
        return state->lock(give_up, stop);
    }

    Outcome let_go(Release how) noexcept {
        if (!is_ours()) return Outcome::not_held;
        const detail::Uncancelled call;
        const std::shared_ptr<State> state = state_;
        return state->end(how);
    }

    std::shared_ptr<State> state_;
    detail::Life life_{}; ///< of the backend
};

// clang-format off
/// So that the compiler names what is no backend.
template <class NoBackend, class... Arguments>
    requires(!Backend<NoBackend>)
RedisLock(const NoBackend&, const Arguments&...) -> RedisLock<NoBackend>;
template <class NoBackend, class... Tags>
    requires(!Backend<NoBackend>)
RedisLock(const NoBackend&, std::string_view, const Options&, const Tags&...) -> RedisLock<NoBackend>;
// clang-format on

} // namespace redislock
