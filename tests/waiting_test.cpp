// Waiting for a lock on a real server: who is next, what wakes him, what may go wrong meanwhile, and that nothing is
// left.
#include "catch.hpp"
#include "fake_server.hpp"
#include "no_descriptors.hpp"
#include "proxy.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"
#include "until.hpp"
#include "waiters.hpp"

#include <redislock/redislock.hpp>

#include <atomic>
#include <deque>
#include <future>
#include <set>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::failure;
using test::FakeServer;
using test::looks_seldom;
using test::Peer;
using test::quick;
using test::Waiters;

namespace {

constexpr Options looks_often{.ttl = 60s, .request_timeout = 400ms};
constexpr auto generous = 30s;

const std::string announcement = "{k}:redislock:waiting", hand_off_list = "{k}:redislock:turn";

long long calls(test::RedisServer& server, const std::string& command) {
    return server.statistic("commandstats", "cmdstat_" + command + ":calls=");
}

/// All that is left goes by itself, within a ttl, and the lock's own key is gone.
bool leaves_nothing(test::RedisServer& server) {
    const test::Reply keys = server.command({"KEYS", "*"});
    for (std::size_t i = 0; i < keys->elements; ++i) {
        const std::string key{keys->element[i]->str, keys->element[i]->len};
        const long long left = server.integer({"PTTL", key});
        if (key == "k" || left == -1 || left > 60'000) return false;
    }
    return true;
}

} // namespace

TEST_CASE("waiters get the lock in the order of their arrival, each woken by the one before", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    Options options = looks_seldom;
    SECTION("by a release that is confirmed") {}
    SECTION("by one that is not") { options.confirm_release = false; }
    auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", options);
    Waiters waiters{server, redis, options};
    waiters.add(8);
    const TimePoint start = now();
    holder.reset();
    waiters.join();
    CHECK(now() < start + quick);
    CHECK(waiters.order() == std::vector{0, 1, 2, 3, 4, 5, 6, 7});
    CHECK(leaves_nothing(server));
}

TEST_CASE("that somebody stands in line is told with the holder", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", looks_seldom};
    CHECK_FALSE(inspect(redis, "k")->is_awaited);
    Waiters waiters{server, redis, looks_seldom};
    waiters.add();
    CHECK(inspect(redis, "k")->is_awaited);
    holder.unlock();
}

TEST_CASE("a turn costs four commands, and no look", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    for (int round = 0; round < 2; ++round) { // at first the server does not know the scripts yet
        server.command({"FLUSHALL"});
        server.command({"CONFIG", "RESETSTAT"});
        RedisLock holder{redis, "k", looks_seldom};
        Waiters waiters{server, redis, looks_seldom};
        waiters.add(3);
        holder.unlock();
        waiters.join();
    }
    // In the second round all stand in line at once, for there were some when the lock was released last.
    CHECK(calls(server, "blpop") == 4);
    CHECK(calls(server, "evalsha") == 4 + 4); // announcements and releases
    CHECK(calls(server, "set") == 4 + 1 + 5); // and the scripts' own
    CHECK(calls(server, "eval") == 0);
}

TEST_CASE("a release between the first try and the wait is not missed", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const Token token = redis.fresh();
    const auto ask = [&](Millis patience) {
        return redis.ask({Verb::acquire, "k", token, 10s, later(now(), 30s), patience, 20s});
    };
    RedisLock holder{redis, "k", 60s};
    CHECK(ask(0ms).is_busy());
    const TimePoint start = now();
    SECTION("nor is one before the announcement") { holder.unlock(); }
    SECTION("nor one between the announcement and the block") {
        server.command(
            {"EVAL", std::string{detail::announce_script}, "1", "k", "20000", announcement, hand_off_list, "given"});
        holder.unlock();
        CHECK(server.integer({"LLEN", hand_off_list}) == 1);
    }
    const Answer answer = ask(20s);
    CHECK((answer.verdict == Verdict::yes && answer.queued));
    CHECK(now() < start + quick);
}

TEST_CASE("a turn that nobody takes is one, goes by itself, and wakes one waiter at most", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    {
        RedisLock holder{redis, "k", looks_seldom};
        RedisLock gives_up{redis, "k", looks_seldom, std::defer_lock};
        CHECK(test::waits_in_vain(gives_up, 300ms));
    }
    for (int i = 0; i < 10; ++i) RedisLock lock{redis, "k", looks_seldom};
    CHECK(server.integer({"LLEN", hand_off_list}) == 1);
    CHECK(server.integer({"PTTL", hand_off_list}) > 0);
    CHECK(server.integer({"PTTL", hand_off_list}) <= 20'000);
    CHECK(leaves_nothing(server));

    Redis newcomer{server.unix_uri()};
    RedisLock holder{newcomer, "k", looks_seldom};
    server.command({"CONFIG", "RESETSTAT"});
    Waiters waiters{server, redis, looks_seldom};
    waiters.add(5);
    CHECK(server.integer({"EXISTS", hand_off_list}) == 0);
    holder.unlock();
    waiters.join();
    CHECK(calls(server, "blpop") == 6); // newer servers count one when it ends
}

TEST_CASE("a lease that expires is followed by the first waiter, though nobody hands it on", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock dead{redis, "k", {.ttl = 600ms, .renew = false, .request_timeout = 500ms}};
    Waiters waiters{server, redis, looks_seldom};
    waiters.add(4);
    const TimePoint end = now() + dead.remaining();
    waiters.join();
    CHECK(now() > end);
    CHECK(now() < end + quick);
    CHECK(waiters.order() == std::vector{0, 1, 2, 3});
    CHECK_FALSE(dead.owns_lock());
}

TEST_CASE("a client that knows no waiters delays them by no more than their next look", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    server.command({"SET", "k", "by hand", "NX", "PX", "60000"});
    Waiters waiters{server, redis, looks_often};
    waiters.add(4);
    const TimePoint start = now();
    SECTION("when it deletes the key") { server.command({"DEL", "k"}); }
    SECTION("when it shortens the key's life") { server.command({"PEXPIRE", "k", "10"}); }
    SECTION("when it flushes the whole database") { server.command({"FLUSHALL"}); }
    waiters.join();
    CHECK(now() < start + quick);
    CHECK(waiters.order() == std::vector{0, 1, 2, 3});
    CHECK(leaves_nothing(server));
}

TEST_CASE("whatever befalls the server, of 32 waiters none is lost, and nothing is left", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.tcp_uri()};
    const Options options{.ttl = 60s, .request_timeout = 5s}; // to ride out a restart
    auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", options);
    Waiters waiters{server, redis, options};
    waiters.add(32);
    const TimePoint start = now();
    SECTION("SCRIPT FLUSH") { server.command({"SCRIPT", "FLUSH"}); }
    SECTION("CLIENT KILL of every client") { server.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}); }
    SECTION("CLIENT UNBLOCK of every client") {
        for (long long id = 1; id < 200; ++id)
            server.command({"CLIENT", "UNBLOCK", std::to_string(id), id % 2 == 0 ? "ERROR" : "TIMEOUT"});
    }
    SECTION("FLUSHALL") { server.command({"FLUSHALL"}); }
    SECTION("a restart") {
        server.kill();
        server.start();
    }
    SECTION("a stop for a while") {
        server.stop();
        detail::wait(-1, 0, now() + 3s); // beyond a look
        server.go_on();
    }
    holder.reset();
    waiters.join();
    CHECK(waiters.failures == 0);
    CHECK(waiters.order().size() == 32);
    CHECK(now() < start + 30s);
    CHECK(leaves_nothing(server));
}

TEST_CASE("a user who may not stand in line polls, and his releases are as good", "[redis][waiting]") {
    test::RedisServer server;
    const char* rights;
    SECTION("without blocking commands") { rights = "~* +@all -@blocking"; }
    SECTION("with access to the lock's key alone") { rights = "~k +@all"; }
    SECTION("with a lock's commands alone") { rights = "~* +set +get +del +pttl +pexpire +eval +evalsha"; }
    std::vector<std::string> rule{"ACL", "SETUSER", "poor", "on", ">p"};
    std::istringstream words{rights};
    for (std::string word; words >> word;) rule.push_back(word);
    server.command(rule);
    Redis poor{"unix://poor:p@" + server.socket_path()}, redis{server.unix_uri()};
    const Options options{.ttl = 60s, .request_timeout = 1s, .max_retry_delay = 20ms};
    for (const bool confirm : {true, false}) {
        auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", options);
        RedisLock waiter{poor, "k", {.ttl = 60s, .request_timeout = 1s, .confirm_release = confirm}, std::defer_lock};
        CHECK(test::waits_in_vain(waiter, 50ms));
        CHECK(server.blocked_clients() == 0);
        std::thread other{[&] { waiter.lock(); }};
        holder.reset();
        other.join();
        CHECK(waiter.owns_lock());
        Waiters waiters{server, redis, options};
        waiters.add();
        waiter =
            RedisLock{poor, "k", options, std::defer_lock}; // destroys it: the next is woken, or finds out by a look
        waiters.join();
        CHECK(waiters.failures == 0);
    }
    CHECK(leaves_nothing(server));
}

TEST_CASE("a waiter whom something else keeps from the line polls for as long", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", looks_seldom);
    SECTION("a companion of another type") {
        server.command({"SET", hand_off_list, "somebody else's"});
        server.command({"HSET", announcement, "somebody", "else"});
    }
    SECTION("a list of another type") { server.command({"SET", hand_off_list, "somebody else's"}); }
    RedisLock waiter{redis, "k", looks_seldom, std::defer_lock};
    CHECK(test::waits_in_vain(waiter, 50ms));
    holder.reset();
    const TimePoint start = now();
    CHECK(waiter.try_lock_for(20s));
    CHECK(now() < start + quick);
    CHECK(waiter.unlock() == Outcome::confirmed);
}

TEST_CASE("a server with no room for another connection keeps its waiters", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri(), {.idle_connections = 0}};
    RedisLock holder{redis, "k", 60s};
    Waiters waiters{server, redis, {.ttl = 60s, .request_timeout = 4s}};
    waiters.add(2);
    server.command({"CONFIG", "SET", "maxclients", "3"});                                 // they and we
    test::until([&] { return server.statistic("stats", "rejected_connections:") >= 4; }); // two looks of each
    CHECK(waiters.failures == 0);
    CHECK(server.blocked_clients() == 2);
    server.command({"CONFIG", "SET", "maxclients", "100"});
    holder.unlock();
    waiters.join();
    CHECK(waiters.order() == std::vector{0, 1});
}

TEST_CASE("a lease that was waited for is as good as new", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", 60s};
    for (const Millis ttl : {1000ms, 4000ms}) { // shorter than the wait, and longer
        std::optional<RedisLock<Redis>> waiter;
        std::thread waits{[&] { waiter.emplace(redis, "k", ttl); }};
        test::until([&] { return server.blocked_clients() == 1; });
        detail::wait(-1, 0, now() + 2s);
        holder.unlock();
        waits.join();
        const Millis servers{server.integer({"PTTL", "k"})};
        CHECK(waiter->remaining() > ttl / 2);
        CHECK(waiter->remaining() <= servers);
        waiter.reset();
        holder.lock();
    }
}

TEST_CASE("a wait on a server that falls silent ends with an error, or in its time", "[redis][waiting]") {
    if (test::is_over_tls("a server that is silent can not be connected to")) return;
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", 60s}, waiter{redis, "k", looks_often, std::defer_lock};
    TimePoint stopped;
    const auto stop_once_blocked = [&] {
        return std::thread{[&] {
            test::until([&] { return server.blocked_clients() == 1; });
            stopped = now();
            server.stop();
        }};
    };
    std::thread stops = stop_once_blocked();
    const TimePoint start = now();
    CHECK(failure([&] { waiter.lock(); }).code == Errc::timed_out);
    const TimePoint end = now();
    stops.join();
    INFO("stopped after " << std::chrono::floor<Millis>(stopped - start).count() << " ms");
    INFO("ended after " << std::chrono::floor<Millis>(end - start).count() << " ms");
    CHECK(end < start + quick);
    server.go_on();
    test::until([&] { return server.blocked_clients() == 0; });
    stops = stop_once_blocked();
    CHECK(test::waits_in_vain(waiter, 300ms)); // as far as it knows
    stops.join();
    server.go_on();
    CHECK(holder.unlock() == Outcome::confirmed);
    CHECK(waiter.try_lock_for(quick)); // and not for its own ghost
    CHECK(waiter.unlock() == Outcome::confirmed);
    CHECK(leaves_nothing(server));
}

TEST_CASE("who waits on a server that dies is told why there is none to be had", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const RedisLock holder{redis, "k", {.ttl = 60s, .renew = false}};
    Failure why;
    std::jthread waiting{[&] {
        why = failure([&] { return RedisLock{redis, "k", {.ttl = 60s, .renew = false, .request_timeout = 200ms}}; });
    }};
    test::until([&] { return server.blocked_clients() > 0; });
    server.kill();
    waiting.join();
    CHECK(why.code == Errc::unreachable);
}

TEST_CASE("a wait ends when a stop is requested, and what it may still be granted is undone", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", looks_seldom);
    RedisLock waiter{redis, "k", looks_seldom, std::defer_lock};
    std::stop_source stop;
    SECTION("before it began") {
        stop.request_stop();
        CHECK_FALSE(waiter.lock(stop.get_token()));
        CHECK_FALSE(waiter.try_lock_for(1h, stop.get_token()));
        CHECK_FALSE(waiter.try_lock_until(std::chrono::steady_clock::now() + 1h, stop.get_token()));
        CHECK(waiter.try_lock_for(0s) == false);
    }
    SECTION("while it stands in line") {
        std::thread stops{[&] {
            test::until([&] { return server.blocked_clients() == 1; });
            stop.request_stop();
        }};
        const TimePoint start = now();
        CHECK_FALSE(waiter.lock(stop.get_token()));
        CHECK(now() < start + quick);
        stops.join();
    }
    SECTION("while the server is silent") {
        std::thread stops{[&] {
            test::until([&] { return server.blocked_clients() == 1; });
            server.stop();
            stop.request_stop();
        }};
        const TimePoint start = now();
        CHECK_FALSE(waiter.try_lock_until(std::chrono::steady_clock::now() + 1h, stop.get_token()));
        CHECK(now() < start + quick);
        stops.join();
        server.go_on();
    }
    SECTION("while it polls") {
        server.command({"ACL", "SETUSER", "default", "-@blocking"});
        std::thread stops{[&] {
            test::until([&] { return calls(server, "pttl") > 3; });
            stop.request_stop();
        }};
        RedisLock polling{redis, "k", {.ttl = 60s, .request_timeout = 20s, .max_retry_delay = 1h}, std::defer_lock};
        CHECK_FALSE(polling.lock(stop.get_token()));
        stops.join();
        server.command({"ACL", "SETUSER", "default", "+@all"});
    }
    CHECK_FALSE(waiter.owns_lock());
    holder.reset();
    RedisLock next{redis, "k", looks_seldom, std::defer_lock};
    CHECK(next.try_lock_for(quick));
    next.unlock();
    CHECK(leaves_nothing(server));
}

TEST_CASE("a stop ends a wait for a connection as well", "[redis][waiting]") {
    const test::BlackHole hole;
    Redis redis{hole.uri()};
    RedisLock lock{redis, "k", looks_seldom, std::defer_lock};
    std::stop_source stop;
    std::atomic<bool> begun{false};
    std::thread stops{[&] {
        test::until([&] { return begun.load(); });
        detail::wait(-1, 0, now() + 50ms); // by then it waits, on a machine that is not busy
        stop.request_stop();
    }};
    begun = true;
    const TimePoint start = now();
    CHECK_FALSE(lock.lock(stop.get_token()));
    CHECK(now() < start + quick);
    stops.join();
}

TEST_CASE("a stop and a turn at the same moment: either the lock is held, or the next one has it", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    int held = 0;
    // The turn comes later until the stop wins, and earlier until it loses: the two meet on any machine.
    std::chrono::microseconds later_by{0};
    const auto wait_for = [](std::chrono::microseconds span) {
        for (const TimePoint end = now() + span; now() < end;) std::this_thread::yield();
    };
    for (int round = 0; round < 200; ++round) {
        RedisLock holder{redis, "k", looks_seldom}, waiter{redis, "k", looks_seldom, std::defer_lock};
        std::stop_source stop;
        std::atomic<int> ready{0};
        bool got = false;
        std::thread waits{[&] { got = waiter.lock(stop.get_token()); }};
        test::until([&] { return server.blocked_clients() == 1; });
        std::thread stops{[&] {
            for (++ready; ready < 2;) std::this_thread::yield();
            wait_for(-later_by);
            stop.request_stop();
        }};
        for (++ready; ready < 2;) std::this_thread::yield();
        wait_for(later_by);
        holder.unlock();
        stops.join();
        waits.join();
        REQUIRE(got == waiter.owns_lock());
        held += got;
        if (got)
            later_by = later_by < 0us ? later_by / 2 : 2 * later_by + 1us;
        else
            later_by = later_by > 0us ? later_by / 2 : 2 * later_by - 1us;
        REQUIRE((later_by < 1s && later_by > -1s));
        if (got) REQUIRE(waiter.unlock() == Outcome::confirmed);
        RedisLock next{redis, "k", looks_seldom, std::defer_lock};
        REQUIRE(next.try_lock_for(quick));
    }
    CHECK(leaves_nothing(server));
    INFO(held << " of 200 had it");
    CHECK(held > 0);
    CHECK(held < 200);
}

TEST_CASE("the shortest leases are waited for as well", "[redis][waiting]") {
    test::RedisServer server;
    std::atomic<int> granted{0};
    const auto acquired = [](void* context, const Observer::Acquired&) noexcept {
        ++*static_cast<std::atomic<int>*>(context);
    };
    const Observer observer{.context = &granted, .acquired = acquired};
    Redis redis{server.unix_uri()};
    // A TLS handshake takes longer than the shortest of all, where the machine is busy.
    const Options shortest{.ttl = test::RedisServer::is_tls() ? 100ms : 10ms, .observer = &observer};
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 4; ++i)
            threads.emplace_back([&](const std::stop_token& is_over) {
                while (!is_over.stop_requested()) {
                    RedisLock lock{redis, "k", shortest, std::defer_lock};
                    failure([&] { lock.lock(); }); // on a busy machine they may be too short
                }
            });
        test::until([&] { return granted > 20 && calls(server, "blpop") > 0; });
    }
    CHECK(server.is_empty_within(10s));
}

TEST_CASE("the keys beside a lock's key are in its slot, and a node of a cluster serves them", "[redis][waiting]") {
    test::RedisServer server{{"--cluster-enabled", "yes"}};
    server.command({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"});
    test::until([&] { return server.text({"CLUSTER", "INFO"}).find("cluster_state:ok") != std::string::npos; });
    Redis redis{server.unix_uri()};
    for (const std::string key : {"k", "{tag}k", "k{tag}:x", "{k", "a}b", "{}k", "}{", "{a{b}"}) {
        const detail::AuxiliaryKeys auxiliary_keys{key};
        const auto slot = [&](const std::string& name) { return server.integer({"CLUSTER", "KEYSLOT", name}); };
        CHECK(auxiliary_keys.waiting != auxiliary_keys.turn);
        INFO(key);
        CHECK(slot(auxiliary_keys.waiting) == slot(key));
        CHECK(slot(auxiliary_keys.turn) == slot(key));
        CHECK(slot(auxiliary_keys.fencing_counter) == slot(key));
        RedisLock holder{redis, key, looks_seldom}, waiter{redis, key, looks_seldom, std::defer_lock};
        CHECK(test::waits_in_vain(waiter, 300ms));
        std::thread waits{[&] { waiter.lock(); }};
        test::until([&] { return server.blocked_clients() == 1; });
        holder.unlock();
        waits.join();
        CHECK(waiter.unlock() == Outcome::confirmed);
    }
}

TEST_CASE("a turn that comes after we gave up is undone, also where a new connection would have to say who it is",
          "[redis][waiting]") {
    for (const bool has_to : {false, true}) {
        test::RedisServer server;
        if (has_to) {
            server.command({"CONFIG", "SET", "requirepass", "secret"});
            server.command({"AUTH", "secret"});
            server.command({"SELECT", "1"});
        }
        Redis redis{has_to ? "unix://:secret@" + server.socket_path() + "?db=1" : server.unix_uri()};
        server.command({"SET", "k", "dead", "PX", "300"});
        {
            RedisLock waiter{redis, "k", {.ttl = 60s, .request_timeout = 400ms}, std::defer_lock};
            std::thread stops{[&] {
                test::until([&] { return server.blocked_clients() == 1; });
                server.stop();
            }};
            CHECK(test::waits_in_vain(waiter, 500ms));
            stops.join();
        }
        server.go_on();
        test::until([&] { return server.blocked_clients() == 0; });
        test::until([&] { return server.integer({"EXISTS", "k"}) == 0; });
    }
}

TEST_CASE("no two keys have auxiliary_keys in common, and one key's trouble with them is not another's",
          "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::set<std::string> names;
    const std::vector<std::string> keys{"k", "{k}", "{k}x", "{", "}", "{}", "{{}}", "{{}", "{}}", "k}", "{k"};
    for (const std::string& key : keys) {
        const detail::AuxiliaryKeys auxiliary_keys{key};
        names.insert({auxiliary_keys.waiting, auxiliary_keys.turn, auxiliary_keys.given});
    }
    CHECK(names.size() == 3 * keys.size());
    server.command({"SET", "{bad}:redislock:turn", "somebody else's"});
    RedisLock bad{redis, "bad", looks_seldom}, unlucky{redis, "bad", looks_seldom, std::defer_lock};
    CHECK(test::waits_in_vain(unlucky, 20ms));
    auto holder = std::make_unique<RedisLock<Redis>>(redis, "k", looks_seldom);
    Waiters waiters{server, redis, looks_seldom};
    waiters.add();
    holder.reset();
    waiters.join();
    CHECK(waiters.order().size() == 1);
}

TEST_CASE("a server with no room for another connection, whose holder dies, lets its waiters go on",
          "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri(), {.idle_connections = 0}};
    static_cast<void>(RedisLock{redis, "k", {.ttl = 2s}}.detach());
    RedisLock waiter{redis, "k", looks_often, std::defer_lock};
    std::thread waits{[&] { static_cast<void>(waiter.try_lock_for(20s)); }};
    test::until([&] { return server.blocked_clients() == 1; });
    server.command({"CONFIG", "SET", "maxclients", "2"});
    waits.join();
    CHECK(waiter.owns_lock());
    server.command({"CONFIG", "SET", "maxclients", "100"});
}

namespace {

constexpr Millis request_timeout{400};
constexpr Options looks_over_others{.ttl = 60s, .renew = false, .request_timeout = request_timeout};

long long accepted(test::RedisServer& server) { return server.statistic("stats", "total_connections_received:"); }

/// For how many seconds the client that is blocked has been so.
long long blocked_for(test::RedisServer& server) {
    const std::string clients = server.text({"CLIENT", "LIST"});
    const auto blocked = clients.find(" flags=b");
    const auto idle = blocked == clients.npos ? clients.npos : clients.rfind(" idle=", blocked);
    return idle == clients.npos ? -1 : std::stoll(clients.substr(idle + 6));
}

} // namespace

TEST_CASE("a waiter on a server that has room for him alone is served at the release, and keeps his connection",
          "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()}, holders{server.unix_uri()};
    RedisLock holder{holders, "k", {.ttl = 60s, .renew = false}};
    server.command({"CONFIG", "SET", "maxclients", "3"}); // he, the holder and we
    Waiters waiters{server, redis, looks_over_others};
    waiters.add();
    const long long first = accepted(server);
    test::until(
        [&] { return accepted(server) == first + 1 && server.blocked_clients() == 1; }); // he stands in line anew
    const long long asked = calls(server, "evalsha");
    test::until([&] { return calls(server, "evalsha") >= asked + 4; }); // and again, over the same connection
    CHECK(accepted(server) == first + 1);
    SECTION("at once") {}
    SECTION("and waits like all others when there is room again") {
        server.command({"CONFIG", "SET", "maxclients", "100"});
        test::until([&] { return blocked_for(server) >= 2; });
    }
    const TimePoint start = now();
    CHECK(holder.unlock() == Outcome::confirmed);
    waiters.join();
    CHECK(waiters.failures == 0);
    CHECK(waiters.order().size() == 1);
    CHECK(now() < start + quick);
    CHECK(accepted(server) <= first + 3);
    CHECK(leaves_nothing(server));
}

TEST_CASE("waiters on a server that has room for them alone look over their own connections, and all are served",
          "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()}, holders{server.unix_uri()};
    RedisLock holder{holders, "k", {.ttl = 60s, .renew = false}};
    server.command({"CONFIG", "SET", "maxclients", "5"}); // three, the holder and we
    Waiters waiters{server, redis, looks_over_others};
    waiters.add(3);
    long long connections = accepted(server), announced = calls(server, "evalsha");
    test::until([&] { // each stands in line anew again and again, over the connection that he has
        if (const long long all = accepted(server); std::exchange(connections, all) != all)
            announced = calls(server, "evalsha");
        return calls(server, "evalsha") >= announced + 10;
    });
    CHECK(waiters.failures == 0);
    CHECK(holder.unlock() == Outcome::confirmed);
    waiters.join();
    CHECK(waiters.failures == 0);
    CHECK(waiters.order().size() == 3);
    CHECK(leaves_nothing(server));
}

#if !defined(__SANITIZE_ADDRESS__) // beside which the undefined sanitizer needs a descriptor
TEST_CASE("a waiter whose process has no other descriptor is served at the release", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()}, holders{server.unix_uri()};
    RedisLock holder{holders, "k", {.ttl = 60s, .renew = false}};
    REQUIRE(server.blocked_clients() == 0); // by a connection that it keeps
    const test::NoDescriptors none{1};
    Waiters waiters{server, redis, looks_over_others};
    waiters.add();
    const long long first = accepted(server);
    test::until([&] { return accepted(server) == first + 1 && server.blocked_clients() == 1; });
    const TimePoint start = now();
    CHECK(holder.unlock() == Outcome::confirmed);
    waiters.join();
    CHECK(waiters.failures == 0);
    CHECK(waiters.order().size() == 1);
    CHECK(now() < start + quick);
}
#endif

TEST_CASE("a waiter who can reach nobody is told within three request timeouts, however long the holder has",
          "[redis][waiting]") {
    test::RedisServer server;
    test::Proxy proxy{server.socket_path()};
    Redis redis{proxy.uri(), {.idle_connections = 0}};
    server.command({"SET", "k", "a holder", "PX", "60000"});
    Failure why;
    std::jthread waiting{[&] { why = failure([&] { return RedisLock{redis, "k", looks_over_others}; }); }};
    test::until([&] { return server.blocked_clients() == 1; });
    const TimePoint start = now();
    SECTION("where new connections get no answer") {}
    SECTION("where nothing gets one") { proxy.set(test::Proxy::Mode::swallow); }
    proxy.drop_newcomers();
    waiting.join();
    CHECK(why.code == Errc::unreachable);
    CHECK(now() < start + 3 * request_timeout + quick);
}

TEST_CASE("a turn, and a stop, are heard while a look over another connection is not answered", "[waiting]") {
    std::promise<void> looked;
    std::shared_future<void> look = looked.get_future().share();
    std::stop_source stop;
    bool stops = false;
    FakeServer fake{[&](Peer& peer, int nth) {
        for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
            const auto is = [&](std::string_view word) { return command.find(word) != command.npos; };
            if (nth == 1 && is(detail::announce_sha)) {
                looked.set_value();
                peer.wait_for_the_end();
            } else if (is(detail::announce_sha)) {
                peer.send(":50\r\n"); // to be looked at then
            } else if (is("BLPOP")) {
                look.wait();
                if (stops)
                    stop.request_stop();
                else
                    peer.send("*2\r\n$1\r\nt\r\n$0\r\n\r\n+OK\r\n");
            } else {
                peer.send(is("SET\r\n") ? "$-1\r\n" : ":1\r\n");
            }
        }
    }};
    SECTION("a turn") {}
    SECTION("a stop") { stops = true; }
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "k", looks_seldom, std::defer_lock};
    const TimePoint start = now();
    CHECK(lock.lock(stop.get_token()) == !stops);
    CHECK(now() < start + quick);
    if (!stops) {
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK(fake.connections() == 2); // the one that was looked over is as good as before, for all that we know
    }
}

TEST_CASE("false is that somebody held the key, though the server hangs at the end of the wait", "[waiting]") {
    std::atomic<bool> silent{false};

    Options options = looks_seldom;
    FakeServer fake{[&](Peer& peer, int) {
        for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
            const auto is = [&](std::string_view word) { return command.find(word) != command.npos; };
            if (is(detail::announce_sha)) peer.send(":9000\r\n");
            if (is("BLPOP") && !silent) peer.send("*2\r\n$1\r\nt\r\n$0\r\n\r\n+OK\r\n");
            if (is(detail::release_sha) || is(detail::release_script)) silent = peer.send(":1\r\n");
            if (!is("BLPOP") && is("SET\r\n") && !silent) peer.send("$-1\r\n");
            if (silent && is(detail::announce_sha) && !is("BLPOP")) break; // a look
        }
        peer.wait_for_the_end();
    }};
    SECTION("before the last answer") {}
    SECTION("and does not answer a look either") { options.request_timeout = 200ms; }
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "k", options, std::defer_lock};
    REQUIRE(lock.try_lock_for(20s)); // after a wait, so that the next one begins with standing in line
    REQUIRE(lock.unlock() == Outcome::confirmed);
    bool got = true;
    CHECK_FALSE(failure([&] { got = lock.try_lock_for(400ms); }));
    CHECK_FALSE(got);
}

TEST_CASE("a release that nobody waits for is sent though its time is up, and costs no connection",
          "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    Request acquire{Verb::acquire, "k", Token::from_bits(1, 1), 60s, later(redis.now(), 20s)};
    REQUIRE(redis.ask(acquire).verdict == Verdict::yes);
    const long long before = accepted(server);
    Request release = acquire;
    release.verb = Verb::release;
    release.wants_answer = false;
    release.was_granted = true;
    release.deadline = redis.now();
    CHECK(redis.ask(release).verdict == Verdict::unknown);
    CHECK(redis.ask(acquire).verdict == Verdict::yes); // behind it, on the same connection
    CHECK(accepted(server) == before);
}

TEST_CASE("a wait that ends costs no connection, though answers take now a short and now a long time",
          "[redis][waiting]") {
    test::RedisServer server;
    test::Proxy proxy{server.socket_path()};
    Redis redis{proxy.uri()};
    server.command({"SET", "k", "a holder"});
    RedisLock lock{redis, "k", {.ttl = 60s, .renew = false, .request_timeout = 20s}, std::defer_lock};
    constexpr int rounds = 40;
    const Millis late[] = {2ms, 50ms, 10ms, 30ms}; // beside which a busy machine counts for little
    const long long before = accepted(server);
    for (int round = 0; round < rounds; ++round) {
        proxy.set(test::Proxy::Mode::delay, late[round % 4]);
        const Failure why = failure([&] { return lock.try_lock_for(300ms); });
        INFO(why.code.message() << ": " << why.detail);
        CHECK((!why || why.code == Errc::no_expiry));
    }
    CHECK(accepted(server) - before < rounds / 2); // by the fastest answer alone it is three of four
}

TEST_CASE("a key that goes from one short lease to the next is not taken for a turn that does not come", "[waiting]") {
    std::atomic<int> looks{0};
    std::promise<void> enough;
    FakeServer fake{[&](Peer& peer, int nth) {
        for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
            const auto is = [&](std::string_view word) { return command.find(word) != command.npos; };
            if (nth > 0) {
                peer.send(++looks == 1 ? ":-2\r\n" : ":8\r\n");
                if (looks == 200) enough.set_value();
            } else if (is(detail::announce_sha)) {
                peer.send(":8\r\n");
            } else if (is("BLPOP")) {
                enough.get_future().wait_for(generous);
                peer.send("*2\r\n$1\r\nt\r\n$0\r\n\r\n+OK\r\n");
            } else {
                peer.send(is("SET\r\n") ? "$-1\r\n" : ":1\r\n");
            }
        }
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "k", {.ttl = 60s, .renew = false, .request_timeout = 1s}, std::defer_lock};
    CHECK_FALSE(failure([&] { lock.lock(); }));
    CHECK(lock.owns_lock());
    CHECK(fake.connections() == 2);
}

TEST_CASE("who contends for the shortest leases is never told that his turn does not come", "[redis][waiting]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::atomic<int> told{0}, held{0};
    const auto contend = [&] {
        for (int round = 0; round < 100; ++round) {
            RedisLock lock{redis, "k", {.ttl = 10ms}, std::defer_lock};
            const Failure why = failure([&] { lock.lock(); }); // on a busy machine they may be too short
            told += why.detail.find("waiting for a turn") != why.detail.npos;
            held += !why;
        }
    };
    std::thread one{contend}, other{contend};
    one.join();
    other.join();
    CHECK(told == 0);
    CHECK(held > 0);
}
