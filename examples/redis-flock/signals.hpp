// How redis-flock hears of signals and of what happens in other threads, and how it ends.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <system_error>

/// What a system call returned, if that isn't an error.
inline int good(int result) {
    if (result < 0) throw std::system_error{errno, std::generic_category()};
    return result;
}

/// How it ends: with a status, and, if there is one, by a signal; `is_typed`: by ^C or ^\, which a terminal sends to
/// the whole process group, and has sent to the command's alone.
struct End {
    int status = 0, signal = 0;
    bool is_typed = false;

    /// Returns where a signal ends nothing: in the first process of a container.
    int operator()() const {
        if (signal != SIGINT && signal != SIGQUIT && signal != SIGTERM && signal != SIGHUP) return status;
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        ::signal(signal, SIG_DFL);
        ::kill(is_typed ? 0 : ::getpid(), signal);
        sigset_t set;
        ::sigemptyset(&set);
        ::sigaddset(&set, signal);
        ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
        return status;
    }
};

/// Can be read once something has happened, in whichever thread. This and the other descriptors stay open to the end.
struct Event {
    const int fd = good(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    void happen() const { ::eventfd_write(fd, 1); }
};

/// The signals to pass on, but for those that whoever started us ignores, and the news of children: as something to
/// wait for.
class Signals {
public:
    Signals() {
        ::signal(SIGCHLD, SIG_DFL); // where it is ignored, a child leaves no status
        sigset_t set;
        ::sigemptyset(&set);
        ::sigaddset(&set, SIGCHLD);
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) {
            struct sigaction action {};
            ::sigaction(number, nullptr, &action);
            if (action.sa_handler != SIG_IGN) ::sigaddset(&set, number);
        }
        fd_ = good(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
        // Of what the terminal stops we go on, for nobody would renew the lease; and for what we say there is SIGPIPE.
        for (const int number : {SIGTTIN, SIGTTOU, SIGTSTP, SIGPIPE}) ::sigaddset(&set, number);
        ::pthread_sigmask(SIG_BLOCK, &set, &before_);
    }

    const sigset_t& mask_before() const { return before_; }

    /// Returns when one has come, or the event (then true), or when the time is up, if there is a limit.
    bool wait(const Event* event, std::optional<std::chrono::milliseconds> limit = {}) const {
        pollfd entries[] = {{fd_, POLLIN, 0}, {event ? event->fd : -1, POLLIN, 0}};
        ::poll(entries, 2, limit ? static_cast<int>(std::min<long long>(limit->count(), 3'600'000)) : -1);
        return entries[1].revents != 0;
    }

    /// One that has come and is to be passed on; 0 if there is none.
    int next() const {
        signalfd_siginfo info{};
        while (::read(fd_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
            if (info.ssi_signo != SIGCHLD) return static_cast<int>(info.ssi_signo);
        return 0;
    }

private:
    int fd_ = -1;
    sigset_t before_{};
};
