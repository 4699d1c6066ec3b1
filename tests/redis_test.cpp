// One Redis as a backend: against a real server in the states that it can be in, and a fake one for those that are
// rare.
#include "conformance.hpp"
#include "fake_server.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using test::failure;

namespace {

/// One server for all tests of this process; each test finds it empty.
test::RedisServer& server() {
    static test::RedisServer instance;
    instance.command({"FLUSHALL"});
    return instance;
}

struct RedisWorld {
    static constexpr Millis unit{400};
    static constexpr bool has_line = true;
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri()};

    Redis& backend() { return redis; }
    void pass(Millis span) { redis.pause(later(redis.now(), span)); }
    void put(const std::string& key, const std::string& value, std::optional<Millis> ttl) {
        if (ttl)
            instance.command({"SET", key, value, "PX", std::to_string(ttl->count())});
        else
            instance.command({"SET", key, value});
    }
    void put_hash(const std::string& key) { instance.command({"HSET", key, "uuid:1", "1"}); }
    void erase(const std::string& key) { instance.command({"DEL", key}); }
    std::optional<std::string> get(const std::string& key) {
        if (instance.integer({"EXISTS", key}) == 0) return std::nullopt;
        return instance.text({"GET", key});
    }
};

const Token a = Token::from_bits(1, 1);

Answer ask(Redis& redis, Verb verb, const Token& token = a, Millis within = 2s) {
    return redis.ask({verb, "k", token, 10s, later(redis.now(), within)});
}

/// Those of the commands that release without a script that this server has.
std::vector<std::string> commands_to_release(test::RedisServer& server) {
    std::vector<std::string> names;
    for (const char* name : {"DELIFEQ", "DELEX"})
        if (server.command({"COMMAND", "INFO", name})->element[0]->type != REDIS_REPLY_NIL) names.emplace_back(name);
    return names;
}

/// What the library makes of a server that answers every command with these bytes.
Answer answer_to(const std::string& reply, Verb verb = Verb::acquire) {
    test::FakeServer fake{[&](test::Peer& peer, int) {
        while (!peer.read().empty() && peer.send(reply)) {
        }
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    return ask(redis, verb);
}

long long calls_of(test::RedisServer& instance, const std::string& command) {
    const std::string statistics = instance.text({"INFO", "commandstats"});
    const auto at = statistics.find("cmdstat_" + command + ":calls=");
    return at == statistics.npos ? 0 : std::stoll(statistics.substr(statistics.find('=', at) + 1));
}

} // namespace

TEST_CASE("a Redis is a backend like any other", "[redis][conformance]") {
    RedisWorld world;
    test::Conformance{world}.run();
}

TEST_CASE("the scripts' names are those that the server gives them", "[redis]") {
    CHECK(server().text({"SCRIPT", "LOAD", std::string{detail::release_script}}) == detail::release_sha);
    CHECK(server().text({"SCRIPT", "LOAD", std::string{detail::extend_script}}) == detail::extend_sha);
    CHECK(server().text({"SCRIPT", "LOAD", std::string{detail::acquire_script}}) == detail::acquire_sha);
}

TEST_CASE("a lock and its release are one SET and one EVALSHA, also over TCP", "[redis]") {
    test::RedisServer& instance = server();
    for (const std::string& uri : {instance.unix_uri(), instance.tcp_uri()}) {
        Redis redis{uri};
        { RedisLock warm_up{redis, "k", 10s}; }
        instance.command({"CONFIG", "RESETSTAT"});
        for (int i = 0; i < 10; ++i) {
            RedisLock lock{redis, "k", 10s};
        }
        CHECK(calls_of(instance, "set") == 10);
        CHECK(calls_of(instance, "evalsha") == 10);
        CHECK(calls_of(instance, "eval") == 0);
        CHECK(calls_of(instance, "client|setname") == 0);
    }
}

TEST_CASE("a server that has forgotten the scripts is told them again, in the same call", "[redis]") {
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri()};
    RedisLock lock{redis, "k", 10s};
    instance.command({"SCRIPT", "FLUSH"});
    CHECK(lock.extend(20s) == Outcome::confirmed);
    instance.command({"SCRIPT", "FLUSH"});
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("an unanswered release needs no script to be known, and owes its reply to the next user", "[redis]") {
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri()};
    for (int i = 0; i < 100; ++i) {
        RedisLock lock{redis, "k", {.ttl = 10s, .confirm_release = false}};
        instance.command({"SCRIPT", "FLUSH"});
        REQUIRE(lock.owns_lock());
    }
    RedisLock lock{redis, "k", 10s, std::try_to_lock};
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("idle connections are used again, and are found dead where they are", "[redis]") {
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri()};
    for (int i = 0; i < 20; ++i) {
        CHECK(ask(redis, Verb::acquire).verdict == Verdict::yes);
        instance.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
        CHECK(ask(redis, Verb::release).verdict == Verdict::yes);
    }
    CHECK(instance.integer({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}) == 1);
}

TEST_CASE("a server that has restarted grants nothing, but extends and releases what it remembers", "[redis]") {
    test::RedisServer instance;
    Redis redis{instance.unix_uri(), {.restart_delay = 1h}};
    Quorum quorum{redis};
    const auto asked = [](auto& backend, Verb verb) {
        return backend.ask({verb, "k", a, 10s, later(backend.now(), 2s)});
    };
    const auto check = [&](auto& backend) {
        instance.command({"SET", "k", std::string{a.hex()}, "PX", "60000"});
        CHECK(asked(backend, Verb::extend).verdict == Verdict::yes);
        CHECK(asked(backend, Verb::release).verdict == Verdict::yes);
        CHECK(asked(backend, Verb::acquire).why.code == Errc::restarted);
        CHECK(instance.integer({"EXISTS", "k"}) == 0);
    };
    check(redis);
    check(quorum);
    const long long before = instance.statistic("stats", "total_connections_received:");
    for (int i = 0; i < 100; ++i) asked(redis, Verb::acquire);
    for (int i = 0; i < 100; ++i) asked(quorum, Verb::release);
    CHECK(instance.statistic("stats", "total_connections_received:") < before + 10);
}

TEST_CASE("a lease that a restarted server could forget, and give once more before its end, is refused", "[redis]") {
    Redis one{"redis://127.0.0.1:1"}, two{"redis://127.0.0.1:2", {.restart_delay = 1s}}, three{"redis://127.0.0.1:3"};
    Quorum quorum{one, two, three};
    const auto check = [](auto& backend) {
        RedisLock lock{backend, "k", 1s, std::defer_lock};
        const auto extend = [&](Millis ttl) { return failure([&] { static_cast<void>(lock.extend(ttl)); }); };
        CHECK(failure([&] { return RedisLock{backend, "k", 1001ms, std::defer_lock}; }).code == Errc::bad_option);
        CHECK_THAT(extend(1001ms).detail, containing("1001 ms") && containing("restart_delay of 127.0.0.1:2, 1000 ms"));
        CHECK_FALSE(extend(1s));
    };
    check(two);
    check(quorum);
    const RedisLock longer{one, "k", 24h, std::defer_lock};
}

TEST_CASE("an extension writes its own number, not that of the one before", "[redis]") {
    Redis redis{server().unix_uri()};
    CHECK(ask(redis, Verb::acquire).verdict == Verdict::yes);
    constexpr std::uint64_t far_ahead = 4'000'000'000'000'000; // of the clock, which is below 2e15 us
    for (const std::uint64_t fencing_token : {far_ahead, far_ahead + 7}) {
        Request extend{Verb::extend, "k", a, 60s, later(redis.now(), 10s)};
        extend.fencing_token = fencing_token;
        CHECK(redis.ask(extend).verdict == Verdict::yes);
    }
    CHECK(ask(redis, Verb::release).verdict == Verdict::yes);
    CHECK(RedisLock{redis, "k", {.ttl = 60s, .fencing = true}}.fencing_token() == far_ahead + 8);
}

TEST_CASE("many threads share one Redis, and its idle connections are bounded", "[redis]") {
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri(), {.client_name = "many", .idle_connections = 2}};
    int counter = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&] {
            for (int round = 0; round < 20; ++round) {
                RedisLock lock{redis, "k", {.ttl = 60s, .max_retry_delay = 2ms}};
                const int seen = counter;
                std::this_thread::yield();
                counter = seen + 1;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(counter == 160);
    const std::string clients = instance.text({"CLIENT", "LIST"});
    int named = 0;
    for (auto at = clients.find("name=many"); at != clients.npos; at = clients.find("name=many", at + 1)) ++named;
    CHECK(named <= 2);
}

TEST_CASE("a URI may be any text, and a null pointer is refused", "[redis]") {
    const std::string text = "redis://127.0.0.1:7000";
    char array[] = "redis://127.0.0.1:7000";
    char* const pointer = array;
    for (const std::string& name :
         {Redis{text}.name(), Redis{std::string_view{text}}.name(), Redis{text.c_str()}.name(), Redis{pointer}.name(),
          Redis{array, {.client_name = "me"}}.name(), Redis{Address{.host = "127.0.0.1", .port = "7000"}}.name()})
        CHECK(name == "127.0.0.1:7000");
    const char* const unset = nullptr;
    const Failure refused = failure([&] { Redis{unset}; });
    CHECK(refused.code == Errc::bad_uri);
    CHECK_THAT(refused.detail, containing("null pointer"));
}

TEST_CASE("the URI's database is selected, and the client named", "[redis]") {
    test::RedisServer& instance = server();
    for (const std::string& uri : {instance.unix_uri(3), instance.tcp_uri() + "/3"}) {
        Redis redis{uri, {.client_name = "billing"}};
        RedisLock lock{redis, "k", 10s};
        CHECK_THAT(instance.text({"CLIENT", "LIST"}), containing("name=billing") && containing("db=3"));
        CHECK(instance.integer({"EXISTS", "k"}) == 0);
    }
    Redis redis{instance.unix_uri(999999)};
    const Answer answer = ask(redis, Verb::acquire);
    CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::no_such_db));
    CHECK(failure([] { Redis{"redis://h", {.client_name = "two words"}}; }).code == Errc::bad_option);
    for (const Millis delay : {Millis{-1}, Options::longest_ttl + Millis{1}})
        CHECK(failure([&] { Redis{"redis://h", {.restart_delay = delay}}; }).code == Errc::bad_option);
}

TEST_CASE("passwords are asked for in both forms, and none is ever shown", "[redis]") {
    test::RedisServer instance{{"--requirepass", "hunter2-sentinel"}};
    const std::string socket = instance.socket_path();
    instance.command({"AUTH", "hunter2-sentinel"});
    instance.command({"ACL", "SETUSER", "worker", "on", ">s3cret/@", "~*", "+@all"});
    Redis by_password{"unix://:hunter2-sentinel@" + socket};
    CHECK(RedisLock(by_password, "k", 10s).owns_lock());
    Redis by_user{"unix://worker:s3cret%2F%40@" + socket};
    CHECK(RedisLock(by_user, "k", 10s).owns_lock());

    Redis nobody{"unix://" + socket}, wrong{"unix://:hunter2-wrong@" + socket},
        stranger{"unix://me:hunter2-wrong@" + socket};
    CHECK(failure([&] { return RedisLock(nobody, "k", 10s); }).code == Errc::auth_required);
    for (Redis* redis : {&wrong, &stranger}) {
        const Failure refused = failure([&] { return RedisLock(*redis, "k", 10s); });
        CHECK(refused.code == Errc::auth_failed);
        CHECK_THAT(refused.detail, !containing("hunter2"));
    }
    CHECK(instance.integer({"EXISTS", "k"}) == 0);
}

TEST_CASE("a server that has no AUTH and says the password out loud is not repeated", "[redis]") {
    test::FakeServer fake{[](test::Peer& peer, int) {
        peer.read();
        peer.send("-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\r\n+OK\r\n");
        peer.wait_for_the_end();
    }};
    Redis redis{"unix://:hunter2@" + fake.path()};
    const Failure refused = failure([&] { return RedisLock(redis, "k", 10s); });
    CHECK(refused.code == Errc::auth_failed);
    CHECK_THAT(refused.detail, !containing("hunter2"));
}

TEST_CASE("a user who may do just what a lock needs gets his lock, and one who may not is told so", "[redis]") {
    test::RedisServer& instance = server();
    const std::string socket = instance.socket_path();
    instance.command({"ACL", "SETUSER", "least", "on", ">p", "~lock:*", "+set", "+get", "+del", "+pttl", "+pexpire",
                      "+eval", "+evalsha"});
    Redis least{"unix://least:p@" + socket};
    RedisLock lock{least, "lock:k", 10s};
    CHECK(lock.extend(20s) == Outcome::confirmed);
    RedisLock waiter{least, "lock:k", 10s, std::defer_lock};
    CHECK(test::waits_in_vain(waiter, 20ms));
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(failure([&] { return RedisLock(least, "elsewhere", 10s); }).code == Errc::no_permission);

    instance.command({"ACL", "SETUSER", "nodel", "on", ">p", "~*", "+set", "+get", "+eval", "+evalsha"});
    Redis nodel{"unix://nodel:p@" + socket};
    for (const Verb verb : {Verb::acquire, Verb::release}) { // no way in without a way out
        if (verb == Verb::release) instance.command({"SET", "k", test::text(a), "PX", "1000"});
        const Answer refused = ask(nodel, verb);
        CHECK((refused.verdict == Verdict::no && refused.why.code == Errc::no_permission));
    }
    instance.command({"DEL", "k"});
}

TEST_CASE("a real server's refusals are told by their codes, and are certain", "[redis]") {
    test::RedisServer instance, other;
    Redis redis{instance.unix_uri()};
    const auto refused = [&](Verb verb, Errc code) {
        const Answer answer = ask(redis, verb);
        CHECK(answer.verdict == Verdict::no);
        CHECK(answer.why.code == code);
        CHECK_FALSE(answer.why.detail.empty());
        CHECK_THAT(answer.why.detail, !containing(test::text(a)));
    };
    SECTION("out of memory: no new lock, but extending and releasing go on") {
        ask(redis, Verb::acquire);
        instance.command({"CONFIG", "SET", "maxmemory", "1"});
        refused(Verb::acquire, Errc::out_of_memory);
        CHECK(ask(redis, Verb::extend).verdict == Verdict::yes);
        CHECK(ask(redis, Verb::release).verdict == Verdict::yes);
    }
    SECTION("a replica, with and without its primary") {
        ask(redis, Verb::acquire);
        instance.command({"REPLICAOF", "127.0.0.1", std::to_string(test::free_port())});
        refused(Verb::acquire, Errc::read_only);
        refused(Verb::release, Errc::read_only);
        instance.command({"CONFIG", "SET", "replica-serve-stale-data", "no"});
        refused(Verb::extend, Errc::master_down);
    }
    SECTION("too few replicas") {
        ask(redis, Verb::acquire);
        instance.command({"CONFIG", "SET", "min-replicas-to-write", "1"});
        refused(Verb::acquire, Errc::no_replicas);
        refused(Verb::release, Errc::no_replicas);
    }
    SECTION("a server that can't persist") {
        ask(redis, Verb::acquire);
        instance.command({"CONFIG", "SET", "save", "1 1"});
        instance.command({"CONFIG", "SET", "dbfilename", "dump.rdb"});
        std::filesystem::create_directory(std::filesystem::path{instance.socket_path()}.parent_path() / "dump.rdb");
        instance.command({"BGSAVE"});
        while (instance.text({"INFO", "persistence"}).find("rdb_bgsave_in_progress:1") != std::string::npos) {
        }
        refused(Verb::acquire, Errc::misconfigured);
        refused(Verb::release, Errc::misconfigured);
    }
    SECTION("a server without scripts") {
        std::vector<std::string> arguments;
        std::vector<std::string> names = commands_to_release(instance);
        for (const char* name : {"EVAL", "EVALSHA"}) names.emplace_back(name);
        for (const std::string& name : names) arguments.insert(arguments.end(), {"--rename-command", name, ""});
        test::RedisServer bare{arguments};
        Redis without{bare.unix_uri()};
        const Token token = without.fresh();
        const Answer answer = ask(without, Verb::acquire, token);
        CHECK(answer.verdict == Verdict::no); // what could not be released is not granted
        CHECK(answer.why.code == Errc::unsupported);
        CHECK_THAT(answer.why.detail,
                   containing("could not be released here") && !containing(test::text(token).substr(0, 8)));
        CHECK(bare.integer({"DBSIZE"}) == 0);
    }
    SECTION("a user who may not delete") {
        instance.command({"ACL", "SETUSER", "keeper", "on", ">secret", "~*", "+@all", "-del"});
        for (const std::string& name : commands_to_release(instance))
            instance.command({"ACL", "SETUSER", "keeper", "-" + name});
        Redis keeper{"unix://keeper:secret@" + instance.socket_path()};
        const Answer answer = ask(keeper, Verb::acquire);
        CHECK(answer.verdict == Verdict::no); // what could not be released is not granted
        CHECK(answer.why.code == Errc::no_permission);
        CHECK(instance.integer({"DBSIZE"}) == 0);
        instance.command({"ACL", "DELUSER", "keeper"});
    }
    SECTION("stuck in a script") {
        instance.command({"CONFIG", "SET", "busy-reply-threshold", "1"});
        std::thread stuck{[&] {
            const std::unique_ptr<redisContext, decltype(&::redisFree)> client{
                ::redisConnectUnix(instance.socket_path().c_str()), &::redisFree};
            ::freeReplyObject(::redisCommand(client.get(), "EVAL %s 0", "while true do end"));
        }};
        Answer answer{};
        for (const TimePoint limit = redis.now() + 10s;
             redis.now() < limit && answer.why.code != Errc::script_running;) {
            answer = ask(redis, Verb::acquire);
            if (answer.verdict == Verdict::yes) ask(redis, Verb::release);
        }
        CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::script_running));
        instance.command({"SCRIPT", "KILL"});
        stuck.join();
    }
    SECTION("no room for another client") {
        if (test::is_over_tls("a server hangs up in the handshake, without a word")) return;
        instance.command({"CONFIG", "SET", "maxclients", "1"});
        Answer answer{};
        for (const TimePoint limit = redis.now() + 10s; redis.now() < limit && answer.why.code != Errc::max_clients;) {
            answer = ask(redis, Verb::acquire); // it may hang up before we have written: then it's just disconnected
            CHECK((answer.verdict != Verdict::yes && answer.is_trouble()));
        }
        CHECK(answer.why.code == Errc::max_clients);
    }
    SECTION("a cluster that does not serve the key") {
        test::RedisServer node{{"--cluster-enabled", "yes"}};
        Redis cluster{node.tcp_uri()};
        CHECK(ask(cluster, Verb::acquire).why.code == Errc::cluster_down);
        node.command({"CONFIG", "SET", "cluster-require-full-coverage", "no"});
        Redis selecting{node.tcp_uri() + "/1"};
        CHECK(ask(selecting, Verb::acquire).why.code == Errc::no_such_db);
    }
}

TEST_CASE("where there are no scripts locks are had by DELIFEQ, which Valkey has", "[redis]") {
    test::RedisServer valkey{{"--rename-command", "EVAL", "", "--rename-command", "EVALSHA", ""}};
    if (valkey.command({"DELIFEQ", "k", "nobody's"})->type == REDIS_REPLY_ERROR)
        return test::skip("this server has no DELIFEQ; Valkey 9 has, in tests/matrix valkey-9");
    Redis redis{valkey.unix_uri()};
    const auto calls = [&] { return valkey.statistic("commandstats", "cmdstat_delifeq:calls="); };
    const long long before = calls();
    SECTION("acquired, extended, never shortened, and released") {
        RedisLock lock{redis, "k", {.ttl = 10s, .renew = false}};
        CHECK(calls() == before + 1); // the proof that a release is taken
        for (const Millis ttl : {60s, 10s}) {
            CHECK(lock.extend(ttl) == Outcome::confirmed);
            CHECK(valkey.integer({"PTTL", "k"}) > 50'000);
        }
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK(calls() == before + 2);
    }
    SECTION("what is another's, or gone, is left as it is") {
        RedisLock extended{redis, "1", 10s}, released{redis, "2", 10s}, gone{redis, "3", 10s};
        for (const char* key : {"1", "2"}) valkey.command({"SET", key, "another's"});
        valkey.command({"DEL", "3"});
        CHECK(extended.extend(60s) == Outcome::expired);
        CHECK(released.unlock() == Outcome::expired);
        CHECK(gone.extend(60s) == Outcome::expired);
        for (const char* key : {"1", "2"}) {
            CHECK(valkey.text({"GET", key}) == "another's");
            CHECK(valkey.integer({"PTTL", key}) == -1);
            valkey.command({"DEL", key});
        }
    }
    SECTION("renewed") {
        RedisLock lock{redis, "k", 3s};
        const long long asked = valkey.statistic("commandstats", "cmdstat_set:calls=");
        test::until([&] { return valkey.statistic("commandstats", "cmdstat_set:calls=") > asked; });
        CHECK(valkey.integer({"PTTL", "k"}) > 2'000);
        CHECK(lock.unlock() == Outcome::confirmed);
    }
    SECTION("waited for, by asking again") {
        RedisLock holder{redis, "k", 10s};
        bool locked = false;
        std::jthread waits{[&] {
            RedisLock lock{redis, "k", 10s, std::defer_lock};
            locked = lock.try_lock_for(10s);
        }};
        const long long asked = valkey.statistic("commandstats", "cmdstat_set:calls=");
        test::until([&] { return valkey.statistic("commandstats", "cmdstat_set:calls=") >= asked + 3; });
        CHECK(holder.unlock() == Outcome::confirmed);
        waits.join();
        CHECK(locked);
    }
    SECTION("undone, where the answer did not come in time") {
        CHECK((RedisLock{redis, "k", 10s}));
        valkey.stop();
        CHECK(ask(redis, Verb::acquire, a, 100ms).verdict == Verdict::unknown);
        valkey.go_on();
    }
    SECTION("taken from its holder by force") {
        RedisLock lock{redis, "k", 10s};
        CHECK(force_unlock(redis, "k", lock.detach()) == Outcome::confirmed);
    }
    SECTION("without numbers, which need a script") {
        const Failure why = failure([&] { const RedisLock lock{redis, "k", {.fencing = true}}; });
        CHECK(why.code == Errc::unsupported);
    }
    CHECK(valkey.is_empty_within(5s));
}

TEST_CASE("every error reply has its code, also those of servers before 7.0", "[redis]") {
    struct Row {
        std::string reply;
        Errc code;
    };
    const Row rows[] = {
        {"OOM command not allowed when used memory > 'maxmemory'.", Errc::out_of_memory},
        {"READONLY You can't write against a read only replica.", Errc::read_only},
        {"LOADING Redis is loading the dataset in memory", Errc::loading},
        {"NOAUTH Authentication required.", Errc::auth_required},
        {"WRONGPASS invalid username-password pair or user is disabled.", Errc::auth_failed},
        {"NOPERM this user has no permissions to run the 'set' command", Errc::no_permission},
        {"ERR The user executing the script can't run this command or subcommand script: 12e4", Errc::no_permission},
        {"ERR The user executing the script can't access at least one of the keys mentioned", Errc::no_permission},
        {"ERR ACL failure in script: No permissions to access a key script: 66b7, on @user_script:1.",
         Errc::no_permission},
        {"BUSY Redis is busy running a script.", Errc::script_running},
        {"MISCONF Redis is configured to save RDB snapshots", Errc::misconfigured},
        {"MOVED 11958 127.0.0.1:7001", Errc::moved},
        {"ASK 11958 127.0.0.1:7001", Errc::moved},
        {"CLUSTERDOWN The cluster is down", Errc::cluster_down},
        {"TRYAGAIN Multiple keys request during rehashing of slot", Errc::cluster_down},
        {"MASTERDOWN Link with MASTER is down", Errc::master_down},
        {"NOREPLICAS Not enough good replicas to write.", Errc::no_replicas},
        {"WRONGTYPE Operation against a key holding the wrong kind of value", Errc::wrong_type},
        {"ERR max number of clients reached", Errc::max_clients},
        {"ERR unknown command 'EVALSHA', with args beginning with: 'x'", Errc::unsupported},
        {"ERR Unknown Redis command called from script script: 12e4", Errc::unsupported},
        {"DENIED Redis is running in protected mode", Errc::no_permission},
        {"ERR DB index is out of range", Errc::no_such_db},
        {"ERR SELECT is not allowed in cluster mode", Errc::no_such_db},
        {"ERR Error running script (call to f_12e4): @user_script:1: @user_script: 1: -OOM command not allowed",
         Errc::out_of_memory},
        {"ERR Error running script (call to f_12e4): @user_script:1: -READONLY You can't write", Errc::read_only},
        {"ERR value is not an integer or out of range", Errc::server_error},
        {"ERR BUSY is a word in here, ASK anybody", Errc::server_error},
        {"OOMPH", Errc::server_error},
        {"", Errc::server_error},
    };
    for (const Row& row : rows) {
        INFO(row.reply);
        CHECK(detail::meaning(row.reply) == row.code);
    }
}

TEST_CASE("an error reply is a certain no, and anything but a reply to the question unknown", "[redis]") {
    CHECK(answer_to("-LOADING Redis is loading\r\n").verdict == Verdict::no);
    CHECK(answer_to("-WRONGTYPE x\r\n", Verb::release).why.code == Errc::stolen);
    for (const std::string reply : {":1\r\n", "+QUEUED\r\n", "$2\r\nOK\r\n", "*0\r\n"}) {
        const Answer answer = answer_to(reply);
        CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::protocol_error));
    }
    for (const std::string reply : {"+OK\r\n", "$-1\r\n", ":3\r\n", ":-2\r\n"}) {
        const Answer answer = answer_to(reply, Verb::release);
        CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::protocol_error));
    }
    CHECK(answer_to("-NOSCRIPT No matching script\r\n", Verb::extend).why.code == Errc::server_error);
}

TEST_CASE("a server that says why it won't have us is heard", "[redis]") {
    test::FakeServer fake{[](test::Peer& peer, int) {
        peer.send("-DENIED Redis is running in protected mode\r\n");
        peer.read();
    }};
    Redis redis{fake.unix_uri()};
    Answer answer{};
    for (const TimePoint limit = redis.now() + 10s; redis.now() < limit && answer.why.code != Errc::no_permission;)
        answer = ask(redis, Verb::acquire);
    CHECK_THAT(answer.why.detail, containing("protected mode"));
}

TEST_CASE("a server that has become a replica is left, as its address may lead to the primary", "[redis]") {
    test::FakeServer address{[&](test::Peer& peer, int nth) {
        while (!peer.read().empty())
            peer.send(nth == 0 ? "-READONLY You can't write against a read only replica.\r\n" : "+OK\r\n");
    }};
    Redis redis{address.unix_uri(), {.client_name = ""}};
    CHECK(ask(redis, Verb::acquire).why.code == Errc::read_only);
    CHECK(ask(redis, Verb::acquire).verdict == Verdict::yes);
}

TEST_CASE("a holder's time that no key can have is not believed", "[redis]") {
    test::FakeServer fake{[](test::Peer& peer, int) {
        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read()) {
            const auto is = [&](const char* word) { return bytes.find(word) != bytes.npos; };
            if (is(std::string{detail::acquire_sha}.c_str()))
                peer.send(":-9223372036854775808\r\n");
            else
                peer.send(is("BLPOP") ? "*-1\r\n$-1\r\n" : ":9223372036854775807\r\n");
        }
    }};
    for (const Millis patience : {1ms, 1000ms}) { // too little to stand in line, and enough
        Redis redis{fake.unix_uri(), {.client_name = ""}};
        const Answer answer = redis.ask({Verb::acquire, "k", a, 10s, later(redis.now(), 2s), patience});
        CHECK(answer.is_busy());
        CHECK(answer.holder_left == Millis{Options::longest_ttl});
    }
}

TEST_CASE("that a key was seen without an expiry is told, though the last answer comes too late", "[redis]") {
    test::FakeServer fake{[](test::Peer& peer, int) {
        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read()) {
            if (bytes.find("EVAL") != bytes.npos)
                peer.send(":-1\r\n");
            else if (bytes.find("BLPOP") == bytes.npos)
                peer.send("$-1\r\n");
        }
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "k", 10s, std::defer_lock};
    CHECK(failure([&] { return lock.try_lock_for(300ms); }).code == Errc::no_expiry);
}

#if !defined(__SANITIZE_ADDRESS__) // which does not survive the end of a cancelled thread
TEST_CASE("a thread that is cancelled in any call goes on until that is over, and then ends", "[redis]") {
    test::RedisServer& instance = server();
    struct Shared {
        const std::string uri, another;
        bool waits;
        std::atomic<bool> begun{false}, cancelled{false}, done{false};
    };
    const auto work = [](void* argument) -> void* {
        Shared& shared = *static_cast<Shared*>(argument);
        const auto life = [&] {
            Redis one{shared.uri}, voter{shared.another};
            Quorum quorum{voter};
            RedisLock lock{one, "k", 60s};
            const RedisLock of_a_majority{quorum, "another", 60s};
            static_cast<void>(lock.extend(60s));
            static_cast<void>(lock.lost());
            static_cast<void>(inspect(quorum, "k"));
            force_unlock(one, "k", lock.token());
        };
        shared.begun = true;
        while (!shared.waits && !shared.cancelled) std::this_thread::yield();
        life();
        shared.done = true;
        for (;;) ::pause(); // a cancellation point
    };
    for (const bool waits : {false, true}) {
        if (waits) instance.command({"SET", "k", "somebody", "PX", "60000"});
        Shared shared{instance.unix_uri(), instance.unix_uri(1), waits};
        pthread_t thread{};
        REQUIRE(::pthread_create(&thread, nullptr, work, &shared) == 0);
        while (!shared.begun || (waits && instance.blocked_clients() == 0)) std::this_thread::yield();
        CHECK(::pthread_cancel(thread) == 0);
        shared.cancelled = true;
        instance.command({"DEL", "k"});
        void* result = nullptr;
        CHECK(::pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED);
        CHECK(shared.done);
        CHECK(instance.integer({"EXISTS", "k", "another"}) == 0);
    }
}
#endif

TEST_CASE("a key whose name holds another's token does not get that one's lease released", "[redis]") {
    test::RedisServer& instance = server();
    Redis redis{instance.unix_uri()};
    Quorum quorum{redis};
    const auto check = [&](auto& backend) {
        const auto ask = [&](Verb verb, const std::string& key, const Token& token) {
            return backend.ask({verb, key, token, 60s, later(backend.now(), 10s)}).verdict;
        };
        const Token one = Token::from_bits(1, 1), two = Token::from_bits(2, 2);
        const std::string key = "k:" + test::text(one);
        for (const std::string& name : {key, key + ":" + test::text(one), test::text(one)})
            for (const Verb verb : {Verb::release, Verb::extend, Verb::acquire}) {
                instance.command({"FLUSHALL"});
                ask(verb, name, one); // whose token is also in the names of the keys beside it
                CHECK(ask(Verb::acquire, "other", two) == Verdict::yes);
                instance.command({"DEL", name});
                CHECK(ask(Verb::acquire, name, two) == Verdict::yes);
                CHECK(instance.text({"GET", name}) == two.hex());
                CHECK(ask(Verb::extend, name, two) == Verdict::yes);
                CHECK(ask(Verb::release, name, one) == Verdict::no);
                CHECK(ask(Verb::release, name, two) == Verdict::yes);
                CHECK(instance.integer({"EXISTS", name}) == 0);
            }
    };
    check(redis);
    check(quorum);
}

TEST_CASE("what is tried before the first lock takes nothing away, not even what has the lock's own token", "[redis]") {
    test::RedisServer& instance = server();
    Redis one{instance.unix_uri()}, same{instance.unix_uri()};
    RedisLock lock{one, "tried", 60s};
    const Answer answer = same.ask({Verb::acquire, "tried", lock.token(), 10s, later(detail::now(), 10s)});
    CHECK(answer.is_busy());
    CHECK(instance.integer({"PTTL", "tried"}) > 50'000);
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("who holds a key is told by the beginning of its value, however long that is", "[redis]") {
    test::RedisServer& instance = server();
    std::string value(1'000'000, 'x');
    value[1'000] = '\0';
    instance.command({"SET", "lock:k", value, "PX", "60000"});
    Redis redis{instance.unix_uri()}, three{instance.unix_uri(3)}, four{instance.unix_uri(4)};
    const std::optional<Holder> holder = inspect(redis, "lock:k");
    CHECK(holder->value == value.substr(0, Holder::longest_value));
    CHECK((holder->remaining > 50s && holder->remaining <= 60s));
    CHECK(calls_of(instance, "eval") > 0);
    instance.command({"ACL", "SETUSER", "looks", "on", ">p", "~lock:*", "+get", "+pttl"});
    Redis without_scripts{"unix://looks:p@" + instance.socket_path()};
    CHECK_FALSE(inspect(without_scripts, "lock:free"));
    instance.command({"SET", "lock:k", "somebody"});
    CHECK(inspect(without_scripts, "lock:k")->value == "somebody");
    CHECK(failure([&] { return inspect(without_scripts, "elsewhere"); }).code == Errc::no_permission);
}

TEST_CASE("a server's sentence reaches the user, without the token", "[redis]") {
    test::FakeServer fake{[](test::Peer& peer, int) {
        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read())
            peer.send("-ERR something with " + bytes.substr(bytes.find("$32\r\n") + 5, 32) + " in it\r\n");
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "orders:42", 10s, std::defer_lock};
    const Failure refused = failure([&] { lock.lock(); });
    CHECK(refused.code == Errc::server_error);
    CHECK_THAT(refused.detail,
               containing("lock \"orders:42\": unix:" + fake.path() + ": ERR something with <token> in it"));
}

TEST_CASE("a server that is loading its data is waited for", "[redis]") {
    test::RedisServer& instance = server();
    std::atomic<int> asked{0};
    test::FakeServer loading{[&](test::Peer& peer, int) {
        while (!peer.read().empty())
            peer.send(++asked < 4 ? "-LOADING Redis is loading the dataset in memory\r\n" : "+OK\r\n");
    }};
    Redis redis{loading.unix_uri(), {.client_name = ""}};
    RedisLock lock{redis, "k", {.ttl = 60s, .confirm_release = false}};
    CHECK(asked == 4);
    CHECK(instance.integer({"EXISTS", "k"}) == 0);
}

TEST_CASE("nothing is connected before a lock asks, and a server may come later", "[redis]") {
    test::RedisServer instance;
    instance.kill();
    Redis redis{instance.unix_uri()};
    RedisLock lock{redis, "k", {.ttl = 10s, .request_timeout = 300ms}, std::defer_lock};
    CHECK(failure([&] { lock.lock(); }).code == Errc::unreachable);
    instance.start();
    lock.lock();
    CHECK(lock.owns_lock());
    instance.kill();
    instance.start(); // its memory is lost
    CHECK(lock.unlock() == Outcome::expired);
    lock.lock();
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a lock that is renewed wakes nobody before that is due", "[redis]") {
    const auto switches_of_others = [] {
        long all = 0;
        for (const auto& task : std::filesystem::directory_iterator{"/proc/self/task"}) {
            if (task.path().filename() == std::to_string(::gettid())) continue;
            std::ifstream status{task.path() / "status"};
            for (std::string word; status >> word;)
                if (word == "voluntary_ctxt_switches:" && status >> word) all += std::stol(word);
        }
        return all;
    };
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    { const RedisLock first{redis, "k", 60s}; } // starts the worker
    const long before = switches_of_others();
    for (int i = 0; i < 500; ++i) const RedisLock lock{redis, "k", 60s};
    CHECK(switches_of_others() < before + 100);
}

TEST_CASE("what was asked over a spare connection, and is not answered, is unknown", "[redis][connection]") {
    test::FakeServer server{[](test::Peer& peer, int nth) {
        if (nth > 0) {
            peer.send("-ERR max number of clients reached\r\n");
            return;
        }
        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read()) {
            if (bytes.find("spare") != bytes.npos) return; // it has read the question, and is gone
            peer.send("+OK\r\n");
        }
    }};
    Redis redis{server.unix_uri(), {.client_name = ""}};
    const auto acquire = [&](const char* key) {
        return redis.ask({Verb::acquire, key, detail::random_token(), 10s, later(redis.now(), 5s)});
    };
    REQUIRE(acquire("held").verdict == Verdict::yes);
    CHECK(acquire("spare").verdict == Verdict::unknown);
}
