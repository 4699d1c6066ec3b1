// The way of a request through a cluster, row by row of its table, and the slots of keys. No server, no socket, no
// clock.
#include "catch.hpp"

#include <redislock/detail/net/cluster_route.hpp>
#include <redislock/detail/protocol/auxiliary_keys.hpp>

using namespace redislock;
using namespace std::chrono_literals;
using namespace redislock::detail;

namespace {

/// A node that is never asked.
struct Nobody {
    Nobody(const Address&, RedisOptions how) : options{std::move(how)} {}
    const RedisOptions options;
};
using Table = SlotTable<Nobody>;

constexpr TimePoint start{1h};
const std::string key = "foo"; // of slot 12182

Request request(Verb verb = Verb::acquire, Millis patience = 0ms) {
    Request r{.verb = verb, .key = key, .token = Token::from_bits(1, 1), .ttl = 10s, .deadline = start + 1s};
    r.patience = patience;
    return r;
}
Answer answer(Verdict verdict, Errc why = {}, std::string detail = {}) {
    return {verdict, why == Errc{} ? Failure{} : Failure{why, std::move(detail)}};
}
Answer moved(const std::string& to, Verdict verdict = Verdict::no) {
    return answer(verdict, Errc::moved, "10.0.0.1:6379: MOVED 12182 " + to);
}
Answer ask(const std::string& to) { return answer(Verdict::no, Errc::moved, "ASK 12182 " + to); }

/// A route, and the time at which it is.
struct Journey {
    explicit Journey(Table& table, const Request& what = request()) : route{table, what, start} {}

    /// Who is asked next.
    std::string next() {
        now = std::max(now, route.at());
        return route.next(now)->address.text();
    }
    bool ends_with(Answer one) {
        last = std::move(one);
        return route.is_over(last, now);
    }

    TimePoint now = start;
    Answer last{Verdict::unknown};
    ClusterRoute<Nobody> route;
};

Table table(const std::vector<std::string>& seeds = {"redis://10.0.0.1"}, RedisOptions options = {}) {
    std::vector<Address> all;
    for (const std::string& seed : seeds) all.push_back(Address::parse(seed));
    return Table{all, std::move(options)};
}
const std::string a = "10.0.0.1:6379", b = "10.0.0.2:6379", c = "10.0.0.3:6379";

} // namespace

TEST_CASE("a key's slot is that of its hash tag, or of all of it", "[cluster]") {
    static_assert(hash_slot("123456789") == 0x31c3 % slot_count && hash_slot("") == 0);
    CHECK(key_slot("foo") == 12182);
    CHECK(key_slot("bar") == 5061);
    CHECK(key_slot("{user1000}.following") == key_slot("user1000"));
    CHECK(hash_tag("a{b}c{d}") == "b");
    CHECK(hash_tag("foo{{bar}}zap") == "{bar");
    CHECK(hash_tag("a}b{c}") == "c");
    for (const char* whole : {"foo{}{bar}", "{}x", "{}", "a}b", "a{b", "{x", "x}", ""}) CHECK(hash_tag(whole) == whole);
}

TEST_CASE("the keys beside a lock's key are in its slot, whatever it is named", "[cluster]") {
    for (const char* name :
         {"orders:42", "user:{7}:lock", "x{", "{x", "a{b}c{d}", "a}b", "{}x", "{}", "}{x}", "{{x}}"}) {
        CAPTURE(name);
        const AuxiliaryKeys beside{name};
        for (const std::string& one : {beside.waiting, beside.turn, beside.given, beside.fencing_counter})
            CHECK(key_slot(one) == key_slot(name));
    }
}

TEST_CASE("a redirect is read as servers write it", "[cluster]") {
    const auto moved_to = Redirect::in("MOVED 3999 127.0.0.1:6381");
    REQUIRE(moved_to);
    CHECK((moved_to->host == "127.0.0.1" && moved_to->port == "6381" && !moved_to->asks));
    CHECK(Redirect::in("[::1]:7000: ASK 3999 ::1:6381")->host == "::1");
    CHECK(Redirect::in("ASK 3999 [::1]:6381")->host == "::1");
    CHECK(Redirect::in("ASK 3999 [::1]:6381")->asks);
    CHECK(Redirect::in("MOVED 3999 redis-2.example.com:6381")->host == "redis-2.example.com");
    CHECK(Redirect::in("MOVED 3999 :6381")->host.empty());
    CHECK(Redirect::in("MOVED 3999 ?:6381")->host.empty());
    CHECK(Redirect::in("ERR Error running script: 1: -MOVED 3999 10.0.0.9:6381")->host == "10.0.0.9");
    for (const char* none : {"", "MOVED", "MOVED 3999", "MOVED x 10.0.0.9:1", "MOVED 3999 10.0.0.9", "MOVED 3999 a:b",
                             "TASK 1 a:1", "MOVED 3999 10.0.0.9:123456"})
        CHECK_FALSE(Redirect::in(none));
}

TEST_CASE("where a slot has moved is remembered, for all its keys", "[cluster]") {
    Table known = table();
    Journey first{known};
    CHECK(first.next() == a);
    CHECK_FALSE(first.ends_with(moved(b)));
    CHECK((first.next() == b && first.now == start));
    CHECK(first.ends_with(answer(Verdict::yes)));
    CHECK(Journey{known}.next() == b);
    Request tagged = request();
    tagged.key = "{foo}:other";
    CHECK(Journey{known, tagged}.next() == b);
}

TEST_CASE("who answers for a key is remembered too, and whose slots are beside it is asked first", "[cluster]") {
    Table known = table();
    Journey first{known};
    first.next();
    CHECK_FALSE(first.ends_with(moved(b)));
    Request beside = request();
    beside.key = "foo1"; // of slot 13431
    CHECK(Journey{known, beside}.next() == b);
    Journey second{known, beside};
    second.next();
    CHECK(second.ends_with(answer(Verdict::no, Errc::busy)));
    CHECK(known.owner(key_slot("foo1"))->address.text() == b);
}

TEST_CASE("ASK holds for one request, with ASKING", "[cluster]") {
    Table known = table();
    Journey journey{known};
    journey.next();
    CHECK_FALSE(journey.ends_with(moved(b)));
    journey.next();
    CHECK_FALSE(journey.route.request().asking);
    CHECK_FALSE(journey.ends_with(ask(c)));
    CHECK(journey.next() == c);
    CHECK(journey.route.request().asking);
    CHECK(journey.ends_with(answer(Verdict::yes)));
    CHECK(known.owner(key_slot(key))->address.text() == b);
    Journey next{known};
    CHECK(next.next() == b);
    CHECK_FALSE(next.route.request().asking);
}

TEST_CASE("who waits does not stand in line at a node that is to get the slot", "[cluster]") {
    Table known = table();
    known.remember(key_slot(key), known.at("10.0.0.1", "6379"));
    Journey journey{known, request(Verb::acquire, 900ms)};
    journey.next();
    CHECK(journey.route.request().patience == 900ms);
    CHECK_FALSE(journey.ends_with(ask(b)));
    journey.next();
    CHECK(journey.route.request().patience == 1ms);
    CHECK(journey.ends_with(answer(Verdict::no, Errc::busy)));
}

TEST_CASE("who waits does not stand in line where he may be in the wrong place", "[cluster]") {
    Table known = table();
    Journey journey{known, request(Verb::acquire, 900ms)};
    journey.next();
    CHECK(journey.route.request().patience == 1ms);
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::busy)));
    journey.now += 100ms;
    CHECK(journey.next() == a);
    CHECK(journey.route.request().patience == 800ms);
    CHECK(journey.ends_with(answer(Verdict::no, Errc::busy)));
}

TEST_CASE("two nodes that send us to each other are followed with pauses, until the deadline", "[cluster]") {
    Table known = table();
    Journey journey{known};
    std::vector<TimePoint::duration> pauses;
    for (int hops = 0;; ++hops) {
        REQUIRE(hops < 100);
        const TimePoint before = journey.now;
        const std::string to = journey.next();
        pauses.push_back(journey.now - before);
        if (journey.ends_with(moved(to == a ? b : a))) break;
    }
    CHECK((pauses[0] == 0ms && pauses[1] == 0ms && pauses[2] == 2ms && pauses[3] == 4ms && pauses[4] == 8ms));
    CHECK(*std::max_element(pauses.begin(), pauses.end()) == 64ms);
    CHECK(journey.last.why.code == Errc::moved);
    CHECK((journey.now < start + 1s && journey.now > start + 900ms));
}

TEST_CASE("new nodes without end are followed with pauses", "[cluster]") {
    Table known = table();
    Journey journey{known};
    for (int hops = 0;; ++hops) {
        REQUIRE(hops < 40);
        journey.next();
        if (journey.ends_with(moved("10.0.0.1:" + std::to_string(7000 + hops)))) break;
    }
}

TEST_CASE("a node without a host in its redirect means its own", "[cluster]") {
    Table known = table({"redis://redis.example.com:7000"});
    Journey journey{known};
    journey.next();
    CHECK_FALSE(journey.ends_with(moved(":7001")));
    CHECK(journey.next() == "redis.example.com:7001");
    Table local = table({"unix:///tmp/redis.sock"});
    Journey from_socket{local};
    from_socket.next();
    CHECK_FALSE(from_socket.ends_with(moved(":7001")));
    CHECK(from_socket.next() == "127.0.0.1:7001");
}

TEST_CASE("a node that names itself is asked over new connections, after a pause", "[cluster]") {
    Table known = table();
    Journey journey{known};
    journey.next();
    const auto before = known.at("10.0.0.1", "6379");
    CHECK_FALSE(journey.ends_with(moved(a)));
    CHECK(journey.next() == a);
    CHECK(journey.now == start + 2ms);
    CHECK(known.at("10.0.0.1", "6379") != before);
    CHECK(known.owner(key_slot(key)) != before);
}

TEST_CASE("two who are told by a node that it is elsewhere ask one new node", "[cluster]") {
    Table known = table();
    Journey one{known}, other{known};
    CHECK(one.next() == a);
    CHECK(other.next() == a);
    CHECK_FALSE(one.ends_with(moved(a)));
    const auto renewed = known.at("10.0.0.1", "6379");
    CHECK_FALSE(other.ends_with(moved(a)));
    CHECK(known.at("10.0.0.1", "6379") == renewed);
    CHECK(other.route.next(start + 1s) == one.route.next(start + 1s));
}

TEST_CASE("a token is not asked for elsewhere while it may have been granted", "[cluster]") {
    for (const Errc why : {Errc::timed_out, Errc::disconnected, Errc::cluster_down}) {
        Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
        Journey journey{known};
        journey.next();
        CHECK(journey.ends_with(answer(Verdict::unknown, why)));
        CHECK(Journey{known}.next() == b); // the undo, and the next token, go by way of another one
    }
    Table known = table();
    Journey journey{known};
    journey.next();
    CHECK(journey.ends_with(moved(b, Verdict::unknown)));
    CHECK(Journey{known}.next() == b);
}

TEST_CASE("where no node is there, another one is asked, a seed, and in the end all of them again", "[cluster]") {
    Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
    Journey journey{known};
    CHECK(journey.next() == a);
    CHECK_FALSE(journey.ends_with(moved(c)));
    CHECK(journey.next() == c);
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::unreachable)));
    CHECK((journey.next() == b && journey.now == start));
    CHECK(journey.route.request().deadline.at == start + 1s); // none is left that was not asked
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::unreachable)));
    CHECK((journey.next() == a && journey.now == start + 2ms));
    CHECK_FALSE(journey.ends_with(moved(c))); // nobody has taken its place yet
    CHECK(journey.next() == c);
    journey.now = start + 999ms;
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::unreachable)));
    journey.next();
    journey.now = start + 1s;
    CHECK(journey.ends_with(answer(Verdict::no, Errc::unreachable)));
}

TEST_CASE("a node that is in doubt is passed by, until it is heard of again", "[cluster]") {
    Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
    known.remember(key_slot(key), known.at("10.0.0.1", "6379"));
    Journey silent{known};
    CHECK(silent.next() == a);
    CHECK(silent.ends_with(answer(Verdict::unknown, Errc::timed_out)));
    Journey around{known};
    CHECK(around.next() == b);
    CHECK(around.route.request().deadline.at == start + 500ms); // half of the time, for there is another one
    CHECK_FALSE(around.ends_with(moved(a)));
    CHECK(around.next() == a);
    CHECK(around.ends_with(answer(Verdict::yes)));
    CHECK(Journey{known}.next() == a);
}

TEST_CASE("a cluster that is down is asked again, by way of others", "[cluster]") {
    Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
    Journey journey{known};
    journey.next();
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::cluster_down, "TRYAGAIN")));
    CHECK((journey.next() == b && journey.now == start + 2ms));
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::cluster_down, "CLUSTERDOWN")));
    CHECK((journey.next() == a && journey.now == start + 6ms));
    journey.now = start + 1s;
    CHECK(journey.ends_with(answer(Verdict::no, Errc::cluster_down, "CLUSTERDOWN")));
}

TEST_CASE("what no other node can mend is the answer", "[cluster]") {
    for (const Errc why : {Errc::no_permission, Errc::auth_failed, Errc::no_replicas, Errc::out_of_memory, Errc::stolen,
                           Errc::expired}) {
        Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
        Journey journey{known};
        journey.next();
        CHECK(journey.ends_with(answer(Verdict::no, why)));
        CHECK_FALSE(known.at("10.0.0.1", "6379")->is_doubted);
    }
}

TEST_CASE("a node that has no room is passed over where it is not known to have the key", "[cluster]") {
    Table known = table({"redis://10.0.0.1", "redis://10.0.0.2"});
    Journey journey{known};
    const auto first = journey.next();
    CHECK_FALSE(journey.ends_with(answer(Verdict::no, Errc::max_clients)));
    CHECK(journey.next() != first);
}

TEST_CASE("a release that has found no node of its key is not refused by it", "[cluster]") {
    Table known = table();
    Journey journey{known, request(Verb::release)};
    journey.next();
    journey.now = start + 1s;
    CHECK(journey.ends_with(moved(b)));
    CHECK(journey.last.verdict == Verdict::unknown);
    CHECK(journey.last.is_trouble());
}

TEST_CASE("a node that is announced by its address shows the seed's certificate", "[cluster]") {
    Table known = table({"rediss://redis.example.com"});
    CHECK(known.at("10.0.0.2", "6379")->node.options.tls.server_name == "redis.example.com");
    CHECK(known.at("node-2.example.com", "6379")->node.options.tls.server_name.empty());
    CHECK(known.at("redis.example.com", "6379")->node.options.tls.server_name.empty());
    RedisOptions options;
    options.tls.server_name = "one.for.all";
    Table named = table({"rediss://redis.example.com"}, options);
    CHECK(named.at("10.0.0.2", "6379")->node.options.tls.server_name == "one.for.all");
    Table numeric = table({"rediss://10.0.0.1"});
    CHECK(numeric.at("10.0.0.2", "6379")->node.options.tls.server_name.empty());
}

TEST_CASE("nodes come and go, and the table stays small", "[cluster]") {
    Table known = table();
    for (int n = 0; n < 5'000; ++n) {
        const auto node = known.at("10.0." + std::to_string(n / 250) + "." + std::to_string(n % 250), "7000");
        node->is_doubted = true;
    }
    std::vector<Table::Known> seen;
    while (const auto one = known.guess(0, seen)) seen.push_back(one);
    CHECK(seen.size() <= 1'000);
    CHECK(seen.front()->address.text() == a);
}
