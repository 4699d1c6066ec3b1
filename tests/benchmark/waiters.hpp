/// Those who wait for the lock in benchmark_contended: by the library, and by hand on blocking hiredis.
#pragma once

#include "../support/redis_server.hpp"

#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>

#include <deque>
#include <optional>
#include <thread>

namespace benchmark {

using namespace std::chrono_literals;

inline constexpr std::string_view key = "benchmark:contended";

/// One that waits for the lock, with a connection of its own.
class Waiter {
public:
    Waiter() = default;
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    virtual ~Waiter() = default;
    virtual void lock() = 0;
    virtual void unlock() = 0;
};

template <class Place>
class ByLibrary : public Waiter {
public:
    explicit ByLibrary(const std::string& uri, redislock::RedisOptions options = {})
        : redis_{uri, std::move(options)} {}
    void lock() override { lock_.lock(); }
    void unlock() override {
        if (lock_.unlock() != redislock::Outcome::confirmed) throw std::runtime_error{"the release is not confirmed"};
    }

private:
    Place redis_;
    redislock::RedisLock<Place> lock_{redis_, key, 10s, std::defer_lock};
};

/// A majority of servers.
class ByQuorum : public Waiter {
public:
    explicit ByQuorum(const std::vector<std::string>& uris) {
        std::vector<redislock::Redis*> all;
        for (const std::string& uri : uris) all.push_back(&nodes_.emplace_back(uri));
        quorum_.emplace(std::move(all));
        lock_.emplace(*quorum_, key, 10s, std::defer_lock);
    }
    void lock() override { lock_->lock(); }
    void unlock() override {
        if (lock_->unlock() != redislock::Outcome::confirmed) throw std::runtime_error{"the release is not confirmed"};
    }

private:
    std::deque<redislock::Redis> nodes_{};
    std::optional<redislock::Quorum<redislock::Redis>> quorum_{};
    std::optional<redislock::RedisLock<redislock::Quorum<redislock::Redis>>> lock_{};
};

/// A connection by hand.
class Connection {
public:
    using Words = std::initializer_list<std::string_view>;

    explicit Connection(const std::string& socket_path)
        : context_{::redisConnectUnix(socket_path.c_str()), &::redisFree} {
        if (!context_ || context_->err != 0) throw std::runtime_error{"by hand: no connection"};
    }

    /// Goes out with the next answer() that is asked for.
    void send(Words words) {
        std::vector<const char*> texts;
        std::vector<std::size_t> sizes;
        for (const std::string_view word : words) {
            texts.push_back(word.data());
            sizes.push_back(word.size());
        }
        ::redisAppendCommandArgv(context_.get(), static_cast<int>(words.size()), texts.data(), sizes.data());
    }
    test::Reply answer() {
        void* reply = nullptr;
        if (::redisGetReply(context_.get(), &reply) != REDIS_OK)
            throw std::runtime_error{std::string{"by hand: "} + context_->errstr};
        test::Reply owned{static_cast<redisReply*>(reply), &::freeReplyObject};
        if (owned->type == REDIS_REPLY_ERROR) throw std::runtime_error{std::string{"by hand: "} + owned->str};
        return owned;
    }
    test::Reply ask(Words words) {
        send(words);
        return answer();
    }
    std::string load(std::string_view script) { return ask({"SCRIPT", "LOAD", script})->str; }

    void send_attempt(const redislock::Token& token) { send({"SET", key, token.hex(), "NX", "PX", "10000"}); }
    bool granted() { return answer()->type == REDIS_REPLY_STATUS; }

    /// At once, and not with the next answer that is asked for.
    void flush() {
        for (int done = 0; done == 0;)
            if (::redisBufferWrite(context_.get(), &done) != REDIS_OK) throw std::runtime_error{"by hand: write"};
    }

private:
    std::unique_ptr<redisContext, decltype(&::redisFree)> context_;
};

/// The library's protocol, with its scripts, and without all that makes it safe: no look at a holder that may be dead,
/// no time-out of our own, nothing undone.
class HandOffByHand : public Waiter {
public:
    explicit HandOffByHand(const std::string& socket_path) : server_{socket_path} {}
    void lock() override {
        token_ = redislock::detail::random_token();
        server_.send_attempt(token_);
        while (!server_.granted()) {
            server_.send({"EVALSHA", announce_, "1", key, "1000", beside_.waiting, beside_.turn, beside_.given});
            server_.send({"BLPOP", beside_.turn, "10"});
            server_.send_attempt(token_);
            server_.answer(); // to the announcement
            server_.answer(); // that it is our turn, or that nobody said so for 10 s
        }
    }
    void unlock() override {
        const auto reply =
            server_.ask({"EVALSHA", release_, "1", key, token_.hex(), beside_.waiting, beside_.turn, beside_.given});
        if (reply->integer < 1) throw std::runtime_error{"hand-off by hand: the lock was lost"};
    }

private:
    Connection server_;
    redislock::Token token_{};
    const redislock::detail::AuxiliaryKeys beside_{key};
    const std::string announce_ = server_.load(redislock::detail::announce_script);
    const std::string release_ = server_.load(redislock::detail::release_script);
};

/// The same for a majority: the line stands at the first server, and who is woken asks all. Who has released the lock
/// while others were in line goes behind them.
class MajorityByHand : public Waiter {
public:
    explicit MajorityByHand(const std::vector<std::string>& socket_paths) : line_{socket_paths.front()} {
        for (const std::string& path : socket_paths) servers_.emplace_back(path);
        for (Connection& server : servers_) {
            announce_ = server.load(redislock::detail::announce_script);
            release_ = server.load(redislock::detail::release_script);
        }
    }
    void lock() override {
        while (is_contended_ || !granted()) {
            is_contended_ = false;
            line_.send({"EVALSHA", announce_, "1", key, "1000", beside_.waiting, beside_.turn, beside_.given});
            line_.send({"BLPOP", beside_.turn, "10"});
            line_.answer();
            line_.answer();
            if (granted()) return;
        }
    }
    void unlock() override {
        if (release() <= servers_.size() / 2) throw std::runtime_error{"majority by hand: the lock was lost"};
    }

private:
    bool granted() {
        token_ = redislock::detail::random_token();
        for (Connection& server : servers_) server.send_attempt(token_), server.flush();
        std::size_t votes = 0;
        for (Connection& server : servers_) votes += server.granted();
        if (votes > servers_.size() / 2) return true;
        if (votes > 0) release();
        return false;
    }
    /// The line's server last: who is woken finds the others free.
    std::size_t release() {
        for (auto server = servers_.rbegin(); server != servers_.rend(); ++server) {
            server->send({"EVALSHA", release_, "1", key, token_.hex(), beside_.waiting, beside_.turn, beside_.given});
            server->flush();
        }
        std::size_t released = 0;
        for (Connection& server : servers_) {
            const long long said = server.answer()->integer;
            released += said > 0;
            is_contended_ |= said == 2;
        }
        return released;
    }

    std::deque<Connection> servers_{};
    Connection line_;
    redislock::Token token_{};
    const redislock::detail::AuxiliaryKeys beside_{key};
    std::string announce_{}, release_{};
    bool is_contended_ = false;
};

class PollingByHand : public Waiter {
public:
    explicit PollingByHand(const std::string& socket_path) : server_{socket_path} {}
    void lock() override {
        token_ = redislock::detail::random_token();
        for (server_.send_attempt(token_); !server_.granted(); server_.send_attempt(token_))
            std::this_thread::sleep_for(1ms);
    }
    void unlock() override {
        if (server_.ask({"EVALSHA", release_, "1", key, token_.hex()})->integer != 1)
            throw std::runtime_error{"polling by hand: the lock was lost"};
    }

private:
    Connection server_;
    redislock::Token token_{};
    const std::string release_ =
        server_.load("if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end");
};

} // namespace benchmark
