/// Troubles that several tests make: a storm of signals, an address that swallows everything; and how a test hears of
/// the library's answer to them.
#pragma once

#include "blocking_connection.hpp"
#include "redis_server.hpp"

#include <sys/time.h>

#include <fstream>

namespace test {

/// A signal each millisecond, to a handler that does nothing, for as long as the object lives.
class SignalStorm {
public:
    SignalStorm() {
        struct sigaction quiet {};
        quiet.sa_handler = [](int) {};
        ::sigaction(SIGALRM, &quiet, &old_);
        const itimerval every_ms{{0, 1000}, {0, 1000}};
        ::setitimer(ITIMER_REAL, &every_ms, nullptr);
    }
    SignalStorm(const SignalStorm&) = delete;
    SignalStorm& operator=(const SignalStorm&) = delete;
    ~SignalStorm() {
        const itimerval never{};
        ::setitimer(ITIMER_REAL, &never, nullptr);
        ::sigaction(SIGALRM, &old_, nullptr);
    }

private:
    struct sigaction old_ {};
};

/// A listener on loopback whose backlog is full: to connect to it takes for ever.
class BlackHole {
public:
    BlackHole() : fd_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        if (::bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd_, 0) != 0)
            throw std::runtime_error{"no black hole"};
        ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
        uri_ = "redis://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
        using namespace redislock;
        for (BlockingConnection& connection : inside_)
            connection.open(detail::resolve(Address::parse(uri_)).front(), later(detail::now(), Millis{20}));
    }
    BlackHole(const BlackHole&) = delete;
    BlackHole& operator=(const BlackHole&) = delete;
    ~BlackHole() { ::close(fd_); }

    const std::string& uri() const { return uri_; }

private:
    int fd_;
    std::string uri_;
    std::vector<BlockingConnection> inside_{3};
};

inline std::size_t open_descriptors(const std::string& process = "self") {
    const std::filesystem::directory_iterator entries{"/proc/" + process + "/fd"};
    return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

inline std::size_t threads() {
    const std::filesystem::directory_iterator entries{"/proc/self/task"};
    return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

/// The memory that a process has to itself, in KiB: without the files that it maps, for what it has read of them counts
/// as well.
inline std::size_t memory_in_kib(const std::string& process = "self") {
    std::ifstream status{"/proc/" + process + "/status"};
    std::size_t kib = 0;
    for (std::string word; status >> word;)
        if (word == "RssAnon:") status >> kib;
    return kib;
}

/// What an action throws, if it does.
template <class Action>
redislock::Failure failure(Action action) {
    try {
        if constexpr (std::is_void_v<decltype(action())>)
            action();
        else
            static_cast<void>(action());
    } catch (const std::system_error& error) {
        return {error.code(), error.what()};
    }
    return {};
}

/// Whether a short wait ends without the lock. A busy machine may not even see by then that somebody has it, and then
/// it ends with an error.
template <class Lock>
bool waits_in_vain(Lock& lock, redislock::Millis span) {
    static_cast<void>(failure([&] { return lock.try_lock_for(span); }));
    return !lock.owns_lock();
}

} // namespace test
