// A service that sentinels watch over: which of the sentinels is believed, what becomes of leases and waiters when they
// name another primary, and how many hold a lock then.
#include "catch.hpp"
#include "child.hpp"
#include "sentinels.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <future>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::FakeSentinel;

namespace {

std::string service(const std::vector<std::string>& sentinels) {
    std::string all;
    for (const std::string& one : sentinels) all += (all.empty() ? "" : ",") + one;
    return "redis+sentinel://" + all + "/main";
}
std::string service(const FakeSentinel& sentinel) { return service(std::vector{sentinel.host_and_port()}); }

constexpr Options patient{.ttl = 60s, .request_timeout = 15s};

Answer acquire(Redis& redis, Millis within = 15s) {
    return redis.ask({Verb::acquire, "k", detail::random_token(), 10s, later(now(), within)});
}

std::string nobody() { return "127.0.0.1:" + std::to_string(test::free_port()); }

void make_replica(test::RedisServer& server, int of) {
    server.command({"REPLICAOF", "127.0.0.1", std::to_string(of)});
    test::until([&] { return server.text({"INFO", "replication"}).find("role:slave") != std::string::npos; });
}

} // namespace

TEST_CASE("a lock is had of the primary that a sentinel names", "[redis][sentinel]") {
    test::RedisServer server;
    FakeSentinel sentinel{server.port()};
    Redis redis{service(sentinel)};
    CHECK(sentinel.asked() == 0);
    RedisLock lock{redis, "k", patient};
    CHECK(server.text({"GET", "k"}) == std::string{lock.token().hex()});
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(redis.name() == "service main at " + sentinel.host_and_port());
}

TEST_CASE("where a sentinel is of no use, the next one is asked", "[redis][sentinel]") {
    test::RedisServer server, replica;
    make_replica(replica, server.port());
    FakeSentinel good{server.port()}, bad{server.port()};
    good.names(server.port(), 7);
    test::FakeServer silent{[](test::Peer& peer, int) { peer.wait_for_the_end(); }};
    test::FakeServer hangs_up{[](test::Peer&, int) {}};
    std::string first = bad.host_and_port();
    SECTION("it is dead") { first = nobody(); }
    SECTION("it is silent") { first = "127.0.0.1:" + std::to_string(silent.port()); }
    SECTION("it hangs up") { first = "127.0.0.1:" + std::to_string(hangs_up.port()); }
    SECTION("its name has no address") { first = "no-such-host.invalid"; }
    SECTION("it asks for a password") { bad.says("-NOAUTH Authentication required.\r\n"); }
    SECTION("it does not know the service") { bad.says("-ERR No such master with that name\r\n"); }
    SECTION("it says something else") { bad.says(FakeSentinel::array({"ip", "", "port", "x"})); }
    SECTION("it says what is no array") { bad.says(":1\r\n"); }
    SECTION("it names a replica") { bad.names(replica.port(), 7); }
    SECTION("it names a replica that can be written to") {
        replica.command({"CONFIG", "SET", "replica-read-only", "no"});
        bad.names(replica.port(), 7);
    }
    SECTION("it names one after the other who is dead") { bad.names_in_turn(test::free_port(), test::free_port(), 7); }
    SECTION("it names one who is dead") { bad.names(test::free_port(), 7); }
    SECTION("it names a sentinel") { bad.names(std::stoi(good.host_and_port().substr(10)), 7); }
    Redis redis{service({first, good.host_and_port()})};
    RedisLock lock{redis, "k", patient};
    CHECK(server.integer({"EXISTS", "k"}) == 1);
}

TEST_CASE("a sentinel that is behind is not believed, for as long as another one knows better", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel first{after.port()}, second{after.port()};
    first.names(after.port(), 8);
    second.names(after.port(), 8);
    Redis redis{service({first.host_and_port(), second.host_and_port()})};
    RedisLock lock{redis, "k", patient};
    REQUIRE(after.integer({"EXISTS", "k"}) == 1);
    first.names(before.port(), 7);
    const int asked = second.asked();
    test::until([&] { return first.asked() >= 1 && second.asked() >= asked + 2; });
    CHECK_FALSE(lock.lost().stop_requested());
    CHECK(lock.unlock() == Outcome::confirmed);
    second.names(before.port(), 7); // all of them were set up anew
    CHECK(before.integer({"EXISTS", "k"}) == 0);
    test::until([&] { return acquire(redis).verdict == Verdict::yes && before.integer({"EXISTS", "k"}) == 1; });
}

TEST_CASE("one request that fails makes nobody believe a sentinel that is behind", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel first{after.port()}, second{before.port()};
    first.names(after.port(), 8);
    second.names(before.port(), 7);
    Redis redis{service({first.host_and_port(), second.host_and_port()})};
    RedisLock lock{redis, "k", patient};
    after.stop();
    CHECK(acquire(redis, 300ms).verdict == Verdict::no); // over a new connection: the other one is kept for the lease
    after.go_on();
    test::until([&] { return second.asked() > 0; });
    test::until([&] { return acquire(redis).why.code == Errc::busy; });
    CHECK(before.integer({"DBSIZE"}) == 0);
    CHECK_FALSE(lock.lost().stop_requested());
}

TEST_CASE("what else is to be found out of a primary does not hold up the news of it", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    std::atomic<bool> is_down{false};
    std::atomic<int> asked{0};
    const auto credentials = [&] {
        ++asked;
        if (is_down) throw std::runtime_error{"the vault is down"};
        return Credentials{};
    };
    Redis redis{service(sentinel), {.credentials = credentials}};
    RedisLock lock{redis, "k", {.ttl = 4s, .request_timeout = 1s}};
    const int before_watching = asked, looks = sentinel.asked();
    test::until([&] { return sentinel.asked() > looks + 1; });
    CHECK(asked == before_watching);
    is_down = true;
    sentinel.names(after.port(), 1);
    test::until([&] { return lock.lost().stop_requested(); }); // for the new primary can't be asked
    CHECK(before.integer({"EXISTS", "k"}) <= 1);
}

TEST_CASE("a lease that is not renewed is extended at the new primary, or not at all", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    Redis redis{service(sentinel)};
    RedisLock lock{redis, "k", {.ttl = 60s, .renew = false, .request_timeout = 15s}};
    sentinel.names(after.port(), 1);
    const int asked = sentinel.asked();
    test::until([&] { return sentinel.asked() >= asked + 2; }); // the first answer has been heard by then
    CHECK(lock.extend(60s) == Outcome::expired);
}

TEST_CASE("a service may have the name of a field", "[redis][sentinel]") {
    test::RedisServer server;
    FakeSentinel sentinel{server.port()};
    sentinel.says(FakeSentinel::array({"name", "ip", "ip", "127.0.0.1", "port", std::to_string(server.port())}));
    Redis redis{"redis+sentinel://" + sentinel.host_and_port() + "/ip"};
    CHECK(acquire(redis).verdict == Verdict::yes);
}

TEST_CASE("a service that was never found does not keep its watcher awake", "[sentinel]") {
    const auto none = [](bool) -> detail::Primary { throw std::system_error{Errc::no_sentinel, "all are dead"}; };
    const detail::Locator locator{Address::parse("redis+sentinel://a/main"), {}, none};
    const TimePoint start = now();
    const auto look_up = locator.ask(start).look_up;
    REQUIRE(look_up);
    test::until([&] { return look_up->has_ended(); });
    for (const Millis later_by : {0ms, 1'000ms, 10'000ms}) CHECK(locator.watch(start + later_by) > start + later_by);
}

TEST_CASE("options for sentinels that would be ignored are refused", "[sentinel]") {
    const auto refused = [](const SentinelOptions& options) {
        try {
            Redis redis{"redis+sentinel://a/main", {.sentinel = options}};
            return false;
        } catch (const std::system_error& error) {
            return error.code() == Errc::bad_option;
        }
    };
    CHECK(refused({.credentials = {.user = "watcher"}}));
    CHECK(refused({.tls = TlsOptions{.ca_file = "ca.pem"}}));
    CHECK_FALSE(refused({.credentials = {.password = "watch"}}));
}

TEST_CASE("that no sentinel answers is told apart from that none knows the service", "[redis][sentinel]") {
    test::RedisServer server;
    FakeSentinel sentinel{server.port()};
    const std::string dead = nobody();
    Redis none_answers{service({dead, dead})};
    const Answer unanswered = acquire(none_answers, 500ms);
    CHECK(unanswered.why.code == Errc::no_sentinel);
    CHECK_THAT(unanswered.why.detail, containing("service main at " + dead + "," + dead));
    CHECK_THAT(unanswered.why.detail, containing("Connection refused"));
    sentinel.says("-ERR No such master with that name\r\n");
    Redis none_knows{service({dead, sentinel.host_and_port()})};
    const Answer unknown = acquire(none_knows, 500ms);
    CHECK(unknown.why.code == Errc::no_service);
    CHECK_THAT(unknown.why.detail, containing(sentinel.host_and_port() + ": does not know it"));
    sentinel.says("-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    Redis refused{service(sentinel)};
    const Answer wrong = acquire(refused, 500ms);
    CHECK(wrong.why.code == Errc::no_sentinel);
    CHECK_THAT(wrong.why.detail, containing("WRONGPASS"));
    sentinel.names(server.port());
    test::until([&] { return acquire(refused).verdict == Verdict::yes; });
}

TEST_CASE("sentinels have a password of their own, and do not hear the servers'", "[redis][sentinel]") {
    test::RedisServer server{{"--requirepass", "data"}};
    FakeSentinel sentinel{server.port()};
    const std::string uri = "redis+sentinel://:data@" + sentinel.host_and_port() + "/main/3";
    Redis without{uri};
    CHECK(acquire(without).verdict == Verdict::yes);
    CHECK(sentinel.heard().find("AUTH") == std::string::npos);
    Redis with{uri, {.sentinel = {.credentials = {.user = "watcher", .password = "watch"}}}};
    CHECK(acquire(with).why.code == Errc::busy);
    CHECK_THAT(sentinel.heard(), containing("AUTH\r\n$7\r\nwatcher\r\n$5\r\nwatch"));
    CHECK_THAT(sentinel.heard(), !containing("data"));
}

TEST_CASE("when sentinels name another primary, leases are asked for there at once", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    Redis redis{service(sentinel)};
    RedisLock lost{redis, "lost", patient}, copied{redis, "copied", patient};
    RedisLock<Redis> unrenewed{redis, "unrenewed", {.ttl = 60s, .renew = false}};
    after.command({"SET", "copied", std::string{copied.token().hex()}, "PX", "60000"});
    std::atomic<TimePoint::rep> told{0};
    const std::stop_callback callback{lost.lost(), [&] { told = now().time_since_epoch().count(); }};
    const TimePoint switched = now();
    sentinel.names(after.port(), 1);
    test::until([&] { return told.load() != 0; });
    CHECK(TimePoint{TimePoint::duration{told}} - switched < 10s); // renewed by the clock it would be at 18 s
    CHECK_FALSE(lost.owns_lock());
    CHECK(copied.owns_lock());
    CHECK(unrenewed.owns_lock());
    CHECK(copied.unlock() == Outcome::confirmed);
    CHECK(after.integer({"EXISTS", "copied"}) == 0);
    CHECK(before.integer({"EXISTS", "copied"}) == 1);
    CHECK(unrenewed.unlock() == Outcome::expired);
}

TEST_CASE("a release that the old primary has not carried out is asked of the new one", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    Redis redis{service(sentinel)};
    {
        RedisLock lock{redis, "k", patient};
        after.command({"SET", "k", std::string{lock.token().hex()}, "PX", "60000"});
        before.kill();
    }
    CHECK(after.integer({"EXISTS", "k"}) == 1);
    sentinel.names(after.port(), 1);
    test::until([&] { return after.integer({"EXISTS", "k"}) == 0; });
}

TEST_CASE("who waits at the old primary is served by the new one", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    before.command({"SET", "k", "somebody's", "PX", "600000"});
    Redis redis{service(sentinel)};
    auto waiter = std::async(std::launch::async, [&] {
        RedisLock lock{redis, "k", patient};
        return lock.unlock();
    });
    test::until([&] { return before.blocked_clients() == 1; });
    sentinel.names(after.port(), 1);
    CHECK(waiter.get() == Outcome::confirmed);
    CHECK(before.integer({"EXISTS", "k"}) == 1);
    test::until([&] { return before.blocked_clients() == 0; });
}

TEST_CASE("an acquire after a long time asks the sentinels before, though it has a connection", "[redis][sentinel]") {
    test::RedisServer before, after;
    FakeSentinel sentinel{before.port()};
    Redis redis{service(sentinel)};
    CHECK((RedisLock{redis, "k", patient}));
    sentinel.names(after.port(), 1);
    std::this_thread::sleep_for(2100ms); // which is the long time
    CHECK(acquire(redis).verdict == Verdict::yes);
    CHECK(after.integer({"EXISTS", "k"}) == 1);
}

TEST_CASE("sentinels are asked once a second while a lease is held, and not while none is", "[redis][sentinel]") {
    test::RedisServer server;
    FakeSentinel sentinel{server.port()};
    Redis redis{service(sentinel)};
    const auto asked_in = [&](Millis time) {
        const int before = sentinel.asked();
        std::this_thread::sleep_for(time);
        return sentinel.asked() - before;
    };
    {
        RedisLock lock{redis, "k", patient};
        const int times = asked_in(3s);
        CHECK(times >= 1);
        CHECK(times <= 4);
    }
    asked_in(1s); // by then the worker has found nothing to do
    CHECK(asked_in(2s) <= 1);
}

TEST_CASE("a primary that was promoted of late grants nothing, and goes on with what is held", "[redis][sentinel]") {
    test::RedisServer server;
    test::until([&] { return server.statistic("server", "uptime_in_seconds:") >= 2; }); // it has not restarted
    FakeSentinel sentinel{server.port()};
    Redis redis{service(sentinel), {.restart_delay = 500ms}};
    sentinel.names(server.port(), 0, 1'000);
    const Request request{Verb::acquire, "k", detail::random_token(), 400ms, later(now(), 5s)};
    CHECK(redis.ask(request).why.code == Errc::restarted); // 0.5 s, 2 % and 2 s
    Redis without{service(sentinel)};
    RedisLock lock{without, "held", 10s};
    const std::string token{lock.token().hex()};
    CHECK(redis.ask({Verb::extend, "held", lock.token(), 10s, later(now(), 5s)}).verdict == Verdict::yes);
    CHECK(redis.ask({Verb::release, "held", lock.token(), 10s, later(now(), 5s)}).verdict == Verdict::yes);
}

TEST_CASE("of sentinels that were restarted one is believed that was not", "[redis][sentinel]") {
    test::RedisServer server;
    test::until([&] { return server.statistic("server", "uptime_in_seconds:") >= 2; });
    FakeSentinel first{server.port()}, second{server.port()};
    first.names(server.port(), 0, 10);
    Redis redis{service({first.host_and_port(), second.host_and_port()}), {.restart_delay = 500ms}};
    CHECK(redis.ask({Verb::acquire, "k", detail::random_token(), 400ms, later(now(), 5s)}).verdict == Verdict::yes);
    CHECK(second.asked() == 1);
}

// The thread sanitizer takes a thread of the child for one of the parent's; and the address sanitizer's allocator may
// be locked by a thread of the parent at the fork, for ever in the child.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a forked child asks the sentinels for itself", "[redis][sentinel]") {
    test::RedisServer server;
    FakeSentinel sentinel{server.port()};
    Redis redis{service(sentinel)};
    const std::size_t before = test::threads();
    RedisLock lock{redis, "k", patient};
    test::until([&] { return test::threads() == before + 2; }); // the worker, and one of the sentinel
    const int asked = sentinel.asked();
    test::Child child{[&] {
        const Request request{Verb::acquire, "child's", detail::random_token(), 10s, later(now(), 5s)};
        return redis.ask(request).verdict == Verdict::yes;
    }};
    CHECK(child.was_well());
    CHECK(sentinel.asked() > asked);
    CHECK(lock.unlock() == Outcome::confirmed);
}
#endif

TEST_CASE("a service votes in a quorum, and its failover is one server's", "[redis][sentinel]") {
    test::RedisServer before, after, second, third;
    FakeSentinel sentinel{before.port()};
    Redis a{service(sentinel)}, b{second.tcp_uri()}, c{third.tcp_uri()};
    Quorum quorum{a, b, c};
    RedisLock lock{quorum, "k", 60s};
    const auto is_everywhere = [&] {
        return before.integer({"EXISTS", "k"}) + second.integer({"EXISTS", "k"}) + third.integer({"EXISTS", "k"}) == 3;
    };
    for (; !is_everywhere(); lock.lock())
        lock.unlock(); // a bare majority does not outlive the loss of one of its servers
    test::until([&] { return sentinel.asked() > 0; });
    sentinel.names(after.port(), 1);
    test::until([&] { return after.statistic("stats", "total_connections_received:") >= 2; }); // one is this test's
    CHECK(lock.owns_lock());
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a sentinel that is taken for a server is named as one", "[redis][sentinel]") {
    test::RedisServer sentinel{test::RedisServer::Sentinel{"sentinel monitor main 127.0.0.1 1 1\n"}};
    Redis redis{"unix://" + sentinel.socket_path()};
    const Answer answer = acquire(redis);
    CHECK(answer.why.code == Errc::unsupported);
    CHECK_THAT(answer.why.detail, containing("redis+sentinel://"));
}

TEST_CASE("a server that is taken for a sentinel is named as one", "[redis][sentinel]") {
    test::RedisServer server;
    Redis redis{service({"127.0.0.1:" + std::to_string(server.port())})};
    const Answer answer = acquire(redis, 500ms);
    CHECK(answer.why.code == Errc::no_sentinel);
    CHECK_THAT(answer.why.detail, containing("it is no sentinel: ERR unknown command"));
}

TEST_CASE("real sentinels: a planned failover costs no lease that was copied", "[redis][sentinel]") {
    test::Service service;
    Redis redis{service.uri()};
    RedisLock lock{redis, "k", {.ttl = 60s, .request_timeout = 15s, .min_replicas = 2}};
    test::RedisServer& before = *service.primary();
    test::RedisServer& after = service.fail_over(before);
    test::until([&] { // whoever has not heard of it yet is granted locks by the old primary
        RedisLock other{redis, "other", patient};
        return after.integer({"EXISTS", "other"}) == 1;
    });
    CHECK(lock.owns_lock());
    CHECK(after.text({"GET", "k"}) == std::string{lock.token().hex()});
}
