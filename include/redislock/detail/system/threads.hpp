/// Threads of the library, and the clock, timers and threads that a simulation replaces. tests/process_test.cpp goes red if it is wrong.
#pragma once

#include "spin_wait.hpp"
#include "timers.hpp"

#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace redislock::detail {

/// Holds pthread_cancel(3) back for as long as it lives: for this thread, and until the next cancellation point after
/// it. Our calls have such points where nothing may be thrown. Some 6 ns.
class Uncancelled {
public:
    Uncancelled() noexcept { begin(); }
    Uncancelled(const Uncancelled&) = delete;
    Uncancelled& operator=(const Uncancelled&) = delete;
    ~Uncancelled() {
        if (begun_) ::pthread_setcancelstate(before_, nullptr);
    }

    /// Only from begin() on. As the first member of a class, whose destructor begins it, it covers the end of all other
    /// members.
    explicit Uncancelled(std::defer_lock_t) noexcept {}
    void begin() noexcept { begun_ = ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_) == 0; }

private:
    int before_ = 0;
    bool begun_ = false;
};

/// The clock, the timers and the threads of this process. What takes an Engine is given another one in simulations.
class System {
public:
    using Alarm = detail::Alarm;
    using SpinWait = detail::SpinWait;
    using Condition = std::condition_variable;

    static TimePoint now() noexcept { return detail::now(); }

    /// One of ours: it runs no signal handler of the program's, and is never cancelled. start() throws
    /// std::system_error if there is none to be had.
    class Thread {
    public:
        template <class Work>
        void start(Work work) {
            sigset_t all, before;
            ::sigfillset(&all);
            ::pthread_sigmask(SIG_SETMASK, &all, &before);
            struct Restore {
                ~Restore() { ::pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
                const sigset_t& mask;
            } const restore{before};
            thread_ = std::thread{[work = std::move(work)]() mutable {
                const Uncancelled always;
                work();
            }};
        }
        bool joinable() const noexcept { return thread_.joinable(); }
        bool is_current() const noexcept { return thread_.get_id() == std::this_thread::get_id(); }
        void join() {
            if (joinable()) thread_.join();
        }
        void detach() { thread_.detach(); }

    private:
        std::thread thread_;
    };

    System() noexcept { ::pthread_sigmask(SIG_SETMASK, nullptr, &programs_mask_); }

    /// In a thread of ours, for callbacks: what they start is the program's again, as where this was constructed.
    template <class Work>
    void as_program(Work work) const {
        sigset_t ours;
        ::pthread_sigmask(SIG_SETMASK, &programs_mask_, &ours);
        work();
        ::pthread_sigmask(SIG_SETMASK, &ours, nullptr);
    }

private:
    sigset_t programs_mask_{};
};

} // namespace redislock::detail
