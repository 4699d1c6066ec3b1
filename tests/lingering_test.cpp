// Sockets that are left open for the server to read from, and what becomes of them; and a process that has no
// descriptor left.
#include "catch.hpp"
#include "child.hpp"
#include "fake_server.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <dlfcn.h>
#include <sys/resource.h>

#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::Descriptor;
using detail::LingeringShare;
using detail::now;
using test::Child;

namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

/// Both ends of a connection; ours is to linger.
struct Pair {
    Pair() {
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        ours = Descriptor{ends[0]};
        servers = Descriptor{ends[1]};
    }
    /// Whether the server sees us gone within that time.
    bool ends_within(Millis limit) const { return detail::wait(servers.fd(), POLLIN, {now() + limit}) && is_end(); }
    bool is_end() const {
        char byte;
        return ::recv(servers.fd(), &byte, 1, MSG_DONTWAIT) == 0;
    }
    void answer() const { CHECK(::send(servers.fd(), "!", 1, MSG_NOSIGNAL) == 1); }

    Descriptor ours, servers;
};

/// Opens files until there is no descriptor left.
void use_up_descriptors() {
    while (::open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) {
    }
}

void limit_descriptors(std::size_t more) {
    const auto next = static_cast<rlim_t>(::dup(0));
    ::close(static_cast<int>(next));
    const rlimit limit{next + more, next + more};
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) throw std::runtime_error{"setrlimit"};
}

} // namespace

TEST_CASE("the descriptors of waits that were stopped come back by themselves", "[redis][lingering]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const RedisLock holder{redis, "k", 60s};
    static_cast<void>(server.blocked_clients());
    const std::size_t before = test::open_descriptors();
    for (int i = 0; i < 200; ++i) {
        std::stop_source stop;
        std::thread waiter{[&] { CHECK(!RedisLock(redis, "k", {}, std::defer_lock).lock(stop.get_token())); }};
        test::until([&] { return server.blocked_clients() == 1; });
        stop.request_stop();
        waiter.join();
    }
    test::until([&] { return test::open_descriptors() <= before + 4; }); // and some that are idle
}

TEST_CASE("a socket lingers until the server closes it, a while after an answer, or for 10 s", "[lingering]") {
    LingeringShare share;
    Pair closed, answered, silent;
    const int fd = closed.ours.fd();
    const TimePoint start = now();
    for (Pair* pair : {&closed, &answered, &silent}) share.keep(std::move(pair->ours));
    closed.servers = {};
    test::until([&] { return !is_open(fd); });
    CHECK(now() < start + 8s);
    CHECK(!answered.is_end());
    answered.answer();
    CHECK(answered.ends_within(60s));
    CHECK(now() < start + 8s);
    CHECK(!silent.is_end());
    CHECK(silent.ends_within(60s));
    CHECK(now() >= start + 10s);
}

TEST_CASE("what has come before a socket lingers is no answer to what was sent last", "[lingering]") {
    LingeringShare share;
    Pair pair;
    pair.answer();
    const TimePoint start = now();
    share.keep(std::move(pair.ours));
    CHECK(pair.ends_within(60s));
    CHECK(now() >= start + 10s);
}

TEST_CASE("a socket to which more has come than is read at once lingers, and ends, as others do", "[lingering]") {
    LingeringShare share;
    Pair pair;
    const std::string much(100'000, '!');
    REQUIRE(::send(pair.servers.fd(), much.data(), much.size(), MSG_NOSIGNAL) == 100'000);
    share.keep(std::move(pair.ours));
    CHECK(pair.ends_within(60s));
}

TEST_CASE("at most 64 sockets linger in a process, the latest", "[lingering]") {
    LingeringShare one, other;
    CHECK(&one.sockets == &other.sockets);
    std::vector<Pair> pairs(70);
    for (std::size_t i = 0; i < pairs.size(); ++i) (i % 2 ? one : other).keep(std::move(pairs[i].ours));
    for (std::size_t i = 0; i < 6; ++i) CHECK(pairs[i].ends_within(8s)); // when the thread's poll() has let go of it
    for (std::size_t i = 6; i < pairs.size(); ++i) CHECK(!pairs[i].is_end());
}

TEST_CASE("lingering sockets are closed with the Redis that left them, and no others", "[lingering]") {
    LingeringShare others;
    Pair left, another;
    {
        LingeringShare share;
        share.keep(std::move(left.ours));
        others.keep(std::move(another.ours));
    }
    CHECK(left.ends_within(8s));
    CHECK(!another.is_end());
}

#if !defined(__SANITIZE_THREAD__) // which starts a thread of its own with the first of ours
TEST_CASE("a thread waits for lingering sockets while there are any", "[lingering]") {
    const std::size_t before = test::threads();
    {
        LingeringShare share;
        CHECK(test::threads() == before);
        for (int round = 0; round < 10; ++round) {
            Pair pair;
            share.keep(std::move(pair.ours));
            CHECK(test::threads() == before + 1);
            pair.servers = {};
            test::until([&] { return test::threads() == before; });
        }
        Pair left;
        share.keep(std::move(left.ours));
    }
    test::until([&] { return test::threads() == before; }); // a thread that was joined is listed for a moment yet
}
#endif

#if !defined(__SANITIZE_ADDRESS__) // whose allocator a forked child may find locked for ever
TEST_CASE("a forked child has none of its parent's lingering sockets, and leaves them alone", "[lingering]") {
    detail::PerProcess<LingeringShare> share;
    Pair parents;
    const int fd = parents.ours.fd();
    share.get().keep(std::move(parents.ours));
    Child child{[&] {
        ::alarm(60);
        Pair own;
        const bool well = !is_open(fd) || own.ours.fd() == fd || own.servers.fd() == fd;
        share.get().keep(std::move(own.ours));
        own.servers = {};
        for (const std::size_t none = 1; test::threads() > none;) std::this_thread::yield();
        return well;
    }};
    CHECK(child.was_well());
    CHECK(!parents.is_end());
    parents.answer();
    CHECK(parents.ends_within(8s));
}
#endif

TEST_CASE("where no descriptor is left those of lingering sockets are used", "[redis][lingering]") {
    if (test::is_over_tls("a server that is silent can not be connected to, and so has no lingering sockets")) return;
    test::RedisServer silent, server;
    Child child{[&] {
        Redis frozen{silent.unix_uri()}, redis{server.unix_uri()};
        silent.stop();
        for (int i = 0; i < 8; ++i) try {
                static_cast<void>(RedisLock(frozen, "k", {.request_timeout = 10ms}, std::try_to_lock));
            } catch (const std::system_error&) {
            }
        limit_descriptors(0);
        use_up_descriptors();
        RedisLock lock{redis, "k", 60s}; // renewed: two connections, a timer
        return lock.unlock() == Outcome::confirmed;
    }};
    CHECK(child.was_well());
    silent.go_on();
}

TEST_CASE("where no descriptor is left those of idle connections are used", "[redis][lingering]") {
    test::RedisServer server;
    Child child{[&] {
        Redis redis{server.unix_uri()}, another{server.unix_uri()};
        {
            constexpr int count = 6;
            const Options plain{.ttl = 60s, .renew = false, .request_timeout = 10s};
            std::vector<std::unique_ptr<RedisLock<Redis>>> held;
            std::vector<std::thread> waiters;
            for (int i = 0; i < count; ++i) {
                const std::string key = "k" + std::to_string(i);
                held.push_back(std::make_unique<RedisLock<Redis>>(redis, key, plain));
                waiters.emplace_back([&redis, key, plain] {
                    static_cast<void>(RedisLock{redis, key, plain}.unlock());
                });
            }
            test::until([&] { return server.blocked_clients() == count; }); // each over a connection of its own
            for (const auto& lock : held) static_cast<void>(lock->unlock());
            for (std::thread& waiter : waiters) waiter.join();
        }
        limit_descriptors(0);
        use_up_descriptors();
        std::stop_source stop;
        RedisLock one{another, "one", {.ttl = 60s}, std::defer_lock}, two{redis, "two", 60s, std::defer_lock};
        const bool had = one.lock(stop.get_token()) && two.lock(stop.get_token());
        return had && one.unlock() == Outcome::confirmed && two.unlock() == Outcome::confirmed;
    }};
    CHECK(child.was_well());
}

TEST_CASE("a plugin may be unloaded though a socket of its lingered", "[redis][lingering]") {
    test::FakeServer silent{[](test::Peer& peer, int) { peer.wait_for_the_end(); }};
    for (int round = 0; round < 20; ++round) {
        void* plugin = ::dlopen(REDISLOCK_PLUGIN, RTLD_NOW);
        REQUIRE(plugin != nullptr);
        CHECK(reinterpret_cast<bool (*)(const char*)>(::dlsym(plugin, "give_up"))(silent.unix_uri().c_str()));
        ::dlclose(plugin);
        REQUIRE(::dlopen(REDISLOCK_PLUGIN, RTLD_NOW | RTLD_NOLOAD) == nullptr);
        Child child{[] { return true; }}; // its handler of forks has gone with it
        CHECK(child.was_well());
    }
}
