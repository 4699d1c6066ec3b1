/// Descriptors that wake a wait: by a call, at a moment, or by a stop_token. tests/connection_test.cpp goes red if it
/// is wrong.
#pragma once

#include "../../errors.hpp"
#include "clock.hpp"
#include "process.hpp"

#if !__has_include(<sys/eventfd.h>) || !__has_include(<sys/timerfd.h>)
#error "redislock needs eventfd(2) and timerfd(2), as Linux has them"
#endif

#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <memory>
#include <optional>
#include <stop_token>

namespace redislock::detail {

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

/// A descriptor that can be read from a moment on, of the clock of leases: also when the machine has slept over it,
/// unlike a time-out of poll(2). May be set from any thread. Throws std::system_error if there is none.
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

} // namespace redislock::detail
