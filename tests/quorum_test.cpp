// A majority of real servers as a backend: what the votes amount to, with servers that are dead, frozen, or have
// forgotten.
#include "conformance.hpp"
#include "proxy.hpp"
#include "quorum_servers.hpp"
#include "troubles.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <map>

using namespace redislock;
using namespace std::chrono_literals;
using test::failure;
using test::Servers;

namespace {

struct QuorumWorld {
    static constexpr Millis unit{400};
    static constexpr bool has_line = true;
    Servers servers{3};
    Quorum<Redis> quorum = servers.quorum();

    Quorum<Redis>& backend() { return quorum; }
    void pass(Millis span) { quorum.pause(later(quorum.now(), span)); }
    void put(const std::string& key, const std::string& value, std::optional<Millis> ttl) {
        if (ttl)
            servers.everywhere({"SET", key, value, "PX", std::to_string(ttl->count())});
        else
            servers.everywhere({"SET", key, value});
    }
    void put_hash(const std::string& key) { servers.everywhere({"HSET", key, "uuid:1", "1"}); }
    void erase(const std::string& key) { servers.everywhere({"DEL", key}); }
    /// What a majority has: a vote for who came before may end a moment later than the others.
    std::optional<std::string> get(const std::string& key) {
        std::map<std::string, int> votes;
        for (auto& one : servers.servers)
            if (one.integer({"EXISTS", key}) == 1) ++votes[one.text({"GET", key})];
        for (const auto& [value, count] : votes)
            if (count >= 2) return value;
        return std::nullopt;
    }
};

constexpr Options plain{.ttl = 10s, .renew = false, .request_timeout = 500ms};

} // namespace

TEST_CASE("a majority of servers is a backend like any other", "[redis][quorum][conformance]") {
    QuorumWorld world;
    test::Conformance{world}.run();
}

TEST_CASE("an even number of servers is refused, and one that is named twice, none at all, and too many", "[quorum]") {
    std::deque<Redis> nodes;
    std::vector<Redis*> all;
    for (int n = 0; n < 17; ++n) all.push_back(&nodes.emplace_back("redis://127.0.0.1:" + std::to_string(7000 + n)));
    Redis twin{"redis://127.0.0.1:7001"};
    Redis &first = *all[0], &second = *all[1], &third = *all[2];
    CHECK(failure([&] { Quorum{first, second}; }).code == Errc::bad_option);
    CHECK(failure([&] { Quorum<Redis>{std::vector<Redis*>{}}; }).code == Errc::bad_option);
    CHECK(failure([&] { Quorum<Redis>{all}; }).code == Errc::bad_option);
    const Failure twice = failure([&] { Quorum{first, second, twin}; });
    CHECK(twice.code == Errc::bad_option);
    CHECK(twice.detail.find("127.0.0.1:7001 twice") != std::string::npos);
    CHECK(failure([&] { Quorum<Redis>{std::vector<Redis*>{&first, nullptr, &third}}; }).code == Errc::bad_option);
    CHECK_FALSE(failure([&] { Quorum{first, second, third}; }));
}

TEST_CASE("a minority of dead servers costs their votes alone, and a majority is an error", "[redis][quorum]") {
    Servers five{5};
    Quorum<Redis> quorum = five.quorum();
    five.servers[0].kill();
    five.servers[3].kill();
    for (int i = 0; i < 20; ++i) {
        RedisLock lock{quorum, "k", plain};
        CHECK(lock.owns_lock());
        CHECK_FALSE((RedisLock{quorum, "k", plain, std::try_to_lock}).owns_lock());
        CHECK(lock.unlock() == Outcome::confirmed);
    }
    five.servers[1].kill();
    const Failure dead = failure([&] { return RedisLock{quorum, "k", plain}; });
    CHECK((dead.code == Errc::unreachable || dead.code == Errc::disconnected));
    CHECK(five.servers[2].integer({"EXISTS", "k"}) == 0);
    five.servers[1].start();
    CHECK((RedisLock{quorum, "k", plain}).owns_lock());
}

TEST_CASE("where no majority can be had, the error tells how many servers failed, and each of them with what",
          "[redis][quorum]") {
    test::RedisServer server;
    Redis one{server.unix_uri()};
    const std::string user_info = GENERATE("", ":hunter2@");
    CAPTURE(user_info);
    test::RedisServer closed{{"--requirepass", "another"}}, shut{{"--requirepass", "another"}};
    if (user_info.empty()) closed.kill(), shut.kill();
    const auto uri = [&](int port) { return "redis://" + user_info + "127.0.0.1:" + std::to_string(port); };
    Redis second{uri(closed.port())}, third{uri(shut.port())};
    Quorum quorum{one, second, third};
    for (const Failure& why : {failure([&] {
                                   return RedisLock{quorum, "k", plain};
                               }),
                               failure([&] { return inspect(quorum, "k"); })}) {
        CAPTURE(why.detail);
        CHECK(why.code == (user_info.empty() ? Errc::unreachable : Errc::auth_failed));
        CHECK_THAT(why.detail, containing("2 of 3 servers failed; 127.0.0.1:"));
        for (const int port : {closed.port(), shut.port()}) { // each of them once
            const std::string name = "127.0.0.1:" + std::to_string(port);
            CHECK_THAT(why.detail, containing("; " + name));
            CHECK(why.detail.find(name) == why.detail.rfind(name));
        }
        CHECK_THAT(why.detail, !containing("hunter2"));
        if (user_info.empty()) CHECK_THAT(why.detail, containing(": Connection refused: the server can not be"));
    }
}

TEST_CASE("servers that failed for different reasons are told each with its own", "[redis][quorum]") {
    test::RedisServer server, down, closed{{"--requirepass", "hunter2"}};
    Redis one{server.tcp_uri()}, second{down.tcp_uri()}, third{closed.tcp_uri()};
    down.kill();
    const bool is_down_first = GENERATE(true, false);
    Quorum quorum{one, is_down_first ? second : third, is_down_first ? third : second};
    for (const Failure& why : {failure([&] {
                                   return RedisLock{quorum, "k", plain};
                               }),
                               failure([&] { return inspect(quorum, "k"); })}) {
        CHECK(why.code == Errc::auth_required);
        const std::string unreachable = make_error_code(Errc::unreachable).message();
        const std::string refused = make_error_code(Errc::auth_required).message();
        CHECK_THAT(why.detail, containing("2 of 3 servers failed; " + second.name() + ": "));
        CHECK_THAT(why.detail, containing(": " + unreachable + "; " + third.name()));
        CHECK(why.detail.find(refused) == why.detail.rfind(refused)); // which is said behind all, of the code
    }
}

TEST_CASE("what is the matter with a minority can be asked for, until it is mended", "[redis][quorum]") {
    Servers two{2};
    test::RedisServer closed{{"--requirepass", "hunter2"}};
    Redis third{closed.tcp_uri()};
    Quorum quorum{two.nodes[0], two.nodes[1], third};
    CHECK(quorum.node_errors().empty());
    const auto finds = [&](std::error_code code) { // it may be at rest, and not asked each time
        for (const TimePoint end = quorum.now() + 10s; quorum.now() < end;) {
            RedisLock lock{quorum, "k", plain};
            CHECK(lock.unlock() == Outcome::confirmed);
            const std::vector<Failure> node_errors = quorum.node_errors();
            if (!code && node_errors.empty()) return true;
            if (node_errors.size() == 1 && node_errors[0].code == code) return node_errors[0].detail == third.name();
        }
        return false;
    };
    CHECK(finds(Errc::auth_required));
    closed.command({"AUTH", "hunter2"});
    closed.command({"CONFIG", "SET", "requirepass", ""});
    CHECK(finds({}));
    closed.kill();
    CHECK(finds(Errc::unreachable));
}

TEST_CASE("a minority of frozen servers is not waited for, and finds all released when it goes on", "[redis][quorum]") {
    Servers five{5};
    Quorum<Redis> quorum = five.quorum();
    { RedisLock warm_up{quorum, "k", plain}; }
    five.servers[1].stop();
    five.servers[2].stop();
    const TimePoint start = quorum.now();
    for (int i = 0; i < 100; ++i) {
        RedisLock lock{quorum, "k", plain};
        CHECK(lock.unlock() == Outcome::confirmed);
    }
    CHECK(quorum.now() < start + 10s); // a hundred request timeouts would be 50 s
    five.servers[1].go_on();
    five.servers[2].go_on();
    CHECK(five.are_free_within(5s));
}

TEST_CASE("who has the key is not known where the silent ones may make a majority", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock = three.locked_everywhere(quorum, plain);
    three.servers[0].command({"DEL", "k"});
    CHECK(inspect(quorum, "k")->token() == lock.token());
    three.servers[2].stop();
    CHECK(failure([&] { return inspect(quorum, "k", 100ms); }).code == Errc::timed_out);
    three.servers[1].command({"DEL", "k"});
    CHECK_FALSE(inspect(quorum, "k", 100ms));
    three.servers[2].go_on();
}

TEST_CASE("a server that was frozen, and has not been asked since, is told of a release all the same",
          "[redis][quorum]") {
    if (test::is_over_tls("a frozen server can not be connected to")) return;
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock = three.locked_everywhere(quorum, plain);
    three.servers[2].stop();
    const Options hasty{.ttl = 10s, .renew = false, .request_timeout = 20ms};
    RedisLock other{quorum, "other", hasty, std::defer_lock};
    for (const TimePoint end = quorum.now() + 1500ms; quorum.now() < end;) {
        failure([&] { return other.try_lock(); }); // on a busy machine the others may be late, too
        other.unlock();
    }
    three.servers[2].go_on();
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(three.are_free_within(5s));
}

TEST_CASE("a release reaches also a server to which a connection is being made, though a majority has answered",
          "[redis][quorum]") {
    if (test::is_over_tls("a frozen server can not be connected to")) return;
    Servers three{3, 1};
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock = three.locked_everywhere(quorum, plain);
    three.disconnect(2);
    three.servers[2].stop();
    CHECK(lock.unlock() == Outcome::confirmed);
    three.servers[2].go_on();
    CHECK(three.are_free_within(5s));
}

TEST_CASE("a release for which a connection is being made goes over that one, and costs no other", "[redis][quorum]") {
    Servers three{3, 1};
    Quorum<Redis> quorum = three.quorum();
    for (int i = 0; i < 100; ++i) {
        RedisLock lock = three.locked_everywhere(quorum, {.ttl = 60s, .renew = false, .request_timeout = 10s});
        three.disconnect(2);
        const auto connections = [&] { return three.servers[2].statistic("stats", "total_connections_received:"); };
        const auto before = connections();
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK(three.are_free_within(5s));
        CHECK(connections() == before + 1);
    }
}

TEST_CASE("a release does not wait for a connection to a server that can not have the key", "[redis][quorum]") {
    Servers three{3, 1};
    Quorum<Redis> quorum = three.quorum();
    three.servers[2].stop();
    const Options hasty{.ttl = 10s, .renew = false, .request_timeout = 100ms};
    for (RedisLock lock{quorum, "k", hasty, std::defer_lock}; !lock.owns_lock();)
        failure([&] { static_cast<void>(lock.try_lock()); });
    quorum.pause(
        later(quorum.now(),
              hasty.effective_request_timeout())); // then it is known to be silent, and left in peace for a while
    RedisLock lock{quorum, "k", {.ttl = 60s, .renew = false, .request_timeout = 10s}};
    quorum.pause(later(quorum.now(), 100ms));
    const TimePoint start = quorum.now();
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(quorum.now() < start + 5s);
}

TEST_CASE("a release that is not to be confirmed goes out, also where all connections have to be made anew",
          "[redis][quorum]") {
    Servers three{3, 1};
    Quorum<Redis> quorum = three.quorum();
    Options hasty = plain;
    hasty.confirm_release = false;
    {
        const RedisLock lock = three.locked_everywhere(quorum, hasty);
        for (std::size_t n = 0; n < 3; ++n) three.disconnect(n);
    }
    CHECK(three.are_free_within(5s));
}

TEST_CASE("a release reaches also a server that has hung up behind an answer that nobody has read yet",
          "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    three.locked_everywhere(quorum, plain).unlock();
    three.servers[2].stop();
    RedisLock lock{quorum, "k", plain};
    three.servers[2].go_on();
    REQUIRE(three.have_all_within(5s));
    three.disconnect(2);
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(three.are_free_within(5s));
}

TEST_CASE("the vote of a server that has hung up behind an answer that nobody has read yet counts for the release",
          "[redis][quorum]") {
    Servers five{5};
    Quorum<Redis> quorum = five.quorum();
    five.locked_everywhere(quorum, plain).unlock();
    five.servers[4].kill();
    five.servers[3].stop();
    RedisLock lock{quorum, "k", plain};
    five.servers[3].go_on();
    test::until([&] { return five.servers[3].integer({"EXISTS", "k"}) == 1; });
    five.disconnect(3);
    five.servers[0].kill();
    CHECK(lock.unlock() == Outcome::confirmed); // by three of five
    for (const unsigned n : {1u, 2u, 3u}) CHECK(five.servers[n].is_empty_within(5s));
}

TEST_CASE("a release is tried again as long as a server that may have the key has not answered", "[redis][quorum]") {
    Servers three{3};
    test::Proxy way{three.servers[2]};
    Redis third{way.uri()};
    Quorum<Redis> quorum{three.nodes[0], three.nodes[1], third};
    three.servers[0].kill();
    const bool has_time = GENERATE(true, false);
    RedisLock lock{quorum, "k", {.ttl = 20s, .renew = false, .request_timeout = has_time ? 10s : 300ms}};
    way.set(test::Proxy::Mode::cut);
    const auto is_released = [&](std::size_t n) { return three.servers[n].integer({"EXISTS", "k"}) == 0; };
    if (has_time) {
        const std::jthread mender{[&] {
            test::until([&] { return is_released(1); });
            way.set(test::Proxy::Mode::forward);
        }};
        CHECK(lock.unlock() == Outcome::confirmed); // by one now, and by the other one before
        CHECK(is_released(2));
    } else {
        CHECK(lock.unlock() == Outcome::unknown);
        way.set(test::Proxy::Mode::forward);
        CHECK(three.servers[2].is_empty_within(5s)); // the worker goes on
    }
}

TEST_CASE("a release that one server has carried out is not asked for again where that leads nowhere",
          "[redis][quorum]") {
    Servers three{3};
    three.servers[0].kill();
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock{quorum, "k", {.ttl = 60s, .renew = false, .request_timeout = 20s}};
    SECTION("the other one refuses it") {
        three.servers[1].command({"ACL", "SETUSER", "default", "-evalsha", "-eval"});
    }
    SECTION("the other one has lost the key") { three.servers[1].command({"DEL", "k"}); }
    const TimePoint start = quorum.now();
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(quorum.now() < start + 5s);
    CHECK(three.servers[2].is_empty_within(5s));
}

TEST_CASE("the end of a scope does not wait for votes by which nothing is decided", "[redis][quorum]") {
    if (test::is_over_tls("a frozen server can not be connected to")) return;
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    std::deque<RedisLock<Quorum<Redis>>> locks;
    for (int i = 0; i < 400; ++i) locks.emplace_back(quorum, std::to_string(i), plain);
    three.servers[0].kill();
    three.servers[1].kill();
    three.servers[2].stop();
    const TimePoint start = quorum.now();
    locks.clear();
    CHECK(quorum.now() < start + 4s);
    three.servers[2].go_on();
}

TEST_CASE("an acquire that nobody waits for any more is not sent when the connection comes about", "[redis][quorum]") {
    Servers three{3, 1};
    Quorum<Redis> quorum = three.quorum(), elsewhere = three.quorum();
    const Options hasty{.ttl = 60s, .renew = false, .request_timeout = 50ms};
    three.servers[2].stop();
    RedisLock lock{quorum, "k", hasty, std::defer_lock};
    while (!lock.owns_lock()) failure([&] { static_cast<void>(lock.try_lock()); });
    three.servers[2].go_on();
    const TimePoint too_late = quorum.now() + hasty.effective_request_timeout();
    {
        RedisLock adopter{elsewhere, "k", plain, std::adopt_lock, lock.detach()};
        CHECK(adopter.unlock() == Outcome::confirmed);
    }
    REQUIRE(three.are_free_within(5s));
    quorum.pause(too_late);
    { RedisLock other{quorum, "other", plain}; }
    CHECK(three.keys() == 0);
    { RedisLock other{quorum, "other", plain}; }
    CHECK(three.keys() == 0);
}

TEST_CASE("servers that are connected to a moment later are asked too", "[redis][quorum]") {
    Servers three{3, 1};
    test::Proxy one{three.servers[0]}, other{three.servers[1]}, far{three.servers[2]};
    one.set(test::Proxy::Mode::delay, 40ms);
    other.set(test::Proxy::Mode::delay, 40ms);
    far.set(test::Proxy::Mode::delay, 88ms); // the others grant it by their third answers: it has given one by then
    const auto is_asked_of_all = [&] {
        Redis first{one.uri() + "/1"}, second{other.uri() + "/1"}, third{far.uri() + "/1"};
        Quorum<Redis> quorum{first, second, third};
        const RedisLock lock{quorum, "k", {.ttl = 60s, .renew = false}};
        return three.have_all_within(500ms);
    };
    bool is_asked = false; // at times a busy machine is later than they wait for each other
    for (int tries = 0; tries < 20 && !is_asked; ++tries) is_asked = is_asked_of_all();
    CHECK(is_asked);
}

TEST_CASE("a vote for a release that comes when there is no majority to be had counts when it is asked for again",
          "[redis][quorum]") {
    Servers three{3};
    three.servers[2].kill();
    test::Proxy late{three.servers[1]};
    Redis behind{late.uri()};
    Quorum<Redis> quorum{three.nodes[0], behind, three.nodes[2]};
    const auto unlocked = [&] {
        late.set(test::Proxy::Mode::forward);
        RedisLock lock{quorum, "k", {.ttl = 60s, .renew = false, .request_timeout = 10s}};
        three.disconnect(0);
        three.servers[0].command({"CONFIG", "SET", "maxclients", "1"});
        late.set(test::Proxy::Mode::delay, 5ms);
        const auto refused = [&] { return three.servers[0].statistic("stats", "rejected_connections:"); };
        const std::jthread operations{[&, before = refused()] {
            test::until([&] { return three.servers[1].integer({"EXISTS", "k"}) == 0 && refused() > before; });
            three.servers[0].command({"CONFIG", "SET", "maxclients", "10000"});
        }};
        return lock.unlock();
    };
    Outcome outcome{}; // at times a busy machine is later than votes are waited for
    for (int tries = 0; tries < 5 && (outcome = unlocked()) != Outcome::confirmed; ++tries) {
        CHECK(outcome == Outcome::unknown);
        CHECK(three.servers[0].is_empty_within(5s));
    }
    CHECK(outcome == Outcome::confirmed);
}

TEST_CASE("a frozen server is not flooded with releases of what it can not have", "[redis][quorum]") {
    if (test::is_over_tls("a frozen server can not be connected to")) return;
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock = three.locked_everywhere(quorum, plain);
    three.servers[2].stop();
    const Options patient{
        .ttl = 30s, .renew = false, .request_timeout = 9s}; // so that no connection is given up meanwhile
    RedisLock other{quorum, "other", patient, std::defer_lock};
    // Long enough for it to be left in peace for a second, in which more is released than a socket takes.
    for (const TimePoint end = quorum.now() + 2200ms; quorum.now() < end;) {
        other.lock();
        CHECK(other.unlock() == Outcome::confirmed);
    }
    CHECK(lock.unlock() == Outcome::confirmed);
    three.servers[2].go_on();
    CHECK(three.are_free_within(5s));
    CHECK(three.keys("other") == 0);
}

TEST_CASE("a server that restarts has no vote until nobody can have a lease that it has forgotten", "[redis][quorum]") {
    Servers three{3};
    std::deque<Redis> nodes;
    for (test::RedisServer& server : three.servers)
        nodes.emplace_back(server.unix_uri(), RedisOptions{.restart_delay = 1s});
    Quorum<Redis> quorum{nodes[0], nodes[1], nodes[2]};
    RedisLock lock{quorum, "k", {.ttl = 1s, .renew = false}, std::defer_lock};
    const auto is_had = [&](RedisLock<Quorum<Redis>>& wanted) { // a fresh server has no vote yet
        for (const TimePoint end = quorum.now() + 10s; !wanted.owns_lock() && quorum.now() < end;)
            failure([&] { static_cast<void>(wanted.try_lock()); });
        return wanted.owns_lock();
    };
    REQUIRE(is_had(lock));
    for (const std::size_t n : {0u, 1u}) three.servers[n].kill(), three.servers[n].start();
    RedisLock other{quorum, "k", {.ttl = 1s, .renew = false, .request_timeout = 50ms}, std::defer_lock};
    CHECK(is_had(other));
    CHECK_FALSE(lock.owns_lock());
}

TEST_CASE("a grant by a minority is undone behind the question, also where the answer was too late",
          "[redis][quorum]") {
    Servers five{5};
    Quorum<Redis> quorum = five.quorum();
    RedisLock lock = five.locked_everywhere(quorum, plain); // connections are made
    lock.unlock();
    for (const std::size_t n : {0u, 1u, 2u}) five.servers[n].stop();
    CHECK(failure([&] { static_cast<void>(lock.try_lock()); }).code == Errc::timed_out);
    CHECK_FALSE(lock.owns_lock());
    for (const std::size_t n : {0u, 1u, 2u}) five.servers[n].go_on();
    CHECK(five.are_free_within(5s));
}

TEST_CASE("a waiter whose vote hangs on a frozen server asks again in time", "[redis][quorum]") {
    Servers three{3};
    three.everywhere({"ACL", "SETUSER", "polls", "on", ">p", "~*", "&*", "+@all", "-blpop"});
    std::deque<Redis> nodes; // of one who may not stand in line: his vote has as much time as he has patience
    for (test::RedisServer& server : three.servers) nodes.emplace_back("unix://polls:p@" + server.socket_path());
    Quorum quorum{nodes[0], nodes[1], nodes[2]};
    three.everywhere({"SET", "k", "another", "PX", "60000"}, 2);
    Options seldom = plain; // else the silent one is known as such before the key is free
    seldom.max_retry_delay = 1s;
    RedisLock lock{quorum, "k", seldom, std::defer_lock};
    std::jthread waiting{[&] { static_cast<void>(lock.try_lock_for(50s)); }};
    const long long before = three.servers[0].statistic("commandstats", "cmdstat_set:calls=");
    test::until([&] { return three.servers[0].statistic("commandstats", "cmdstat_set:calls=") > before + 2; });
    three.servers[2].stop();
    three.everywhere({"DEL", "k"}, 1); // one is free, one is taken, and one is silent
    test::until([&] { return three.servers[0].integer({"EXISTS", "k"}) == 1; });
    const TimePoint start = detail::now();
    three.servers[1].command({"DEL", "k"});
    waiting.join();
    CHECK(lock.owns_lock());
    CHECK(detail::now() < start + 20s);
    three.servers[2].go_on();
}

TEST_CASE("a key that a minority holds for another is no obstacle, and one that a majority does is busy",
          "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    three.everywhere({"SET", "k", "another", "PX", "60000"}, 1);
    {
        RedisLock lock{quorum, "k", plain};
        CHECK(lock.owns_lock());
        CHECK(three.servers[0].text({"GET", "k"}) == "another");
    }
    three.everywhere({"SET", "k", "another", "PX", "60000"}, 2);
    CHECK_FALSE((RedisLock{quorum, "k", plain, std::try_to_lock}).owns_lock());
    for (const TimePoint end = quorum.now() + 5s; quorum.now() < end && three.keys() > 2;) {
    }
    CHECK(three.servers[2].integer({"EXISTS", "k"}) == 0);
    CHECK(three.servers[0].text({"GET", "k"}) == "another");
}

TEST_CASE("an acquire whose script was forgotten is not sent again behind its undoing", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    three.everywhere({"SET", "k", "another", "PX", "60000"}, 2);
    RedisLock lock{quorum, "k", plain, std::defer_lock};
    CHECK(test::waits_in_vain(lock, 300ms)); // now the connections take it that the script is known
    three.servers[2].command({"SCRIPT", "FLUSH"});
    three.servers[2].stop();
    CHECK(test::waits_in_vain(lock, 300ms));
    three.servers[2].go_on();
    for (const TimePoint end = quorum.now() + 200ms; quorum.now() < end;) CHECK(test::waits_in_vain(lock, 0ms));
    three.everywhere({"DEL", "k"}, 2);
    CHECK(three.are_free_within(5s));
}

TEST_CASE("what became of a lease is what a majority says", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock = three.locked_everywhere(quorum, plain);
    SECTION("one server that has forgotten it makes no difference") {
        three.everywhere({"DEL", "k"}, 1);
        CHECK(lock.extend(20s) == Outcome::confirmed);
        CHECK(lock.unlock() == Outcome::confirmed);
    }
    SECTION("two that have are the end of it") {
        three.everywhere({"DEL", "k"}, 2);
        CHECK(lock.extend(20s) == Outcome::expired);
        CHECK_FALSE(lock.owns_lock());
    }
    SECTION("two that hold another's token are its theft") {
        three.everywhere({"SET", "k", "another"}, 2);
        CHECK(lock.unlock() == Outcome::stolen);
        CHECK(three.servers[0].text({"GET", "k"}) == "another");
    }
    SECTION("one that has forgotten it and one that says nothing leave it unknown") {
        three.everywhere({"DEL", "k"}, 1);
        three.servers[1].kill();
        CHECK(lock.extend(20s) == Outcome::unknown);
        CHECK(lock.owns_lock());
    }
}

TEST_CASE("a lease is renewed by a majority, and its loss told before the rest can grant it", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = 600ms});
    three.servers[0].kill();
    quorum.pause(later(quorum.now(), 1500ms));
    CHECK(lock.owns_lock());
    const detail::StopSignal lost{lock.lost()};
    three.servers[1].stop();
    while (!detail::stopped({TimePoint::max(), lost.fd()})) CHECK(three.servers[2].integer({"EXISTS", "k"}) == 1);
    CHECK_FALSE(lock.owns_lock());
    three.servers[1].go_on();
}

TEST_CASE("numbers rise though servers count differently, or forget", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    const std::string counter = "{k}:redislock:fence";
    Options fencing = plain;
    fencing.fencing = true;
    std::uint64_t last = 0;
    const auto grant = [&] {
        RedisLock lock{quorum, "k", fencing};
        CHECK(lock.fencing_token() > last);
        last = lock.fencing_token();
        std::size_t knowing = 0;
        for (test::RedisServer& server : three.servers)
            if (server.integer({"EXISTS", counter}) == 1) knowing += std::stoull(server.text({"GET", counter})) >= last;
        CHECK(knowing >= 2);
    };
    SECTION("one is ahead, and its vote does not always count") {
        for (std::size_t i = 0; i < 60; ++i) {
            grant();
            if (i % 4 == 0) three.servers[i % 3].command({"SET", counter, std::to_string(last + 1'000'000'000 * i)});
        }
    }
    SECTION("each in its turn forgets, and in the end all do") {
        for (std::size_t i = 0; i < 60; ++i) {
            grant();
            three.servers[i % 3].command({"DEL", counter});
            if (i % 10 == 0) three.everywhere({"DEL", counter});
        }
    }
}

TEST_CASE("threads exclude each other by majority, though each is split by the others", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    int inside = 0, sections = 0;
    std::atomic<bool> overlapped{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 20; ++i) {
                const RedisLock lock{quorum, "k", {.ttl = 60s, .max_retry_delay = 5ms}};
                if (++inside != 1) overlapped = true;
                ++sections;
                --inside;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK_FALSE(overlapped);
    CHECK(sections == 120);
    CHECK(three.are_free_within(5s));
}

TEST_CASE("one server under two names is refused, with both names", "[redis][quorum]") {
    if (test::is_over_tls("there a server has one name")) return;
    Servers two{2};
    Redis again{two.servers[0].tcp_uri()};
    Quorum quorum{two.nodes[0], again, two.nodes[1]};
    SECTION("at once") {}
    SECTION("also where the other one is down, and it would be busy for ever") { two.servers[1].kill(); }
    RedisLock lock{quorum, "k", plain, std::defer_lock};
    const Failure refused = failure([&] { lock.lock(); });
    CHECK(refused.code == Errc::bad_option);
    CHECK_THAT(refused.detail, containing(two.nodes[0].name()) && containing(again.name()));
    CHECK(failure([&] { static_cast<void>(lock.try_lock()); }).code == Errc::bad_option);
    CHECK(two.servers[0].is_empty_within(5s));
}

TEST_CASE("who may not ask which server it is has locks all the same", "[redis][quorum]") {
    Servers three{3};
    three.everywhere({"ACL", "SETUSER", "default", "-info"});
    Quorum<Redis> quorum = three.quorum();
    RedisLock lock{quorum, "k", plain};
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a server that did not read has nothing left when it reads again, however many locks were released",
          "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    std::deque<RedisLock<Quorum<Redis>>> locks;
    const auto key = [](int n) { return std::string(400, 'k') + std::to_string(n); };
    constexpr int many = 600;
    for (int n = 0; n < many; ++n)
        locks.push_back(
            three.locked_everywhere(quorum, {.ttl = 60s, .renew = false, .request_timeout = 500ms}, key(n)));
    three.servers[2].stop();
    for (auto& lock : locks) lock.unlock();
    three.servers[2].go_on();
    CHECK(three.servers[2].is_empty_within(20s));
}

TEST_CASE("a server that could not carry a release out does so later", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = 60s, .renew = false});
    three.servers[2].command({"REPLICAOF", "127.0.0.1", "1"});
    CHECK(lock.unlock() == Outcome::confirmed);
    three.servers[2].command({"REPLICAOF", "NO", "ONE"});
    CHECK(three.are_free_in_use(quorum));
}

TEST_CASE("nor is a server forgotten that could not when the majority could, after all", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = 60s, .renew = false, .request_timeout = 1s});
    three.everywhere({"REPLICAOF", "127.0.0.1", "1"});
    CHECK(lock.unlock() == Outcome::unknown);
    for (const std::size_t n : {0U, 1U}) three.servers[n].command({"REPLICAOF", "NO", "ONE"});
    for (const std::size_t n : {0U, 1U}) CHECK(three.servers[n].is_empty_within(20s));
    three.servers[2].command({"REPLICAOF", "NO", "ONE"});
    CHECK(three.servers[2].is_empty_within(20s));
}

TEST_CASE("the same holds for a lease that was extended, for as long as it may last", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = 1s, .renew = false, .request_timeout = 300ms});
    CHECK(lock.extend(60s) == Outcome::confirmed);
    test::until([&] { return three.servers[2].integer({"PTTL", "k"}) > 2'000; });
    three.servers[2].command({"REPLICAOF", "127.0.0.1", "1"});
    const TimePoint start = detail::now();
    CHECK(lock.unlock() == Outcome::confirmed);
    detail::wait(-1, 0, start + 1500ms);
    three.servers[2].command({"REPLICAOF", "NO", "ONE"});
    CHECK(three.are_free_in_use(quorum));
}

TEST_CASE("a release that no majority carried out is asked for again once, however often it was tried",
          "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    auto lock = three.locked_everywhere(quorum, {.ttl = 60s, .renew = false, .request_timeout = 1s});
    three.everywhere({"REPLICAOF", "127.0.0.1", "1"});
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(lock.last_error()); // read_only, or that a new connection took too long
    three.everywhere({"CONFIG", "RESETSTAT"});
    three.everywhere({"REPLICAOF", "NO", "ONE"});
    CHECK(three.are_free_within(20s));
    detail::wait(-1, 0, detail::now() + 1s); // what else there was would be asked for by now
    CHECK(three.servers[0].statistic("commandstats", "cmdstat_evalsha:calls=") <= 20);
}

namespace {

/// What an observer is told of the servers of a majority.
struct Votes {
    const Observer observer{
        .context = this,
        .renewed = [](void* self, const Observer::Renewed&) noexcept { ++static_cast<Votes*>(self)->renewals; },
        .not_renewed = [](void* self, const Observer::NotRenewed&) noexcept { ++static_cast<Votes*>(self)->renewals; },
        .voted =
            [](void* self, const Observer::Voted& event) noexcept {
                auto& own = *static_cast<Votes*>(self);
                const std::lock_guard guard{own.mutex};
                own.last = event.votes;
                own.servers = event.servers;
                ++own.told;
            },
        .server =
            [](void* self, const Observer::Server& event) noexcept {
                auto& own = *static_cast<Votes*>(self);
                const std::lock_guard guard{own.mutex};
                own.changes.push_back(std::string{event.server} + ": " + event.why.message());
            },
    };
    bool are(unsigned votes, std::size_t changed) {
        const std::lock_guard guard{mutex};
        return last == votes && servers == 3 && changes.size() == changed;
    }
    /// How often votes were told more than renewals were.
    int surplus() {
        const std::lock_guard guard{mutex};
        return told - renewals;
    }
    std::mutex mutex{};
    unsigned last = 0, servers = 0;
    int told = 0;
    std::vector<std::string> changes{};
    std::atomic<int> renewals{0};
};

} // namespace

TEST_CASE("the votes of a renewal are told once, when all servers have answered", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    Votes votes;
    const RedisLock lock{quorum, "k", {.ttl = 900ms, .observer = &votes.observer}};
    test::until([&] { return votes.renewals >= 1; });
    const int before = votes.surplus();
    test::until([&] { return votes.renewals >= 5; });
    CHECK(votes.surplus() <= before + 1); // which may be later than the renewal
}

TEST_CASE("renewals tell how many servers vote, and which of them has stopped or begun", "[redis][quorum]") {
    Servers three{3};
    Quorum<Redis> quorum = three.quorum();
    Votes votes; // before the lock, which tells it
    const Options options{.ttl = 900ms, .request_timeout = 250ms, .observer = &votes.observer};
    auto lock = three.locked_everywhere(quorum, options);
    test::until([&] { return votes.are(3, 0); });
    CHECK(quorum.node_errors().empty());
    three.servers[1].kill();
    test::until([&] { return votes.are(2, 1); });
    CHECK(votes.changes[0].starts_with(three.nodes[1].name() + ": "));
    REQUIRE(quorum.node_errors().size() == 1);
    CHECK(quorum.node_errors()[0].detail == three.nodes[1].name());
    three.servers[1].start(); // it knows nothing of the lease, but it votes
    test::until([&] { return votes.are(2, 2); });
    CHECK(votes.changes[1] == three.nodes[1].name() + ": " + std::error_code{}.message());
    CHECK(quorum.node_errors().empty());
    CHECK(lock.unlock() == Outcome::confirmed);
}
