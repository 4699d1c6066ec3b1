/// A redis-server of one's own: in a temporary folder, on a unix socket and a loopback port, gone with its object and
/// with the process that started it. It speaks to its server through plain hiredis, not through what is under test.
#pragma once

#include "certificates.hpp"

#include <hiredis/hiredis.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace test {

/// Loopback, and free a moment ago.
inline int free_port() {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const bool bound = ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                       ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    ::close(fd);
    if (!bound) throw std::runtime_error{"no free port on loopback"};
    return ntohs(address.sin_port);
}

using Reply = std::unique_ptr<redisReply, decltype(&::freeReplyObject)>;

class RedisServer {
public:
    /// With arguments beside the usual ones, and variables ("NAME=value") for its environment.
    explicit RedisServer(std::vector<std::string> extra = {}, std::vector<std::string> environment = {})
        : extra_{std::move(extra)}, environment_{std::move(environment)} {
        start();
    }

    /// One that watches over others, as its configuration says.
    struct Sentinel {
        std::string configuration;
    };
    explicit RedisServer(const Sentinel& sentinel) : is_sentinel_{true} {
        std::ofstream{configuration()} << sentinel.configuration;
        start();
    }
    RedisServer(const RedisServer&) = delete;
    RedisServer& operator=(const RedisServer&) = delete;
    ~RedisServer() { kill(); }

    std::string socket_path() const { return folder_.path() / "redis.sock"; }
    /// Where REDISLOCK_TEST_TLS is set, which is for running tests of other things over TLS, both are the port for
    /// that.
    std::string unix_uri(unsigned db = 0) const {
        if (is_tls()) return tls_uri() + "/" + std::to_string(db);
        return "unix://" + socket_path() + (db == 0 ? "" : "?db=" + std::to_string(db));
    }
    std::string tcp_uri() const { return is_tls() ? tls_uri() : "redis://127.0.0.1:" + std::to_string(port_); }
    static bool is_tls() { return std::getenv("REDISLOCK_TEST_TLS") != nullptr; }
    int port() const { return port_; }
    int tls_port() const { return tls_port_; } ///< 0 where it has none
    pid_t pid() const { return pid_; }

    /// Returns when it accepts connections, whatever it may still be loading.
    void start() {
        for (int tries = 0; tries < 5 && pid_ == 0; ++tries) {
            if (port_ == 0 || tries > 0) port_ = free_port();
            if (tries > 0) tls_port_ = 0;
            launch();
        }
        if (pid_ == 0) throw std::runtime_error{"redis-server does not start; is it installed?\n" + log_};
    }
    void kill() {
        admin_.reset();
        if (pid_ == 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }
    void stop() const { // returns when it has stopped
        if (pid_ == 0) throw std::runtime_error{"redis-server has been killed"};
        ::kill(pid_, SIGSTOP);
        ::waitpid(pid_, nullptr, WUNTRACED);
    }
    void go_on() const {
        if (pid_ != 0) ::kill(pid_, SIGCONT); // process 0 would be all of our group, with the servers of other tests
    }

    /// As an operator would, by hand.
    Reply command(const std::vector<std::string>& words) {
        if (admin_ && is_hung_up()) admin_.reset();
        if (!admin_) admin_.reset(::redisConnectUnix(socket_path().c_str()));
        std::vector<const char*> texts;
        std::vector<std::size_t> sizes;
        for (const std::string& word : words) {
            texts.push_back(word.data());
            sizes.push_back(word.size());
        }
        void* reply = ::redisCommandArgv(admin_.get(), static_cast<int>(texts.size()), texts.data(), sizes.data());
        if (reply == nullptr) throw std::runtime_error{"redis-server is gone: " + words.front()};
        return {static_cast<redisReply*>(reply), &::freeReplyObject};
    }
    long long integer(const std::vector<std::string>& words) { return command(words)->integer; }
    std::string text(const std::vector<std::string>& words) {
        const Reply reply = command(words);
        return reply->str != nullptr ? std::string{reply->str, static_cast<std::size_t>(reply->len)} : std::string{};
    }

    /// Of INFO: the number behind `name`, or 0 if it isn't there.
    long long statistic(const std::string& section, const std::string& name) {
        const std::string all = text({"INFO", section});
        const auto at = all.find(name);
        return at == all.npos ? 0 : std::stoll(all.substr(at + name.size()));
    }
    long long blocked_clients() { return statistic("clients", "blocked_clients:"); }

    /// Whether all keys go within that time.
    bool is_empty_within(std::chrono::milliseconds limit) {
        for (const auto end = std::chrono::steady_clock::now() + limit; std::chrono::steady_clock::now() < end;)
            if (integer({"DBSIZE"}) == 0) return true;
        return false;
    }

private:
    std::string tls_uri() const { return "rediss://127.0.0.1:" + std::to_string(tls_port_); }

    /// One for all servers of this process, which OpenSSL is told to trust.
    static const Certificates& certificates() {
        static const Certificates all{{"server"}};
        ::setenv("SSL_CERT_FILE", all.file("ca.pem").c_str(), 1);
        return all;
    }

    /// As a primary does with all when it becomes a replica.
    bool is_hung_up() const {
        char byte;
        return ::recv(admin_->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
    }

    std::string configuration() const { return folder_.path() / "redis.conf"; }

    void launch() {
        int pipe[2];
        if (::pipe2(pipe, O_CLOEXEC) != 0) throw std::runtime_error{"pipe"};
        const char* program = std::getenv("REDIS_SERVER"); // another one, that understands the same
        std::vector<std::string> words{program ? program : "redis-server"};
        if (is_sentinel_) words.insert(words.end(), {configuration(), "--sentinel"});
        words.insert(words.end(), {"--port", std::to_string(port_), "--bind", "127.0.0.1"});
        for (const char* word : {"--save", "", "--appendonly", "no", "--unixsocket"}) words.push_back(word);
        words.push_back(socket_path());
        words.insert(words.end(), {"--dir", folder_.path()});
        if (is_tls() && !is_sentinel_) { // whose configuration says it
            if (tls_port_ == 0) tls_port_ = free_port();
            for (std::string& word : certificates().at_port(tls_port_, "server")) words.push_back(std::move(word));
        }
        words.insert(words.end(), extra_.begin(), extra_.end());
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        const pid_t parent = ::getpid();
        pid_ = ::fork();
        if (pid_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (::getppid() != parent) ::_exit(1);
            for (std::string& variable : environment_) ::putenv(variable.data());
            ::dup2(pipe[1], STDOUT_FILENO);
            ::dup2(pipe[1], STDERR_FILENO);
            ::execvp(arguments[0], arguments.data());
            ::_exit(127);
        }
        ::close(pipe[1]);
        log_.clear();
        char bytes[4096];
        const char* const ready = is_sentinel_ ? "Sentinel ID is" : "eady to accept connections";
        for (ssize_t got = 1; got > 0 && log_.find(ready) == log_.npos;) {
            got = ::read(pipe[0], bytes, sizeof bytes);
            if (got > 0) log_.append(bytes, static_cast<std::size_t>(got));
        }
        ::close(pipe[0]);
        if (log_.find(ready) == log_.npos) kill();
    }

    struct Disconnect {
        void operator()(redisContext* context) const { ::redisFree(context); }
    };

    const bool is_sentinel_ = false;
    std::vector<std::string> extra_, environment_;
    TemporaryFolder folder_;
    int port_ = 0, tls_port_ = 0;
    pid_t pid_ = 0;
    std::string log_;
    std::unique_ptr<redisContext, Disconnect> admin_;
};

/// Whether a test is over, since what it is about does not hold for TLS: the reason is for its readers.
inline bool is_over_tls(const char* /*reason*/) { return RedisServer::is_tls(); }

} // namespace test
