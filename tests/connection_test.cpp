// The wrapper of hiredis against servers that say anything, at any pace, or nothing.
#include "blocking_connection.hpp"
#include "catch.hpp"
#include "fake_server.hpp"
#include "troubles.hpp"

#include <redislock/detail/net/channel_wait.hpp>

#include <fcntl.h>
#include <sys/resource.h>

#include <array>
#include <fstream>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::BlockingConnection;
using test::FakeServer;
using test::Peer;

namespace {

constexpr auto generous = 1s; // for a machine that is busy with other tests
const std::string ping = detail::formatted({"PING"});

const detail::Endpoint& first(const std::vector<detail::Endpoint>& endpoints) { return endpoints.front(); }

BlockingConnection connected(const std::string& uri) {
    BlockingConnection connection;
    REQUIRE(connection.open(first(detail::resolve(Address::parse(uri))), now() + generous));
    return connection;
}
BlockingConnection connected(const FakeServer& server) { return connected(server.unix_uri()); }

/// Why there is no answer to an acquire over a connection to one of these addresses; nothing if there is one.
Failure failure_at(std::vector<detail::Endpoint> endpoints, Millis within) {
    const detail::Server server{std::move(endpoints), detail::Handshake{Address{}, ""}};
    std::array<detail::Channel, 1> channels{detail::Channel{server}};
    const TimePoint deadline = later(now(), within);
    detail::AwaitedQuestion question{{Verb::acquire, "k", Token::from_bits(1, 1), 10s, deadline}};
    channels[0].send(question.shared());
    while (channels[0].advance(now()), !question.answer) detail::ChannelWait{deadline, channels}();
    CHECK(now() < deadline + generous);
    return question.answer->why;
}
Failure failure_at(const FakeServer& server, Millis within) {
    return failure_at(detail::resolve(Address::parse(server.unix_uri())), within);
}

/// The same, where these bytes are the answer.
Failure failure_of(const std::string& bytes, Millis within = 1s) {
    return failure_at(FakeServer{[&](Peer& peer, int) {
                          peer.read();
                          if (peer.send(bytes)) peer.wait_for_the_end();
                      }},
                      within);
}

void accepts(Peer& peer, int) {
    peer.read();
    peer.send("+OK\r\n");
    peer.wait_for_the_end();
}

long peak_memory_kb() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

/// Our ends of the connections to a fake server's port.
std::vector<int> sockets_to(int port) {
    std::vector<int> found;
    for (int fd = 3; fd < 1024; ++fd) {
        sockaddr_in peer{};
        socklen_t size = sizeof peer;
        if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && peer.sin_family == AF_INET &&
            ntohs(peer.sin_port) == port)
            found.push_back(fd);
    }
    return found;
}

int option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    ::getsockopt(fd, level, name, &value, &size);
    return value;
}

} // namespace

TEST_CASE("each kind of reply arrives whole, in whatever pieces it comes", "[connection]") {
    constexpr char bytes[] =
        "+OK\r\n:-42\r\n$-1\r\n*-1\r\n$5\r\na\0\r\nb\r\n-ERR no\r\n*2\r\n$1\r\nk\r\n:7\r\n$0\r\n\r\n+last\r\n";
    const std::string replies{bytes, sizeof bytes - 1};
    for (const bool in_pieces : {false, true}) {
        FakeServer server{[&](Peer& peer, int) {
            peer.read();
            if (!in_pieces) peer.send(replies);
            if (in_pieces)
                for (const char byte : replies) peer.send({&byte, 1});
            peer.wait_for_the_end();
        }};
        BlockingConnection connection = connected(server);
        REQUIRE(connection.write(ping, now() + generous));
        const auto next = [&] { return *connection.read(now() + 10s); };
        CHECK((next().text == "OK"));
        CHECK(next().integer == -42);
        CHECK(next().type == REDIS_REPLY_NIL);
        CHECK(next().type == REDIS_REPLY_NIL);
        CHECK(next().text == std::string{"a\0\r\nb", 5});
        const detail::Reply error = next();
        CHECK((error.is_error() && error.text == "ERR no"));
        CHECK(next().type == REDIS_REPLY_ARRAY);
        const detail::Reply empty = next();
        CHECK((empty.type == REDIS_REPLY_STRING && empty.text.empty()));
        CHECK(next().text == "last");
        CHECK(connection.reusable());
    }
}

TEST_CASE("what is no reply ends the connection", "[connection]") {
    for (const std::string bytes : {"HTTP/1.1 400 Bad Request\r\n\r\n", "\r\n", "*1\r\n*1\r\n:1\r\n", ":12x\r\n",
                                    "$x\r\n", "*2147483647\r\n", "*-2\r\n", "$-2\r\n", "*1025\r\n"})
        CHECK(failure_of(bytes).code == Errc::protocol_error);
}

TEST_CASE("a reply of RESP3, which nobody asked for, ends the connection", "[connection]") {
    for (const std::string bytes : {"#t\r\n", ",1.5\r\n", "%1\r\n+a\r\n+b\r\n", "(123\r\n"}) {
        const auto within = 200ms; // hiredis before 1.0 refuses them, later ones parse them
        CHECK(failure_of(bytes, within).code != Errc::timed_out);
    }
}

TEST_CASE("a reply without end is cut off, and a huge one announced takes no memory", "[connection]") {
    const long before = peak_memory_kb();
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.send("$1000000000\r\n");
        while (peer.send(std::string(10'000, 'x'))) {
        }
    }};
    CHECK(failure_at(server, 10s).code == Errc::protocol_error);
    std::string nested;
    for (int i = 0; i < 1'000'000; ++i) nested += "*1\r\n";
    CHECK(failure_of(nested).code == Errc::protocol_error);
    CHECK(failure_of("*2147483647\r\n").code == Errc::protocol_error);
    CHECK(peak_memory_kb() - before < 64 * 1024); // the fake server's own text is some of it
}

TEST_CASE("half a reply is none", "[connection]") {
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.send("$5\r\nab");
    }};
    CHECK(failure_at(server, 10s).code == Errc::disconnected);
}

TEST_CASE("silence, and a drip that never makes a reply, end with the deadline", "[connection]") {
    CHECK(failure_of("", 30ms).code == Errc::timed_out);
    CHECK(failure_of("+OK\n", 30ms).code == Errc::timed_out);
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.send("+");
        const TimePoint end = now() + 5s;
        for (TimePoint next = now() + 5ms; next < end && peer.send("x"); next += 5ms) detail::wait(-1, 0, next);
    }};
    CHECK(failure_at(server, 100ms).code == Errc::timed_out);
}

TEST_CASE("a connection with anything left to read is not for the next user", "[connection]") {
    for (const std::string surplus : {"+PONG\r\n+PONG\r\n", "+PONG\r\n+", "+PONG\r\nx"}) {
        FakeServer server{[&](Peer& peer, int) {
            peer.read();
            peer.send(surplus);
            peer.wait_for_the_end();
        }};
        BlockingConnection connection = connected(server);
        REQUIRE(connection.write(ping, now() + generous));
        REQUIRE(connection.read(now() + 10s)->text == "PONG");
        CHECK_FALSE(connection.reusable());
    }
}

TEST_CASE("nor is one on which more has come than is owed, also in one piece with that", "[connection]") {
    for (const std::string surplus : {"+3\r\n", "+"}) {
        FakeServer server{[&](Peer& peer, int) {
            peer.read(2 * ping.size());
            peer.send("+1\r\n+2\r\n" + surplus);
            peer.wait_for_the_end();
        }};
        BlockingConnection connection = connected(server);
        for (int i = 0; i < 2; ++i) {
            REQUIRE(connection.write(ping, now() + generous));
            connection.owe_reply();
        }
        REQUIRE(detail::wait(connection.fd(), POLLIN, now() + 10s));
        CHECK_FALSE(connection.reusable());
    }
}

TEST_CASE("a connection that the server has closed is not for the next user", "[connection]") {
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.send("+PONG\r\n");
    }};
    BlockingConnection connection = connected(server);
    REQUIRE(connection.write(ping, now() + generous));
    REQUIRE(connection.read(now() + 10s) != nullptr);
    for (const TimePoint limit = now() + 10s; connection.good() && now() < limit;) connection.reusable();
    CHECK_FALSE(connection.good());
}

TEST_CASE("an owed reply is skipped by the next user, whether it has come or not", "[connection]") {
    FakeServer server{[&](Peer& peer, int) {
        std::size_t heard = 0, answered = 0;
        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read())
            for (heard += bytes.size(); answered < heard / ping.size();)
                peer.send(std::string{"+"}.append(std::to_string(++answered)).append("\r\n"));
    }};
    BlockingConnection connection = connected(server);
    const auto write = [&] { REQUIRE(connection.write(ping, now() + generous)); };
    write();
    connection.owe_reply();
    CHECK(connection.reusable());
    write();
    CHECK(connection.read(now() + 10s)->text == "2");
    write();
    connection.owe_reply();
    detail::wait(-1, 0, now() + 50ms); // it comes meanwhile
    CHECK(connection.reusable());
    write();
    CHECK(connection.read(now() + 10s)->text == "4");
    CHECK(connection.reusable());
}

TEST_CASE("a peer that resets or closes before we write kills nobody", "[connection]") {
    struct sigaction before {};
    ::sigaction(SIGPIPE, nullptr, &before);
    CHECK(before.sa_handler == SIG_DFL);
    for (int round = 0; round < 100; ++round) {
        FakeServer server{[&](Peer& peer, int) {
            peer.read();
            if (round % 2 == 0) peer.reset();
        }};
        BlockingConnection connection = connected(round % 3 == 0 ? server.unix_uri() : server.tcp_uri());
        for (const TimePoint limit = now() + 10s; now() < limit && connection.write(ping, limit);) {
        }
        CHECK(connection.failure().code == Errc::disconnected);
    }
    struct sigaction after {};
    ::sigaction(SIGPIPE, nullptr, &after);
    CHECK(after.sa_handler == SIG_DFL);
}

TEST_CASE("why a connection has ended is not forgotten when more is to be sent", "[connection]") {
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.reset();
    }};
    BlockingConnection connection = connected(server.tcp_uri());
    for (const TimePoint limit = now() + 10s; now() < limit && connection.write(ping, limit);) {
    }
    const std::string reason = connection.failure().detail;
    CHECK_FALSE(reason.empty());
    CHECK_FALSE(connection.write(ping, now()));
    CHECK(connection.failure().detail == reason);
}

TEST_CASE("a storm of signals neither shortens a deadline nor prolongs it", "[connection]") {
    const test::SignalStorm storm;
    FakeServer server{[](Peer& peer, int nth) {
        peer.read();
        if (nth == 0) peer.wait_for_the_end();
        detail::wait(-1, 0, now() + 50ms);
        peer.send("+PONG\r\n");
        peer.wait_for_the_end();
    }};
    BlockingConnection mute = connected(server);
    CHECK(mute.write(ping, now() + generous));
    const TimePoint start = now();
    CHECK(mute.read(start + 100ms) == nullptr);
    CHECK(now() >= start + 100ms);
    CHECK(now() < start + 100ms + generous);
    BlockingConnection slow = connected(server);
    CHECK(slow.write(ping, now() + generous));
    CHECK(slow.read(now() + 10s) != nullptr);
}

TEST_CASE("a connection has no delay, is kept alive, and is closed by exec", "[connection]") {
    FakeServer server{[](Peer& peer, int) { peer.wait_for_the_end(); }};
    BlockingConnection connection = connected(server.tcp_uri());
    const std::vector<int> fds = sockets_to(server.port());
    REQUIRE(fds.size() == 1);
    CHECK((::fcntl(fds[0], F_GETFD) & FD_CLOEXEC) != 0);
    CHECK((::fcntl(fds[0], F_GETFL) & O_NONBLOCK) != 0);
    CHECK(option(fds[0], IPPROTO_TCP, TCP_NODELAY) != 0);
    CHECK(option(fds[0], SOL_SOCKET, SO_KEEPALIVE) != 0);
    CHECK(option(fds[0], IPPROTO_TCP, TCP_KEEPIDLE) == 30);
    connection.close();
    CHECK(sockets_to(server.port()).empty());
}

TEST_CASE("a moved connection takes its socket along, and closes the one it had", "[connection]") {
    FakeServer server{[](Peer& peer, int) {
        peer.read();
        peer.send("+PONG\r\n");
        peer.wait_for_the_end();
    }};
    BlockingConnection first = connected(server.tcp_uri()), second = connected(server.tcp_uri());
    CHECK(sockets_to(server.port()).size() == 2);
    first = std::move(second);
    CHECK(sockets_to(server.port()).size() == 1);
    CHECK_FALSE(second.good());
    REQUIRE(first.write(ping, now() + generous));
    CHECK(first.read(now() + 10s)->text == "PONG");
}

TEST_CASE("every address is tried, and the last reason is told", "[connection]") {
    FakeServer server{accepts};
    const int nobody = test::free_port();
    auto endpoints = detail::resolve(Address::parse("redis://127.0.0.1:" + std::to_string(nobody)));
    const Failure why = failure_at(endpoints, generous);
    CHECK(why.code == Errc::unreachable);
    CHECK_THAT(why.detail, containing("127.0.0.1:" + std::to_string(nobody)) && containing("refused"));
    endpoints.push_back(first(detail::resolve(Address::parse(server.tcp_uri()))));
    CHECK_FALSE(failure_at(endpoints, 10s));
}

TEST_CASE("an address that swallows everything takes its share of the time, and the next is tried", "[connection]") {
    const test::BlackHole hole;
    auto endpoints = detail::resolve(Address::parse(hole.uri()));
    const TimePoint start = now();
    CHECK(failure_at(endpoints, 60ms).code == Errc::unreachable);
    CHECK(now() >= start + 60ms);
    FakeServer server{accepts};
    endpoints.push_back(first(detail::resolve(Address::parse(server.tcp_uri()))));
    CHECK_FALSE(failure_at(endpoints, 200ms));
}

TEST_CASE("names, numbers and sockets are resolved, and what can't be is refused", "[connection]") {
    CHECK(detail::resolve(Address::parse("redis://127.0.0.1:1")).front().text == "127.0.0.1:1");
    CHECK(detail::resolve(Address::parse("redis://[::1]:1")).front().text == "[::1]:1");
    CHECK_FALSE(detail::resolve(Address::parse("redis://localhost")).empty());
    const auto code = [](const std::string& uri) {
        try {
            detail::resolve(Address::parse(uri));
        } catch (const std::system_error& error) {
            return error.code();
        }
        return std::error_code{};
    };
    CHECK(code("redis://no-such-host.invalid") == Errc::unresolved);
    CHECK(code("unix:///" + std::string(107, 'x')) == Errc::bad_uri);
    CHECK_FALSE(code("unix:///" + std::string(106, 'x')));
}

TEST_CASE("no schedule of bytes is attributed to the wrong command, or breaks the parser", "[connection]") {
    std::uint32_t state = 7;
    const auto random = [&](std::uint32_t below) {
        state = state * 1664525 + 1013904223;
        return (state >> 8) % below;
    };
    for (int round = 0; round < 300; ++round) {
        std::string bytes;
        for (std::uint32_t i = random(60); i > 0; --i) bytes += "+-:$*\r\n0123456789OKab_%"[random(22)];
        FakeServer server{[&](Peer& peer, int) {
            peer.read();
            peer.send(bytes);
        }};
        BlockingConnection connection = connected(server);
        connection.write(ping, now() + generous);
        while (const detail::Reply* reply = connection.read(now() + generous))
            REQUIRE(reply->text.size() <= bytes.size());
        CHECK_FALSE(connection.good());
    }
}

TEST_CASE("a channel that was hung up on opens again with the time that its next question has", "[redis][connection]") {
    if (test::is_over_tls("it is about a channel without it")) return;
    test::RedisServer instance;
    const auto address = Address::parse(instance.unix_uri());
    const detail::Server server{detail::resolve(address), detail::Handshake{address, ""}};
    std::array<detail::Channel, 1> channels{detail::Channel{server}};
    const auto ask = [&](const std::string& key, Millis within) {
        const TimePoint asked = detail::now();
        detail::AwaitedQuestion question{{Verb::acquire, key, Token::from_bits(1, 1), 1s, later(asked, within)}};
        channels[0].send(question.shared());
        CHECK(channels[0].due() > asked);
        while (!question.answer) {
            channels[0].advance(detail::now());
            if (!question.answer) detail::ChannelWait{later(asked, within), channels}();
        }
        return *question.answer;
    };
    CHECK(ask("first", 200ms).verdict == Verdict::yes);
    instance.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
    detail::wait(-1, 0, later(detail::now(), 250ms));
    CHECK(ask("second", 2s).verdict == Verdict::yes);
}
