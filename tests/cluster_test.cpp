// A Redis Cluster as a backend: against real clusters whose slots move and whose nodes die, and against fake nodes for
// what is rare.
#include "child.hpp"
#include "conformance.hpp"
#include "fake_server.hpp"
#include "redis_cluster.hpp"
#include "troubles.hpp"

#include <redislock/cluster.hpp>

#include <atomic>
#include <deque>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::failure;
using test::FakeServer;
using test::Peer;
using test::RedisCluster;

namespace {

constexpr Options looks_seldom{.ttl = 60s, .request_timeout = 20s};
constexpr auto quick = 5s; // on a machine that is busy with other tests

struct ClusterWorld {
    static constexpr Millis unit{400};
    static constexpr bool has_line = true;
    RedisCluster& instance;
    Cluster cluster{instance.uri()};

    test::RedisServer& home(const std::string& key) { return instance.at(instance.home(key)); }
    Cluster& backend() { return cluster; }
    void pass(Millis span) { cluster.pause(later(cluster.now(), span)); }
    void put(const std::string& key, const std::string& value, std::optional<Millis> ttl) {
        if (ttl)
            home(key).command({"SET", key, value, "PX", std::to_string(ttl->count())});
        else
            home(key).command({"SET", key, value});
    }
    void put_hash(const std::string& key) { home(key).command({"HSET", key, "uuid:1", "1"}); }
    void erase(const std::string& key) { home(key).command({"DEL", key}); }
    std::optional<std::string> get(const std::string& key) {
        if (home(key).integer({"EXISTS", key}) == 0) return std::nullopt;
        return home(key).text({"GET", key});
    }
};

/// One for the tests of this process that leave it as it is; each finds it empty.
RedisCluster& steady() {
    static RedisCluster instance;
    for (std::size_t n = 0; n < instance.size(); ++n) instance.at(n).command({"FLUSHALL"});
    return instance;
}

/// Threads that want the same lock, again and again, and notice if two of them have it. What counts as theirs is what
/// owns_lock() says.
class Contenders {
public:
    Contenders(Cluster& cluster, std::string key, const Options& options, int count) {
        for (int i = 0; i < count; ++i)
            threads_.emplace_back([&cluster, key, options, this](std::stop_token stop) {
                while (!stop.stop_requested()) turn(cluster, key, options);
            });
    }
    ~Contenders() { stop(); }
    void stop() {
        for (std::jthread& thread : threads_) thread.request_stop();
        threads_.clear();
    }
    /// Until so many turns more have been had.
    void wait_for(int turns) {
        const int before = turns_;
        test::until([&] { return turns_ >= before + turns; });
    }

    std::atomic<int> clashes{0}, losses{0}, failures{0};
    std::atomic<TimePoint::rep> longest{0}; ///< wait

private:
    void turn(Cluster& cluster, const std::string& key, const Options& options) try {
        const TimePoint asked = now();
        RedisLock lock{cluster, key, options};
        const auto waited = (now() - asked).count();
        for (auto before = longest.load(); before < waited && !longest.compare_exchange_weak(before, waited);) {
        }
        clashes += inside_.exchange(true);
        std::this_thread::sleep_for(2ms); // the work
        inside_ = false;
        losses += !lock.owns_lock();
        ++turns_;
    } catch (const std::system_error& error) {
        ++failures;
        std::fprintf(stderr, "a contender: %s\n", error.what());
    }

    std::atomic<bool> inside_{false};
    std::atomic<int> turns_{0};
    std::deque<std::jthread> threads_;
};

bool is_over_tls() { return test::is_over_tls("the nodes name their plain ports"); }

/// A key whose slot is to move from one node to another.
struct MovingSlot {
    RedisCluster servers{};
    Cluster cluster{servers.uri()};
    const std::string key = "orders:42";
    const std::size_t from = servers.home(key), to = servers.elsewhere(key);
};

/// A fake node: what it says to the nth command that it hears.
class FakeNode {
public:
    using Say = std::function<std::string(int nth, const std::string& bytes)>;
    explicit FakeNode(Say say) : say_{std::move(say)} {}

    FakeServer server{[this](Peer& peer, int) {
                          for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read())
                              if (!peer.send(say_(heard++, bytes))) return;
                      },
                      true};
    std::atomic<int> heard{0};

    std::string address() const { return "127.0.0.1:" + std::to_string(server.port()); }

private:
    Say say_;
};

std::string moved_to(const std::string& key, const std::string& address, const char* how = "MOVED") {
    return "-" + std::string{how} + " " + std::to_string(detail::key_slot(key)) + " " + address + "\r\n";
}
/// What a node says that has the slot: to the proof of a release, to a SET and to a release.
std::string grants(const std::string& bytes) {
    if (bytes.find("\r\nSET\r\n") != bytes.npos && bytes.find("EVAL") == bytes.npos) return "+OK\r\n";
    return bytes.find("proof") != bytes.npos ? ":-1\r\n" : ":1\r\n";
}

const Token token = Token::from_bits(1, 1);
Answer ask(Cluster& cluster, Verb verb, const std::string& key = "k", Millis within = 2s) {
    return cluster.ask({verb, key, token, 10s, later(now(), within)});
}

} // namespace

TEST_CASE("a Cluster is a backend like any other", "[redis][cluster][conformance]") {
    if (is_over_tls()) return;
    ClusterWorld world{steady()};
    test::Conformance{world}.run();
}

TEST_CASE("a thousand keys are found from one seed, and then without asking the way", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    Cluster cluster{servers.uri()};
    const long long before = servers.errors("MOVED");
    for (int round = 0; round < 2; ++round) {
        const long long astray = servers.errors("MOVED");
        for (int i = 0; i < 1'000; ++i) {
            const std::string key = "key:" + std::to_string(i);
            RedisLock lock{cluster, key, {.ttl = 10s, .renew = false}};
            REQUIRE(servers.at(servers.home(key)).text({"GET", key}) == lock.token().hex());
            REQUIRE(lock.unlock() == Outcome::confirmed);
        }
        // Of a key whose slot is between those of one node it is known whose it is.
        CHECK(servers.errors("MOVED") - astray <= (round == 0 ? 100 : 0));
    }
    CHECK(servers.errors("MOVED") > before);
}

TEST_CASE("leases on all nodes are renewed", "[redis][cluster]") {
    if (is_over_tls()) return;
    Cluster cluster{steady().uri()};
    std::deque<RedisLock<Cluster>> locks;
    for (int i = 0; i < 30; ++i)
        locks.emplace_back(cluster, "key:" + std::to_string(i), Options{.ttl = 3s, .request_timeout = 900ms});
    cluster.pause(later(now(), 5s));
    for (const auto& lock : locks) CHECK(lock.owns_lock());
    for (auto& lock : locks) CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("waiters of a cluster's key get it by hand-off, in the order of their arrival", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    Cluster cluster{servers.uri()};
    const std::string key = GENERATE("orders:42", "a{tag}b", "a}b", "{}x");
    CAPTURE(key);
    test::RedisServer& home = servers.at(servers.home(key));
    RedisLock holder{cluster, key, looks_seldom};
    std::vector<int> order;
    std::deque<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&, i] {
            RedisLock lock{cluster, key, looks_seldom};
            order.push_back(i); // guarded by what is tested
        });
        test::until([&] { return home.blocked_clients() == i + 1; });
    }
    const TimePoint released = now();
    holder.unlock();
    threads.clear();
    CHECK(now() < released + quick);
    CHECK(order == std::vector{0, 1, 2, 3});
}

TEST_CASE("a cluster's grants are numbered, under any key", "[redis][cluster]") {
    if (is_over_tls()) return;
    Cluster cluster{steady().uri()};
    for (const char* key : {"orders:42", "a}b", "{}x"}) {
        std::uint64_t last = 0;
        for (int i = 0; i < 5; ++i) {
            RedisLock lock{cluster, key, {.ttl = 10s, .fencing = true}};
            CHECK(lock.fencing_token() > last);
            last = lock.fencing_token();
        }
    }
}

TEST_CASE("a seed that is not there is passed over", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    Cluster cluster{{"redis://127.0.0.1:1", servers.uri(1)}};
    CHECK(RedisLock{cluster, "k", 10s}.owns_lock());
    Cluster nowhere{{"redis://127.0.0.1:1", "redis://127.0.0.1:2"}};
    const TimePoint before = now();
    CHECK(failure([&] {
              return RedisLock{nowhere, "k", {.ttl = 10s, .request_timeout = 200ms}};
          }).code == Errc::unreachable);
    CHECK((now() >= before + 190ms && now() < before + quick));
}

TEST_CASE("what a cluster can not do is refused when it is made", "[cluster]") {
    const Failure database = failure([] { Cluster{"redis://127.0.0.1:1/3"}; });
    CHECK(database.code == Errc::bad_option);
    CHECK_THAT(database.detail, containing("database is 3, allowed is 0"));
    CHECK(failure([] { Cluster{{"redis://127.0.0.1:1", "redis://127.0.0.1:1/1"}}; }).code == Errc::bad_option);
    CHECK(failure([] { Cluster{"redis://127.0.0.1:1", {.restart_delay = 10s}}; }).code == Errc::bad_option);
    CHECK(failure([] { Cluster{std::vector<std::string>{}}; }).code == Errc::bad_option);
    CHECK(failure([] { Cluster{"nonsense"}; }).code == Errc::bad_uri);
    CHECK(failure([] { Cluster{static_cast<const char*>(nullptr)}; }).code == Errc::bad_uri);
    CHECK(Cluster{{"redis://127.0.0.1:1/0", "redis://:secret@[::1]:2"}}.name() == "127.0.0.1:1,[::1]:2");
}

TEST_CASE("a redirect without a host leads to the host that was asked", "[redis][cluster]") {
    FakeNode home{[](int, const std::string& bytes) { return grants(bytes); }};
    FakeNode seed{[&](int, const std::string&) { return moved_to("k", ":" + std::to_string(home.server.port())); }};
    Cluster cluster{seed.server.tcp_uri(), {.client_name = ""}};
    CHECK(ask(cluster, Verb::acquire).verdict == Verdict::yes);
    CHECK(ask(cluster, Verb::release).verdict == Verdict::yes);
    CHECK(seed.heard == 1);
}

TEST_CASE("nodes that send us to each other for a while are followed until they agree", "[redis][cluster]") {
    std::atomic<TimePoint::rep> since{TimePoint::max().time_since_epoch().count()};
    std::string other;
    FakeNode home{[&](int, const std::string& bytes) {
        TimePoint::rep never = TimePoint::max().time_since_epoch().count();
        since.compare_exchange_strong(never, now().time_since_epoch().count());
        const bool is_settled = now().time_since_epoch() - TimePoint::duration{since} >= 20ms;
        return is_settled ? grants(bytes) : moved_to("k", other);
    }};
    FakeNode seed{[&](int, const std::string&) { return moved_to("k", home.address()); }};
    other = seed.address();
    Cluster cluster{seed.server.tcp_uri(), {.client_name = ""}};
    CHECK(ask(cluster, Verb::acquire).verdict == Verdict::yes);
    CHECK(home.heard < 12);
}

TEST_CASE("a renewal is followed, too, while nodes send it to each other", "[redis][cluster]") {
    std::atomic<bool> moves{false};
    std::atomic<int> sent_away{0};
    std::string other;
    FakeNode home{[&](int, const std::string& bytes) {
        return moves && ++sent_away <= 4 ? moved_to("k", other) : grants(bytes);
    }};
    FakeNode seed{[&](int, const std::string&) { return moved_to("k", home.address()); }};
    other = seed.address();
    Cluster cluster{seed.server.tcp_uri(), {.client_name = ""}};
    RedisLock lock{cluster, "k", 3s};
    moves = true;
    cluster.pause(later(now(), 4s));
    CHECK(lock.owns_lock());
    CHECK(sent_away > 4);
}

TEST_CASE("nodes that send us to each other for ever are followed until the deadline", "[redis][cluster]") {
    std::string other;
    FakeNode home{[&](int, const std::string&) { return moved_to("k", other); }};
    FakeNode seed{[&](int, const std::string&) { return moved_to("k", home.address()); }};
    other = seed.address();
    Cluster cluster{seed.server.tcp_uri(), {.client_name = ""}};
    const TimePoint before = now();
    const Answer answer = ask(cluster, Verb::acquire, "k", 300ms);
    CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::moved));
    CHECK((now() > before + 200ms && now() < before + quick));
    CHECK(seed.heard + home.heard < 20);
    const Failure told = failure([&] { return RedisLock{cluster, "k", {.ttl = 10s, .request_timeout = 400ms}}; });
    CHECK(told.code == Errc::moved);
}

TEST_CASE_METHOD(MovingSlot, "a lease is kept while its slot moves, forwards and back, and where that is called off",
                 "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisLock lock{cluster, key, {.ttl = 3s, .request_timeout = 900ms}};
    const std::stop_token lost = lock.lost();
    const auto is_kept_for = [&](Millis span) {
        cluster.pause(later(now(), span));
        CHECK(lock.owns_lock());
        CHECK(inspect(cluster, key)->token() == lock.token());
    };
    const auto is_busy = [&] {
        RedisLock other{cluster, key, {.ttl = 3s, .request_timeout = 900ms}, std::defer_lock};
        CHECK_FALSE(other.try_lock());
    };
    servers.begin_move(key, from, to);
    is_kept_for(2s); // at the old node
    is_busy();
    servers.move_keys(key, from, to);
    is_kept_for(2s); // at the new one, by ASK
    is_busy();
    CHECK(lock.extend(1s) == Outcome::confirmed);
    servers.end_move(key, to);
    is_kept_for(2s);
    is_busy();
    servers.begin_move(key, to, from);
    is_kept_for(2s);
    servers.call_off(key, to, from);
    is_kept_for(2s);
    servers.move(key, to, from);
    is_kept_for(2s);
    CHECK_FALSE(lost.stop_requested());
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK_FALSE(inspect(cluster, key));
}

TEST_CASE("a lock is taken and given back at the node that is to get its slot", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster servers;
    const std::string key = "orders:42";
    const std::size_t from = servers.home(key), to = servers.elsewhere(key);
    servers.begin_move(key, from, to);
    Cluster cluster{servers.uri()}; // no node knows the scripts yet
    std::uint64_t last = 0;
    for (int i = 0; i < 3; ++i) {
        RedisLock lock{cluster, key, {.ttl = 10s, .fencing = true}};
        CHECK(lock.fencing_token() > last);
        last = lock.fencing_token();
        CHECK(servers.at(to).integer({"DBSIZE"}) >= 1);
        CHECK(inspect(cluster, key)->token() == lock.token());
        CHECK(lock.extend(20s) == Outcome::confirmed);
        CHECK(force_unlock(cluster, key, cluster.fresh()) == Outcome::stolen);
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK_FALSE(inspect(cluster, key));
    }
    servers.at(to).command({"SCRIPT", "FLUSH"});
    RedisLock lock{cluster, key, {.ttl = 10s, .renew = false}};
    CHECK(lock.extend(20s) == Outcome::confirmed);
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE_METHOD(MovingSlot, "a lock that is awaited passes on while its slot moves, forwards and back",
                 "[redis][cluster]") {
    if (is_over_tls()) return;
    Contenders contenders{cluster, key, {.ttl = 30s, .request_timeout = 9s}, 4};
    contenders.wait_for(20);
    for (const auto& [now_at, then_at] : {std::pair{from, to}, std::pair{to, from}}) {
        servers.begin_move(key, now_at, then_at);
        contenders.wait_for(20);
        servers.move_keys(key, now_at, then_at);
        contenders.wait_for(20);
        servers.end_move(key, then_at);
        contenders.wait_for(20);
    }
    contenders.stop();
    CHECK(contenders.clashes == 0);
    CHECK(contenders.losses == 0);
    CHECK(contenders.failures == 0);
    CHECK(TimePoint::duration{contenders.longest} < quick);
}

TEST_CASE_METHOD(MovingSlot, "who stands in line for a key whose slot moves gets it within a second",
                 "[redis][cluster]") {
    if (is_over_tls()) return;
    auto holder = std::make_unique<RedisLock<Cluster>>(cluster, key, 10s);
    std::atomic<bool> has_lock{false};
    std::jthread waiter{[&] {
        RedisLock lock{cluster, key, 10s};
        has_lock = true;
    }};
    test::until([&] { return servers.at(from).blocked_clients() == 1; });
    SECTION("a slot that has moved") {
        servers.move(key, from, to);
        test::until([&] { return servers.at(to).blocked_clients() == 1; });
    }
    SECTION("one that is on its way, with the lock's key at the old node") { servers.begin_move(key, from, to); }
    SECTION("one that is on its way, with the lock's key at the new node") {
        servers.begin_move(key, from, to);
        servers.move_keys(key, from, to);
    }
    SECTION("one that stays where it is") {
        servers.begin_move(key, from, to);
        servers.call_off(key, from, to);
    }
    CHECK_FALSE(has_lock);
    const TimePoint released = now();
    holder.reset();
    test::until([&] { return has_lock.load(); });
    CHECK(now() < released + quick);
}

TEST_CASE_METHOD(MovingSlot, "a lease that a cluster has lost, for its slot's move was called off, is lost at once",
                 "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisLock lock{cluster, key, {.ttl = 3s, .request_timeout = 900ms}};
    const std::stop_token lost = lock.lost();
    servers.begin_move(key, from, to);
    servers.move_keys(key, from, to);
    servers.call_off(key, from, to);
    test::until([&] { return lost.stop_requested(); });
    CHECK_FALSE(lock.owns_lock());
    CHECK(lock.unlock() == Outcome::expired);
}

TEST_CASE("nobody waits for a key at a node that may never get its slot", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster servers;
    Cluster cluster{servers.uri()};
    const std::string key = "orders:42";
    test::RedisServer& old_node = servers.at(servers.home(key));
    test::RedisServer& new_node = servers.at(servers.elsewhere(key));
    const auto scripts = [&] { return old_node.statistic("commandstats", "cmdstat_eval:calls="); };
    servers.begin_move(key, servers.home(key), servers.elsewhere(key));
    RedisLock holder{cluster, key, {.ttl = 60s, .renew = false}};
    std::atomic<bool> has_lock{false};
    std::jthread waiter{[&] {
        RedisLock lock{cluster, key, 10s};
        has_lock = true;
    }};
    const long long redirects = servers.errors("ASK");
    test::until([&] { return servers.errors("ASK") > redirects + 3; });
    CHECK(new_node.blocked_clients() == 0);
    old_node.command({"MULTI"}); // the move is called off, and somebody else is granted the key
    old_node.command({"CLUSTER", "SETSLOT", std::to_string(detail::key_slot(key)), "STABLE"});
    old_node.command({"EVAL", "return redis.call('SET', ARGV[1], 'another', 'PX', 60000)", "0", key});
    CHECK(old_node.command({"EXEC"})->elements == 2);
    const long long asked = scripts();
    test::until([&] { return scripts() > asked || old_node.blocked_clients() == 1; });
    new_node.command({"ASKING"});
    CHECK(new_node.integer({"DEL", key}) == 1);
    test::until([&] { return old_node.blocked_clients() == 1; });
    CHECK_FALSE(has_lock);
    old_node.command({"DEL", key});
    waiter.join();
    CHECK(holder.unlock() == Outcome::expired);
}

TEST_CASE("a lease and those who wait for it outlive a failover that is planned", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster servers{3, true};
    Cluster cluster{servers.uri()};
    const std::string held = "orders:42", wanted = "{orders:42}:next";
    const std::size_t primary = servers.home(held), replica = primary + 3;
    auto holder = std::make_unique<RedisLock<Cluster>>(cluster, held, Options{.ttl = 12s, .min_replicas = 1});
    std::atomic<bool> has_lock{false};
    std::jthread waiter{[&] {
        RedisLock lock{cluster, held, Options{.ttl = 30s, .request_timeout = 9s, .min_replicas = 1}};
        has_lock = true;
    }};
    test::until([&] { return servers.at(primary).blocked_clients() == 1; });
    Contenders contenders{cluster, wanted, {.ttl = 30s, .request_timeout = 9s}, 3};
    contenders.wait_for(20);
    for (const std::size_t next : {replica, primary}) {
        servers.fail_over_to(next);
        contenders.wait_for(20);
        test::until([&] { return servers.has_replica(next); });
        test::until([&] { return servers.agree(); });
    }
    cluster.pause(later(now(), 5s)); // it is renewed at the new primary
    CHECK(holder->owns_lock());
    CHECK_FALSE(has_lock);
    contenders.stop();
    CHECK((contenders.clashes == 0 && contenders.losses == 0 && contenders.failures == 0));
    const TimePoint released = now();
    holder.reset();
    test::until([&] { return has_lock.load(); });
    CHECK(now() < released + quick);
}

TEST_CASE("a lease that a replica has outlives its primary, and so do those who wait", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster servers{3, true};
    Cluster cluster{servers.uri()};
    const std::string key = "orders:42";
    const std::size_t primary = servers.home(key), replica = primary + 3;
    const Options patient{.ttl = 30s, .request_timeout = 9s}, safe{.ttl = 30s, .min_replicas = 1};
    auto holder = std::make_unique<RedisLock<Cluster>>(cluster, key, safe);
    RedisLock renewed{cluster, "{orders:42}:renewed", {.ttl = 12s, .request_timeout = 1s, .min_replicas = 1}};
    std::atomic<bool> has_lock{false};
    std::jthread waiter{[&] {
        RedisLock lock{cluster, key, patient};
        has_lock = true;
    }};
    test::until([&] { return servers.at(primary).blocked_clients() == 1; });
    servers.at(primary).kill();
    const TimePoint killed = now();
    const Failure none = failure([&] {
        return RedisLock{cluster, "{orders:42}:other", {.ttl = 10s, .request_timeout = 300ms}};
    });
    CHECK(none.code.category() == category());
    CHECK((now() > killed + 250ms && now() < killed + quick)); // no deadline is missed meanwhile
    test::until([&] { return servers.is_primary(replica); });
    const TimePoint taken_over = now();
    CHECK_FALSE(has_lock);
    CHECK((holder->owns_lock() && renewed.owns_lock()));
    CHECK(RedisLock{cluster, "{orders:42}:other", {.ttl = 60s, .request_timeout = 15s}}.owns_lock());
    test::until([&] { return servers.at(replica).blocked_clients() == 1; });
    CHECK(now() < taken_over + quick);
    // No replica is left to have a grant; a release needs none.
    const Options unsafe{.ttl = 3s, .min_replicas = 1};
    CHECK(failure([&] { return RedisLock{cluster, "{orders:42}:safe", unsafe}; }).code == Errc::no_replicas);
    const TimePoint released = now();
    CHECK(holder->unlock() == Outcome::confirmed);
    test::until([&] { return has_lock.load(); });
    CHECK(now() < released + quick);
    CHECK(renewed.owns_lock());
    CHECK(renewed.unlock() == Outcome::confirmed);
}

TEST_CASE("a lease that was lost with its primary is told to be lost", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster servers{3, true};
    Cluster cluster{servers.uri()};
    const std::string key = "orders:42";
    test::RedisServer& primary = servers.at(servers.home(key));
    test::RedisServer& replica = servers.at(servers.home(key) + 3);
    RedisLock{cluster, key, 10s}.unlock(); // where it is, is known
    replica.stop();
    primary.command({"CLIENT", "KILL", "TYPE", "replica"});
    RedisLock lock{cluster, key, {.ttl = 60s, .request_timeout = 15s}};
    const std::stop_token lost = lock.lost();
    primary.kill();
    replica.go_on();
    CHECK(lock.extend(60s) == Outcome::expired); // asked until a node has the slot again
    test::until([&] { return lost.stop_requested(); });
    CHECK_FALSE(lock.owns_lock());
    CHECK(RedisLock{cluster, key, {.ttl = 60s, .request_timeout = 15s}}.owns_lock());
}

TEST_CASE("where all nodes were replaced but the seed's name, that leads to the new ones", "[redis][cluster]") {
    if (is_over_tls()) return;
    auto servers = std::make_unique<RedisCluster>(2);
    const auto port = std::make_shared<std::atomic<int>>(servers->at(0).port());
    RedisOptions options;
    options.resolver = [port](const Address& of) {
        Address found = of;
        found.host = "127.0.0.1";
        found.port = std::to_string(port->load());
        return std::vector{found};
    };
    Cluster cluster{"redis://cluster.test:7000", options};
    const auto lock_some = [&] {
        for (int i = 0; i < 20; ++i)
            CHECK(RedisLock{cluster, "key:" + std::to_string(i), {.ttl = 60s, .request_timeout = 15s}}.owns_lock());
    };
    lock_some();
    servers.reset();
    servers = std::make_unique<RedisCluster>(2);
    *port = servers->at(1).port();
    lock_some();
}

TEST_CASE("a node that has lost its slots to others at its old address is asked anew", "[redis][cluster]") {
    std::atomic<bool> is_replaced{false};
    FakeNode node{[&](int, const std::string& bytes) { return grants(bytes); }};
    FakeServer seed{[&](Peer& peer, int nth) { // each connection leads to another server behind the same address
                        for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read())
                            if (!peer.send(nth == 0 && is_replaced
                                               ? moved_to("k", "127.0.0.1:" + std::to_string(seed.port()))
                                               : grants(bytes)))
                                return;
                    },
                    true};
    Cluster cluster{seed.tcp_uri(), {.client_name = ""}};
    CHECK(ask(cluster, Verb::acquire).verdict == Verdict::yes);
    is_replaced = true;
    CHECK(ask(cluster, Verb::extend).verdict == Verdict::yes);
    CHECK(seed.connections() == 2);
}

#if !defined(__SANITIZE_ADDRESS__) // whose allocator does not survive a fork beside a thread that has just begun
TEST_CASE("a forked child finds its own way through a cluster", "[redis][cluster][process]") {
    if (is_over_tls()) return;
    Cluster cluster{steady().uri()};
    RedisLock parents{cluster, "orders:42", {.ttl = 3s, .request_timeout = 900ms}};
    test::Child child{[&] {
        if (parents.owns_lock()) return false;
        RedisLock busy{cluster, "orders:42", {.ttl = 3s, .request_timeout = 900ms}, std::try_to_lock};
        RedisLock own{cluster, "orders:43", {.ttl = 3s, .request_timeout = 900ms}};
        cluster.pause(later(now(), 4s));
        return !busy.owns_lock() && own.owns_lock() && own.unlock() == Outcome::confirmed;
    }};
    CHECK(child.was_well());
    CHECK(parents.owns_lock());
    CHECK(parents.unlock() == Outcome::confirmed);
}
#endif

TEST_CASE("a release that nobody waits for is left to the worker where its node is not known", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    const std::string key = "orders:42";
    Cluster taker{servers.uri()};
    const Token given = RedisLock{taker, key, 60s}.detach();
    Cluster cluster{servers.uri(servers.elsewhere(key))};
    Request release{Verb::release, key, given, 60s, later(now(), 1s)};
    release.wants_answer = false;
    const Answer unsure = cluster.ask(release);
    CHECK((unsure.verdict == Verdict::unknown && unsure.is_trouble()));
    CHECK(inspect(cluster, key)); // from here on it is known
    CHECK_FALSE(cluster.ask(release).is_trouble());
    test::until([&] { return !inspect(cluster, key); });
}

TEST_CASE("a cluster is checked by the node that has the key", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    Cluster cluster{servers.uri()};
    const std::vector<std::string> warnings = check(cluster, "orders");
    REQUIRE(warnings.size() == 1);
    CHECK_THAT(warnings.front(), containing("appendonly is off: ")); // and no word of restart_delay
    Cluster nowhere{"redis://127.0.0.1:1"};
    CHECK(failure([&] { return check(nowhere, "orders", 200ms); }).code == Errc::unreachable);
}

TEST_CASE("a wait that is stopped says nothing of the node", "[redis][cluster]") {
    if (is_over_tls()) return;
    RedisCluster& servers = steady();
    const std::string key = "orders:42";
    Cluster cluster{servers.uri(servers.elsewhere(key))};
    RedisLock holder{cluster, key, 10s};
    RedisLock waiter{cluster, key, 10s, std::defer_lock};
    std::stop_source stop;
    bool has_lock = true;
    std::jthread waits{[&] { has_lock = waiter.lock(stop.get_token()); }};
    test::until([&] { return servers.at(servers.home(key)).blocked_clients() == 1; });
    stop.request_stop();
    waits.join();
    CHECK_FALSE(has_lock);
    const long long astray = servers.errors("MOVED");
    CHECK(holder.unlock() == Outcome::confirmed);
    CHECK(servers.errors("MOVED") == astray);
}
