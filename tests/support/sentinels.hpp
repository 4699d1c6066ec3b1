/// Sentinels: one that says what a test wants, and real ones with the servers that they watch over.
#pragma once

#include "fake_server.hpp"
#include "until.hpp"

#include <memory>

namespace test {

/// Answers SENTINEL MASTER, on loopback.
class FakeSentinel {
public:
    explicit FakeSentinel(int primarys_port) { names(primarys_port); }

    void names(int port, int epoch = 0, long long seen_for_ms = 100'000'000) {
        says_in_turn({naming(port, epoch, seen_for_ms)});
    }
    void names_in_turn(int port, int other, int epoch) { says_in_turn({naming(port, epoch), naming(other, epoch)}); }
    void says(std::string reply) { says_in_turn({std::move(reply)}); }

    int asked() const { return asked_; }
    /// All that was ever sent to it.
    std::string heard() const {
        const std::lock_guard guard{mutex_};
        return heard_;
    }
    std::string host_and_port() const { return "127.0.0.1:" + std::to_string(server_.port()); }

    static std::string array(const std::vector<std::string>& texts) {
        std::string all = "*" + std::to_string(texts.size()) + "\r\n";
        for (const std::string& text : texts) all += "$" + std::to_string(text.size()) + "\r\n" + text + "\r\n";
        return all;
    }

private:
    static std::string naming(int port, int epoch, long long seen_for_ms = 100'000'000) {
        return array({"name", "main", "ip", "127.0.0.1", "port", std::to_string(port), "role-reported-time",
                      std::to_string(seen_for_ms), "config-epoch", std::to_string(epoch)});
    }
    void says_in_turn(std::vector<std::string> replies) {
        const std::lock_guard guard{mutex_};
        replies_ = std::move(replies);
    }

    /// To each command in turn; there is none of more than one line a word.
    void talk(Peer& peer) {
        for (std::string bytes; !(bytes = peer.read()).empty();) {
            std::string replies;
            {
                const std::lock_guard guard{mutex_};
                heard_ += bytes;
                for (auto at = bytes.find('*'); at != bytes.npos; at = bytes.find("\r\n*", at + 1)) {
                    const bool is_question = bytes.find("SENTINEL", at) < bytes.find("\r\n*", at + 1);
                    replies += is_question ? replies_[static_cast<std::size_t>(asked_++) % replies_.size()] : "+OK\r\n";
                }
            }
            peer.send(replies);
        }
    }

    mutable std::mutex mutex_{};
    std::vector<std::string> replies_{};
    std::string heard_{};
    std::atomic<int> asked_{0};
    FakeServer server_{[this](Peer& peer, int) { talk(peer); }}; // the last: its threads use the others
};

/// A primary, its replicas and three sentinels, on loopback, under the service "main".
class Service {
public:
    explicit Service(int replicas = 2) : servers_(1) {
        servers_[0] = std::make_unique<RedisServer>();
        for (int i = 0; i < replicas; ++i)
            servers_.push_back(std::make_unique<RedisServer>(std::vector<std::string>{
                "--replicaof", "127.0.0.1", std::to_string(servers_[0]->port()), "--repl-diskless-sync-delay", "0"}));
        servers_[0]->command({"CONFIG", "SET", "repl-diskless-sync-delay", "0"});
        const std::string watched = "sentinel monitor main 127.0.0.1 " + std::to_string(servers_[0]->port()) +
                                    " 2\nsentinel down-after-milliseconds main 500\n"
                                    "sentinel failover-timeout main 3000\n";
        for (int i = 0; i < 3; ++i) sentinels_.push_back(std::make_unique<RedisServer>(RedisServer::Sentinel{watched}));
        until([&] { return statistic("connected_slaves:") == replicas; });
        for (const auto& sentinel : sentinels_)
            until([&] {
                return said(*sentinel, "num-other-sentinels") == "2" &&
                       said(*sentinel, "num-slaves") == std::to_string(replicas);
            });
    }
    ~Service() {
        for (const auto& server : servers_) server->go_on();
    }

    std::string uri() const {
        std::string all;
        for (const auto& sentinel : sentinels_)
            all += (all.empty() ? "" : ",") + std::string{"127.0.0.1:"} + std::to_string(sentinel->port());
        return "redis+sentinel://" + all + "/main";
    }

    RedisServer& server(std::size_t nth) { return *servers_[nth]; }
    RedisServer& sentinel(std::size_t nth) { return *sentinels_[nth]; }
    std::size_t servers() const { return servers_.size(); }

    /// The one that the sentinels name; all of them the same one, or null.
    RedisServer* primary() {
        const std::string port = said(*sentinels_[0], "port");
        for (const auto& sentinel : sentinels_)
            if (said(*sentinel, "port") != port) return nullptr;
        for (const auto& server : servers_)
            if (std::to_string(server->port()) == port) return server.get();
        return nullptr;
    }

    /// As an operator begins it. False: the sentinel refuses.
    bool begin_failover() {
        return sentinels_[0]->command({"SENTINEL", "FAILOVER", "main"})->type == REDIS_REPLY_STATUS;
    }

    /// Returns when all sentinels name another primary: that one.
    RedisServer& another_than(const RedisServer& before) {
        RedisServer* now = nullptr;
        until([&] { return (now = primary()) != nullptr && now != &before; });
        return *now;
    }
    RedisServer& fail_over(const RedisServer& from) {
        begin_failover();
        return another_than(from);
    }

    /// Whether all servers but the primary are its replicas.
    bool is_settled() {
        RedisServer* const now = primary();
        if (now == nullptr) return false;
        const long long followers = now->statistic("replication", "connected_slaves:");
        return followers == static_cast<long long>(servers_.size()) - 1 && said(*sentinels_[0], "flags") == "master" &&
               now->text({"INFO", "replication"}).find("state=wait") == std::string::npos;
    }
    void settle() {
        until([&] { return is_settled(); });
    }

    static std::string said(RedisServer& sentinel, const std::string& name) {
        const Reply reply = sentinel.command({"SENTINEL", "MASTER", "main"});
        for (std::size_t i = 0; i + 1 < reply->elements; i += 2)
            if (name == reply->element[i]->str) return reply->element[i + 1]->str;
        return {};
    }

private:
    long long statistic(const std::string& name) { return servers_[0]->statistic("replication", name); }

    std::vector<std::unique_ptr<RedisServer>> servers_{}, sentinels_{};
};

} // namespace test
