// TLS, against real servers: who is believed, what a failure says, and that all goes on as without it.
#include "blocking_connection.hpp"
#include "catch.hpp"
#include "certificates.hpp"
#include "child.hpp"
#include "fake_server.hpp"
#include "troubles.hpp"

#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>
#include <redislock/tls.hpp>

#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;

namespace {

struct TlsServer {
    explicit TlsServer(const std::string& certificate = "server", const char* clients = "no",
                       std::vector<std::string> more = {})
        : server{arguments(certificate, clients, std::move(more))} {}

    std::string uri(const std::string& host = "localhost") const {
        return "rediss://" + host + ":" + std::to_string(port);
    }
    RedisOptions trusting() const { return {.tls = {.ca_file = certificates.file("ca.pem")}}; }

    const test::Certificates certificates{};
    const int port = test::free_port();
    test::RedisServer server;

private:
    std::vector<std::string> arguments(const std::string& certificate, const char* clients,
                                       std::vector<std::string> more) const {
        std::vector<std::string> all = certificates.at_port(port, certificate, clients);
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
};

Answer acquire(Redis& redis, Millis within = 5s) {
    return redis.ask({Verb::acquire, "k", detail::random_token(), 10s, later(now(), within)});
}

} // namespace

TEST_CASE("a lock is acquired, renewed, extended and released over TLS", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    RedisLock lock{redis, "k", {.ttl = 500ms, .fencing = true}};
    detail::wait(-1, 0, now() + 800ms);
    CHECK(lock.owns_lock());
    CHECK(lock.fencing_token() > 0);
    CHECK(lock.extend(10s) == Outcome::confirmed);
    CHECK(at.server.text({"CLIENT", "LIST"}).find("name=redislock") != std::string::npos);
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a server is believed by its certificate's name or address, and by no other", "[redis][tls]") {
    TlsServer at;
    const auto code_at = [&](const std::string& host, RedisOptions options) {
        Redis redis{at.uri(host), std::move(options)};
        const Answer answer = acquire(redis);
        return answer.verdict == Verdict::yes || answer.why.code == Errc::busy ? std::string{} : answer.why.detail;
    };
    CHECK(code_at("localhost", at.trusting()).empty());
    CHECK(code_at("127.0.0.1", at.trusting()).empty());
    RedisOptions named = at.trusting();
    named.tls.server_name = "other.test";
    CHECK_THAT(code_at("localhost", named), containing("ostname mismatch"));
    named.tls.verify = Verify::ca;
    CHECK(code_at("localhost", named).empty());
    RedisOptions by_another_address = at.trusting();
    by_another_address.tls.server_name = "127.0.0.2";
    CHECK_THAT(code_at("127.0.0.1", by_another_address), containing("IP address mismatch"));
    CHECK_THAT(code_at("localhost", {}), containing("self") && containing("signed certificate"));
    CHECK_THAT(code_at("localhost", {.tls = {.verify = Verify::ca}}), containing("signed certificate"));
    CHECK(code_at("localhost", {.tls = {.verify = Verify::none}}).empty());
}

TEST_CASE("a certificate that is refused is an error of its own, at once", "[redis][tls]") {
    TlsServer expired{"expired"};
    Redis redis{expired.uri(), expired.trusting()};
    const TimePoint start = now();
    try {
        RedisLock lock{redis, "k", {.ttl = 100s, .request_timeout = 20s}};
        FAIL("locked");
    } catch (const std::system_error& error) {
        CHECK(error.code() == Errc::tls_failed);
        CHECK_THAT(error.what(), containing("certificate has expired") && containing("localhost:"));
    }
    CHECK(now() < start + 5s);
    CHECK(expired.server.integer({"DBSIZE"}) == 0);
}

TEST_CASE("a server that asks for our certificate gets it, and tells when it does not", "[redis][tls]") {
    for (const char* version : {"TLSv1.2", "TLSv1.3"}) {
        TlsServer at{"server", "yes", {"--tls-protocols", version}};
        Redis without{at.uri(), at.trusting()};
        const Answer answer = acquire(without);
        CHECK(answer.verdict != Verdict::yes);
        CHECK(answer.why.code == Errc::tls_failed);
        CHECK_THAT(answer.why.detail, containing("alert"));
        RedisOptions options = at.trusting();
        options.tls.certificate = at.certificates.file("client.pem");
        options.tls.key = at.certificates.file("client.key");
        Redis with{at.uri(), options};
        CHECK(acquire(with).verdict == Verdict::yes);
    }
}

TEST_CASE("a file for TLS that can't be used is refused by the constructor, with its name", "[tls]") {
    const test::Certificates certificates;
    const auto refusal = [&](const TlsOptions& options) -> std::string {
        try {
            Redis redis{"rediss://localhost", {.tls = options}};
        } catch (const std::system_error& error) {
            CHECK(error.code() == Errc::bad_option);
            return error.what();
        }
        return "none";
    };
    CHECK_THAT(refusal({.ca_file = "/no/such/ca.pem"}), containing("tls.ca_file \"/no/such/ca.pem\": No such file"));
    CHECK_THAT(refusal({.certificate = "/no/such.pem"}), containing("tls.certificate"));
    CHECK_THAT(refusal({.certificate = certificates.file("client.pem"), .key = certificates.file("server.key")}),
               containing("tls.key"));
    REQUIRE(std::system(("openssl pkey -aes128 -passout pass:secret -in " + certificates.file("client.key") + " -out " +
                         certificates.file("locked.key"))
                            .c_str()) == 0);
    CHECK_THAT(refusal({.certificate = certificates.file("client.pem"), .key = certificates.file("locked.key")}),
               containing("tls.key")); // and nobody is asked for the passphrase
    CHECK_THAT(refusal({.server_name = ".example"}), containing("\".example\""));
    CHECK(refusal({.ca_file = certificates.file("ca.pem")}) == "none");
}

TEST_CASE("options for TLS are refused where it is not by TLS", "[tls]") {
    const auto is_refused = [](const std::string& uri, const TlsOptions& options) {
        try {
            Redis redis{uri, {.tls = options}};
            return false;
        } catch (const std::system_error& error) {
            CHECK_THAT(error.what(), containing("allowed is with rediss"));
            return error.code() == Errc::bad_option;
        }
    };
    CHECK(is_refused("redis://localhost", {.ca_file = "ca.pem"}));
    CHECK(is_refused("redis://localhost", {.verify = Verify::none}));
    CHECK_FALSE(is_refused("redis://localhost", {}));
    CHECK_FALSE(is_refused("rediss://localhost", {.verify = Verify::none}));
    CHECK(is_refused("redis+sentinel://localhost/main", {.verify = Verify::none}));
    CHECK_FALSE(is_refused("rediss+sentinel://localhost/main", {.verify = Verify::none}));
    const RedisOptions for_sentinels{.tls = {.verify = Verify::none}, .sentinel = {.uses_tls = true}};
    CHECK_NOTHROW(Redis{"redis+sentinel://localhost/main", for_sentinels});
    CHECK_THROWS_AS((Cluster{"unix:///nowhere", {.tls = {.verify = Verify::none}}}), std::system_error);
    CHECK(is_refused("unix:///nowhere", {.verify = Verify::none}));
}

TEST_CASE("TLS to a port without it, and the reverse, end in time and say what it may be", "[redis][tls]") {
    TlsServer at;
    Redis to_plain{"rediss://localhost:" + std::to_string(at.server.port()), at.trusting()};
    const TimePoint start = now();
    const Answer answer = acquire(to_plain, 300ms);
    CHECK(answer.verdict == Verdict::no);
    CHECK_THAT(answer.why.detail, containing("TLS"));
    CHECK(now() < start + 2s);
    Redis to_tls{"redis://localhost:" + std::to_string(at.port)};
    const Answer plain = acquire(to_tls, 1s);
    CHECK(plain.verdict != Verdict::yes);
    CHECK_THAT(plain.why.detail, containing("TLS"));
}

TEST_CASE("a server that is silent in the handshake, or dribbles, costs no more than the time there is", "[tls]") {
    const test::FakeServer silent{[](test::Peer& peer, int) { peer.wait_for_the_end(); }};
    const test::FakeServer dribbles{[](test::Peer& peer, int) {
        for (const TimePoint end = now() + 5s; now() < end && peer.send("\x16");) detail::wait(-1, 0, now() + 5ms);
    }};
    for (const int port : {silent.port(), dribbles.port()}) {
        Redis redis{"rediss://127.0.0.1:" + std::to_string(port), {.tls = {.verify = Verify::none}}};
        const TimePoint start = now();
        CHECK(acquire(redis, 200ms).verdict == Verdict::no);
        CHECK(now() < start + 1s);
    }
}

TEST_CASE("a server that hangs up in the handshake has not been reached, and nothing was asked", "[tls]") {
    const test::FakeServer hangs_up{[](test::Peer&, int) {}};
    Redis redis{"rediss://127.0.0.1:" + std::to_string(hangs_up.port()), {.tls = {.verify = Verify::none}}};
    const Answer answer = acquire(redis, 10s);
    CHECK(answer.verdict == Verdict::no);
    CHECK(answer.why.code == Errc::unreachable);
    CHECK_THAT(answer.why.detail, containing("hung up in the TLS handshake"));
}

TEST_CASE("a connection by TLS that the server ends is followed by another one", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    for (int i = 0; i < 3; ++i) {
        RedisLock lock{redis, "k", 10s};
        at.server.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}); // with TLS's farewell
        CHECK(lock.unlock() == Outcome::confirmed);
    }
}

TEST_CASE("a connection by TLS is used again, and what a server says of itself does not end it", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    for (int i = 0; i < 20; ++i) {
        RedisLock lock{redis, "k", 10s};
        if (i == 0) detail::wait(-1, 0, now() + 100ms); // for the tickets of TLS 1.3
    }
    CHECK(at.server.statistic("stats", "total_connections_received:") <=
          4); // with the admin's, and one of the worker's
}

TEST_CASE("waiters stand in line over TLS, and are woken by the release", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    int inside = 0, most = 0;
    std::vector<std::jthread> threads;
    std::atomic<int> grants{0};
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&] {
            for (int n = 0; n < 25; ++n) {
                RedisLock lock{redis, "k", 10s};
                most = std::max(most, ++inside);
                ++grants;
                --inside;
            }
        });
    threads.clear();
    CHECK(most == 1);
    CHECK(grants == 200);
    CHECK(at.server.statistic("commandstats", "cmdstat_blpop:calls=") > 0);
}

TEST_CASE("a service is asked by TLS, its sentinels and its primary each by their own", "[redis][tls]") {
    TlsServer at;
    const test::Certificates theirs;
    const int port = test::free_port();
    std::string configuration = "sentinel monitor main 127.0.0.1 " + std::to_string(at.port) + " 1\n";
    for (const std::string& word : theirs.at_port(port, "server"))
        configuration += word.starts_with("--") ? "\n" + word.substr(2) : " " + word;
    test::RedisServer sentinel{test::RedisServer::Sentinel{configuration + "\n"}};
    const std::string behind_scheme = "+sentinel://localhost:" + std::to_string(port) + "/main";
    RedisOptions options = at.trusting();
    Redis not_trusted{"rediss" + behind_scheme, options};
    const Answer refused = acquire(not_trusted, 500ms);
    CHECK(refused.why.code == Errc::no_sentinel);
    CHECK_THAT(refused.why.detail, containing("certificate"));
    options.sentinel.tls = TlsOptions{.ca_file = theirs.file("ca.pem")};
    Redis redis{"rediss" + behind_scheme, options};
    RedisLock lock{redis, "k", 10s};
    CHECK(at.server.integer({"EXISTS", "k"}) == 1);
    test::RedisServer other_sentinel{
        test::RedisServer::Sentinel{"sentinel monitor main 127.0.0.1 " + std::to_string(at.port) + " 1\n"}};
    options.sentinel = {.uses_tls = false};
    Redis half{"rediss+sentinel://127.0.0.1:" + std::to_string(other_sentinel.port()) + "/main", options};
    CHECK(acquire(half).why.code == Errc::busy);
}

TEST_CASE("a peer that is gone kills nobody over TLS", "[redis][tls]") {
    struct sigaction before {};
    ::sigaction(SIGPIPE, nullptr, &before);
    CHECK(before.sa_handler == SIG_DFL);
    TlsServer at;
    const Address address = Address::parse(at.uri("127.0.0.1"));
    const detail::TlsContext tls{address, at.trusting().tls};
    test::BlockingConnection connection;
    const TimePoint limit = now() + 10s;
    REQUIRE(connection.open(detail::resolve(address).front(), limit));
    for (connection.begin_handshake(tls, "127.0.0.1"); !connection.finish_handshake();)
        REQUIRE(detail::wait(connection.fd(), POLLIN, limit));
    CHECK(connection.write(detail::formatted({"PING"}), limit));
    CHECK(connection.read(limit)->text == "PONG");
    at.server.kill();
    while (now() < limit && connection.write(detail::formatted({"PING"}), limit)) {
    }
    CHECK(connection.failure().code == Errc::disconnected);
}

#if !defined(__SANITIZE_THREAD__) // which takes a thread of the child for one of the parent's
TEST_CASE("a forked child neither uses nor ends its parent's connections by TLS", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    RedisLock lock{redis, "k", 10s};
    const long long before = at.server.statistic("stats", "total_connections_received:");
    test::Child child{[&] {
        const bool held = lock.owns_lock();
        return !held && redis.ask({Verb::acquire, "child's", detail::random_token(), 10s, later(now(), 5s)}).verdict ==
                            Verdict::yes;
    }};
    CHECK(child.was_well());
    CHECK(lock.extend(20s) == Outcome::confirmed);
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(at.server.statistic("stats", "total_connections_received:") == before + 1); // the child's own
}
#endif

TEST_CASE("what was not answered in time is undone over TLS, whenever the server goes on", "[redis][tls]") {
    TlsServer at;
    Redis redis{at.uri(), at.trusting()};
    CHECK((RedisLock{redis, "k", 10s}));
    at.server.stop();
    CHECK(acquire(redis, 100ms).verdict == Verdict::unknown);
    at.server.go_on();
    CHECK(at.server.is_empty_within(5s));
}

TEST_CASE("a majority by TLS", "[redis][tls]") {
    TlsServer servers[3];
    Redis one{servers[0].uri(), servers[0].trusting()}, two{servers[1].uri(), servers[1].trusting()},
        three{servers[2].uri(), servers[2].trusting()};
    Quorum majority{one, two, three};
    RedisLock lock{majority, "k", 10s};
    CHECK(lock.unlock() == Outcome::confirmed);
}
