/// A lease as a guard has it, shared with the backend's worker for as long as that renews it, or watches for its end.
/// tests/lock_test.cpp and tests/renewal_test.cpp go red if it is wrong.
#pragma once

#include "../system/process.hpp"
#include "lease_holder.hpp"

#include <atomic>
#include <thread>

namespace redislock::detail {

/// On the heap, for the guard may be moved. Not thread-safe, but for what HeldLease shares with the worker.
template <Backend B>
class SharedLease final : public LeaseHolder<B>, public std::enable_shared_from_this<SharedLease<B>> {
public:
    using LeaseHolder<B>::LeaseHolder, LeaseHolder<B>::backend, LeaseHolder<B>::key, LeaseHolder<B>::options,
        LeaseHolder<B>::lease;
    using Release = typename LeaseHolder<B>::Release;

    const Generation generation = detail::generation(); ///< in a forked child the parent's lease is none of ours

    bool lock(TimePoint give_up, const std::stop_token& stop) {
        const TimePoint started = backend.now();
        const Caller caller{locking_};
        if (caller.is_second || this->held(started))
            this->complain(
                {std::make_error_code(std::errc::resource_deadlock_would_occur),
                 caller.is_second ? "another thread is locking this very object" : "held by this very object"});
        unshare();
        const unsigned attempts = this->acquire(started, give_up, stop);
        return attempts > 0 && granted(started, attempts);
    }

    void take_over(const Token& token) {
        const TimePoint started = backend.now();
        this->adopt(token);
        granted(started, 1);
    }

    Outcome extend(Millis ttl) {
        const Outcome outcome = LeaseHolder<B>::extend(ttl);
        const TimePoint now = backend.now();
        if (this->kept() && !this->held(now)) backend.keep(this->shared_from_this(), now); // whose thread tells of it
        return outcome;
    }

    std::stop_token lost() {
        auto [source, fresh] = this->listen();
        if (fresh && this->over(backend.now()))
            source.request_stop();
        else if (fresh)
            watch();
        return source.get_token();
    }

    Outcome end(Release how) noexcept try {
        unshare();
        const TimePoint now = backend.now();
        const Outcome outcome = this->let_go(now, how);
        if (outcome != Outcome::not_held)
            tell(options.observer, &Observer::released, {key, now - granted_at_, outcome, this->trouble().code});
        return outcome;
    } catch (...) {
        return Outcome::unknown;
    }

    void give_away() noexcept {
        unshare();
        lease = Lease{options};
    }

private:
    /// A lease that can't be renewed as it was promised is none.
    bool granted(TimePoint started, unsigned attempts) try {
        granted_at_ = backend.now();
        const std::uint64_t fencing_token = lease.fencing_token(granted_at_);
        if (options.renew || options.max_hold || (options.observer && options.observer->lost) || may_move(backend))
            share();
        detail::tell(options.observer, &Observer::acquired, {key, granted_at_ - started, attempts, fencing_token});
        return true;
    } catch (...) {
        end(Release::unconfirmed);
        throw;
    }

    /// From now on the lease is renewed, if that is wanted, and its end watched.
    void share() {
        const TimePoint first = this->keep(lease.end() - options.usable());
        try {
            backend.keep(this->shared_from_this(), first);
        } catch (...) {
            this->drop();
            throw;
        }
    }
    /// From now on somebody is to be told of the loss.
    void watch() try {
        if (this->kept())
            backend.keep(this->shared_from_this(), this->next_step());
        else
            share();
    } catch (...) {
        this->unlisten();
        throw;
    }
    void unshare() noexcept {
        if (this->drop()) backend.drop(*this);
    }

    /// Of a call that locks it. Two threads with one object would wait for each other, and so the second is told; a
    /// callback of the first may call again.
    struct Caller {
        explicit Caller(std::atomic<std::thread::id>& thread_inside) noexcept : inside{thread_inside} {
            std::thread::id found{};
            is_first = inside.compare_exchange_strong(found, std::this_thread::get_id());
            is_second = !is_first && found != std::this_thread::get_id();
        }
        Caller(const Caller&) = delete;
        Caller& operator=(const Caller&) = delete;
        ~Caller() {
            if (is_first) inside = std::thread::id{};
        }
        std::atomic<std::thread::id>& inside;
        bool is_first, is_second;
    };

    TimePoint granted_at_{};
    std::atomic<std::thread::id> locking_{};
};

} // namespace redislock::detail
