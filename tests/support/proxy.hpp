/// A proxy on loopback before a redis-server: one thread that passes bytes on, or swallows them, or resets the
/// connection, as a test tells it to; or does one fault, at one byte.
#pragma once

#include "redis_server.hpp"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

namespace test {

/// Where the message ends that begins at `from`, in the protocol that both sides speak; npos: it is not whole.
inline std::size_t end_of_message(std::string_view bytes, std::size_t from = 0) {
    const std::size_t line = bytes.find("\r\n", from);
    if (line == bytes.npos) return line;
    const long long number = std::atoll(&bytes[from + 1]);
    std::size_t end = line + 2;
    if (bytes[from] == '$' && number >= 0) end += static_cast<std::size_t>(number) + 2;
    if (bytes[from] == '*')
        for (long long part = 0; part < number && end != bytes.npos; ++part) end = end_of_message(bytes, end);
    return end <= bytes.size() ? end : bytes.npos;
}

/// The same for a record of TLS. Once the handshake is over, what is written at a time is one.
inline std::size_t end_of_record(std::string_view bytes, std::size_t from = 0) {
    constexpr std::size_t header = 5; // its kind, the version twice, and the length of what follows
    if (bytes.size() < from + header) return bytes.npos;
    const auto byte = [&](std::size_t at) { return static_cast<std::size_t>(static_cast<unsigned char>(bytes[at])); };
    const std::size_t end = from + header + byte(from + 3) * 256 + byte(from + 4);
    return end <= bytes.size() ? end : bytes.npos;
}

class Proxy {
public:
    using Clock = std::chrono::steady_clock;

    enum class Mode {
        forward,
        delay,   ///< each answer is late
        swallow, ///< what comes from either side is read, and goes nowhere
        cut,     ///< the connection is reset when something comes
    };

    enum class Way { up, down }; ///< to the server; to the client

    /// What befalls the connection over which the byte number `at`, from now on, is to pass that way: all before have
    /// passed.
    struct Fault {
        enum class Kind {
            reset,   ///< RST, to the client
            finish,  ///< FIN
            stall,   ///< nothing passes that way any more, before lift()
            delay,   ///< nothing passes that way for `span`
            dribble, ///< the rest passes one byte at a time
            corrupt, ///< the byte is another one
            replay,  ///< what is to pass passes twice
            swallow, ///< the message (or TLS's record) that begins there is lost, and what comes behind it passes
        } kind;
        Way way;
        std::size_t at;
        std::chrono::milliseconds span{0};
    };

    explicit Proxy(std::string server_path) : Proxy{std::move(server_path), 0} {}
    /// Where REDISLOCK_TEST_TLS is set it stands before the server's port for TLS, and knows no more than the records.
    explicit Proxy(const RedisServer& server) : Proxy{server.socket_path(), server.tls_port()} {}
    Proxy(const Proxy&) = delete;
    Proxy& operator=(const Proxy&) = delete;
    ~Proxy() {
        ::close(wake_[1]);
        thread_.join();
        ::close(wake_[0]);
        ::close(listening_);
        for (const int fd : queued_)
            if (fd >= 0) ::close(fd);
        for (Link& link : links_) end(link);
    }

    std::string uri(const std::string& user_info = {}) const {
        return (is_tls() ? "rediss://" : "redis://") + user_info + "127.0.0.1:" + std::to_string(port_);
    }
    bool is_tls() const { return tls_port_ != 0; }

    /// Counts from here. There is one fault at a time, and it strikes once.
    void strike_at(Fault fault) {
        const std::lock_guard guard{mutex_};
        fault_ = fault;
        passed_[0] = passed_[1] = 0;
        record_.reset();
    }
    /// Stalls end, and there is no fault any more. Returns whether it has struck.
    bool lift() {
        const std::lock_guard guard{mutex_};
        if (end_stalls()) wake();
        return !std::exchange(fault_, {}).has_value();
    }
    /// The same, but stalls end when the next request has passed, over whichever connection: what was held back arrives
    /// while something else is waited for.
    bool lift_when_asked() {
        const std::lock_guard guard{mutex_};
        lifts_when_asked_ = true;
        return !std::exchange(fault_, {}).has_value();
    }

    /// What passes from now on is written down, until a fault is set.
    void record() {
        const std::lock_guard guard{mutex_};
        record_.emplace();
    }
    /// Where each message (over TLS: each record) begins in what was written down, and where the last one ends.
    std::vector<std::size_t> boundaries(Way way) const {
        const std::lock_guard guard{mutex_};
        const std::string& bytes = record_.value()[static_cast<std::size_t>(way)];
        std::vector<std::size_t> all{0};
        while (all.back() < bytes.size()) all.push_back(std::min(end_of_one(bytes, all.back()), bytes.size()));
        return all;
    }

    /// All connections, and all that are still to come; by `span` answers are late, if that is the mode.
    void set(Mode mode, std::chrono::milliseconds span = {}) {
        const std::lock_guard guard{mutex_};
        mode_ = mode;
        span_ = span;
        for (Link& link : links_) link.mode = mode;
    }
    /// The connections that there are die in silence, as behind a firewall that has forgotten them; new ones pass.
    void go_silent() {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_) link.mode = Mode::swallow;
    }
    /// Who wants to connect from now on gets no answer at all, as from a firewall; the connections that there are go
    /// on.
    void drop_newcomers() {
        const std::lock_guard guard{mutex_};
        accepts_ = false;
        ::listen(listening_, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons(static_cast<std::uint16_t>(port_));
        for (int& fd : queued_) { // the backlog is full with these
            fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
        }
        wake();
    }
    /// Those that there are, now.
    void reset() {
        const std::lock_guard guard{mutex_};
        for (Link& link : links_) link.over = true;
        wake();
    }

private:
    Proxy(std::string server_path, int tls_port) : server_path_{std::move(server_path)}, tls_port_{tls_port} {
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

    struct Link {
        int ends[2]; ///< the client's, from which bytes go up, and the server's
        Mode mode;
        bool connects = false; ///< to the server, as yet: nothing passes
        bool over = false, politely = false;
        bool dribbles[2] = {};                ///< by the way
        bool ended[2] = {};                   ///< nothing more is to come that way, but the other may go on
        std::string late[2] = {};             ///< what a stall or a delay holds back
        Clock::time_point late_until[2] = {}; ///< for how long it does
    };

    /// Whether something can pass by that.
    bool end_stalls() {
        bool any = false;
        lifts_when_asked_ = false;
        for (Link& link : links_)
            for (const int way : {0, 1}) {
                link.late_until[way] = {};
                link.dribbles[way] = false;
                any |= !link.late[way].empty();
            }
        return any;
    }

    void wake() const {
        if (::write(wake_[1], "", 1) != 1) throw std::runtime_error{"no proxy"};
    }

    void run() {
        std::vector<pollfd> entries;
        for (;;) {
            entries = {{wake_[0], POLLIN, 0}, {listening_, POLLIN, 0}};
            auto next = Clock::time_point::max();
            {
                const std::lock_guard guard{mutex_};
                if (!accepts_) entries[1].fd = -1;
                for (const Link& link : links_)
                    for (const int way : {0, 1}) {
                        const bool is_late = !link.late[way].empty();
                        if (is_late) next = std::min(next, link.late_until[way]);
                        const bool is_left = is_late || link.ended[way] || (link.connects && way == 0);
                        const short awaited = link.connects ? POLLOUT : POLLIN;
                        entries.push_back({is_left ? -1 : link.ends[way], awaited, 0});
                    }
            }
            if (::poll(entries.data(), entries.size(), timeout(next)) < 0) continue;
            char byte[64];
            if (entries[0].revents != 0 && ::read(wake_[0], byte, sizeof byte) == 0) return;
            const std::lock_guard guard{mutex_};
            const auto now = Clock::now();
            auto entry = entries.begin() + 2; // only this thread adds and removes links
            for (Link& link : links_) {
                for (const int way : {0, 1}) {
                    if (link.late_until[way] <= now) write(link, way, std::exchange(link.late[way], {}));
                    if ((entry++)->revents != 0 && !std::exchange(link.connects, false)) pass(link, way);
                }
                if (link.over) end(link);
            }
            links_.remove_if([](const Link& link) { return link.over; });
            if (entries[1].revents != 0 && accepts_) accept();
        }
    }

    static int timeout(Clock::time_point until) {
        if (until == Clock::time_point::max()) return -1;
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
        return static_cast<int>(std::max<decltype(left)>(left, 0));
    }

    void accept() {
        const int client = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
        if (client < 0) return;
        const int at_once = 1;
        ::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
        Link link{{client, -1}, mode_};
        if (connect(link))
            links_.push_back(link);
        else
            end(link);
    }

    /// A stopped server's backlog may be full: nobody waits for it here.
    bool connect(Link& link) const {
        sockaddr_un path{};
        path.sun_family = AF_UNIX;
        std::strncpy(path.sun_path, server_path_.c_str(), sizeof path.sun_path - 1);
        sockaddr_in port{};
        port.sin_family = AF_INET;
        port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        port.sin_port = htons(static_cast<std::uint16_t>(tls_port_));
        const auto* address = is_tls() ? reinterpret_cast<sockaddr*>(&port) : reinterpret_cast<sockaddr*>(&path);
        const auto size = static_cast<socklen_t>(is_tls() ? sizeof port : sizeof path);
        const int server = ::socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), at_once = 1;
        if (is_tls()) ::setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
        link.ends[1] = server;
        if (::connect(server, address, size) == 0) return true;
        return link.connects = errno == EINPROGRESS;
    }

    std::size_t end_of_one(std::string_view bytes, std::size_t from = 0) const {
        return is_tls() ? end_of_record(bytes, from) : end_of_message(bytes, from);
    }

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
        if (link.mode == Mode::swallow || link.over) return;
        const std::string_view whole{bytes, static_cast<std::size_t>(got)};
        if (record_) (*record_)[static_cast<std::size_t>(way)] += whole;
        deliver(link, way, whole);
        if (lifts_when_asked_ && way == static_cast<int>(Way::up)) end_stalls();
    }

    /// Later, and nothing comes before it that way.
    static void keep(Link& link, int way, std::string_view bytes, Clock::time_point until) {
        link.late[way] = bytes;
        link.late_until[way] = until;
    }

    void deliver(Link& link, int way, std::string_view whole) {
        if (link.mode == Mode::delay && way == static_cast<int>(Way::down))
            return keep(link, way, whole, Clock::now() + span_);
        std::size_t& passed = passed_[way];
        if (!fault_ || static_cast<int>(fault_->way) != way || passed + whole.size() <= fault_->at) {
            passed += whole.size();
            return write(link, way, whole);
        }
        const std::size_t before = fault_->at - passed;
        const Fault fault = *std::exchange(fault_, {});
        passed += whole.size();
        write(link, way, whole.substr(0, before));
        std::string rest{whole.substr(before)};
        switch (fault.kind) {
        case Fault::Kind::finish: link.politely = true; [[fallthrough]];
        case Fault::Kind::reset: link.over = true; return;
        case Fault::Kind::stall: return keep(link, way, rest, Clock::time_point::max());
        case Fault::Kind::delay: return keep(link, way, rest, Clock::now() + fault.span);
        case Fault::Kind::swallow: rest.erase(0, end_of_one(rest)); break;
        case Fault::Kind::dribble: link.dribbles[way] = true; break;
        case Fault::Kind::corrupt: rest[0] = static_cast<char>(rest[0] ^ 0x15); break;
        case Fault::Kind::replay: rest += rest; break;
        }
        if (fault.kind != Fault::Kind::dribble) return write(link, way, rest);
        for (const char& one : rest) write(link, way, {&one, 1});
    }

    /// Who does not read what has come for him loses the connection, when that fills what there is room for.
    static void write(Link& link, int way, std::string_view bytes) {
        while (!bytes.empty() && !link.over) {
            const ssize_t sent = ::send(link.ends[1 - way], bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
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
    const int tls_port_; ///< 0: it goes by the path
    int listening_ = -1, port_ = 0, wake_[2] = {-1, -1};
    int queued_[3] = {-1, -1, -1};
    bool accepts_ = true;
    mutable std::mutex mutex_;
    Mode mode_ = Mode::forward;
    std::chrono::milliseconds span_{0};
    std::optional<Fault> fault_;
    bool lifts_when_asked_ = false;
    std::size_t passed_[2] = {};
    std::optional<std::array<std::string, 2>> record_; ///< by the way
    std::list<Link> links_;
    std::thread thread_;
};

} // namespace test
