/// A server that says whatever a test wants, on a unix socket and on loopback: one thread a connection, each running
/// the test's script, and all of them gone with the object.
#pragma once

#include "redis_server.hpp"

#include <sys/un.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>

namespace test {

/// One end of a connection as the script sees it. All calls end when the server is taken down.
class Peer {
public:
    /// `is_proven`: the server's, see ReleaseForm; null: that is the script's affair.
    explicit Peer(int fd, std::atomic<bool>* is_proven = nullptr) : fd_{fd}, is_proven_{is_proven} {}
    /// What comes until `count` bytes have come, or the other end closes.
    std::string read(std::size_t count = 1) {
        std::string all;
        char bytes[65536];
        while (all.size() < count) {
            const ssize_t got = ::recv(fd_, bytes, sizeof bytes, 0);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) break;
            all.append(bytes, static_cast<std::size_t>(got));
            if (is_proven_ && !*is_proven_) answer_proof(all);
        }
        return all;
    }
    /// False if the other end is gone.
    bool send(std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR) continue;
            if (sent <= 0) return false;
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
        return true;
    }
    void wait_for_the_end() {
        while (!read().empty()) {
        }
    }
    void stop_reading() { ::shutdown(fd_, SHUT_RD); } // nothing more can be sent to us
    void reset() {                                    // the next close sends RST
        const linger now{1, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }

private:
    /// The release that comes before the first acquire, of which scripts need not know. It is the last of what comes.
    void answer_proof(std::string& bytes) {
        const auto at = bytes.find("*9\r\n$4\r\nEVAL\r\n");
        const bool is_proof = at != bytes.npos && bytes.find("$3\r\nSET\r\n") == bytes.npos;
        if (!is_proof && bytes.find("$3\r\nSET\r\n") == bytes.npos) return;
        *is_proven_ = true;
        if (!is_proof) return;
        bytes.resize(at);
        send(":-1\r\n");
    }

    int fd_;
    std::atomic<bool>* is_proven_;
};

class FakeServer {
public:
    using Script = std::function<void(Peer&, int nth)>;

    /// `is_proven`: the script hears all that is sent, also the release before the first acquire.
    explicit FakeServer(Script script, bool is_proven = false) : script_{std::move(script)}, is_proven_{is_proven} {
        sockaddr_un local{};
        local.sun_family = AF_UNIX;
        std::strcpy(local.sun_path, path().c_str());
        listen(AF_UNIX, reinterpret_cast<sockaddr*>(&local), sizeof local);
        sockaddr_in tcp{};
        tcp.sin_family = AF_INET;
        tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int fd = listen(AF_INET, reinterpret_cast<sockaddr*>(&tcp), sizeof tcp);
        socklen_t size = sizeof tcp;
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&tcp), &size);
        port_ = ntohs(tcp.sin_port);
    }
    FakeServer(const FakeServer&) = delete;
    FakeServer& operator=(const FakeServer&) = delete;
    ~FakeServer() {
        for (const int fd : listening_) ::shutdown(fd, SHUT_RDWR);
        for (std::thread& thread : acceptors_) thread.join();
        {
            const std::lock_guard guard{mutex_};
            for (const int fd : accepted_) ::shutdown(fd, SHUT_RDWR);
        }
        for (std::thread& thread : talkers_) thread.join();
        for (const int fd : listening_) ::close(fd);
    }

    std::string path() const { return folder_.path() / "fake.sock"; }
    std::string unix_uri() const { return "unix://" + path(); }
    std::string tcp_uri() const { return "redis://127.0.0.1:" + std::to_string(port_); }
    int port() const { return port_; }
    int connections() const {
        const std::lock_guard guard{mutex_};
        return count_;
    }

private:
    int listen(int family, sockaddr* address, socklen_t size) {
        const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (::bind(fd, address, size) != 0 || ::listen(fd, 64) != 0) throw std::runtime_error{"fake server: listen"};
        listening_.push_back(fd);
        acceptors_.emplace_back([this, fd] { accept(fd); });
        return fd;
    }

    void accept(int listening) {
        for (;;) {
            const int fd = ::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
            if (fd < 0 && (errno == ECONNABORTED || errno == EINTR)) continue;
            if (fd < 0) return;
            const std::lock_guard guard{mutex_};
            accepted_.push_back(fd);
            talkers_.emplace_back([this, fd, nth = count_++] { talk(fd, nth); });
        }
    }

    void talk(int fd, int nth) {
        Peer peer{fd, &is_proven_};
        script_(peer, nth);
        const std::lock_guard guard{mutex_};
        std::erase(accepted_, fd);
        ::close(fd);
    }

    Script script_;
    std::atomic<bool> is_proven_;
    TemporaryFolder folder_;
    int port_ = 0;
    mutable std::mutex mutex_;
    int count_ = 0;
    std::vector<int> listening_, accepted_;
    std::vector<std::thread> acceptors_, talkers_;
};

} // namespace test
