/// What the library needs of the operating system: the clock, the one way to wait, threads, and random bits. It knows no lock and no
/// protocol.
/// tests/process_test.cpp and tests/connection_test.cpp go red if it is wrong.
#pragma once

#include "process.hpp"
#include "types.hpp"

#if !__has_include(<sys/eventfd.h>) || !__has_include(<sys/timerfd.h>)
#error "redislock needs eventfd(2) and timerfd(2), as Linux has them"
#endif

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <thread>

namespace redislock::detail {

/// The clock of leases. On Linux it runs on while the machine sleeps, as a server's expiry does; elsewhere it's the
/// monotonic clock.
#if defined(CLOCK_BOOTTIME)
inline constexpr clockid_t lease_clock = CLOCK_BOOTTIME;
#else
inline constexpr clockid_t lease_clock = CLOCK_MONOTONIC;
#endif

/// Some 30 ns a call.
inline TimePoint now() noexcept {
    timespec time{};
    ::clock_gettime(lease_clock, &time);
    return TimePoint{std::chrono::seconds{time.tv_sec} + std::chrono::nanoseconds{time.tv_nsec}};
}

/// Blocks until one of the entries is ready (then true), or until then. Signals don't shorten or prolong it. An fd of -1 is never
/// ready. Readiness is looked for at least once, however late it is.
inline bool wait(std::span<pollfd> entries, TimePoint until) noexcept {
    constexpr Millis longest{60'000};
    for (;;) {
        const TimePoint time = now();
        const auto left = time < until ? std::chrono::ceil<Millis>(until - time) : Millis::zero();
        const int ready = ::poll(entries.data(), entries.size(), static_cast<int>(std::min(left, longest).count()));
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR && errno != EAGAIN) return false;
        if (left == Millis::zero()) return false;
    }
}

/// The same for `fd` and `events`, or until it is stopped, which is false.
inline bool wait(int fd, short events, const Deadline& deadline) noexcept {
    pollfd entries[] = {{fd, events, 0}, {deadline.stop, POLLIN, 0}};
    return wait(entries, deadline.at) && entries[0].revents != 0;
}

inline bool readable(int fd) noexcept { return wait(fd, POLLIN, TimePoint{}); }
inline bool stopped(const Deadline& deadline) noexcept { return deadline.stop != -1 && readable(deadline.stop); }

inline bool over(const Deadline& deadline) noexcept { return now() >= deadline.at || stopped(deadline); }

/// To sleep and be woken takes longer than a near server's answer, on some virtual machines three times as long. So the
/// answer is looked for first, for a moment, with the processor offered to others in between; ever more seldom while that is
/// in vain, as it is with a far server.
class Glance {
public:
    /// Whether `arrived()` has come true meanwhile.
    template <class Arrived>
    bool operator()(Arrived arrived) {
        constexpr std::chrono::microseconds moment{100};
        if (waits_ > 0) return --waits_, false;
        for (const TimePoint end = now() + moment; now() < end; ::sched_yield()) {
            if (!arrived()) continue;
            vain_ = 0;
            return true;
        }
        vain_ = std::min(vain_ + 1, 10);
        waits_ = (1 << vain_) - 1;
        return false;
    }

private:
    int vain_ = 0;  ///< looks, in a row
    int waits_ = 0; ///< before the next look
};

/// A descriptor that can be read as soon as it is raised, from any thread. Throws std::system_error if there is none.
class Signal {
public:
    Signal() : descriptor_{opened([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); })} {
        if (fd() < 0) raise({{errno, std::generic_category()}, "no descriptor to be woken by"});
    }
    Signal(const Signal&) = delete;
    Signal& operator=(const Signal&) = delete;

    int fd() const noexcept { return descriptor_.fd(); }
    void set() const noexcept { ::eventfd_write(fd(), 1); }
    void unset() const noexcept {
        eventfd_t ignored;
        ::eventfd_read(fd(), &ignored);
    }

private:
    Descriptor descriptor_;
};

/// A descriptor that can be read from a moment on, of the clock of leases: also when the machine has slept over it, unlike a
/// time-out of poll(2). May be set from any thread. Throws std::system_error if there is none.
class Alarm {
public:
    Alarm() : descriptor_{opened([] { return ::timerfd_create(lease_clock, TFD_CLOEXEC | TFD_NONBLOCK); })} {
        if (fd() < 0) raise({{errno, std::generic_category()}, "no timer to be woken by"});
    }
    Alarm(const Alarm&) = delete;
    Alarm& operator=(const Alarm&) = delete;

    int fd() const noexcept { return descriptor_.fd(); }

    /// In place of the moment that was set before. TimePoint::max() is never.
    void set(TimePoint moment) const noexcept {
        const auto span = std::max(moment.time_since_epoch(), TimePoint::duration{1});
        const auto seconds = std::chrono::floor<std::chrono::seconds>(span);
        itimerspec setting{};
        if (moment != TimePoint::max())
            setting.it_value = {static_cast<time_t>(seconds.count()), static_cast<long>((span - seconds).count())};
        ::timerfd_settime(fd(), TFD_TIMER_ABSTIME, &setting, nullptr);
    }

private:
    Descriptor descriptor_;
};

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
    using Glance = detail::Glance;
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

/// A stop_token as something to wait for. One that can't be stopped costs nothing.
class StopSignal {
public:
    explicit StopSignal(const std::stop_token& token) {
        if (!token.stop_possible()) return;
        signal_ = std::make_unique<Signal>();
        callback_.emplace(token, Set{signal_.get()});
    }

    int fd() const noexcept { return signal_ ? signal_->fd() : -1; }

private:
    struct Set {
        const Signal* signal;
        void operator()() const noexcept { signal->set(); }
    };

    std::unique_ptr<Signal> signal_;
    std::optional<std::stop_callback<Set>> callback_;
};

/// 128 bits from the operating system's generator, at each call: a forked child or a restored snapshot has no state to
/// repeat. Throws std::system_error if there are none to be had; it never makes do with less.
inline Token random_token() {
    std::array<std::uint64_t, 2> bits{};
    auto* bytes = reinterpret_cast<unsigned char*>(bits.data());
    for (std::size_t have = 0; have < sizeof bits;) {
        const ssize_t got = ::getrandom(bytes + have, sizeof bits - have, 0);
        if (got > 0) have += static_cast<std::size_t>(got);
        if (got < 0 && errno != EINTR) raise({{errno, std::generic_category()}, "no random bits for a token"});
    }
    return Token::from_bits(bits[0], bits[1]);
}

} // namespace redislock::detail
