// Servers behind a name: looked up late, in a thread beside, and anew when a connection fails; and credentials that
// come from a function.
#include "catch.hpp"
#include "child.hpp"
#include "fake_server.hpp"
#include "troubles.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;

namespace {

constexpr const char* somewhere = "redis://redis.example:6379";

Address at_port(int port) { return Address{.host = "127.0.0.1", .port = std::to_string(port)}; }

/// What a name stands for, as a test changes it.
class Name {
public:
    explicit Name(int port) { move_to(port); }
    Name(const Name&) = delete;
    Name& operator=(const Name&) = delete;
    ~Name() { go_on(); }

    void move_to(int port) { stand_for({at_port(port)}); }
    void stand_for(std::vector<Address> addresses) {
        const std::lock_guard guard{state_->mutex};
        state_->addresses = std::move(addresses);
    }
    /// Look-ups wait until it goes on.
    void block() { state_->is_blocked = true; }
    void go_on() {
        state_->is_blocked = false;
        state_->is_blocked.notify_all();
    }
    int look_ups() const { return state_->look_ups; }

    auto resolver() {
        return [state = state_](const Address& asked) {
            ++state->look_ups;
            state->is_blocked.wait(true);
            const std::lock_guard guard{state->mutex};
            if (state->addresses.empty() || asked.host != "redis.example")
                throw std::runtime_error{"gone for a moment"};
            return state->addresses;
        };
    }

private:
    struct State { // look-ups outlive their Redis
        std::mutex mutex{};
        std::vector<Address> addresses{};
        std::atomic<bool> is_blocked{false};
        std::atomic<int> look_ups{0};
    };
    const std::shared_ptr<State> state_ = std::make_shared<State>();
};

Request acquire(Millis within, const char* key = "k") {
    return {Verb::acquire, key, detail::random_token(), 10s, later(now(), within)};
}

} // namespace

TEST_CASE("a name is looked up when a lock asks, and its server is found", "[redis][locator]") {
    test::RedisServer server;
    Name name{server.port()};
    Redis redis{somewhere, {.resolver = name.resolver()}};
    CHECK(name.look_ups() == 0);
    RedisLock lock{redis, "k", 10s};
    CHECK(lock.owns_lock());
    CHECK(name.look_ups() == 1);
    Redis by_the_system{"redis://localhost:" + std::to_string(server.port())};
    CHECK_FALSE((RedisLock{by_the_system, "k", 10s, std::try_to_lock}));
}

TEST_CASE("what has a numeric address is never looked up", "[redis][locator]") {
    test::RedisServer server;
    Name name{server.port()};
    for (const std::string& uri : {server.tcp_uri(), server.unix_uri()}) {
        Redis redis{uri, {.resolver = name.resolver()}};
        CHECK((RedisLock{redis, "k", 10s}));
    }
    CHECK(name.look_ups() == 0);
}

TEST_CASE("a name that there is not is told by the first lock, and not by the constructor", "[locator]") {
    Redis redis{"redis://no-such-host.invalid"};
    try {
        RedisLock lock{redis, "k", {.ttl = 1s, .request_timeout = 100ms}};
        FAIL("locked");
    } catch (const std::system_error& error) {
        CHECK(error.code() == Errc::unresolved);
        CHECK_THAT(error.what(), containing("no-such-host.invalid"));
    }
}

TEST_CASE("a server that is silent is named as such, though its address was looked up again meanwhile", "[locator]") {
    const test::FakeServer silent{[](test::Peer& peer, int) { peer.wait_for_the_end(); }};
    Name name{silent.port()};
    Redis redis{std::string{somewhere} + "/1", {.resolver = name.resolver()}};
    // The first finds the address, and the others know it. In half of the short time-out it is not looked up again.
    for (const Millis timeout : {500ms, 500ms, 150ms, 150ms}) {
        RedisLock lock{redis, "k", {.ttl = 10s, .request_timeout = timeout}, std::defer_lock};
        CHECK(test::failure([&] { lock.lock(); }).code == Errc::timed_out);
    }
}

TEST_CASE("nobody waits for a resolver that blocks beyond a deadline, and no destructor does", "[locator]") {
    Name name{1};
    name.block();
    const TimePoint start = now();
    {
        Redis redis{somewhere, {.resolver = name.resolver()}};
        const Answer answer = redis.ask(acquire(100ms));
        CHECK(answer.verdict == Verdict::no);
        CHECK(answer.why.code == Errc::unresolved);
        CHECK_THAT(answer.why.detail, containing("no answer from the resolver"));
    }
    CHECK(now() < start + 1s);
}

TEST_CASE("whatever a resolver throws or finds, a lock is told that it is no address", "[locator]") {
    RedisOptions options;
    std::string sentence;
    SECTION("what is no exception of the standard's") {
        options.resolver = [](const Address&) -> std::vector<Address> { throw 1; };
    }
    SECTION("another name") {
        options.resolver = [](const Address& asked) { return std::vector{asked}; };
        sentence = "redis.example: the resolver has found no numeric address";
    }
    SECTION("nothing") {
        options.resolver = [](const Address&) { return std::vector<Address>{}; };
        sentence = "redis.example: the resolver has found no numeric address";
    }
    Redis redis{somewhere, options};
    const Answer answer = redis.ask(acquire(1s));
    CHECK(answer.verdict == Verdict::no);
    CHECK(answer.why.code == Errc::unresolved);
    CHECK_THAT(answer.why.detail, containing(sentence));
}

TEST_CASE("all addresses of a name are tried", "[redis][locator]") {
    test::RedisServer server;
    Name name{1};
    const test::BlackHole hole;
    name.stand_for({at_port(1), Address::parse(hole.uri()), at_port(server.port())});
    Redis redis{somewhere, {.resolver = name.resolver()}};
    CHECK(redis.ask(acquire(1s)).verdict == Verdict::yes);
}

TEST_CASE("a server that moves is found at its new address", "[redis][locator]") {
    test::RedisServer old;
    test::RedisServer next;
    Name name{old.port()};
    Redis redis{somewhere, {.resolver = name.resolver()}};
    const Options options{.ttl = 10s, .request_timeout = 1s};
    { RedisLock lock{redis, "k", options}; }
    SECTION("where the old one is gone") { old.kill(); }
    SECTION("where the old one is silent, which takes a request timeout to notice") { old.stop(); }
    SECTION("where the old one has become a replica") {
        old.command({"REPLICAOF", "127.0.0.1", std::to_string(next.port())});
    }
    name.move_to(next.port());
    const TimePoint start = now();
    RedisLock lock{redis, "k", options};
    CHECK(now() < start + 3s);
    CHECK(next.integer({"EXISTS", "k"}) == 1);
    old.go_on();
}

TEST_CASE("a held lease is renewed and released at the new address", "[redis][locator]") {
    test::RedisServer old{{"--repl-diskless-sync-delay", "0"}};
    test::RedisServer next{{"--replicaof", "127.0.0.1", std::to_string(old.port())}};
    Name name{old.port()};
    Redis redis{somewhere, {.resolver = name.resolver()}};
    RedisLock lock{redis, "k", 3s};
    for (const TimePoint limit = now() + 10s; next.integer({"EXISTS", "k"}) == 0;) REQUIRE(now() < limit);
    next.command({"REPLICAOF", "NO", "ONE"});
    old.kill();
    name.move_to(next.port());
    detail::wait(-1, 0, now() + 4s);
    CHECK(lock.owns_lock());
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(next.integer({"EXISTS", "k"}) == 0);
}

TEST_CASE("a name that is not to be resolved for a moment costs no lock", "[redis][locator]") {
    test::RedisServer server;
    Name name{server.port()};
    name.stand_for({});
    Redis redis{somewhere, {.resolver = name.resolver()}};
    const std::jthread later{[&] {
        detail::wait(-1, 0, now() + 300ms);
        name.move_to(server.port());
    }};
    RedisLock lock{redis, "k", {.ttl = 10s, .request_timeout = 2s}};
    CHECK(lock.owns_lock());
}

TEST_CASE("a resolver that blocks holds nobody up where an address is known", "[redis][locator]") {
    test::RedisServer server;
    Name name{server.port()};
    Redis redis{somewhere, {.idle_connections = 0, .resolver = name.resolver()}}; // each request makes a connection
    CHECK(redis.ask(acquire(1s, "first")).verdict == Verdict::yes);
    name.block();
    server.kill();
    detail::wait(-1, 0, now() + 150ms);                                // or it would be too early for another look-up
    CHECK(redis.ask(acquire(200ms, "second")).verdict == Verdict::no); // from now on the address is in doubt
    server.start();
    const TimePoint start = now();
    CHECK(redis.ask(acquire(2s, "third")).verdict == Verdict::yes);
    CHECK(now() < start + 2s);
}

TEST_CASE("a doubt that comes up during a look-up is not settled by that one", "[locator]") {
    Name name{1};
    const detail::Locator locator{Address::parse(somewhere), {.resolver = name.resolver()}};
    TimePoint time = now();
    const auto ask = [&] { return locator.ask(time = later(time, 200ms)).look_up; }; // when another one may begin
    const auto begun = ask();
    REQUIRE(begun);
    test::until([&] { return begun->has_ended(); });
    CHECK_FALSE(ask());
    name.block();
    locator.doubt();
    const auto in_doubt = ask();
    REQUIRE(in_doubt);
    locator.doubt();
    name.go_on();
    test::until([&] { return in_doubt->has_ended(); });
    const auto again = ask();
    REQUIRE(again);
    test::until([&] { return again->has_ended(); });
    CHECK_FALSE(ask());
}

TEST_CASE("a connection that was refused waits for a look-up that began after that", "[locator]") {
    std::atomic<bool> is_blocked{false};
    std::atomic<int> asked{0};
    const auto credentials = [&] {
        Credentials own{.password = std::to_string(++asked)};
        is_blocked.wait(true);
        return own;
    };
    const detail::Locator locator{Address::parse("redis://127.0.0.1"), {.credentials = credentials}};
    detail::ConnectPlan plan{locator};
    using Step = detail::ConnectPlan::Step;
    TimePoint time = now();
    const TimePoint due = later(time, 60s);
    const auto next = [&] { return plan.next(time = later(time, 1ms), due); };
    const auto next_when_found = [&] {
        test::until([&] { return plan.is_looked_up(); });
        return next();
    };
    REQUIRE(plan.begin(time, due) == Step::look_up);
    REQUIRE(next_when_found() == Step::connect);
    is_blocked = true;
    REQUIRE(locator.ask(time = later(time, 1ms)).look_up); // for another connection
    test::until([&] { return asked == 2; });
    REQUIRE(next() == Step::look_up); // for ours was refused
    is_blocked = false;
    is_blocked.notify_all();
    REQUIRE(next_when_found() == Step::look_up);
    REQUIRE(next_when_found() == Step::connect);
    CHECK(plan.location().handshake.bytes(false).find("\r\n3\r\n") != std::string_view::npos);
    CHECK(next() == Step::over);
}

TEST_CASE("a name that stands for two independent servers is told, where the server is asked who it is",
          "[redis][locator]") {
    test::RedisServer one, other;
    Name name{one.port()};
    const auto nobody = [] { return Credentials{}; }; // so that the name is looked up for each connection
    Redis redis{somewhere,
                {.idle_connections = 0, .restart_delay = 20s, .credentials = nobody, .resolver = name.resolver()}};
    const auto code_at = [&](const test::RedisServer& server) {
        name.move_to(server.port());
        return redis.ask(acquire(1s)).why.code;
    };
    CHECK(code_at(one) == Errc::restarted);   // for it was started just now
    CHECK(code_at(other) == Errc::restarted); // that may be a failover
    CHECK(code_at(one) == Errc::two_servers);
    CHECK(code_at(other) == Errc::restarted);
}

TEST_CASE("look-ups are few, however often connections fail", "[locator]") {
    Name name{test::free_port()};
    Redis redis{somewhere, {.resolver = name.resolver()}};
    const TimePoint start = now();
    while (now() < start + 500ms || (name.look_ups() < 2 && now() < start + 10s))
        CHECK(redis.ask(acquire(100ms)).verdict == Verdict::no);
    CHECK(name.look_ups() <= 8);
    CHECK(name.look_ups() >= 2);
}

#if !defined(__SANITIZE_THREAD__) // which takes a thread of the child for one of the parent's
TEST_CASE("a forked child looks up for itself", "[redis][locator]") {
    test::RedisServer server;
    Name name{server.port()};
    Redis redis{somewhere, {.resolver = name.resolver()}};
    const std::size_t before = test::threads();
    RedisLock lock{redis, "k", 10s};
    // The thread that looked up is gone: the address sanitizer's allocator does not survive a fork beside its end.
    test::until([&] { return test::threads() == before + 1; });
    test::Child child{[&] { return redis.ask(acquire(5s, "child's")).verdict == Verdict::yes; }};
    CHECK(child.was_well());
    CHECK(lock.unlock() == Outcome::confirmed);
}
#endif

TEST_CASE("credentials come from a function, for each new connection", "[redis][locator]") {
    test::RedisServer server{{"--requirepass", "first"}};
    std::atomic<int> asked{0};
    std::mutex mutex;
    std::string password = "first";
    const auto credentials = [&] {
        ++asked;
        const std::lock_guard guard{mutex};
        return Credentials{.password = password};
    };
    Redis redis{server.unix_uri(), {.idle_connections = 0, .credentials = credentials}};
    CHECK(asked == 0);
    CHECK(redis.ask(acquire(5s, "first")).verdict == Verdict::yes);
    const int before = asked;
    {
        const std::lock_guard guard{mutex};
        password = "second";
    }
    CHECK(redis.ask(acquire(5s, "second")).why.code == Errc::auth_failed);
    CHECK(asked > before);
}

TEST_CASE("a release that nobody waits for is sent, though a connection has to come about first", "[redis][locator]") {
    test::RedisServer server;
    server.command({"ACL", "SETUSER", "u", "on", ">p", "~*", "+@all"});
    // Credentials are asked for in another thread, so that no connection comes about at once.
    Redis redis{server.unix_uri(), {.credentials = [] { return Credentials{"u", "p"}; }}};
    {
        RedisLock lock{redis, "k", {.ttl = 60s, .renew = false, .confirm_release = false}};
        server.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
    }
    CHECK(server.is_empty_within(10s));
}

TEST_CASE("a function for credentials that throws is told", "[redis][locator]") {
    test::RedisServer server;
    Redis redis{server.unix_uri(),
                {.credentials = []() -> Credentials { throw std::runtime_error{"no token today"}; }}};
    const Answer answer = redis.ask(acquire(1s));
    CHECK(answer.verdict == Verdict::no);
    CHECK(answer.why.code == Errc::auth_failed);
    CHECK_THAT(answer.why.detail, containing("the function for credentials: no token today"));
}

TEST_CASE("a password that changes every 200 ms costs no lease and no grant", "[redis][locator]") {
    test::RedisServer server{{"--requirepass", "0"}};
    std::mutex mutex;
    std::string password = "0";
    const auto credentials = [&] {
        const std::lock_guard guard{mutex};
        return Credentials{.password = password};
    };
    std::jthread rotating{[&](std::stop_token stop) {
        server.command({"AUTH", "0"});
        for (int n = 1; !stop.stop_requested(); ++n) {
            detail::wait(-1, 0, now() + 200ms);
            const std::lock_guard guard{mutex};
            server.command({"CONFIG", "SET", "requirepass", std::to_string(n)});
            password = std::to_string(n);
        }
    }};
    Redis redis{server.unix_uri(), {.idle_connections = 2, .credentials = credentials}};
    std::vector<RedisLock<Redis>> held;
    for (int i = 0; i < 100; ++i) held.emplace_back(redis, "held" + std::to_string(i), 2s);
    std::atomic<int> grants{0};
    std::string failures;
    std::vector<std::jthread> contenders;
    for (int i = 0; i < 8; ++i)
        contenders.emplace_back([&](std::stop_token stop) {
            while (!stop.stop_requested()) try {
                    RedisLock lock{redis, "contended", 2s};
                    ++grants;
                } catch (const std::system_error& error) {
                    const std::lock_guard guard{mutex};
                    failures += error.what() + std::string{"\n"};
                }
        });
    detail::wait(-1, 0, now() + 4s);
    contenders.clear();
    CHECK(failures == "");
    CHECK(grants > 100);
    for (auto& lock : held) CHECK(lock.unlock() == Outcome::confirmed);
}
