// What a connection that speaks of locks makes of answers that no real server gives, or seldom: the way that blocks,
// and the one that does not.
#include "catch.hpp"
#include "fake_server.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <deque>
#include <future>
#include <map>
#include <optional>
#include <set>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::FakeServer;
using test::Peer;

namespace {

constexpr auto generous = 10s; // for a machine that is busy with other tests
const Token token = Token::from_bits(1, 1);

/// Each write that comes is answered by the next of these, and the last one by silence.
FakeServer::Script says(std::vector<std::string> replies) {
    return [replies](Peer& peer, int) {
        for (const std::string& reply : replies) {
            if (peer.read().empty()) return;
            peer.send(reply);
        }
        peer.wait_for_the_end();
    };
}

Request request(Verb verb, TimePoint deadline = later(now(), generous)) { return {verb, "k", token, 10s, deadline}; }

/// What a channel makes of it; without a handshake, or with one that selects a database.
Answer answered(const FakeServer& fake, Verb verb, unsigned db = 0, const char* tried_first = nullptr,
                TimePoint deadline = later(now(), generous)) {
    Address address = Address::parse(fake.unix_uri());
    address.db = db;
    std::vector<detail::Endpoint> endpoints = detail::resolve(address);
    if (tried_first != nullptr)
        endpoints.insert(endpoints.begin(), detail::resolve(Address::parse(tried_first)).front());
    const detail::Server server{std::move(endpoints), detail::Handshake{address, ""}};
    std::array<detail::Channel, 1> channels{detail::Channel{server}};
    detail::AwaitedQuestion question{request(verb, deadline)};
    for (channels[0].send(question.shared()); !question.answer;) {
        channels[0].advance(now());
        if (!question.answer) detail::ChannelWait{deadline, channels}();
    }
    CHECK((question.answer->why.code != Errc::protocol_error || channels[0].is_closed()));
    return *question.answer;
}

/// A channel, and what became of each of its questions, which are all extensions.
class Talk {
public:
    explicit Talk(const FakeServer& fake, unsigned db = 0)
        : server_{detail::resolve(at(fake, db)), {at(fake, db), ""}} {}

    std::size_t ask(TimePoint deadline, unsigned replicas = 0) {
        Request extension = request(Verb::extend, deadline);
        extension.replicas = replicas;
        answers_.push_back(std::make_shared<Heard>(std::move(extension)));
        channels_[0].send(answers_.back());
        advance();
        return answers_.size() - 1;
    }
    void advance() { channels_[0].advance(now()); }
    /// Goes on until that one is answered.
    Answer answer(std::size_t nth) {
        for (; !is_answered(nth); advance()) detail::ChannelWait{later(now(), generous), channels_}();
        return *answers_[nth]->answer;
    }
    bool is_answered(std::size_t nth) const { return answers_[nth]->answer.has_value(); }
    const detail::Channel& channel() const { return channels_[0]; }

private:
    static Address at(const FakeServer& fake, unsigned db) {
        Address address = Address::parse(fake.unix_uri());
        address.db = db;
        return address;
    }

    struct Heard : detail::AwaitedQuestion {
        using AwaitedQuestion::AwaitedQuestion;
        void answered(std::size_t node, Answer one) override {
            CHECK_FALSE(answer);
            AwaitedQuestion::answered(node, std::move(one));
        }
    };

    detail::Server server_;
    std::array<detail::Channel, 1> channels_{detail::Channel{server_}};
    std::deque<std::shared_ptr<Heard>> answers_{};
};

bool is_late(const Answer& answer) { return answer.verdict != Verdict::yes && answer.why.code == Errc::timed_out; }

} // namespace

TEST_CASE("a channel that is not understood is closed, and what it was asked is unknown", "[session]") {
    for (const std::string reply : {":1\r\n", ":-1\r\n", "+QUEUED\r\n", "$2\r\nOK\r\n", "*0\r\n"}) {
        const FakeServer fake{says({reply})};
        const Answer answer = answered(fake, Verb::acquire);
        CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::protocol_error));
    }
}

TEST_CASE("a channel takes no more than a reply may have", "[session]") {
    const FakeServer fake{says({"$1000000000\r\n" + std::string(2 * detail::Connection::longest_reply, 'x')}), true};
    CHECK(answered(fake, Verb::release).why.code == Errc::protocol_error);
}

TEST_CASE("a channel that is refused its database asks nothing", "[session]") {
    const FakeServer fake{says({"-ERR DB index is out of range\r\n"})};
    const Answer answer = answered(fake, Verb::acquire, 99);
    CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::no_such_db));
}

TEST_CASE("a server that may have forgotten leases is not asked, in whichever way", "[session]") {
    struct Row {
        const char* info;
        std::error_code expected{};
    };
    for (const Row& row :
         {Row{"# Server\r\nuptime_in_seconds:6\r\nuptime_in_days:0\r\n", Errc::restarted},
          Row{"# Server\r\nuptime_in_seconds:7\r\n", Errc::restarted}, // two clocks may differ by 2 %
          Row{"# Server\r\nuptime_in_seconds:8\r\n"}, Row{"# Server\r\nuptime_in_seconds:9223372036854775807\r\n"},
          Row{"# Server\r\nuptime_in_seconds:-9223372036854775808\r\n", Errc::restarted}, // its clock was set back
          Row{"# Server\r\n", Errc::unsupported}}) {
        const std::string info = row.info;
        const FakeServer fake{says({"$" + std::to_string(info.size()) + "\r\n" + info + "\r\n", "+OK\r\n", ":1\r\n"})};
        Redis redis{fake.unix_uri(), {.client_name = "", .restart_delay = 6s}};
        Quorum<Redis> quorum{redis};
        const auto asked = [](auto& backend) { return backend.ask(request(Verb::acquire)); };
        for (const Answer& answer : {asked(redis), asked(quorum)}) {
            CAPTURE(info, answer.why.detail);
            CHECK(answer.verdict == (row.expected ? Verdict::no : Verdict::yes));
            CHECK(answer.why.code == row.expected);
        }
    }
}

TEST_CASE("a server that has no room for another client says so, in whichever way it is asked", "[session]") {
    for (const std::string client_name : {"", "me"})
        for (const bool reads : {true, false}) {
            const FakeServer fake{[&](Peer& peer, int) {
                if (reads) peer.read();
                peer.send("-ERR max number of clients reached\r\n");
            }};
            Redis redis{fake.unix_uri(), {.client_name = client_name}};
            Quorum<Redis> quorum{redis};
            const auto asked = [](auto& backend) { return backend.ask(request(Verb::acquire)); };
            for (const Answer& answer : {asked(redis), asked(quorum)}) {
                CAPTURE(client_name, reads, answer.why.detail);
                CHECK(answer.verdict != Verdict::yes);
                CHECK(answer.why.code == Errc::max_clients);
                CHECK_THAT(answer.why.detail, containing("max number of clients reached"));
            }
        }
}

TEST_CASE("a server's time without a vote counts from its answer, though we were paused before we read it",
          "[session]") {
    const FakeServer fake{says({"$23\r\n# S\nuptime_in_seconds:0\r\n", "+OK\r\n"})};
    const Address address = Address::parse(fake.unix_uri());
    const detail::Server server{detail::resolve(address), detail::Handshake{address, "", 6s}};
    std::array<detail::Channel, 1> channels{detail::Channel{server}};
    detail::AwaitedQuestion question{request(Verb::acquire)};
    for (channels[0].send(question.shared()); !question.answer;
         detail::ChannelWait{question.request.deadline, channels}())
        channels[0].advance(now() - 10s);
    CHECK(question.answer->why.code == Errc::restarted);
}

TEST_CASE("a server that first greets with nonsense is asked again, as after any other trouble", "[session]") {
    const FakeServer fake{[](Peer& peer, int nth) {
        if (nth > 0) return says({"+OK\r\n", "+OK\r\n", ":1\r\n"})(peer, nth);
        peer.read();
        peer.send("nonsense\r\n");
    }};
    Redis redis{fake.unix_uri() + "?db=1", {.client_name = ""}};
    RedisLock lock{redis, "k", {.renew = false}, std::defer_lock};
    CHECK_FALSE(test::failure([&] { lock.lock(); }));
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a channel goes on to the next address of a server", "[session]") {
    const FakeServer fake{says({"+OK\r\n"})};
    CHECK(answered(fake, Verb::acquire, 0, "unix:///no/such.sock").verdict == Verdict::yes);
}

TEST_CASE("an acquire whose time is up as the connection comes about is not sent, but the release beside it is",
          "[session]") {
    std::promise<void> has_advanced, is_introduced;
    std::promise<std::string> asked;
    const FakeServer fake{[&](Peer& peer, int) {
                              peer.read();
                              has_advanced.get_future().wait();
                              peer.send("+OK\r\n");
                              is_introduced.set_value();
                              asked.set_value(peer.read());
                              peer.send(":1\r\n");
                              peer.wait_for_the_end();
                          },
                          true};
    Address address = Address::parse(fake.unix_uri());
    address.db = 1;
    const detail::Server server{detail::resolve(address), detail::Handshake{address, ""}};
    detail::Channel channel{server};
    detail::AwaitedQuestion hasty{request(Verb::acquire, later(now(), 500ms))},
        release{request(Verb::release, later(now(), 10s))};
    channel.send(hasty.shared());
    channel.send(release.shared());
    channel.advance(now());
    has_advanced.set_value();
    is_introduced.get_future().wait();
    detail::wait(-1, 0, hasty.request.deadline);
    while (!hasty.answer || !release.answer) channel.advance(now());
    CHECK(hasty.answer->verdict == Verdict::no);
    CHECK(release.answer->verdict == Verdict::yes);
    CHECK(asked.get_future().get().find("\r\nSET\r\n") == std::string::npos);
}

TEST_CASE("an acquire that a channel gives up is undone behind itself", "[session]") {
    std::string heard;
    {
        const FakeServer fake{[&](Peer& peer, int) {
            for (std::string bytes = peer.read(); !bytes.empty(); bytes = peer.read()) heard += bytes;
        }};
        CHECK(answered(fake, Verb::acquire, 0, nullptr, later(now(), 50ms)).why.code == Errc::timed_out);
    }
    CHECK(heard.find(detail::release_script) != heard.npos);
}

TEST_CASE("a server that answers what a channel has given up finds it there, and reads on", "[session]") {
    std::promise<void> given_up;
    std::promise<bool> reached;
    const FakeServer fake{[&](Peer& peer, int) {
                              peer.read();
                              given_up.get_future().wait();
                              reached.set_value(peer.send(":1\r\n"));
                          },
                          true};
    const Address address = Address::parse(fake.unix_uri());
    const detail::Server server{detail::resolve(address), detail::Handshake{address, ""}};
    std::array<detail::Channel, 1> channels{detail::Channel{server}};
    detail::AwaitedQuestion question{request(Verb::release, later(now(), 50ms))};
    for (channels[0].send(question.shared()); !question.answer;
         detail::ChannelWait{question.request.deadline, channels}())
        channels[0].advance(now());
    CHECK(question.answer->why.code == Errc::timed_out);
    given_up.set_value();
    CHECK(reached.get_future().get());
}

TEST_CASE("an extension that is overdue is answered alone, and its reply is nobody else's", "[session]") {
    std::promise<void> late;
    const FakeServer fake{[&](Peer& peer, int nth) {
        std::string asked = peer.read();
        if (nth > 0) return peer.wait_for_the_end();
        while (asked.find("EVAL") == asked.rfind("EVAL")) asked += peer.read(); // the second may come later
        late.get_future().wait();
        peer.send(":-1\r\n:1\r\n");
        peer.read();
        peer.send(":0\r\n");
        peer.wait_for_the_end();
    }};
    Talk talk{fake};
    const std::size_t impatient = talk.ask(later(now(), 50ms));
    const std::size_t patient = talk.ask(later(now(), 60s));
    const Answer overdue = talk.answer(impatient);
    CHECK((is_late(overdue) && overdue.verdict == Verdict::unknown));
    REQUIRE_FALSE(talk.is_answered(patient));
    CHECK(talk.channel().in_doubt());
    CHECK(talk.channel().due() > now() + generous);
    late.set_value();
    REQUIRE(talk.answer(patient).verdict == Verdict::yes);
    CHECK_FALSE(talk.channel().in_doubt());
    CHECK(talk.answer(talk.ask(later(now(), 60s))).why.code == Errc::stolen);
    CHECK(fake.connections() == 1);
}

TEST_CASE("a reply that says the connection is of no use is heard, though its question was overdue", "[session]") {
    std::promise<void> late;
    const FakeServer fake{[&](Peer& peer, int nth) {
        peer.read();
        if (nth > 0) return peer.wait_for_the_end();
        late.get_future().wait();
        peer.send("-READONLY You can't write against a read only replica.\r\n");
        peer.wait_for_the_end();
    }};
    Talk talk{fake};
    const std::size_t impatient = talk.ask(later(now(), 50ms));
    const std::size_t patient = talk.ask(later(now(), 60s));
    CHECK(is_late(talk.answer(impatient)));
    late.set_value();
    CHECK(talk.answer(patient).why.code == Errc::read_only);
    CHECK(talk.channel().is_closed());
}

TEST_CASE("a connection on which nobody waits any longer for an overdue answer is given up", "[session]") {
    const FakeServer fake{[](Peer& peer, int nth) {
        if (nth == 0) return peer.wait_for_the_end();
        says({":1\r\n"})(peer, nth);
    }};
    Talk talk{fake};
    const std::size_t first = talk.ask(later(now(), 50ms)), second = talk.ask(later(now(), 500ms));
    CHECK(is_late(talk.answer(first)));
    CHECK_FALSE(talk.channel().is_closed());
    CHECK(is_late(talk.answer(second)));
    CHECK(talk.channel().is_closed());
    CHECK_FALSE(talk.channel().in_doubt());
    CHECK(talk.answer(talk.ask(later(now(), 60s))).verdict == Verdict::yes);
    CHECK(fake.connections() == 2);
}

TEST_CASE("the impatient do not keep a connection from being made, and are not sent when it is", "[session]") {
    std::promise<void> late;
    std::promise<std::string> asked;
    const FakeServer fake{[&](Peer& peer, int nth) {
                              peer.read();
                              if (nth > 0) return peer.wait_for_the_end();
                              late.get_future().wait();
                              peer.send("+OK\r\n");
                              asked.set_value(peer.read());
                              peer.send(":1\r\n");
                              peer.wait_for_the_end();
                          },
                          true};
    Talk talk{fake, 1};
    const std::size_t patient = talk.ask(later(now(), 60s));
    for (int i = 0; i < 5; ++i) {
        const Answer overdue = talk.answer(talk.ask(later(now(), 10ms)));
        CHECK((is_late(overdue) && overdue.verdict == Verdict::no));
        CHECK(talk.channel().due() > now() + generous);
    }
    late.set_value();
    REQUIRE(talk.answer(patient).verdict == Verdict::yes);
    const std::string commands = asked.get_future().get();
    CHECK(commands.find("EVAL") == commands.rfind("EVAL"));
    CHECK(fake.connections() == 1);
}

TEST_CASE("a question about replicas has the time of the most patient, and stays in step with overdue ones",
          "[session]") {
    const bool has_ours =
        GENERATE(false, true); // whether the impatient are overdue before the first reply, or behind it
    std::promise<void> asked, sent, late;
    std::string commands;
    const FakeServer fake{[&](Peer& peer, int nth) {
        peer.read();
        if (nth > 0) return peer.wait_for_the_end();
        asked.get_future().wait();
        peer.send("+OK\r\n"); // so that the three go out together
        while (commands.find("WAIT") == commands.npos) commands += peer.read();
        if (has_ours) peer.send(":1\r\n:1\r\n:1\r\n");
        sent.set_value();
        late.get_future().wait();
        if (!has_ours) peer.send(":1\r\n:1\r\n:1\r\n");
        peer.send(":1\r\n"); // to WAIT
        peer.read();
        peer.send(":1\r\n:0\r\n");
        peer.wait_for_the_end();
    }};
    Talk talk{fake, 1};
    const std::size_t first = talk.ask(later(now(), 900ms), 1);
    const std::size_t patient = talk.ask(later(now(), 60s), 1);
    const std::size_t last = talk.ask(later(now(), 700ms), 1);
    asked.set_value();
    CHECK(is_late(talk.answer(last)));
    CHECK(is_late(talk.answer(first)));
    sent.get_future().wait();
    late.set_value();
    REQUIRE(talk.answer(patient).verdict == Verdict::yes);
    CHECK(talk.answer(talk.ask(later(now(), 60s), 1)).why.code == Errc::no_replicas);
    CHECK(commands.find("WAIT\r\n$1\r\n1\r\n$3\r\n500\r\n") != commands.npos); // its recheck, for it has 60 s
    CHECK(fake.connections() == 1);
}

TEST_CASE("a renewal does not go over a connection that is in doubt, though another one has time yet", "[session]") {
    const auto silent_at_first = [](Peer& peer, int nth) {
        if (nth == 0) return peer.wait_for_the_end();
        says({":1\r\n", ":1\r\n"})(peer, nth);
    };
    const FakeServer fake{silent_at_first}, another{silent_at_first};
    const Address address = Address::parse(fake.unix_uri());
    const detail::Server server{detail::resolve(address), detail::Handshake{address, ""}};
    const auto check = [](auto& port, const FakeServer& at) {
        std::map<Token, Answer, decltype([](const Token& a, const Token& b) { return a.hex() < b.hex(); })> answers;
        const auto held_lease = std::make_shared<detail::HeldLease>("k", Options{});
        const auto ask = [&](std::uint64_t nth, Millis patience) {
            const Token mine = Token::from_bits(nth, nth);
            port.send({held_lease, mine, now(), later(now(), patience)});
            return mine;
        };
        const auto advance = [&] {
            port.advance(now(), [&](const detail::Renewal& renewal, const Answer& answer) {
                CHECK(answers.emplace(renewal.token, answer).second);
            });
        };
        const auto answer = [&](const Token& mine) {
            for (advance(); !answers.contains(mine); advance()) detail::wait(-1, 0, later(now(), 1ms));
            return answers.at(mine);
        };
        ask(1, 60s);
        CHECK(is_late(answer(ask(2, 50ms))));
        CHECK(answer(ask(3, 30s)).verdict == Verdict::yes);
        CHECK(answer(ask(4, 30s)).verdict == Verdict::yes);
        CHECK(answers.size() == 3);
        CHECK(at.connections() == 2);
    };
    detail::ChannelPool pool{server, 16};
    detail::ServerPort port{pool};
    check(port, fake);
    Redis voter{another.unix_uri(), {.client_name = ""}};
    detail::NodeSet<Redis> voters{{&voter}};
    detail::FanOutPool<Redis> fan_outs{voters};
    detail::QuorumPort<Redis> of_one{voters, fan_outs};
    check(of_one, another);
}

TEST_CASE("where all connections are in doubt there are no more of them, and the last is used", "[session]") {
    struct Place {};
    struct Doubtful {
        explicit Doubtful(Place&) {}
        bool doubt = true;
        bool in_doubt() const noexcept { return doubt; }
        TimePoint due() const noexcept { return TimePoint::max(); }
    };
    Place here, there;
    detail::RenewalChannels<Doubtful, Place> ways{{&here, &there}};
    std::set<const Doubtful*> used;
    for (int i = 0; i < 20; ++i) used.insert(&ways.to(0, 0));
    CHECK(used.size() == 4);
    const Doubtful* const last = &ways.to(0, 0);
    CHECK(&ways.to(1, 0) != &ways.to(0, 1));
    CHECK(&ways.to(0, 0) == last);
    ways.all.front().doubt = false; // it was given up
    CHECK(&ways.to(0, 0) == &ways.all.front());
}

TEST_CASE("who holds a key is not known where the server refuses, or says what is no answer", "[session]") {
    struct Row {
        std::string reply;
        Errc code;
    };
    const Row rows[] = {
        {"-LOADING Redis is loading the dataset in memory\r\n:1\r\n:-2\r\n", Errc::loading},
        {"$1\r\nx\r\n-NOPERM no\r\n:-2\r\n", Errc::no_permission},
        {"$1\r\nx\r\n+OK\r\n:-2\r\n", Errc::protocol_error},
    };
    for (const Row& row : rows) {
        INFO(row.reply);
        const FakeServer fake{says({row.reply})};
        Redis redis{fake.unix_uri(), {.client_name = ""}};
        Holder holder;
        const Answer answer = redis.inspect("k", later(now(), generous), holder);
        CHECK((answer.verdict != Verdict::yes && answer.why.code == row.code));
    }
}

TEST_CASE("an extension that too few replicas have is unknown", "[session]") {
    const FakeServer fake{says({":1\r\n:0\r\n"})};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    Request extension = request(Verb::extend);
    extension.replicas = 1;
    const Answer answer = redis.ask(extension);
    CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::no_replicas));
}

TEST_CASE("a count of replicas that is none ends the connection, and what was asked is unknown", "[session]") {
    const auto check = [](const FakeServer& fake, auto& backend) {
        Request acquire = request(Verb::acquire);
        acquire.replicas = 1;
        for (int i = 0; i < 2; ++i) {
            const Answer answer = backend.ask(acquire);
            CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::protocol_error));
        }
        CHECK(fake.connections() >= 2);
    };
    const FakeServer one{says({"+OK\r\n+QUEUED\r\n"})}, other{says({"+OK\r\n+QUEUED\r\n"})};
    Redis redis{one.unix_uri(), {.client_name = ""}}, node{other.unix_uri(), {.client_name = ""}};
    Quorum<Redis> quorum{node};
    check(one, redis);
    check(other, quorum);
}

TEST_CASE("what could not be sent is a no, also where a question about replicas was to follow", "[session]") {
    const FakeServer fake{[](Peer& peer, int) {
        peer.read();
        peer.stop_reading();
        peer.send("+OK\r\n");
        peer.wait_for_the_end();
    }};
    Redis redis{fake.unix_uri() + "?db=1", {.client_name = ""}};
    for (const unsigned replicas : {0u, 1u}) {
        Request acquire = request(Verb::acquire);
        acquire.replicas = replicas;
        const Answer answer = redis.ask(acquire);
        CHECK(answer.verdict == Verdict::no);
        CHECK(answer.why.code == Errc::disconnected);
    }
}

TEST_CASE("a turn that comes as the wait for it ends, and that too few replicas have, is given back", "[session]") {
    const FakeServer fake{[](Peer& peer, int nth) {
        for (const char* reply : {"$-1\r\n", ":9000\r\n"}) {
            peer.read();
            peer.send(reply);
        }
        for (std::string asked = "?", all; !asked.empty() && all.find("PTTL") == all.npos; all += asked)
            asked = peer.read();
        peer.send("*-1\r\n+OK\r\n:0\r\n:9000\r\n");
        says({":1\r\n", "+OK\r\n"})(peer, nth);
    }};
    Redis redis{fake.unix_uri(), {.client_name = ""}};
    Request acquire = request(Verb::acquire);
    acquire.patience = 50ms;
    acquire.replicas = 1;
    CHECK(redis.ask(request(Verb::acquire)).why.code == Errc::busy);
    const Answer answer = redis.ask(acquire);
    CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::no_replicas));
    CHECK(redis.ask(request(Verb::acquire)).verdict == Verdict::yes);
    CHECK(fake.connections() == 1);
}

TEST_CASE("a renewal that waits for replicas holds up none that waits for fewer", "[session]") {
    const FakeServer fake{[](Peer& peer, int) {
        if (peer.read().find("WAIT\r\n$1\r\n2") == std::string::npos) peer.send(":1\r\n:1\r\n");
        peer.wait_for_the_end();
    }};
    const Address address = Address::parse(fake.unix_uri());
    const detail::Server server{detail::resolve(address), detail::Handshake{address, ""}};
    detail::ChannelPool pool{server, 16};
    detail::ServerPort port{pool};
    const detail::Alarm alarm;
    const auto send = [&](unsigned replicas) {
        const auto held_lease = std::make_shared<detail::HeldLease>("k", Options{.min_replicas = replicas});
        port.send({held_lease, token, now(), later(now(), generous)});
    };
    send(2);
    send(1);
    unsigned answered = 0;
    const auto advance = [&] {
        port.advance(now(), [&](const detail::Renewal& renewal, const Answer& answer) {
            CHECK(answer.verdict == Verdict::yes);
            answered = renewal.request().replicas;
        });
    };
    advance();
    while (answered == 0) {
        port.wait(alarm);
        advance();
    }
    CHECK(answered == 1);
}

TEST_CASE("a server that has forgotten its scripts is told again by those who wait", "[redis][session]") {
    test::RedisServer server;
    Redis redis{server.unix_uri(), {.client_name = ""}};
    const RedisLock holder{redis, "k", 60s};
    RedisLock waiter{redis, "k", {.ttl = 60s, .renew = false}, std::defer_lock};
    for (int round = 0; round < 2; ++round) { // in the second one the connection has waited before
        CHECK(test::waits_in_vain(waiter, 20ms));
        server.command({"SCRIPT", "FLUSH"});
    }
    CHECK(test::waits_in_vain(waiter, 20ms));
    CHECK(server.integer({"EXISTS", "{k}:redislock:waiting"}) == 1);
}

TEST_CASE("a lock over a place that does not number grants is refused to be fencing", "[session]") {
    struct Plain {
        TimePoint now() const noexcept { return {}; }
        Token fresh() const { return token; }
        void pause(Deadline) const noexcept {}
        Answer ask(const Request&) const { return {Verdict::no}; }
        void keep(const std::shared_ptr<detail::WorkerTask>&, TimePoint) const {}
        void drop(detail::WorkerTask&) const noexcept {}
    };
    Plain plain;
    for (const Options& options : {Options{.fencing = true}, Options{.min_replicas = 1}})
        CHECK_THROWS_AS((RedisLock{plain, "k", options, std::defer_lock}), std::system_error);
}

TEST_CASE("in real time, a lease in memory is renewed until it has had too few replicas", "[session]") {
    Memory memory{Memory::Time::real};
    memory.set_replicas(1);
    RedisLock lock{memory, "k", {.ttl = 3s, .min_replicas = 1}};
    const TimePoint renewed = memory.now() + lock.remaining() + 100ms; // its end is later than that
    while (lock.owns_lock() && memory.now() + lock.remaining() < renewed) memory.pause(memory.now() + 10ms);
    CHECK(lock.owns_lock());
    memory.set_replicas(0);
    CHECK(lock.extend(20s) == Outcome::unknown);
}

TEST_CASE("who holds a key is not known where a majority cannot be asked", "[session]") {
    Redis one{"unix:///no/such.1"}, two{"unix:///no/such.2"}, three{"unix:///no/such.3"};
    Quorum quorum{one, two, three};
    CHECK(test::failure([&] { return inspect(quorum, "k"); }).code == Errc::unreachable);
}
