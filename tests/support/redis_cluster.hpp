/// A Redis Cluster of one's own: redis-servers on loopback, gone with their object. It is set up and changed by plain
/// commands, not through what is under test.
#pragma once

#include "redis_server.hpp"
#include "until.hpp"

#include <redislock/detail/protocol/key_slot.hpp>

namespace test {

class RedisCluster {
public:
    /// The primaries, each with its share of the slots, come first; behind them a replica for each, or none. Returns
    /// when all of them agree.
    explicit RedisCluster(std::size_t primaries = 3, bool has_replicas = false, std::vector<std::string> extra = {})
        : primaries_{primaries} {
        for (std::size_t n = 0; n < primaries * (has_replicas ? 2 : 1); ++n) start(extra);
        for (std::size_t n = 0; n < size(); ++n) {
            at(n).command({"CLUSTER", "SET-CONFIG-EPOCH", std::to_string(n + 1)});
            if (n < primaries) demand(n, {"CLUSTER", "ADDSLOTSRANGE", first_slot(n), last_slot(n)});
        }
        meet();
        for (std::size_t n = primaries; n < size(); ++n)
            until([&] { return at(n).text({"CLUSTER", "REPLICATE", id(n - primaries)}) == "OK"; });
        for (std::size_t n = primaries; n < size(); ++n) until([&] { return has_replica(n - primaries); });
        until([&] { return agree(); });
    }

    std::size_t size() const { return nodes_.size(); }
    RedisServer& at(std::size_t n) { return *nodes_[n]; }
    std::string uri(std::size_t n = 0) { return at(n).tcp_uri(); }
    std::string address(std::size_t n) { return "127.0.0.1:" + std::to_string(at(n).port()); }
    std::string id(std::size_t n) { return at(n).text({"CLUSTER", "MYID"}); }

    /// Which of the first primaries has the key's slot, at first; and another one.
    std::size_t home(const std::string& key) const {
        std::size_t n = 0;
        while (redislock::detail::key_slot(key) > std::stoul(last_slot(n))) ++n;
        return n;
    }
    std::size_t elsewhere(const std::string& key) const { return (home(key) + 1) % primaries_; }

    /// One more node, that has met the others and has no slots.
    std::size_t add(std::vector<std::string> extra = {}) {
        start(std::move(extra));
        meet(size() - 1, 0);
        return size() - 1;
    }

    /// Whether a primary has a replica that acknowledges.
    bool has_replica(std::size_t n) { return at(n).integer({"WAIT", "1", "100"}) >= 1; }
    bool is_primary(std::size_t n) {
        return at(n).text({"INFO", "replication"}).find("role:master") != std::string::npos;
    }
    /// Whether all nodes that run know each other, and that the cluster is well.
    bool agree() {
        for (std::size_t n = 0; n < size(); ++n)
            if (at(n).pid() != 0 && !is_well(n)) return false;
        return true;
    }

    /// Makes a replica the primary. The others vote once in two node timeouts, and an attempt ends after 5 s.
    void fail_over_to(std::size_t n) {
        while (!is_primary(n)) {
            demand(n, {"CLUSTER", "FAILOVER"});
            const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds{5500};
            until([&] { return is_primary(n) || std::chrono::steady_clock::now() > end; });
        }
    }

    void begin_move(const std::string& key, std::size_t from, std::size_t to) {
        const std::string slot = slot_of(key);
        demand(to, {"CLUSTER", "SETSLOT", slot, "IMPORTING", id(from)});
        demand(from, {"CLUSTER", "SETSLOT", slot, "MIGRATING", id(to)});
    }
    /// All keys of the slot that there are now.
    void move_keys(const std::string& key, std::size_t from, std::size_t to) {
        for (;;) {
            const Reply keys = at(from).command({"CLUSTER", "GETKEYSINSLOT", slot_of(key), "100"});
            if (keys->elements == 0) return;
            std::vector<std::string> words{"MIGRATE", "127.0.0.1", std::to_string(at(to).port()), "", "0",
                                           "5000",    "KEYS"};
            for (std::size_t i = 0; i < keys->elements; ++i)
                words.emplace_back(keys->element[i]->str, keys->element[i]->len);
            const std::string said = at(from).text(words); // NOKEY: they have expired meanwhile
            if (said != "OK" && said != "NOKEY") throw std::runtime_error{said};
        }
    }
    void end_move(const std::string& key, std::size_t to) {
        const std::string slot = slot_of(key), owner = id(to);
        demand(to, {"CLUSTER", "SETSLOT", slot, "NODE", owner}); // first, so that it is never nobody's
        for (std::size_t n = 0; n < size(); ++n)
            if (n != to && at(n).pid() != 0) at(n).command({"CLUSTER", "SETSLOT", slot, "NODE", owner});
    }
    void move(const std::string& key, std::size_t from, std::size_t to) {
        begin_move(key, from, to);
        move_keys(key, from, to);
        end_move(key, to);
    }
    /// Calls a move off. What has moved by then is lost.
    void call_off(const std::string& key, std::size_t from, std::size_t to) {
        demand(from, {"CLUSTER", "SETSLOT", slot_of(key), "STABLE"});
        demand(to, {"CLUSTER", "SETSLOT", slot_of(key), "STABLE"});
    }

    /// How often a node has sent somebody away with this error.
    long long errors(const std::string& name) {
        long long all = 0;
        for (std::size_t n = 0; n < size(); ++n)
            if (at(n).pid() != 0) all += at(n).statistic("errorstats", "errorstat_" + name + ":count=");
        return all;
    }

private:
    void start(std::vector<std::string> extra) {
        for (const char* word : {"--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                                 "--repl-diskless-sync-delay", "0", "--cluster-port"})
            extra.emplace_back(word);
        for (int tries = 0;; ++tries) try {
                const int bus_port = free_port();
                std::vector<std::string> words = extra;
                words.push_back(std::to_string(bus_port));
                nodes_.push_back(std::make_unique<RedisServer>(std::move(words)));
                bus_ports_.push_back(bus_port);
                return;
            } catch (const std::runtime_error&) { // somebody else was faster to take the port
                if (tries == 5) throw;
            }
    }
    /// A handshake that takes longer than the node timeout is forgotten by the servers, and has to be begun anew.
    void meet() {
        for (int tries = 0; tries < 10 && !agree(); ++tries) {
            for (std::size_t n = 1; n < size(); ++n) meet(n, 0);
            const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
            until([&] { return agree() || std::chrono::steady_clock::now() > end; });
        }
        if (!agree()) throw std::runtime_error{"the cluster does not come about: " + at(0).text({"CLUSTER", "NODES"})};
    }
    void meet(std::size_t n, std::size_t other) {
        demand(n,
               {"CLUSTER", "MEET", "127.0.0.1", std::to_string(at(other).port()), std::to_string(bus_ports_[other])});
    }
    void demand(std::size_t n, const std::vector<std::string>& words) {
        if (const std::string said = at(n).text(words); said != "OK")
            throw std::runtime_error{words[1] + " " + words.back() + ": " + said};
    }
    bool is_well(std::size_t n) {
        const std::string info = at(n).text({"CLUSTER", "INFO"});
        const std::string known = "cluster_known_nodes:" + std::to_string(size()) + "\r";
        return info.find("cluster_state:ok") != info.npos && info.find(known) != info.npos &&
               at(n).text({"CLUSTER", "NODES"}).find("handshake") == info.npos;
    }
    static std::string slot_of(const std::string& key) { return std::to_string(redislock::detail::key_slot(key)); }
    std::string first_slot(std::size_t n) const {
        return std::to_string(redislock::detail::slot_count * n / primaries_);
    }
    std::string last_slot(std::size_t n) const {
        return std::to_string(redislock::detail::slot_count * (n + 1) / primaries_ - 1);
    }

    const std::size_t primaries_;
    std::vector<std::unique_ptr<RedisServer>> nodes_;
    std::vector<int> bus_ports_;
};

} // namespace test
