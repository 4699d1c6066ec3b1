/// Threads of the library, and the clock, timers and threads that a simulation replaces. tests/process_test.cpp goes
/// red if it is wrong.
#pragma once

#include "spin_wait.hpp"
#include "timers.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
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

/// Asks the scheduler for short turns, each of them soon: for threads that do little, and must do it in time on a busy
/// machine. Linux 6.12 grants it to any thread (EEVDF, the slice in sched_setattr(2)); elsewhere it changes nothing.
/// Not asked for where a filter of system calls is in force (seccomp, as in most containers): it might end the process.
inline void prefer_short_turns() noexcept {
    if (::prctl(PR_GET_SECCOMP) != 0) return;
    struct { // as in linux/sched/types.h, which does not go together with every <sched.h>
        std::uint32_t size, policy;
        std::uint64_t flags;
        std::int32_t nice;
        std::uint32_t priority;
        std::uint64_t runtime, deadline, period;
    } attributes{};
    constexpr std::chrono::nanoseconds shortest = std::chrono::microseconds{100};
    if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
    if (attributes.policy != SCHED_OTHER) return;
    attributes.runtime = static_cast<std::uint64_t>(shortest.count());
    ::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

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
                prefer_short_turns();
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
