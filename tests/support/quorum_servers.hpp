/// Several servers, and a majority of them.
#pragma once

#include "redis_server.hpp"

#include <redislock/redislock.hpp>

#include <deque>
#include <thread>

namespace test {

/// Servers of a test's own, since it may stop and kill them.
struct Servers {
    /// With `db`, each connection has to name it, and to hear that it may, before the first question.
    explicit Servers(std::size_t count, unsigned db = 0) {
        for (std::size_t n = 0; n < count; ++n) {
            RedisServer& server = servers.emplace_back();
            nodes.emplace_back(server.unix_uri(db));
            if (db != 0) server.command({"SELECT", std::to_string(db)});
        }
    }
    redislock::Quorum<redislock::Redis> quorum() {
        std::vector<redislock::Redis*> all;
        for (redislock::Redis& node : nodes) all.push_back(&node);
        return redislock::Quorum<redislock::Redis>{all};
    }
    void everywhere(const std::vector<std::string>& command, std::size_t count = 100) {
        for (std::size_t n = 0; n < std::min(count, servers.size()); ++n) servers[n].command(command);
    }
    std::size_t keys(const std::string& key = "k") {
        std::size_t count = 0;
        for (RedisServer& server : servers) count += server.integer({"EXISTS", key}) == 1;
        return count;
    }
    /// An acquire may be on its way to those that were not waited for.
    bool have_all_within(redislock::Millis limit, const std::string& key = "k") {
        for (const redislock::TimePoint end = redislock::later(redislock::detail::now(), limit);
             redislock::detail::now() < end;)
            if (keys(key) == servers.size()) return true;
        return false;
    }
    /// Each of them has granted it, and so is connected.
    redislock::RedisLock<redislock::Quorum<redislock::Redis>>
    locked_everywhere(redislock::Quorum<redislock::Redis>& quorum, const redislock::Options& options,
                      const std::string& key = "k") {
        for (;;) {
            redislock::RedisLock lock{quorum, key, options};
            if (have_all_within(redislock::Millis{200}, key)) return lock;
        }
    }
    /// As a server does to those that it has not heard of for too long: all but the operator.
    void disconnect(std::size_t n) {
        servers[n].command({"CLIENT", "KILL", "TYPE", "normal"});
        while (servers[n].statistic("clients", "connected_clients:") > 1) std::this_thread::yield();
    }
    /// Late releases are on their way; a server that was frozen has yet to read them.
    bool are_free_within(redislock::Millis limit) {
        for (const redislock::TimePoint end = redislock::later(redislock::detail::now(), limit);
             redislock::detail::now() < end;)
            if (keys() == 0) return true;
        return false;
    }
    /// The same, in 20 s, while locks are used: an answer that was late is heard then.
    bool are_free_in_use(redislock::Quorum<redislock::Redis>& quorum) {
        for (const redislock::TimePoint end = redislock::detail::now() + std::chrono::seconds{20};
             redislock::detail::now() < end;) {
            redislock::RedisLock{quorum, "other"}.unlock();
            if (are_free_within(redislock::Millis{200})) return true;
        }
        return false;
    }

    std::deque<RedisServer> servers;
    std::deque<redislock::Redis> nodes;
};

} // namespace test
