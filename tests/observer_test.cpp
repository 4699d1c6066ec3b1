// What an observer is told of a lock's life, and that grants are numbered: on simulated time, and over a real server.
#include "catch.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

using namespace redislock;
using namespace std::chrono_literals;
using test::failure;

namespace {

/// Writes down what it is told.
struct Diary {
    Observer observer{
        this,
        [](void* self, const Observer::Waiting& event) noexcept { of(self).waiting.push_back(event); },
        [](void* self, const Observer::Acquired& event) noexcept { of(self).acquired.push_back(event); },
        [](void* self, const Observer::NotAcquired& event) noexcept { of(self).not_acquired.push_back(event); },
        [](void* self, const Observer::Renewed& event) noexcept { of(self).renewed.push_back(event); },
        [](void* self, const Observer::NotRenewed& event) noexcept { of(self).not_renewed.push_back(event); },
        [](void* self, const Observer::Lost& event) noexcept { of(self).lost.push_back(event.why); },
        [](void* self, const Observer::Released& event) noexcept { of(self).released.push_back(event); },
    };
    std::vector<Observer::Waiting> waiting{};
    std::vector<Observer::Acquired> acquired{};
    std::vector<Observer::NotAcquired> not_acquired{};
    std::vector<Observer::Renewed> renewed{};
    std::vector<Observer::NotRenewed> not_renewed{};
    std::vector<Loss> lost{};
    std::vector<Observer::Released> released{};

    static Diary& of(void* self) { return *static_cast<Diary*>(self); }
};

Options told_to(const Diary& diary, Options options = {.ttl = 9s}) {
    options.observer = &diary.observer;
    return options;
}

} // namespace

TEST_CASE("an observer is told how long a lock was waited for, and how long it was held", "[observer]") {
    Memory memory;
    memory.set_latency(10ms);
    Diary diary;
    RedisLock other{memory, "k", {.ttl = 5s, .renew = false}};
    {
        RedisLock lock{memory, "k", told_to(diary)};
        REQUIRE(diary.waiting.size() == 1);
        CHECK(diary.waiting[0].key == "k");
        CHECK((diary.waiting[0].holder_left > 4s && diary.waiting[0].holder_left <= 5s));
        REQUIRE(diary.acquired.size() == 1);
        CHECK(diary.acquired[0].key == "k");
        CHECK(diary.acquired[0].waited >= 4s);
        CHECK(diary.acquired[0].waited < 6s);
        CHECK(diary.acquired[0].attempts >= 2);
        CHECK(diary.acquired[0].fencing_token == 0);
        CHECK(diary.released.empty());
        memory.advance(1s);
    }
    REQUIRE(diary.released.size() == 1);
    CHECK(diary.released[0].held == 1s);
    CHECK(diary.released[0].outcome == Outcome::confirmed);
    CHECK(diary.lost.empty());
}

TEST_CASE("an observer is told once that a wait rides out trouble, and which", "[observer]") {
    Memory memory;
    Diary diary;
    RedisLock lock{memory, "k", told_to(diary), std::defer_lock};
    memory.refuse(Errc::loading);
    CHECK_THROWS_AS(lock.try_lock_for(5s), std::system_error);
    REQUIRE(diary.waiting.size() == 1);
    CHECK(diary.waiting[0].key == "k");
    CHECK(diary.waiting[0].why == Errc::loading);
    CHECK_FALSE(diary.waiting[0].holder_left);
    CHECK_THROWS_AS(lock.try_lock(), std::system_error);
    CHECK(diary.waiting.size() == 1); // who asks once does not wait
    memory.refuse(Errc{});
    const RedisLock other{memory, "k", {.ttl = 5s, .renew = false}};
    lock.lock();
    REQUIRE(diary.waiting.size() == 2);
    CHECK_FALSE(diary.waiting[1].why);
}

TEST_CASE("an observer is told why a lock was not acquired, after how long, and how often it was asked for",
          "[observer]") {
    Memory memory;
    memory.set_latency(10ms);
    Diary diary;
    const auto misses = [&](Missed reason, std::error_code why) {
        const Observer::NotAcquired last =
            diary.not_acquired.empty() ? Observer::NotAcquired{} : diary.not_acquired.back();
        const bool good = diary.not_acquired.size() == 1 && last.reason == reason && last.why == why;
        diary.not_acquired.clear();
        return good && diary.acquired.empty() ? std::pair{last.waited, last.attempts} : std::pair{-1ns, 0U};
    };
    RedisLock lock{memory, "k", told_to(diary), std::defer_lock};
    {
        RedisLock other{memory, "k", 60s};
        CHECK_FALSE(lock.try_lock());
        CHECK(misses(Missed::busy, {}) == std::pair<Observer::Span, unsigned>{10ms, 1});
        CHECK(diary.waiting.empty());
        CHECK_FALSE(lock.try_lock_for(5s));
        const auto [waited, attempts] = misses(Missed::timed_out, {});
        CHECK(waited >= 4s);
        CHECK(attempts >= 2);
        std::stop_source stop;
        stop.request_stop();
        CHECK_FALSE(lock.lock(stop.get_token()));
        CHECK(misses(Missed::stopped, {}) == std::pair<Observer::Span, unsigned>{0s, 0});
    }
    memory.refuse(Errc::auth_failed);
    CHECK(failure([&] { return lock.try_lock_for(5s); }).code == Errc::auth_failed);
    CHECK(misses(Missed::error, make_error_code(Errc::auth_failed)) == std::pair<Observer::Span, unsigned>{10ms, 1});
    for (const auto& [reason, name] : std::map<Missed, std::string_view>{{Missed::busy, "busy"},
                                                                         {Missed::timed_out, "timed_out"},
                                                                         {Missed::stopped, "stopped"},
                                                                         {Missed::error, "error"},
                                                                         {static_cast<Missed>(99), "(no reason)"}})
        CHECK(to_string(reason) == name);
}

TEST_CASE("an observer may destroy the lock that was not acquired", "[observer]") {
    Memory memory;
    static std::unique_ptr<RedisLock<Memory>> lock;
    const Observer observer{.not_acquired = [](void*, const Observer::NotAcquired&) noexcept { lock.reset(); }};
    lock = std::make_unique<RedisLock<Memory>>(memory, "k", Options{.observer = &observer}, std::defer_lock);
    memory.refuse(Errc::auth_failed);
    CHECK(failure([&] { lock->lock(); }).code == Errc::auth_failed);
    CHECK_FALSE(lock);
}

TEST_CASE("an observer is told of each renewal, and what had been left of the lease", "[observer]") {
    Memory memory;
    Diary diary;
    RedisLock lock{memory, "k", told_to(diary)};
    memory.advance(10s);
    REQUIRE(diary.renewed.size() == 3);
    for (const Observer::Renewed& event : diary.renewed) {
        CHECK(event.left > 5s);
        CHECK(event.left < 6s);
    }
    CHECK(lock.extend(20s) == Outcome::confirmed);
    CHECK(diary.renewed.size() == 4);
}

TEST_CASE("an observer is told of each renewal that failed, with the reason, before the lease is lost", "[observer]") {
    Memory memory;
    Diary diary;
    RedisLock lock{memory, "k", told_to(diary)};
    memory.inject(Fault::request_lost);
    memory.advance(4s);
    REQUIRE(diary.not_renewed.size() == 1);
    CHECK(diary.not_renewed[0].key == "k");
    CHECK(diary.not_renewed[0].why == Errc::timed_out);
    CHECK(diary.not_renewed[0].left > 5s);
    CHECK(diary.not_renewed[0].left < 6s);
    CHECK(diary.renewed.size() == 1); // it was tried again
    CHECK(lock.owns_lock());
    memory.erase("k");
    memory.advance(4s);
    REQUIRE(diary.not_renewed.size() == 2);
    CHECK(diary.not_renewed[1].why == Errc::expired);
    CHECK(diary.not_renewed[1].left <= 0s);
}

TEST_CASE("an observer is told what a release met with before the key was found gone", "[observer]") {
    Memory memory;
    Diary diary;
    {
        RedisLock lock{memory, "k", told_to(diary)};
        memory.inject(Fault::reset_after);
    }
    REQUIRE(diary.released.size() == 1);
    CHECK(diary.released[0].outcome == Outcome::unknown);
    CHECK(diary.released[0].why == Errc::disconnected);
}

TEST_CASE("an observer is told why nobody knows what became of a release", "[observer]") {
    Memory memory;
    Diary diary;
    Options options = told_to(diary);
    SECTION("nobody answered") {
        RedisLock lock{memory, "k", options};
        memory.set_fault(Fault::reply_lost);
    }
    SECTION("it was not to be confirmed") {
        options.confirm_release = false;
        RedisLock lock{memory, "k", options};
    }
    REQUIRE(diary.released.size() == 1);
    CHECK(diary.released[0].outcome == Outcome::unknown);
    CHECK(diary.released[0].why == (options.confirm_release ? Errc::timed_out : std::error_code{}));
}

TEST_CASE("an observer is told why a lease was lost, once", "[observer]") {
    Memory memory;
    Diary diary;
    Options options = told_to(diary);
    Loss why = Loss::deleted;
    SECTION("deleted behind our back") {}
    SECTION("stolen") { why = Loss::stolen; }
    SECTION("nobody answers") { why = Loss::timed_out; }
    SECTION("not to be renewed") {
        options.renew = false;
        why = Loss::timed_out;
    }
    SECTION("held for too long") {
        options.max_hold = 20s;
        why = Loss::max_hold;
    }
    RedisLock lock{memory, "k", options};
    if (why == Loss::deleted) memory.erase("k");
    if (why == Loss::stolen) memory.put("k", "another", 1h);
    if (why == Loss::timed_out && options.renew) memory.set_fault(Fault::request_lost);
    memory.advance(1h);
    CHECK(diary.lost == std::vector{why});
    lock.unlock();
    CHECK(diary.lost.size() == 1);
}

TEST_CASE("an observer is told of a loss once, also if the holder extends the lease as it ends", "[observer]") {
    Memory memory;
    Diary diary;
    RedisLock lock{memory, "k", told_to(diary)};
    memory.set_fault(Fault::request_lost);
    memory.advance(8s);
    REQUIRE(lock.owns_lock());
    CHECK(lock.extend(9s) != Outcome::confirmed);
    memory.advance(1h);
    CHECK(diary.lost == std::vector{Loss::timed_out});
}

TEST_CASE("an observer that looks at the lock is in nobody's way", "[observer]") {
    Memory memory;
    static RedisLock<Memory>* watched = nullptr;
    static int seen = 0;
    const Observer observer{
        .renewed = [](void*, const Observer::Renewed&) noexcept { seen += watched->owns_lock(); },
        .lost = [](void*, const Observer::Lost&) noexcept { seen += watched->unlock() != Outcome::confirmed; }};
    RedisLock lock{memory, "k", {.ttl = 9s, .observer = &observer}};
    watched = &lock;
    memory.advance(10s);
    CHECK(seen == 3);
    memory.erase("k");
    memory.advance(1h);
    CHECK(seen == 4);
}

TEST_CASE("grants are numbered where that is wanted, and rise", "[observer]") {
    Memory memory;
    Diary diary;
    Options fencing = told_to(diary);
    fencing.fencing = true;
    std::uint64_t last = 0;
    for (int i = 0; i < 3; ++i) {
        RedisLock lock{memory, "k", fencing};
        CHECK(lock.fencing_token() > last);
        last = lock.fencing_token();
        CHECK(diary.acquired.back().fencing_token == last);
        lock.unlock();
        CHECK(lock.fencing_token() == 0);
    }
    RedisLock unnumbered{memory, "k", 10s};
    CHECK(failure([&] { return unnumbered.fencing_token(); }).code == std::errc::operation_not_permitted);
}

TEST_CASE("a server's numbers rise, also after its counter was lost, and for those who waited", "[redis][fence]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    const Options fencing{.ttl = 10s, .fencing = true};
    const std::string counter = "{k}:redislock:fence";
    std::uint64_t last = 0;
    for (int i = 0; i < 50; ++i) {
        RedisLock lock{redis, "k", fencing};
        CHECK(lock.fencing_token() > last);
        last = lock.fencing_token();
        if (i % 5 == 0) server.command({"DEL", counter});
        if (i % 5 == 1) CHECK(server.integer({"PTTL", counter}) > 86'000'000); // it goes by itself
        if (i % 5 == 2) server.command({"SCRIPT", "FLUSH"});
    }
    server.command({"SET", counter, std::to_string(last + 1'000'000'000)}); // as a clock that was ahead would have it
    RedisLock ahead{redis, "k", fencing};
    CHECK(ahead.fencing_token() == last + 1'000'000'001);
    RedisLock waiter{redis, "k", fencing, std::defer_lock};
    std::jthread waiting{[&] { waiter.lock(); }};
    while (server.blocked_clients() == 0) std::this_thread::yield();
    ahead.unlock();
    waiting.join();
    CHECK(waiter.fencing_token() == last + 1'000'000'002);
}

TEST_CASE("a counter that may not be kept is no grant, and one that is no number begins anew", "[redis][fence]") {
    test::RedisServer server;
    const Options fencing{.ttl = 10s, .fencing = true};
    server.command({"ACL", "SETUSER", "u", "on", ">p", "~k", "+@all"});
    Redis user{"unix://u:p@" + server.socket_path()};
    CHECK(failure([&] { return RedisLock{user, "k", fencing}; }).code == Errc::no_permission);
    CHECK(server.integer({"EXISTS", "k"}) == 0);
    server.command({"HSET", "{k}:redislock:fence", "a", "b"});
    Redis redis{server.unix_uri()};
    CHECK((RedisLock{redis, "k", fencing}).fencing_token() > 0);
}

TEST_CASE("a counter that no number follows is no grant, and one that leads nowhere is put right", "[redis][fence]") {
    test::RedisServer server, second, third;
    const std::string counter = "{k}:redislock:fence";
    const Options fencing{.ttl = 10s, .fencing = true};
    Redis redis{server.unix_uri()}, two{second.unix_uri()}, three{third.unix_uri()};
    Quorum alone{redis}, quorum{redis, two, three};
    const auto set = [&](const std::string& value) { server.command({"SET", counter, value}); };
    for (const std::string value : {"9007199254740991", "9007199254740992", "1e300", "inf", "-nan", "nan"}) {
        CAPTURE(value);
        set(value);
        for (int patience = 0; patience < 2; ++patience) {
            RedisLock lock{redis, "k", fencing, std::defer_lock};
            const Failure refused = failure([&] { return patience == 0 ? lock.try_lock() : lock.try_lock_for(10s); });
            CHECK(refused.code == Errc::server_error);
            CHECK_THAT(refused.detail, containing(counter) && containing("no number follows"));
            CHECK(server.integer({"EXISTS", "k"}) == 0);
        }
        CHECK(failure([&] { return RedisLock{alone, "k", fencing, std::try_to_lock}; }).code == Errc::server_error);
        CHECK((RedisLock{quorum, "k", fencing}).fencing_token() > 0); // the others are a majority
        CHECK(server.text({"GET", counter}) == value);
    }
    set("9007199254740990");
    CHECK((RedisLock{redis, "k", fencing}).fencing_token() == 9'007'199'254'740'991);
    std::uint64_t last = 0;
    for (const std::string value : {"-inf", "1.5", "-9e300", "0x10", "some text", ""}) {
        CAPTURE(value);
        set(value);
        CHECK((RedisLock{redis, "k", fencing}).fencing_token() > last);
        RedisLock lock{redis, "k", fencing};
        last = lock.fencing_token();
        set(value);
        Request extend{Verb::extend, "k", lock.token(), 10s, later(redis.now(), 10s)};
        extend.fencing_token = last; // as a majority writes back what it has agreed upon
        CHECK(redis.ask(extend).verdict == Verdict::yes);
        CHECK(server.text({"GET", counter}) == std::to_string(last));
    }
}

TEST_CASE("that no replica has a grant is told also by the first acquire of a server", "[redis][replicas]") {
    test::RedisServer alone;
    Redis redis{alone.unix_uri()};
    CHECK(failure([&] {
              return RedisLock{redis, "k", {.ttl = 60s, .min_replicas = 1}, std::try_to_lock};
          }).code == Errc::no_replicas);
}

TEST_CASE("a grant counts when enough replicas have it", "[redis][replicas]") {
    test::RedisServer primary, first, second;
    const auto follow = [&](test::RedisServer& replica) {
        replica.command({"CONFIG", "SET", "repl-diskless-load", "on-empty-db"});
        primary.command({"CONFIG", "SET", "repl-diskless-sync-delay", "0"});
        replica.command({"REPLICAOF", "127.0.0.1", std::to_string(primary.port())});
        while (replica.text({"INFO", "replication"}).find("master_link_status:up") == std::string::npos)
            std::this_thread::yield();
    };
    follow(first);
    follow(second);
    const auto caught_up = [&] {
        do primary.command({"SET", "another", "x"});
        while (primary.integer({"WAIT", "2", "100"}) < 2);
    };
    caught_up();
    Redis redis{primary.unix_uri()};
    Options options{.ttl = 2s, .request_timeout = 400ms, .min_replicas = 2};
    {
        RedisLock lock{redis, "k", options};
        CHECK(first.text({"GET", "k"}) == lock.token().hex());
        CHECK(second.text({"GET", "k"}) == lock.token().hex());
        SECTION("and when the primary is lost, its successor knows the holder") {
            primary.kill();
            first.command({"REPLICAOF", "NO", "ONE"});
            Redis successor{first.unix_uri()};
            CHECK_FALSE((RedisLock{successor, "k", options, std::try_to_lock}).owns_lock());
        }
        SECTION("renewals as well: with too few replicas the lease is lost in time") {
            second.kill();
            const detail::StopSignal lost{lock.lost()};
            while (!detail::stopped({TimePoint::max(), lost.fd()})) std::this_thread::yield();
            CHECK_FALSE(lock.owns_lock());
        }
        SECTION("as does an extension that makes no difference") {
            second.stop();
            primary.command({"PEXPIRE", "k", "60000"});
            const auto writes = [&] { return primary.statistic("commandstats", "cmdstat_pexpire:calls="); };
            const long long before = writes();
            CHECK(lock.extend(2s) == Outcome::unknown);
            CHECK(writes() > before); // for WAIT is to answer for this one
            second.go_on();
        }
        SECTION("and over a majority it is numbered also after its script was forgotten") {
            Quorum quorum{redis};
            const Options numbered{.ttl = 10s, .fencing = true, .min_replicas = 2};
            std::uint64_t last = 0;
            for (int i = 0; i < 3; ++i) {
                RedisLock again{quorum, "another lock", numbered};
                CHECK(again.fencing_token() > last);
                last = again.fencing_token();
                again.unlock();
                primary.command({"SCRIPT", "FLUSH"});
            }
        }
        SECTION("one that too few have is undone, and the reason told") {
            lock.unlock();
            second.stop();
            options.ttl = 60s;
            CHECK(failure([&] { return RedisLock{redis, "k", options}; }).code == Errc::no_replicas);
            // The last undoing may stand behind a WAIT, which the server ends when it comes to it.
            for (const TimePoint end = later(detail::now(), 10s); detail::now() < end;)
                if (primary.integer({"EXISTS", "k"}) == 0) break;
            CHECK(primary.integer({"EXISTS", "k"}) == 0);
            second.go_on();
            caught_up();
            CHECK_NOTHROW(lock.lock());
        }
    }
}
