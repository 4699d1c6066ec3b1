/// A proxy on loopback before a redis-server: one thread that passes bytes on, or swallows them, or resets the connection,
/// as a test tells it to, for each connection.
#pragma once

#include "redis_server.hpp"

#include <poll.h>
#include <sys/un.h>

#include <cstring>
#include <list>
#include <mutex>
#include <thread>

namespace test {

class Proxy {
public:
    enum class Mode {
        forward,
        swallow, ///< what comes from either side is read, and goes nowhere
        cut,     ///< the connection is reset when something comes
    };

    explicit Proxy(std::string server_path) : server_path_{std::move(server_path)} {
        listening_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        if (::bind(listening_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listening_, 64) != 0 ||
            ::getsockname(listening_, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
            ::pipe2(wake_, O_CLOEXEC) != 0)
            throw std::runtime_error{"no proxy"};
        port_ = ntohs(address.sin_port);
        thread_ = std::thread{[this] { run(); }};
    }
    Proxy(const Proxy&) = delete;
    Proxy& operator=(const Proxy&) = delete;
    ~Proxy() {
        ::close(wake_[1]);
        thread_.join();
        ::close(wake_[0]);
        ::close(listening_);
        for (Link& link : links_) end(link);
    }

    std::string uri() const { return "redis://127.0.0.1:" + std::to_string(port_); }
    int connections() const { // that have ever been made
        const std::lock_guard guard{mutex_};
        return count_;
    }

    /// All connections, and all that are still to come.
    void set(Mode mode) {
        const std::lock_guard guard{mutex_};
        mode_ = mode;
        for (Link& link : links_) link.mode = mode;
    }
    /// One connection, counted from 0.
    void set(int nth, Mode mode) {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_)
            if (link.nth == nth) link.mode = mode;
    }
    /// Those that there are, now.
    void reset() {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_) link.over = true;
        if (::write(wake_[1], "", 1) != 1) throw std::runtime_error{"no proxy"};
    }

private:
    struct Link {
        int nth, client, server;
        Mode mode;
        bool over = false;
    };

    void run() {
        std::vector<pollfd> entries;
        for (;;) {
            entries = {{wake_[0], POLLIN, 0}, {listening_, POLLIN, 0}};
            for (const Link& link : links_) // only this thread adds and removes any
                entries.insert(entries.end(), {{link.client, POLLIN, 0}, {link.server, POLLIN, 0}});
            if (::poll(entries.data(), entries.size(), -1) < 0) continue;
            char byte[64];
            if (entries[0].revents != 0 && ::read(wake_[0], byte, sizeof byte) == 0) return;
            const std::lock_guard guard{mutex_};
            auto entry = entries.begin() + 2;
            for (Link& link : links_) {
                if ((entry++)->revents != 0) pass(link, link.client, link.server);
                if ((entry++)->revents != 0) pass(link, link.server, link.client);
                if (link.over) end(link);
            }
            links_.remove_if([](const Link& link) { return link.over; });
            if (entries[1].revents != 0) accept();
        }
    }

    void accept() {
        const int client = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
        if (client < 0) return;
        const int server = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, server_path_.c_str(), sizeof address.sun_path - 1);
        Link link{count_++, client, server, mode_};
        if (::connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
            links_.push_back(link);
        else
            end(link);
    }

    /// A write may block where a stopped server reads nothing: tests don't send that much.
    static void pass(Link& link, int from, int to) {
        char bytes[65536];
        const ssize_t got = ::recv(from, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0 || link.mode == Mode::cut) link.over = true;
        if (link.mode != Mode::forward) return;
        for (ssize_t at = 0, sent = 0; at < got && !link.over; at += sent) {
            sent = ::send(to, bytes + at, static_cast<std::size_t>(got - at), MSG_NOSIGNAL);
            if (sent <= 0) link.over = true;
        }
    }

    static void end(Link& link) {
        const linger now{1, 0};
        ::setsockopt(link.client, SOL_SOCKET, SO_LINGER, &now, sizeof now); // to close it sends RST
        ::close(link.client);
        ::close(link.server);
    }

    const std::string server_path_;
    int listening_ = -1, port_ = 0, wake_[2] = {-1, -1};
    mutable std::mutex mutex_;
    Mode mode_ = Mode::forward;
    int count_ = 0;
    std::list<Link> links_;
    std::thread thread_;
};

} // namespace test
