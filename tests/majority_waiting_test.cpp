// Waiting for a lock over a majority of real servers: who is next, where the line stands, and what becomes of those in
// it when that server is frozen, gone, or in error.
#include "catch.hpp"
#include "proxy.hpp"
#include "quorum_servers.hpp"
#include "until.hpp"
#include "waiters.hpp"

#include <atomic>
#include <sstream>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::looks_seldom;
using test::quick;
using test::Servers;
using test::Waiters;

namespace {

constexpr Options looks_often{.ttl = 60s, .request_timeout = 600ms};

using Lock = RedisLock<Quorum<Redis>>;

struct Line : Servers {
    Line() : Servers{3} {}

    /// The server where so many stand in line; null if there is none.
    test::RedisServer* place(long long count = 1) {
        for (test::RedisServer& server : servers)
            if (server.blocked_clients() == count) return &server;
        return nullptr;
    }
    /// At the one where the line is.
    long long blocked_clients() {
        long long most = 0;
        for (test::RedisServer& server : servers) most = std::max(most, server.blocked_clients());
        return most;
    }
    test::RedisServer& until_there(long long count = 1) {
        test::RedisServer* server = nullptr;
        test::until([&] { return (server = place(count)) != nullptr; });
        return *server;
    }
};

} // namespace

TEST_CASE("those who wait for a majority get the lock in the order of their arrival", "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    Options options = looks_seldom;
    SECTION("by releases that are confirmed") {}
    SECTION("by those that are not") { options.confirm_release = false; }
    SECTION("numbered") { options.fencing = true; }
    auto holder = std::make_unique<Lock>(line.locked_everywhere(quorum, options)); // else turns may be in vain
    Waiters waiters{line, quorum, options};
    waiters.add(6);
    CHECK(inspect(quorum, "k")->is_awaited);
    const TimePoint start = now();
    holder.reset();
    waiters.join();
    CHECK(now() < start + quick);
    CHECK(waiters.order() == std::vector{0, 1, 2, 3, 4, 5});
    CHECK(line.are_free_within(5s));
}

TEST_CASE("all clients stand in line at the same server, in whatever order they name the servers",
          "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    Redis &a = line.nodes[0], &b = line.nodes[1], &c = line.nodes[2];
    Quorum other{c, a, b}, third{b, c, a};
    auto holder = std::make_unique<Lock>(quorum, "k", looks_seldom);
    std::vector<std::jthread> threads;
    for (Quorum<Redis>* one : {&quorum, &other, &third}) {
        threads.emplace_back([one] { const Lock lock{*one, "k", looks_seldom}; });
        line.until_there(static_cast<long long>(threads.size()));
    }
    holder.reset();
}

TEST_CASE("the line moves on from a server that is frozen, or gone", "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    auto holder = std::make_unique<Lock>(line.locked_everywhere(quorum, looks_often));
    Waiters waiters{line, quorum, looks_often};
    waiters.add(2);
    test::RedisServer& server = *line.place(2);
    const TimePoint start = now();
    SECTION("frozen") { server.stop(); }
    SECTION("gone") { server.kill(); }
    test::until([&] {
        return std::any_of(line.servers.begin(), line.servers.end(),
                           [&](test::RedisServer& one) { return &one != &server && one.blocked_clients() == 2; });
    });
    CHECK(now() < start + quick);
    holder.reset();
    waiters.join();
    CHECK(waiters.order().size() == 2);
    CHECK(now() < start + 2 * quick);
    server.go_on();
}

TEST_CASE("a server that forgets its line costs a look", "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    auto holder = std::make_unique<Lock>(line.locked_everywhere(quorum, looks_often));
    Waiters waiters{line, quorum, looks_often};
    waiters.add(3);
    test::RedisServer& server = *line.place(3);
    const TimePoint start = now();
    SECTION("its waiters are hung up on") { server.command({"CLIENT", "KILL", "TYPE", "normal"}); }
    SECTION("its keys are gone") { server.command({"FLUSHALL"}); }
    SECTION("a turn is lost") {
        server.command({"DEL", "{k}:redislock:waiting"}); // for a moment a release knows nobody
    }
    holder.reset();
    waiters.join();
    CHECK(waiters.order().size() == 3);
    CHECK(now() < start + quick);
}

TEST_CASE("a key that is held at the place of the line alone does not hold up those in it",
          "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    { const Lock proven = line.locked_everywhere(quorum, looks_often); } // each is connected
    CHECK(line.are_free_within(5s));
    line.everywhere({"SET", "k", "another's", "PX", "60000"});
    Waiters waiters{line, quorum, looks_often};
    waiters.add();
    test::RedisServer& server = *line.place();
    const TimePoint start = now();
    for (test::RedisServer& one : line.servers)
        if (&one != &server) one.command({"DEL", "k"}); // and nobody is told
    waiters.join();
    CHECK(now() < start + quick);
    CHECK(server.text({"GET", "k"}) == "another's");
}

TEST_CASE("a turn that is worth nothing wakes nobody else, and the next release is not missed",
          "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    auto holder = std::make_unique<Lock>(line.locked_everywhere(quorum, looks_seldom));
    Waiters waiters{line, quorum, looks_seldom};
    waiters.add(3);
    test::RedisServer& server = *line.place(3);
    // A newcomer has the other two by a majority of his own before those in line are told.
    const Token token = quorum.fresh();
    for (test::RedisServer& one : line.servers)
        if (&one != &server) one.command({"SET", "k", std::string{token.hex()}, "PX", "60000"});
    server.command({"CONFIG", "RESETSTAT"});
    const TimePoint told = now();
    holder.reset(); // at this server alone the key was still the holder's
    const auto turns = [&] { return server.statistic("commandstats", "cmdstat_rpush:calls="); };
    test::until([&] { return turns() >= 5; });
    CHECK(turns() <= (now() - told) / 18ms + 2); // each is another one's for 20 ms
    const TimePoint start = now();
    force_unlock(quorum, "k", token);
    waiters.join();
    CHECK(now() < start + quick);
    CHECK(waiters.order().size() == 3);
}

TEST_CASE("who has had a turn in vain does not take the key that he gives back for another's",
          "[redis][quorum][waiting]") {
    if (test::is_over_tls("it counts bytes")) return;
    Line line;
    std::deque<test::Proxy> ways;
    std::deque<Redis> nodes;
    for (test::RedisServer& one : line.servers) nodes.emplace_back(ways.emplace_back(one).uri());
    Quorum<Redis> quorum{nodes[0], nodes[1], nodes[2]};
    const auto is_quick_after_a_turn_in_vain = [&] {
        { const Lock proven = line.locked_everywhere(quorum, looks_seldom); } // each is connected
        CHECK(line.are_free_within(5s));
        line.everywhere({"SET", "k", "another's", "PX", "60000"});
        Waiters waiters{line, quorum, looks_seldom};
        waiters.add();
        std::size_t at = 0;
        while (line.servers[at].blocked_clients() == 0) ++at;
        test::RedisServer& server = line.servers[at];
        // What undoes his grant there is late, and his place in line is not: it goes over another connection.
        const Request acquire{Verb::acquire, "k", quorum.fresh(), looks_seldom.ttl, TimePoint{}};
        const std::size_t undo = detail::set_command(acquire).size();
        ways[at].strike_at({test::Proxy::Fault::Kind::delay, test::Proxy::Way::up, undo, 30ms});
        const auto grants = [&] { return server.statistic("commandstats", "cmdstat_set:calls="); };
        const auto before = grants();
        server.command({"DEL", "k"});
        server.command({"RPUSH", "{k}:redislock:turn", ""});
        const TimePoint start = now();
        test::until([&] { return grants() > before && server.integer({"EXISTS", "k"}) == 0; });
        line.everywhere({"DEL", "k"}); // and nobody is told
        waiters.join();
        return now() < start + quick;
    };
    bool is_quick = false; // at times a busy machine is later than he waits for his undo
    for (int tries = 0; tries < 3 && !is_quick; ++tries) is_quick = is_quick_after_a_turn_in_vain();
    CHECK(is_quick);
}

TEST_CASE("where one server does not let those who wait block the next one does", "[redis][quorum][waiting]") {
    Line line;
    for (std::size_t n = 0; n < 2; ++n) line.servers[n].command({"ACL", "SETUSER", "default", "-blpop"});
    Quorum<Redis> quorum = line.quorum();
    auto holder = std::make_unique<Lock>(quorum, "k", looks_seldom);
    Waiters waiters{line, quorum, looks_seldom};
    waiters.add();
    CHECK(line.servers[2].blocked_clients() == 1);
    const TimePoint start = now();
    holder.reset();
    waiters.join();
    CHECK(now() < start + quick);
}

TEST_CASE("where no server lets those who wait block they poll", "[redis][quorum][waiting]") {
    Line line;
    line.everywhere({"ACL", "SETUSER", "default", "-blpop"});
    Quorum<Redis> quorum = line.quorum();
    auto holder = std::make_unique<Lock>(quorum, "k", looks_often);
    std::atomic<bool> has_lock{false};
    std::jthread waiter{[&] {
        const Lock lock{quorum, "k", looks_often};
        has_lock = true;
    }};
    CHECK_FALSE(Lock(quorum, "k", looks_often, std::defer_lock).try_lock_for(200ms));
    CHECK_FALSE(has_lock);
    holder.reset();
    test::until([&] { return has_lock.load(); });
}

TEST_CASE("a stop ends the wait for a majority, and so does its time", "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    Lock holder{quorum, "k", looks_seldom};
    Lock waiter{quorum, "k", looks_seldom, std::defer_lock};
    const TimePoint start = now();
    CHECK(test::waits_in_vain(waiter, 300ms));
    CHECK(now() >= start + 300ms);
    std::stop_source stop;
    std::jthread stops{[&] {
        line.until_there();
        stop.request_stop();
    }};
    CHECK_FALSE(waiter.lock(stop.get_token()));
    stops.join();
    test::until([&] { return line.place() == nullptr; }); // else the next turn would be his
    CHECK(now() < start + quick);
    CHECK(holder.unlock() == Outcome::confirmed);
    CHECK(waiter.try_lock()); // the place is left behind, and no server is taken for a bad one
    std::jthread again{[&] { const Lock lock{quorum, "k", looks_seldom}; }};
    line.until_there();
    waiter.unlock();
}

namespace {

/// How often one who releases and asks again at once, each time by a lock of his own, has it before one in line does.
template <class Place, class UntilBlocked>
int turns_before_the_next(Place& place, bool confirms, UntilBlocked until_blocked) {
    Options options = looks_seldom;
    options.confirm_release = confirms;
    std::atomic<bool> has_lock{false};
    int turns = 0;
    auto lock = std::make_unique<RedisLock<Place>>(place, "k", options);
    std::jthread waiter{[&] {
        const RedisLock<Place> own{place, "k", looks_seldom};
        has_lock = true;
    }};
    until_blocked();
    for (; !has_lock && turns < 100; ++turns) {
        lock.reset();
        lock = std::make_unique<RedisLock<Place>>(place, "k", options);
    }
    return turns;
}

} // namespace

TEST_CASE("who releases a lock and asks again at once is behind those in line", "[redis][quorum][waiting]") {
    for (const bool confirms : {true, false}) {
        Line line;
        Quorum<Redis> quorum = line.quorum();
        CHECK(turns_before_the_next(quorum, confirms, [&] { line.until_there(); }) < 30);
        test::RedisServer server;
        Redis redis{server.unix_uri()};
        CHECK(turns_before_the_next(redis, confirms,
                                    [&] { test::until([&] { return server.blocked_clients() == 1; }); }) <= 3);
    }
}

namespace {

/// Another client's.
struct Others {
    explicit Others(Line& line) {
        std::vector<Redis*> all;
        for (test::RedisServer& server : line.servers) all.push_back(&nodes.emplace_back(server.unix_uri()));
        quorum.emplace(std::move(all));
    }
    std::deque<Redis> nodes{};
    std::optional<Quorum<Redis>> quorum{};
};

/// All connections of ours but those over which somebody stands in line.
void hang_up_on_the_others(test::RedisServer& server) {
    std::istringstream clients{server.text({"CLIENT", "LIST"})};
    for (std::string line; std::getline(clients, line);) {
        if (line.find("name=redislock") == line.npos || line.find("flags=b") != line.npos) continue;
        server.command({"CLIENT", "KILL", "ID", line.substr(3, line.find(' ') - 3)});
    }
}

} // namespace

TEST_CASE("a look over connections that have died meanwhile costs nobody his place", "[redis][quorum][waiting]") {
    Line line;
    Quorum<Redis> quorum = line.quorum();
    Others others{line};
    const Lock holder{*others.quorum, "k", looks_often};
    std::stop_source stop;
    std::jthread waiter{[&] {
        Lock lock{quorum, "k", looks_often, std::defer_lock};
        static_cast<void>(lock.lock(stop.get_token()));
    }};
    test::RedisServer& server = line.until_there();
    Options options = looks_often;
    options.confirm_release = false;
    for (int i = 0; i < 5; ++i) {
        {
            const Lock other{quorum, "other", options};
            for (test::RedisServer& one : line.servers) one.stop();
        } // the answers to its release come later, and are not read
        for (test::RedisServer& one : line.servers) one.go_on();
        test::until([&] { return line.keys("other") == 0; });
        for (test::RedisServer& one : line.servers) hang_up_on_the_others(one);
        detail::wait(-1, 0, later(now(), looks_often.recheck() + 50ms));
        CHECK(server.blocked_clients() == 1);
    }
    stop.request_stop();
}

TEST_CASE("a look that is not answered costs nobody else the answer to his request", "[redis][quorum][waiting]") {
    constexpr Options looks_after_2s{.ttl = 60s, .request_timeout = 4s};
    Line line;
    Quorum<Redis> quorum = line.quorum();
    Others others{line};
    const Lock holder{*others.quorum, "k", looks_after_2s};
    Lock own{quorum, "own", looks_after_2s};
    std::stop_source stop;
    std::jthread waiter{[&] {
        Lock lock{quorum, "k", looks_after_2s, std::defer_lock};
        static_cast<void>(lock.lock(stop.get_token()));
    }};
    line.until_there();
    const TimePoint start = now();
    const auto sleep_until = [&](Millis moment) { detail::wait(-1, 0, start + moment); };
    sleep_until(1s);
    for (test::RedisServer& server : line.servers) server.stop();
    sleep_until(2'600ms);
    stop.request_stop();
    waiter.join();
    std::jthread thaws{[&] {
        sleep_until(5s); // the look's time is up by then
        for (test::RedisServer& server : line.servers) server.go_on();
    }};
    CHECK(own.unlock() == Outcome::confirmed);
    thaws.join();
}

TEST_CASE("many who have waited at one server leave room for the connection of one who waits at another",
          "[redis][quorum][waiting]") {
    Line line;
    Others others{line};
    const auto try_for = [&](Quorum<Redis>& quorum, const std::string& key, Millis time) {
        return Lock(quorum, key, looks_seldom, std::defer_lock).try_lock_for(time);
    };
    const auto server_of = [&](const std::string& key) {
        std::jthread waiter{[&] { static_cast<void>(try_for(*others.quorum, key, 400ms)); }};
        return &line.until_there();
    };
    const Lock held{*others.quorum, "crowded", looks_seldom};
    test::RedisServer* const crowded = server_of("crowded");
    std::deque<Lock> more;
    test::RedisServer* server = crowded;
    for (int i = 0; server == crowded; ++i) {
        more.emplace_back(*others.quorum, std::to_string(i), looks_seldom);
        test::until([&] { return line.place() == nullptr; });
        server = server_of(std::string{more.back().key()});
    }
    Quorum<Redis> quorum = line.quorum();
    {
        std::vector<std::jthread> crowd;
        for (int i = 0; i < 20; ++i) crowd.emplace_back([&] { static_cast<void>(try_for(quorum, "crowded", 1s)); });
    }
    const auto connections = [&] { return server->statistic("stats", "total_connections_received:"); };
    const long long before = connections();
    for (int i = 0; i < 10; ++i) CHECK_FALSE(try_for(quorum, std::string{more.back().key()}, 60ms));
    CHECK(connections() - before <= 4);
}
