/// A proxy on loopback before a redis-server: one thread that passes bytes on, or swallows them, or resets the connection,
/// as a test tells it to; or does one fault, at one byte.
#pragma once

#include "redis_server.hpp"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>

#include <cstring>
#include <list>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

namespace test {

class Proxy {
public:
    enum class Mode {
        forward,
        swallow, ///< what comes from either side is read, and goes nowhere
        cut,     ///< the connection is reset when something comes
    };

    enum class Way { up, down }; ///< to the server; to the client

    /// What befalls the connection over which the byte number `at`, from now on, is to pass that way: all before have passed.
    struct Fault {
        enum class Kind {
            reset,   ///< RST, to the client
            finish,  ///< FIN
            stall,   ///< nothing passes that way any more, before lift()
            dribble, ///< the rest passes one byte at a time
            corrupt, ///< the byte is another one
            replay,  ///< what is to pass passes twice
        } kind;
        Way way;
        std::size_t at;
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

    std::string uri(const std::string& user_info = {}) const {
        return "redis://" + user_info + "127.0.0.1:" + std::to_string(port_);
    }

    /// Counts from here. There is one fault at a time, and it strikes once.
    void strike_at(Fault fault) {
        const std::lock_guard guard{mutex_};
        fault_ = fault;
        passed_[0] = passed_[1] = 0;
    }
    /// Stalls end, and there is no fault any more. Returns whether it has struck.
    bool lift() {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_) link.stalls[0] = link.stalls[1] = link.dribbles[0] = link.dribbles[1] = false;
        wake();
        return !std::exchange(fault_, {}).has_value();
    }
    /// Bytes since the last strike_at() or count().
    std::size_t passed(Way way) const {
        const std::lock_guard guard{mutex_};
        return passed_[static_cast<int>(way)];
    }
    void count() {
        const std::lock_guard guard{mutex_};
        passed_[0] = passed_[1] = 0;
    }

    /// All connections, and all that are still to come.
    void set(Mode mode) {
        const std::lock_guard guard{mutex_};
        mode_ = mode;
        for (Link& link : links_) link.mode = mode;
    }
    /// Those that there are, now.
    void reset() {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_) link.over = true;
        wake();
    }

private:
    struct Link {
        int ends[2]; ///< the client's, from which bytes go up, and the server's
        Mode mode;
        bool over = false, politely = false;
        bool stalls[2] = {}, dribbles[2] = {}; ///< by the way
        bool ended[2] = {};                    ///< nothing more is to come that way, but the other may go on
        std::string late[2] = {};              ///< what a stall holds back
    };

    void wake() const {
        if (::write(wake_[1], "", 1) != 1) throw std::runtime_error{"no proxy"};
    }

    void run() {
        std::vector<pollfd> entries;
        for (;;) {
            entries = {{wake_[0], POLLIN, 0}, {listening_, POLLIN, 0}};
            {
                const std::lock_guard guard{mutex_};
                for (const Link& link : links_)
                    for (const int way : {0, 1})
                        entries.push_back({link.stalls[way] || link.ended[way] ? -1 : link.ends[way], POLLIN, 0});
            }
            if (::poll(entries.data(), entries.size(), -1) < 0) continue;
            char byte[64];
            if (entries[0].revents != 0 && ::read(wake_[0], byte, sizeof byte) == 0) return;
            const std::lock_guard guard{mutex_};
            auto entry = entries.begin() + 2; // only this thread adds and removes links
            for (Link& link : links_) {
                for (const int way : {0, 1}) {
                    if (!link.stalls[way]) write(link, way, std::exchange(link.late[way], {}));
                    if ((entry++)->revents != 0) pass(link, way);
                }
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
        const int at_once = 1;
        ::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
        Link link{{client, server}, mode_};
        if (::connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
            links_.push_back(link);
        else
            end(link);
    }

    /// A write may block where a stopped server reads nothing: tests don't send that much.
    void pass(Link& link, int way) {
        char bytes[65536];
        const ssize_t got = ::recv(link.ends[way], bytes, link.dribbles[way] ? 1 : sizeof bytes, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got < 0 || link.mode == Mode::cut) link.over = true;
        if (got == 0) {
            ::shutdown(link.ends[1 - way], SHUT_WR);
            link.ended[way] = link.politely = true;
            link.over = link.ended[1 - way];
            return;
        }
        if (link.mode != Mode::forward || link.over) return;
        std::string_view whole{bytes, static_cast<std::size_t>(got)};
        std::size_t& passed = passed_[way];
        if (!fault_ || static_cast<int>(fault_->way) != way || passed + whole.size() <= fault_->at) {
            passed += whole.size();
            return write(link, way, whole);
        }
        const std::size_t before = fault_->at - passed;
        const Fault::Kind kind = fault_->kind;
        fault_.reset();
        passed += whole.size();
        write(link, way, whole.substr(0, before));
        std::string rest{whole.substr(before)};
        switch (kind) {
        case Fault::Kind::finish: link.politely = true; [[fallthrough]];
        case Fault::Kind::reset: link.over = true; return;
        case Fault::Kind::stall:
            link.stalls[way] = true;
            link.late[way] = std::move(rest);
            return;
        case Fault::Kind::dribble: link.dribbles[way] = true; break;
        case Fault::Kind::corrupt: rest[0] = static_cast<char>(rest[0] ^ 0x15); break;
        case Fault::Kind::replay: rest += rest; break;
        }
        if (kind != Fault::Kind::dribble) return write(link, way, rest);
        for (const char& one : rest) write(link, way, {&one, 1});
    }

    static void write(Link& link, int way, std::string_view bytes) {
        while (!bytes.empty() && !link.over) {
            const ssize_t sent = ::send(link.ends[1 - way], bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent <= 0)
                link.over = true;
            else
                bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
    }

    static void end(Link& link) {
        const linger now{1, 0};
        if (!link.politely)
            ::setsockopt(link.ends[0], SOL_SOCKET, SO_LINGER, &now, sizeof now); // to close it sends RST
        for (const int fd : link.ends) ::close(fd);
    }

    const std::string server_path_;
    int listening_ = -1, port_ = 0, wake_[2] = {-1, -1};
    mutable std::mutex mutex_;
    Mode mode_ = Mode::forward;
    std::optional<Fault> fault_;
    std::size_t passed_[2] = {};
    std::list<Link> links_;
    std::thread thread_;
};

} // namespace test
