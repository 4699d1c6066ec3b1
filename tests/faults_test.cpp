// Locks on servers that misbehave, over real sockets: each call ends in its time, says what is known and no more, and
// leaves nothing behind.
#include "catch.hpp"
#include "fake_server.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <functional>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::failure;
using test::FakeServer;
using test::open_descriptors;
using test::Peer;

namespace {

constexpr Millis request_timeout{200};
constexpr Options options{.ttl = 10s, .request_timeout = request_timeout};
constexpr auto generous = 5s; // for a machine that is busy with other tests

/// Runs, and checks that it took no longer than it may.
template <class Action>
auto within(Millis limit, Action action) {
    struct Timer {
        TimePoint end;
        ~Timer() { CHECK(now() < end); }
    } const timer{later(now(), limit + generous)};
    return action();
}

/// What may happen to the reply of one command on its way through a proxy.
enum class Reply { forward, lose, lose_and_reset, delay };

/// A proxy before a server: `fate(command)` decides over each reply, after the server has acted.
FakeServer::Script proxy_to(test::RedisServer& server, std::function<Reply(const std::string&)> fate) {
    return [&server, fate](Peer& peer, int) {
        const std::unique_ptr<redisContext, decltype(&::redisFree)> upstream{
            ::redisConnectUnix(server.socket_path().c_str()), &::redisFree};
        Peer behind{upstream->fd};
        for (std::string request = peer.read(); !request.empty(); request = peer.read()) {
            behind.send(request);
            const std::string reply = behind.read();
            const Reply decided = fate(request);
            if (decided == Reply::lose_and_reset) return peer.reset();
            if (decided == Reply::delay) detail::wait(-1, 0, now() + 300ms);
            if (decided != Reply::lose) peer.send(reply);
        }
    };
}

/// A proxy that hangs up on a command that it does not know.
FakeServer::Script without(const char* command, test::RedisServer& server) {
    return [&server, command](Peer& peer, int) {
        const std::unique_ptr<redisContext, decltype(&::redisFree)> upstream{
            ::redisConnectUnix(server.socket_path().c_str()), &::redisFree};
        Peer behind{upstream->fd};
        for (std::string request = peer.read(); !request.empty(); request = peer.read()) {
            if (request.find(command) != request.npos) return;
            behind.send(request);
            peer.send(behind.read());
        }
    };
}

bool gone(test::RedisServer& server, const std::string& key) {
    for (const TimePoint limit = now() + 10s; now() < limit;)
        if (server.integer({"EXISTS", key}) == 0) return true;
    return false;
}

bool is(const std::string& command, const char* word) { return command.find(word) != std::string::npos; }

} // namespace

TEST_CASE("on a server that says nothing, half, or nonsense, every call ends in its time", "[redis][faults]") {
    struct Row {
        const char* what;
        FakeServer::Script script;
        std::vector<Errc> reasons;
    };
    const Row rows[] = {
        {"accepts and never answers", [](Peer& peer, int) { peer.wait_for_the_end(); }, {Errc::timed_out}},
        {"closes at once", [](Peer&, int) {}, {Errc::disconnected, Errc::unreachable}},
        {"resets",
         [](Peer& peer, int) {
             peer.read();
             peer.reset();
         },
         {Errc::disconnected}},
        {"closes after half a reply",
         [](Peer& peer, int) {
             peer.read();
             peer.send("+O");
         },
         {Errc::disconnected}},
        {"stops after half a reply",
         [](Peer& peer, int) {
             peer.read();
             peer.send("$5\r\nab");
             peer.wait_for_the_end();
         },
         {Errc::timed_out}},
        {"answers garbage",
         [](Peer& peer, int) {
             peer.read();
             peer.send("SSH-2.0-OpenSSH_9.2\r\n");
             peer.wait_for_the_end();
         },
         {Errc::protocol_error}},
        {"announces a gigabyte",
         [](Peer& peer, int) {
             peer.read();
             peer.send("$1000000000\r\n");
             peer.wait_for_the_end();
         },
         {Errc::timed_out}},
        {"sends without end",
         [](Peer& peer, int) {
             peer.read();
             peer.send("$1000000000\r\n");
             while (peer.send(std::string(65536, 'x'))) {
             }
         },
         {Errc::protocol_error}},
    };
    for (const Row& row : rows) {
        INFO(row.what);
        const std::size_t before = open_descriptors();
        for (const bool tcp : {false, true}) {
            FakeServer fake{row.script};
            Redis redis{tcp ? fake.tcp_uri() : fake.unix_uri()};
            RedisLock lock{redis, "k", options, std::defer_lock};
            const auto expected = [&](const Failure& failure) {
                return std::any_of(row.reasons.begin(), row.reasons.end(),
                                   [&](Errc code) { return failure.code == code; });
            };
            CHECK(expected(within(2 * request_timeout, [&] { return failure([&] { lock.lock(); }); })));
            CHECK(expected(within(request_timeout, [&] { return failure([&] { return lock.try_lock(); }); })));
            const Failure cut_short = within(1ms, [&] { return failure([&] { return lock.try_lock_for(1ms); }); });
            CHECK((expected(cut_short) || cut_short.code == Errc::timed_out));
            CHECK_FALSE(lock.owns_lock());
        }
        CHECK(open_descriptors() == before);
    }
}

TEST_CASE("on a server that finds the key held and then falls silent, a wait ends in its time", "[redis][faults]") {
    for (const bool polls : {false, true}) { // it lets us stand in line, or it does not
        std::atomic<bool> held{false};
        FakeServer fake{[&](Peer& peer, int) {
            for (std::string command = peer.read(); !command.empty(); command = peer.read())
                if (is(command, "SET\r\n") && !held.exchange(true))
                    peer.send("$-1\r\n");
                else if (polls && command.find(detail::announce_sha) != command.npos)
                    peer.send("-NOPERM\r\n");
        }};
        Redis redis{fake.unix_uri(), {.client_name = ""}};
        RedisLock lock{redis, "k", options, std::defer_lock};
        const Failure waited = within(2 * request_timeout, [&] { return failure([&] { lock.lock(); }); });
        CHECK(waited.code == Errc::timed_out);
        CHECK_FALSE(within(20ms, [&] { return failure([&] { return lock.try_lock_for(20ms); }); }).code ==
                    std::error_code{});
    }
}

TEST_CASE(
    "a waiter whose turn does not come over his own connection, though the key is free, takes it over another one",
    "[redis][faults]") {
    for (const std::string came : {"", "*2\r\n$1", "*2\r\n$1\r\nt\r\n$0\r\n\r\n"}) { // nothing, half a turn, no grant
        FakeServer fake{[&](Peer& peer, int nth) {
            for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
                const bool announces = command.find(detail::announce_sha) != command.npos;
                if (nth == 0 && is(command, "BLPOP"))
                    peer.send(came);
                else if (nth == 0)
                    peer.send(announces ? ":1000\r\n" : "$-1\r\n");
                else
                    peer.send(announces ? ":-2\r\n" : is(command, "SET\r\n") ? "+OK\r\n" : ":-1\r\n");
            }
        }};
        Redis redis{fake.unix_uri(), {.client_name = ""}};
        RedisLock lock{redis, "k", {.ttl = 60s, .request_timeout = request_timeout}, std::defer_lock};
        CHECK(within(3 * request_timeout, [&] { return lock.try_lock_for(10s); }));
    }
}

TEST_CASE("no server, a closed port, or an address that swallows everything: unreachable, in time", "[redis][faults]") {
    const test::BlackHole hole;
    for (const std::string& uri :
         {"redis://127.0.0.1:" + std::to_string(test::free_port()), std::string{"unix:///no/such.sock"}, hole.uri()}) {
        Redis redis{uri};
        RedisLock lock{redis, "k", options, std::defer_lock};
        CHECK(within(2 * request_timeout, [&] { return failure([&] { lock.lock(); }); }).code == Errc::unreachable);
        CHECK(within(20ms, [&] { return failure([&] { return lock.try_lock_for(20ms); }); }).code == Errc::unreachable);
    }
}

TEST_CASE("a server that is stopped in the middle: nothing is confirmed, nothing is left", "[redis][faults]") {
    if (test::is_over_tls("a stopped server can not be connected to")) return;
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock held{redis, "held", options}, other{redis, "other", options, std::defer_lock};
    { RedisLock warm{redis, "third", options}; }
    server.stop();
    CHECK(within(request_timeout, [&] { return held.extend(20s); }) == Outcome::unknown);
    CHECK(held.owns_lock());
    CHECK(within(request_timeout, [&] { return failure([&] { return other.try_lock(); }); }).code == Errc::timed_out);
    CHECK(within(20ms, [&] { return failure([&] { return other.try_lock_for(20ms); }); }).code == Errc::timed_out);
    CHECK(within(request_timeout, [&] { return held.unlock(); }) == Outcome::unknown);
    CHECK_FALSE(held.owns_lock());
    server.go_on();
    CHECK(gone(server, "other")); // the undo was behind the acquire
    CHECK(gone(server, "held"));
    CHECK(other.try_lock_for(5s));
}

TEST_CASE("a destructor on a stopped server takes the request timeout, and without confirmation nothing",
          "[redis][faults]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    for (const bool confirm : {true, false}) {
        auto lock = std::make_unique<RedisLock<Redis>>(
            redis, "k", Options{.ttl = 10s, .request_timeout = request_timeout, .confirm_release = confirm});
        server.stop();
        within(request_timeout, [&] { lock.reset(); });
        server.go_on();
        CHECK(gone(server, "k"));
    }
}

TEST_CASE("a reply that is lost after the key was set makes nobody wait for himself", "[redis][faults]") {
    test::RedisServer server;
    std::atomic<bool> armed{false};
    SECTION("and the connection breaks: the lock is taken in the same call") {
        FakeServer proxy{proxy_to(server, [&](const std::string& command) {
            return is(command, "SET\r\n") && armed.exchange(false) ? Reply::lose_and_reset : Reply::forward;
        })};
        Redis redis{proxy.tcp_uri(), {.client_name = ""}};
        for (int round = 0; round < 50; ++round) {
            armed = true;
            RedisLock lock{redis, "k", 60s};
            REQUIRE(lock.remaining() > 55s);
            REQUIRE(lock.unlock() == Outcome::confirmed);
            REQUIRE(server.integer({"DBSIZE"}) == 0);
        }
    }
    SECTION("and nothing more is heard: it's an error, the key goes, and the next lock is free") {
        FakeServer proxy{proxy_to(server, [&](const std::string& command) {
            return is(command, "SET\r\n") && armed ? Reply::lose : Reply::forward;
        })};
        Redis redis{proxy.tcp_uri(), {.client_name = ""}};
        RedisLock lock{redis, "k", {.ttl = 60s, .request_timeout = 500ms}, std::defer_lock};
        for (int round = 0; round < 10; ++round) {
            armed = true;
            REQUIRE(failure([&] { return lock.try_lock(); }).code == Errc::timed_out);
            armed = false;
            REQUIRE(gone(server, "k"));
            REQUIRE(lock.try_lock());
            REQUIRE(lock.unlock() == Outcome::confirmed);
        }
    }
    SECTION("of a release: it's asked again, and no more is claimed than is known") {
        FakeServer proxy{proxy_to(server, [&](const std::string& command) {
            return is(command, "EVALSHA\r\n") && armed.exchange(false) ? Reply::lose_and_reset : Reply::forward;
        })};
        Redis redis{proxy.tcp_uri(), {.client_name = ""}};
        { RedisLock warm_up{redis, "k", 60s}; } // the server knows the script
        for (int round = 0; round < 20; ++round) {
            RedisLock lock{redis, "k", 60s};
            armed = true;
            REQUIRE(lock.unlock() == Outcome::unknown);
            REQUIRE(server.integer({"DBSIZE"}) == 0);
        }
    }
}

TEST_CASE("connections that died in silence are all left after the first", "[redis][faults]") {
    constexpr int many = 4; // of them answer one question each, when all of them are there; later ones answer all
    std::atomic<int> asked{0};
    FakeServer fake{[&](Peer& peer, int nth) {
        bool answered = false;
        for (std::string command = peer.read(); !command.empty(); command = peer.read()) {
            for (++asked; asked < many;) std::this_thread::yield();
            if (nth >= many || !std::exchange(answered, true)) peer.send(is(command, "SET\r\n") ? "+OK\r\n" : ":1\r\n");
        }
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    std::vector<std::thread> threads;
    for (int i = 0; i < many; ++i)
        threads.emplace_back([&, key = std::to_string(i), token = redis.fresh()] {
            static_cast<void>(redis.ask({Verb::extend, key, token, 10s, later(now(), 10s)}));
        });
    for (std::thread& thread : threads) thread.join();
    REQUIRE(fake.connections() == many);
    RedisLock lock{redis, "k", {.ttl = 60s, .request_timeout = 500ms}};
    CHECK(lock.owns_lock());
    CHECK(fake.connections() == many + 1);
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("hundreds of unconfirmed releases on a stopped server wait for nothing, and none is lost",
          "[redis][faults]") {
    if (test::is_over_tls("a stopped server can not be connected to")) return;
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::vector<RedisLock<Redis>> locks;
    for (int i = 0; i < 200; ++i)
        locks.emplace_back(redis, std::to_string(i),
                           Options{.ttl = 60s, .request_timeout = 500ms, .confirm_release = false});
    server.stop();
    within(200ms, [&] { locks.clear(); });
    server.go_on();
    CHECK(server.is_empty_within(10s));
}

TEST_CASE("a lease counts from the asking, however late the answer", "[redis][faults]") {
    test::RedisServer server;
    FakeServer proxy{proxy_to(
        server, [](const std::string& command) { return is(command, "SET\r\n") ? Reply::delay : Reply::forward; })};
    Redis redis{proxy.unix_uri(), {.client_name = ""}};
    for (int round = 0; round < 3; ++round) {
        RedisLock lock{redis, "k", {.ttl = 1s, .renew = false, .request_timeout = 900ms}};
        CHECK(lock.remaining() < 700ms);
        const Millis servers{server.integer({"PTTL", "k"})};
        CHECK(lock.remaining() <= servers);
        for (;;) { // the server is looked at first, so that a pause in between does no harm
            const bool there = server.integer({"EXISTS", "k"}) == 1;
            if (!lock.owns_lock()) break;
            CHECK(there);
        }
    }
}

TEST_CASE("signals from all sides make no call fail, and a lock none", "[redis][faults]") {
    test::RedisServer server;
    const test::SignalStorm storm;
    {
        Redis redis{server.tcp_uri()};
        for (int round = 0; round < 500; ++round) {
            RedisLock lock{redis, "k", 10s};
            REQUIRE(lock.extend(20s) == Outcome::confirmed);
            REQUIRE(lock.unlock() == Outcome::confirmed);
        }
        RedisLock holder{redis, "k", 60s}, waiter{redis, "k", 60s, std::defer_lock};
        const TimePoint start = now();
        CHECK(test::waits_in_vain(waiter, 100ms));
        CHECK(now() >= start + 100ms);
    }
}

TEST_CASE("a server that dies under its locks kills no process, and the next one serves", "[redis][faults]") {
    test::RedisServer server;
    Redis redis{server.tcp_uri()};
    try {
        std::vector<RedisLock<Redis>> locks;
        for (int i = 0; i < 5; ++i) locks.emplace_back(redis, "k" + std::to_string(i), options);
        server.kill();
        throw std::runtime_error{"unwinding"};
    } catch (const std::runtime_error&) {
    }
    server.start();
    CHECK(RedisLock(redis, "k1", 10s).owns_lock());
}

TEST_CASE("a failover behind one address is gone along with, by locks and by those who want one", "[redis][faults]") {
    test::RedisServer first, second;
    second.command({"REPLICAOF", "127.0.0.1", std::to_string(first.port())});
    const auto address = std::filesystem::path{first.socket_path()}.parent_path() / "address.sock";
    std::filesystem::create_symlink(first.socket_path(), address);
    const Options long_lease{.ttl = 60s, .renew = false, .request_timeout = generous};
    Redis redis{"unix://" + address.string()};
    std::optional<RedisLock<Redis>> lock{std::in_place, redis, "k", long_lease};
    RedisLock other{redis, "j", long_lease, std::defer_lock};
    while (second.integer({"EXISTS", "k"}) == 0) // it is a replica with all the data
        if (second.text({"INFO", "replication"}).empty()) FAIL("no replica");
    second.command({"REPLICAOF", "NO", "ONE"});
    first.command({"REPLICAOF", "127.0.0.1", std::to_string(second.port())});
    std::filesystem::remove(address);
    std::filesystem::create_symlink(second.socket_path(), address);
    SECTION("unlock") { CHECK(lock->unlock() == Outcome::confirmed); }
    SECTION("extend") {
        CHECK(lock->extend(120s) == Outcome::confirmed);
        CHECK(second.integer({"PTTL", "k"}) > 60'000);
        lock.reset();
    }
    SECTION("the end of a scope") { lock.reset(); }
    SECTION("lock") {
        other.lock();
        CHECK(other.owns_lock());
        CHECK(second.integer({"EXISTS", "j"}) == 1);
        lock.reset();
    }
    CHECK(gone(second, "k"));
}

TEST_CASE("a replica is an error, a request timeout later", "[redis][faults]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock held{redis, "held", options}, lock{redis, "k", options, std::defer_lock};
    server.command({"REPLICAOF", "127.0.0.1", std::to_string(test::free_port())});
    CHECK(within(2 * request_timeout, [&] { return failure([&] { lock.lock(); }); }).code == Errc::read_only);
    CHECK(within(request_timeout, [&] { return failure([&] { return lock.try_lock(); }); }).code == Errc::read_only);
    CHECK(within(request_timeout, [&] { return held.unlock(); }) == Outcome::unknown);
}

TEST_CASE("a release that a server reads in a pause of its writes is carried out when that ends", "[redis][faults]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const Token token = redis.fresh();
    const auto ask = [&](Verb verb) {
        return redis.ask({verb, "k", token, 60s, later(now(), request_timeout)}).verdict;
    };
    REQUIRE(ask(Verb::acquire) == Verdict::yes);
    server.command({"CLIENT", "PAUSE", "1500", "WRITE"});
    CHECK(ask(Verb::release) == Verdict::unknown); // and nobody asks for it again
    CHECK(gone(server, "k"));
}

TEST_CASE("the reason why a connection has ended is told", "[faults]") {
    for (const bool resets : {false, true}) {
        FakeServer fake{[&](Peer& peer, int) {
            peer.read();
            if (resets) peer.reset();
        }};
        Redis redis{fake.tcp_uri(), {.client_name = ""}};
        RedisLock lock{redis, "k", options, std::defer_lock};
        const Failure why = failure([&] { return lock.try_lock(); });
        CHECK(why.code == Errc::disconnected);
        CHECK_THAT(why.detail, containing(resets ? "Connection reset by peer" : "the server closed the connection"));
    }
}

TEST_CASE("a proxy that hangs up on a client's name is used without it", "[redis][faults]") {
    test::RedisServer server;
    const FakeServer proxy{without("CLIENT", server)};
    Redis redis{proxy.unix_uri()};
    for (int i = 0; i < 3; ++i) CHECK((RedisLock{redis, "k", 10s}).owns_lock());
    CHECK(proxy.connections() <= 3); // one that was hung up on, one for the locks, one of the worker's
}

TEST_CASE("behind a proxy that hangs up on those who wait in line, they poll", "[redis][faults]") {
    test::RedisServer server;
    const FakeServer proxy{without("BLPOP", server)};
    Redis direct{server.unix_uri()}, redis{proxy.unix_uri()};
    RedisLock holder{direct, "k", 10s};
    std::jthread releases{[&] {
        detail::wait(-1, 0, now() + 500ms);
        holder.unlock();
    }};
    RedisLock lock{redis, "k", {.ttl = 10s, .request_timeout = 2s}, std::defer_lock};
    CHECK(lock.try_lock_for(9s));
}

TEST_CASE("a server that closes what is idle costs no lock and no place in the line", "[redis][faults]") {
    test::RedisServer server{{"--timeout", "1"}};
    Redis redis{server.unix_uri()};
    { RedisLock lock{redis, "k", 10s}; }
    detail::wait(-1, 0, now() + 2500ms);
    CHECK((RedisLock{redis, "k", 10s, std::try_to_lock}).owns_lock()); // asks once, over a connection that was closed
    RedisLock holder{redis, "k", {.ttl = 20s, .renew = false}};
    Outcome outcome = Outcome::unknown;
    std::jthread releases{[&] {
        detail::wait(-1, 0, now() + 3s);
        outcome = holder.unlock();
    }};
    RedisLock waiter{redis, "k", 10s, std::defer_lock};
    const TimePoint start = now();
    CHECK(waiter.try_lock_for(15s));
    CHECK(now() < start + 8s); // at the release, and not at the end of the lease
    releases.join();
    CHECK(outcome == Outcome::confirmed);
}
