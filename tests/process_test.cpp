// Several processes, forked, stopped, killed: whose lock is it?
#include "catch.hpp"
#include "child.hpp"
#include "redis_server.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <dlfcn.h>

#include <fstream>
#include <set>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::Child;
using test::Pipe;

namespace {

long long commands_processed(test::RedisServer& server) {
    return server.statistic("stats", "total_commands_processed:");
}

void until_blocked(test::RedisServer& server, int count) {
    test::until([&] { return server.blocked_clients() == count; });
}

} // namespace

TEST_CASE("a forked child holds none of its parent's locks, and says nothing for them", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    for (int round = 0; round < 20; ++round) {
        auto lock =
            std::make_unique<RedisLock<Redis>>(redis, "k", Options{.ttl = 60s, .confirm_release = round % 2 == 0});
        const long long before = commands_processed(server);
        Child child{[&] {
            const bool holds = lock->owns_lock() || lock->remaining() > 0ms || !lock->token().is_nil();
            const bool acts = lock->unlock() != Outcome::not_held || lock->extend(60s) != Outcome::not_held;
            lock.reset();
            return !holds && !acts;
        }};
        REQUIRE(child.was_well());
        REQUIRE(commands_processed(server) == before + 1); // our own INFO
        REQUIRE(lock->owns_lock());
        REQUIRE(lock->unlock() == Outcome::confirmed);
    }
}

TEST_CASE("a forked child's own locks work, on connections of its own", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.tcp_uri()};
    RedisLock parents{redis, "parents", 60s};
    const Token token = parents.token();
    Child child{[&] {
        RedisLock childs{redis, "childs", 60s};
        RedisLock taken{redis, "parents", 60s, std::try_to_lock};
        const bool again = !parents.try_lock(); // the same object, now the child's own
        return childs.owns_lock() && !taken.owns_lock() && again && childs.token() != token &&
               childs.unlock() == Outcome::confirmed;
    }};
    for (int i = 0; i < 200; ++i)
        REQUIRE(RedisLock(redis, "meanwhile", 60s).owns_lock()); // on the inherited connection
    CHECK(child.was_well());
    CHECK(parents.extend(60s) == Outcome::confirmed);
    CHECK(parents.unlock() == Outcome::confirmed);
}

// The address sanitizer of gcc 12 takes no care of its allocator's mutexes in fork(): a child may get stuck in operator
// new.
#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a child forked while other threads use the same Redis is not stuck with their mutex", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            while (!done) RedisLock lock{redis, "thread" + std::to_string(i), 60s};
        });
    for (int round = 0; round < 100; ++round) {
        Child child{[&] {
            ::alarm(20);
            return RedisLock(redis, "childs", 60s).owns_lock();
        }};
        CHECK(child.was_well());
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
}
#endif

TEST_CASE("the threads of a forked child may be the first to ask, all at once", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const Options plain{.ttl = 60s, .renew = false};
    const RedisLock parents{redis, "parents", plain};
    for (int round = 0; round < 10; ++round) {
        Child child{[&] {
            constexpr int count = 8;
            std::atomic<int> ready{0}, well{0};
            std::vector<std::thread> threads;
            for (int i = 0; i < count; ++i)
                threads.emplace_back([&, i] {
                    for (++ready; ready < count;) std::this_thread::yield();
                    well += RedisLock(redis, "thread" + std::to_string(i), plain).unlock() == Outcome::confirmed;
                });
            for (std::thread& thread : threads) thread.join();
            return well == count;
        }};
        CHECK(child.was_well());
    }
}

TEST_CASE("tokens are distinct over forks and threads' worth of draws", "[process]") {
    std::set<std::string> seen;
    for (int round = 0; round < 50; ++round) {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        Child child{[&] {
            const Token token = detail::random_token();
            return ::write(ends[1], token.hex().data(), Token::digits) == static_cast<ssize_t>(Token::digits);
        }};
        char text[Token::digits];
        REQUIRE(::read(ends[0], text, sizeof text) == static_cast<ssize_t>(sizeof text));
        ::close(ends[0]);
        ::close(ends[1]);
        REQUIRE(child.was_well());
        const Token own = detail::random_token();
        seen.emplace(text, sizeof text);
        seen.emplace(own.hex());
    }
    CHECK(seen.size() == 100);
}

TEST_CASE("processes that contend for a lock lose no update", "[redis][process]") {
    test::RedisServer server;
    const test::TemporaryFolder folder;
    const std::string file = folder.path() / "count";
    std::ofstream{file} << 0;
    const auto increments = [&] {
        Redis redis{server.unix_uri()};
        for (int i = 0; i < 50; ++i) {
            RedisLock lock{redis, "k", {.ttl = 60s, .max_retry_delay = 2ms}};
            int count = -1;
            std::ifstream{file} >> count;
            std::ofstream{file} << count + 1;
        }
        return true;
    };
    {
        Child a{increments}, b{increments}, c{increments}, d{increments};
        CHECK((a.was_well() && b.was_well() && c.was_well() && d.was_well()));
    }
    int count = -1;
    std::ifstream{file} >> count;
    CHECK(count == 200);
    CHECK(server.is_empty_within(10s)); // what announced a waiter goes by itself
}

TEST_CASE("a killed holder's lock is free when its lease has ended, and not before", "[redis][process]") {
    test::RedisServer server;
    Pipe holding;
    Child holder{[&] {
        Redis redis{server.unix_uri()};
        RedisLock lock{redis, "k", 1s};
        holding.say('!');
        ::pause();
        return false;
    }};
    holding.hear();
    const Millis left{server.integer({"PTTL", "k"})};
    const TimePoint asked = now();
    holder.signal(SIGKILL);
    Redis redis{server.unix_uri()};
    RedisLock waiter{redis, "k", {.ttl = 60s, .request_timeout = 20s}}; // it looks for other reasons every 10 s
    CHECK(now() >= asked + left - 1ms);
    CHECK(now() < asked + left + 5s);
}

TEST_CASE("a waiter that is killed costs those behind him nothing", "[redis][process]") {
    test::RedisServer server;
    const Options looks_seldom{.ttl = 60s, .request_timeout = 20s};
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", looks_seldom};
    {
        Child waiter{[&] { return RedisLock{redis, "k", looks_seldom}.owns_lock(); }};
        until_blocked(server, 1);
        RedisLock next{redis, "k", looks_seldom, std::defer_lock};
        std::thread waits{[&] { next.lock(); }};
        until_blocked(server, 2);
        waiter.signal(SIGKILL);
        until_blocked(server, 1);
        const TimePoint start = now();
        holder.unlock();
        waits.join();
        CHECK(now() < start + 5s);
        CHECK(next.owns_lock());
    }
}

TEST_CASE("a holder that was stopped past its lease knows it at once", "[redis][process]") {
    test::RedisServer server;
    for (int round = 0; round < 2; ++round) {
        Pipe holding, stopped;
        Child holder{[&] {
            Redis redis{server.unix_uri()};
            RedisLock lock{redis, "k", 600ms};
            holding.say('!');
            stopped.hear();
            return !lock.owns_lock() && lock.remaining() == 0ms && lock.unlock() == Outcome::stolen;
        }};
        holding.hear();
        holder.signal(SIGSTOP);
        Redis redis{server.unix_uri()};
        RedisLock next{redis, "k", 10s};
        stopped.say('!');
        holder.signal(SIGCONT);
        CHECK(holder.was_well());
        CHECK(next.unlock() == Outcome::confirmed);
    }
}

TEST_CASE("a waiter that is stopped while its turn comes and goes does not believe in it afterwards",
          "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", 60s};
    Pipe locked;
    Child waiter{[&] {
        const RedisLock lock{redis, "k", {.ttl = 500ms, .request_timeout = 400ms}};
        locked.say(lock.owns_lock() ? '!' : '?');
        return lock.owns_lock();
    }};
    until_blocked(server, 1);
    waiter.signal(SIGSTOP);
    holder.unlock(); // the server gives the lock to the one who is stopped
    RedisLock next{redis, "k", 60s};
    waiter.signal(SIGCONT);
    until_blocked(server, 1); // it stands in line again
    CHECK(next.owns_lock());
    CHECK(next.unlock() == Outcome::confirmed);
    CHECK(locked.hear() == '!');
    CHECK(waiter.was_well());
}

#if !defined(__SANITIZE_ADDRESS__) // as above
TEST_CASE("a forked child neither renews its parent's leases nor ends them, and renews its own", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock lock{redis, "k", {.ttl = 2s, .renew = true}};
    const std::stop_token lost = lock.lost();
    Child child{[&] {
        const bool nothing = !lock.owns_lock() && lock.lost().stop_requested() && lock.unlock() == Outcome::not_held;
        RedisLock own{redis, "own", {.ttl = 2s, .renew = true}};
        detail::wait(-1, 0, now() + 3s);
        return nothing && own.owns_lock() && !own.lost().stop_requested();
    }};
    CHECK(child.was_well());
    CHECK(server.integer({"EXISTS", "own"}) == 0);
    CHECK((lock.owns_lock() && !lost.stop_requested()));
    const Pipe lease_is_over;
    Child heir{[&] { return lease_is_over.hear() == '!'; }}; // it has nothing but what it inherited
    static_cast<void>(lock.detach());                        // the parent lets the lease run out
    CHECK(server.is_empty_within(10s));
    lease_is_over.say('!');
    CHECK(heir.was_well());
}
#endif

TEST_CASE("a process that exits with renewed locks alive ends at once, and their keys with their ttl",
          "[redis][process]") {
    test::RedisServer server;
    const TimePoint start = now();
    Child child{[&]() -> bool {
        static Redis redis{server.unix_uri()};
        static RedisLock outlives_main{redis, "static", {.ttl = 2s, .renew = true}};
        const RedisLock on_the_stack{redis, "stack", {.ttl = 2s, .renew = true}};
        std::exit(on_the_stack.owns_lock() && outlives_main.owns_lock() ? 0 : 1);
    }};
    CHECK(child.was_well());
    CHECK(now() < start + 5s);
    CHECK(server.integer({"EXISTS", "static"}) == 0); // its destructor ran
    CHECK(server.is_empty_within(10s));
}

TEST_CASE("an observer may end the process while a lease is being renewed", "[process]") {
    const bool fails = GENERATE(true, false);
    Child child{[fails] {
        static Memory memory{Memory::Time::real};
        static const Observer ends{
            .renewed = [](void*, const Observer::Renewed&) noexcept { std::exit(0); },
            .not_renewed = [](void*, const Observer::NotRenewed&) noexcept { std::exit(0); },
            .lost = [](void*, const Observer::Lost&) noexcept {},
        };
        static const RedisLock lock{memory, "k", {.ttl = 2s, .observer = &ends}};
        if (fails) memory.set_fault(Fault::request_lost);
        ::alarm(20);
        for (;;) ::pause();
        return false;
    }};
    CHECK(child.was_well());
}

TEST_CASE("a signal that the program blocks to wait for it is not delivered to a thread of ours", "[process]") {
    Child child{[] {
        Memory memory{Memory::Time::real};
        const RedisLock lock{memory, "k", 10s}; // while nothing is blocked yet
        sigset_t awaited;
        ::sigemptyset(&awaited);
        ::sigaddset(&awaited, SIGUSR1);
        ::pthread_sigmask(SIG_BLOCK, &awaited, nullptr);
        ::kill(::getpid(), SIGUSR1);
        const timespec limit{10, 0};
        return ::sigtimedwait(&awaited, nullptr, &limit) == SIGUSR1;
    }};
    CHECK(child.was_well());
}

TEST_CASE("a plugin may be unloaded as soon as its locks are gone, for no thread of ours is left in it", "[process]") {
    // A thread that is left must not end just before it's too late: it gets the one processor only when we leave it.
    cpu_set_t all, one;
    REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
    REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
    const sched_param none{};
    REQUIRE(::sched_setscheduler(0, SCHED_BATCH, &none) == 0);
    for (int round = 0; round < 50; ++round) {
        void* plugin = ::dlopen(REDISLOCK_PLUGIN, RTLD_NOW);
        REQUIRE(plugin != nullptr);
        CHECK(reinterpret_cast<bool (*)()>(::dlsym(plugin, "renew_a_lease"))());
        ::dlclose(plugin);
        REQUIRE(::dlopen(REDISLOCK_PLUGIN, RTLD_NOW | RTLD_NOLOAD) == nullptr);
    }
    ::sched_setscheduler(0, SCHED_OTHER, &none);
    ::sched_setaffinity(0, sizeof all, &all);
}

TEST_CASE("a holder that was stopped past its lease is told so as soon as it goes on", "[redis][process]") {
    test::RedisServer server;
    Pipe holding, told;
    Child holder{[&] {
        Redis redis{server.unix_uri()};
        RedisLock lock{redis, "k", {.ttl = 600ms, .renew = true}};
        const std::stop_callback callback{lock.lost(), [&] { told.say('!'); }};
        holding.say('!');
        ::pause();
        return false;
    }};
    holding.hear();
    holder.signal(SIGSTOP);
    Redis redis{server.unix_uri()};
    RedisLock next{redis, "k", 10s};
    const TimePoint start = now();
    holder.signal(SIGCONT);
    CHECK(told.hear() == '!');
    CHECK(now() < start + 5s);
    CHECK(next.owns_lock());
}
