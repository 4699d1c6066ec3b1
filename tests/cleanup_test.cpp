// A holder can always renew and release: over connections that exist where no new one can be made, and later where no
// server answers. What could not be released when the scope ended is released as soon as the server can be reached.
#include "catch.hpp"
#include "fake_server.hpp"
#include "no_descriptors.hpp"
#include "proxy.hpp"
#include "quorum_servers.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <atomic>
#include <thread>
#include <vector>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::failure;

namespace {

constexpr auto generous = 5s; // for a machine that is busy with other tests

/// From now on there is no room for another client.
void fill_up(test::RedisServer& server) {
    server.command({"CONFIG", "SET", "maxclients", std::to_string(server.statistic("clients", "connected_clients:"))});
}

void make_room(test::RedisServer& server) { server.command({"CONFIG", "SET", "maxclients", "10000"}); }

/// The lock outlives its first ttl, is extended, and released: half-way between two renewals, for one that is under way
/// may have the only connection.
template <class Backend>
void check_that_it_lasts(RedisLock<Backend>& lock, Millis ttl) {
    detail::wait(-1, 0, later(now(), ttl + ttl / 2));
    CHECK(lock.owns_lock());
    CHECK_FALSE(lock.lost().stop_requested());
    CHECK(lock.extend(30s) == Outcome::confirmed);
    CHECK(lock.unlock() == Outcome::confirmed);
}

bool goes_within(test::RedisServer& server, Millis limit) {
    for (const TimePoint end = later(now(), limit); now() < end; detail::wait(-1, 0, later(now(), 5ms)))
        if (server.integer({"EXISTS", "k"}) == 0) return true;
    return false;
}

/// As many threads as want the same key, each this often, over one Redis: how many releases were not confirmed.
template <class Backend>
int unconfirmed_releases(Backend& redis, int threads, int grants) {
    std::atomic<int> unconfirmed{0}, left{grants};
    std::vector<std::jthread> all;
    for (int i = 0; i < threads; ++i)
        all.emplace_back([&] {
            while (left > 0) {
                RedisLock lock{redis, "k", {.ttl = 20s, .request_timeout = 2s}, std::defer_lock};
                bool held = false;
                failure([&] { held = lock.try_lock_for(5s); });
                if (!held) continue;
                --left;
                detail::wait(-1, 0, later(now(), 1ms));
                if (lock.unlock() != Outcome::confirmed) ++unconfirmed;
            }
        });
    all.clear();
    return unconfirmed;
}

} // namespace

TEST_CASE("what was granted is renewed, extended and released though no other connection can be made",
          "[redis][cleanup]") {
    constexpr Millis ttl{1'200};
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock lock{redis, "k", ttl};
    static_cast<void>(server.integer({"DBSIZE"}));
    SECTION("for the server is full") {
        fill_up(server);
        check_that_it_lasts(lock, ttl);
        make_room(server);
    }
    SECTION("for the server's password is another one") {
        server.command({"CONFIG", "SET", "requirepass", "rotated"});
        check_that_it_lasts(lock, ttl);
        server.command({"CONFIG", "SET", "requirepass", ""});
    }
#if !defined(__SANITIZE_ADDRESS__) // beside which the undefined sanitizer needs a descriptor
    SECTION("for the process has no descriptor") {
        static_cast<void>(lock.lost());
        const test::NoDescriptors none{0};
        check_that_it_lasts(lock, ttl);
    }
#endif
    CHECK(server.integer({"EXISTS", "k"}) == 0);
}

TEST_CASE("what a majority has granted is renewed, extended and released though no other connection can be made",
          "[redis][cleanup][quorum]") {
    constexpr Millis ttl{1'200};
    test::Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = ttl});
    const bool are_others_there = GENERATE(false, true);
    const auto let_others_ask = [&] { // for locks of their own, with connections or without
        const Millis pause{test::RedisServer::is_tls() ? 100 : 20}; // connections by TLS take time
        std::vector<std::jthread> others;
        for (int i = 0; are_others_there && i < 4; ++i)
            others.emplace_back([&, i] {
                const Options own{.ttl = 60s, .renew = false};
                for (const TimePoint end = later(now(), ttl); now() < end; detail::wait(-1, 0, later(now(), pause)))
                    failure([&] { return RedisLock{quorum, "other " + std::to_string(i), own, std::try_to_lock}; });
            });
    };
    for (auto& server : three.servers) static_cast<void>(server.integer({"DBSIZE"}));
    SECTION("for the servers are full") {
        for (auto& server : three.servers) fill_up(server);
        let_others_ask();
        check_that_it_lasts(lock, ttl);
        for (auto& server : three.servers) make_room(server);
    }
    SECTION("for the servers' password is another one") {
        for (auto& server : three.servers) server.command({"CONFIG", "SET", "requirepass", "rotated"});
        let_others_ask();
        check_that_it_lasts(lock, ttl);
        for (auto& server : three.servers) server.command({"CONFIG", "SET", "requirepass", ""});
    }
#if !defined(__SANITIZE_ADDRESS__) // beside which the undefined sanitizer needs a descriptor
    SECTION("for the process has no descriptor") {
        static_cast<void>(lock.lost());
        const test::NoDescriptors none{0};
        let_others_ask();
        check_that_it_lasts(lock, ttl);
    }
#endif
    CHECK(three.are_free_within(generous)); // a minority may be later
}

TEST_CASE("connections over which no majority could be asked are the last to be taken again", "[cleanup]") {
    Redis nowhere{"unix:///nowhere/redis.sock"};
    detail::NodeSet<Redis> node_set{{&nowhere}};
    detail::FanOutPool<Redis> pool{node_set};
    auto one = pool.take({}), other = pool.take({});
    const auto* const good = one.get();
    pool.give_back(std::move(one), true);
    pool.give_back(std::move(other), false);
    CHECK(pool.take({}).get() == good);
}

TEST_CASE("a server that has room for one connection serves two leases of one thread", "[redis][cleanup]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock outer{redis, "k", 60s};
    fill_up(server);
    RedisLock inner{redis, "another", 60s};
    CHECK(inner.owns_lock());
    CHECK(inner.unlock() == Outcome::confirmed);
    CHECK(outer.unlock() == Outcome::confirmed);
    make_room(server);
}

TEST_CASE("a holder can release though those who wait for him take all connections", "[redis][cleanup]") {
    test::RedisServer server;
    SECTION("that the server has") {
        constexpr int threads = 8;
        Redis redis{server.unix_uri()};
        const auto clients = server.statistic("clients", "connected_clients:");
        server.command({"CONFIG", "SET", "maxclients", std::to_string(clients + threads)});
        CHECK(unconfirmed_releases(redis, threads, 200) == 0);
    }
#if !defined(__SANITIZE_ADDRESS__)
    SECTION("for which the process has descriptors") {
        Redis redis{server.unix_uri()};
        { RedisLock first{redis, "k", 20s}; } // the thread that renews has its descriptors
        static_cast<void>(server.integer({"DBSIZE"}));
        const test::NoDescriptors none{40};
        CHECK(unconfirmed_releases(redis, 100, 200) == 0);
    }
#endif
    make_room(server);
}

TEST_CASE("a majority's holder can release though those who wait for him take all connections",
          "[redis][cleanup][quorum]") {
    constexpr int threads = 8;
    const int room = GENERATE(2, 4, 8); // for so many connections
    test::Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    for (auto& server : three.servers) {
        const auto clients = server.statistic("clients", "connected_clients:");
        server.command({"CONFIG", "SET", "maxclients", std::to_string(clients + room)});
    }
    CHECK(unconfirmed_releases(quorum, threads, 200) == 0);
    for (auto& server : three.servers) make_room(server);
}

TEST_CASE("connections that died in silence while a lock was held do not keep its key", "[redis][cleanup]") {
    test::RedisServer server;
    test::Proxy proxy{server};
    Redis redis{proxy.uri()};
    Options options{.ttl = 60s, .request_timeout = 300ms};
    SECTION("where it is renewed") { options.ttl = 1500ms; }
    SECTION("where it is not renewed") { options.renew = false; }
    std::optional<RedisLock<Redis>> lock{std::in_place, redis, "k", options};
    proxy.go_silent();
    detail::wait(-1, 0, later(now(), options.ttl > 2s ? 10ms : 1000ms));
    CHECK(lock->owns_lock());
    const TimePoint start = now();
    lock.reset();
    CHECK(now() < start + options.request_timeout.value() + generous);
    CHECK(goes_within(server, options.request_timeout.value() + generous));
}

TEST_CASE("a key whose release the server could not be asked for goes as soon as that can", "[redis][cleanup]") {
    test::RedisServer server{{"--save", "3600 1000000"}};
    Redis redis{server.unix_uri()};
    const Options options{.ttl = 120s, .request_timeout = 500ms, .confirm_release = GENERATE(true, false)};
    std::optional<RedisLock<Redis>> lock{std::in_place, redis, "k", options};
    const auto end_the_scope = [&] {
        const TimePoint start = now();
        lock.reset();
        CHECK(now() < start + options.request_timeout.value() + generous);
    };
    SECTION("from a server that is paused") {
        server.stop();
        end_the_scope();
        server.go_on();
    }
    SECTION("from a server that is down, and comes back with what it had") {
        server.command({"SAVE"});
        server.kill();
        end_the_scope();
        detail::wait(-1, 0, later(now(), 1s));
        server.start();
        CHECK(server.integer({"EXISTS", "k"}) == 1);
    }
    CHECK(goes_within(server, 3s + generous));
}

TEST_CASE("a release that a replica refuses is unknown, and done as soon as the server is a primary again",
          "[redis][cleanup]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::optional<RedisLock<Redis>> lock{std::in_place, redis, "k", Options{.ttl = 120s, .request_timeout = 300ms}};
    server.command({"REPLICAOF", "127.0.0.1", "1"});
    SECTION("by unlock()") { CHECK(lock->unlock() == Outcome::unknown); }
    SECTION("by the destructor") { lock.reset(); }
    detail::wait(-1, 0, later(now(), 1s));
    CHECK(server.integer({"EXISTS", "k"}) == 1);
    server.command({"REPLICAOF", "NO", "ONE"});
    CHECK(goes_within(server, 3s + generous));
}

TEST_CASE("a backend that ends tries once more to release what was left behind", "[redis][cleanup]") {
    test::RedisServer server;
    test::Proxy proxy{server};
    {
        Redis redis{proxy.uri()};
        RedisLock lock{redis, "k", {.ttl = 120s, .request_timeout = 300ms}};
        proxy.go_silent();
    }
    CHECK(goes_within(server, generous));
}

TEST_CASE("destructors on a server that refuses connections wait for nothing", "[redis][cleanup]") {
    test::RedisServer server;
    std::optional<Redis> redis{std::in_place, server.unix_uri()};
    std::vector<RedisLock<Redis>> locks;
    for (int i = 0; i < 10; ++i)
        locks.emplace_back(*redis, std::to_string(i), Options{.ttl = 60s, .request_timeout = 10s});
    server.kill();
    const TimePoint start = now();
    locks.clear();
    redis.reset();
    CHECK(now() < start + 10s);
}

TEST_CASE("what one of a majority carries out late is undone, though it waits for replicas and finds nobody there",
          "[redis][cleanup][quorum]") {
    test::Servers three{3};
    test::RedisServer& server = three.servers[0];
    for (Redis& node : three.nodes) const RedisLock proven{node, "p"}; // else nothing is sent
    server.stop();
    const Options options{.ttl = 120s, .request_timeout = 40ms, .min_replicas = 1};
    {
        Quorum<Redis> quorum = three.quorum();
        const int more_than_linger = 70;
        for (int i = 0; i < more_than_linger; ++i)
            failure([&] { return RedisLock(quorum, std::to_string(i), options, std::defer_lock).try_lock(); });
    }
    server.go_on();
    CHECK(server.is_empty_within(generous));
}

TEST_CASE("a worker asks all servers for a release, also those who have carried it out before", "[cleanup]") {
    Request release{Verb::release, "k", Token::from_bits(1, 2), 10s, TimePoint{1h}};
    release.released = 1;
    const detail::PendingRelease pending{release, {.ttl = 10s}, TimePoint{1h}};
    CHECK(pending.worker_request(release.token, TimePoint{2h}).released == 0);
}

TEST_CASE("an undo that finds the key not ours is asked for once more, for the acquire may be carried out behind it",
          "[cleanup]") {
    const auto asked = [&](bool was_granted, Errc why) { // how often
        TimePoint time{1h};
        Request release{Verb::release, "k", Token::from_bits(1, 2), 10s, time};
        release.was_granted = was_granted;
        detail::PendingRelease pending{release, {.ttl = 10s}, time};
        int times = 0;
        for (; time < TimePoint{1h} + 5s; time += 20ms) {
            if (pending.step(time).act != detail::WorkerTask::Step::Act::ask) continue;
            ++times;
            pending.answered(release.token, {Verdict::no, {why, {}}}, time, time);
            CHECK(pending.is_untried() == (times == 1 && !was_granted));
        }
        return times;
    };
    for (const Errc why : {Errc::expired, Errc::stolen}) {
        CHECK(asked(true, why) == 1);
        CHECK(asked(false, why) == 2);
    }
}

TEST_CASE("releases that are never answered in time cost no other lease", "[cleanup]") {
    test::FakeServer slow{[](test::Peer& peer, int) {
        for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
            if (command.find("EVAL") != command.npos) detail::wait(-1, 0, later(now(), 400ms));
            for (std::size_t at = 0; at != command.npos; at = command.find("\n*", at + 1))
                peer.send(command.find("EVAL", at) == command.npos ? "+OK\r\n" : ":1\r\n");
        }
    }};
    Redis redis{slow.unix_uri(), {.client_name = ""}};
    RedisLock patient{redis, "patient", {.ttl = 3s, .request_timeout = 900ms}};
    for (const TimePoint end = later(now(), 6s); now() < end; detail::wait(-1, 0, later(now(), 20ms))) {
        RedisLock hasty{redis, "hasty", {.ttl = 30s, .renew = false, .request_timeout = 50ms}, std::defer_lock};
        if (!failure([&] { return hasty.try_lock(); })) static_cast<void>(hasty.unlock());
    }
    CHECK(patient.owns_lock());
}
