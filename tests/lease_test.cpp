// A test for every row of the table above the class Lease, in the table's order.
#include "catch.hpp"

#include <redislock/detail/lease/lease.hpp>

using namespace redislock;
using namespace std::chrono_literals;
using State = Lease::State;

namespace {

constexpr TimePoint start{1000s};
constexpr Millis ttl{10'000};
constexpr TimePoint end = start + ttl - 102ms; // 1 % and 2 ms
constexpr auto moment = 1ns;
constexpr Token token = Token::from_bits(1, 2);
constexpr Token other = Token::from_bits(3, 4);

const Answer yes{Verdict::yes}, unknown{Verdict::unknown, {Errc::timed_out, {}}}, busy{Verdict::no, {Errc::busy, {}}},
    gone{Verdict::no, {Errc::expired, {}}}, anothers{Verdict::no, {Errc::stolen, {}}},
    refused{Verdict::no, {Errc::read_only, {}}};

Lease asking() {
    Lease lease;
    lease.ask(token, start, ttl);
    return lease;
}
Lease held() {
    Lease lease = asking();
    lease.answered(yes, start + 1ms);
    return lease;
}
Lease doubtful() {
    Lease lease = held();
    lease.let_go();
    return lease;
}
Lease lost(const Answer& why) {
    Lease lease = held();
    lease.extended(why, start + 1s, ttl, start + 1s);
    return lease;
}

} // namespace

TEST_CASE("idle: to ask is to be asking, with a token, held_lease nothing", "[lease]") {
    CHECK(Lease{}.state(start) == State::idle);
    CHECK(Lease{}.token().is_nil());
    const Lease lease = asking();
    CHECK(lease.state(start) == State::asking);
    CHECK(lease.token() == token);
    CHECK(lease.remaining(start) == 0ms);
}

TEST_CASE("asking: a grant that was confirmed by an extension runs from the asking for that", "[lease]") {
    Lease lease = asking();
    lease.ask_anew(start + 20s, ttl);
    CHECK(lease.state(start + 20s) == State::asking);
    lease.answered(yes, start + 21s);
    CHECK(lease.end() == end + 20s);
    CHECK(lease.held(start + 21s));
}

TEST_CASE("asking: granted before the end is held, and the lease runs from the asking", "[lease]") {
    Lease lease = asking();
    lease.answered(yes, end - moment);
    CHECK(lease.held(end - moment));
    CHECK(lease.end() == end);
    CHECK(lease.remaining(start) == 9898ms);
    CHECK(lease.remaining(start + 1ms + moment) == 9896ms); // rounded down
}

TEST_CASE("asking: granted at the end or later is doubtful, to be undone", "[lease]") {
    for (const TimePoint late : {end, end + 1h}) {
        Lease lease = asking();
        lease.answered(yes, late);
        CHECK(lease.state(late) == State::doubtful);
        CHECK(lease.unsettled(late));
        CHECK(lease.token() == token);
    }
}

TEST_CASE("asking: a no ends it", "[lease]") {
    for (const Answer& answer : {busy, refused}) {
        Lease lease = asking();
        lease.answered(answer, start);
        CHECK(lease.state(start) == State::idle);
        CHECK(lease.token().is_nil());
    }
}

TEST_CASE("asking: unknown is not no, but doubtful", "[lease]") {
    Lease lease = asking();
    lease.answered(unknown, start + 1ms);
    CHECK(lease.state(start + 1ms) == State::doubtful);
    CHECK_FALSE(lease.held(start + 1ms));
}

TEST_CASE("held: the clock alone makes it lapse, and no one has to say so", "[lease]") {
    const Lease lease = held();
    CHECK(lease.state(end - moment) == State::held);
    CHECK(lease.state(end) == State::lapsed);
    CHECK(lease.unsettled(end));
    CHECK(lease.remaining(end) == 0ms);
}

TEST_CASE("held: cut short it lapses at once, and cutting never prolongs it", "[lease]") {
    Lease lease = held();
    lease.cut_short(end + 1h);
    CHECK(lease.held(end - moment));
    lease.cut_short(start + 1s);
    CHECK(lease.held(start + 1s - moment));
    CHECK(lease.state(start + 1s) == State::lapsed);
    CHECK(lease.unsettled(start + 1s));
    CHECK(lease.extended(yes, start, 10s, start + 1s) == Outcome::expired);
}

TEST_CASE("held: extended before the end moves the end, counted from the asking", "[lease]") {
    Lease lease = held();
    CHECK(lease.extended(yes, start + 1s, ttl, start + 2s) == Outcome::confirmed);
    CHECK(lease.end() == end + 1s);
    CHECK(lease.held(end));
}

TEST_CASE("held: an extension never shortens", "[lease]") {
    Lease lease = held();
    CHECK(lease.extended(yes, start + 1s, 50ms, start + 1s) == Outcome::confirmed);
    CHECK(lease.end() == end);
}

TEST_CASE("held: extended too late does not bring a lease back", "[lease]") {
    Lease lease = held();
    CHECK(lease.extended(yes, end - 1ms, ttl, end) == Outcome::expired);
    CHECK(lease.state(end) == State::lapsed);
}

TEST_CASE("held or lapsed: an extension that finds the key gone or another's loses the lease, for this reason",
          "[lease]") {
    CHECK(lost(gone).state(start) == State::lost);
    CHECK(lost(gone).loss() == Outcome::expired);
    CHECK(lost(anothers).loss() == Outcome::stolen);
    CHECK(lost(anothers).token().is_nil());
    Lease lapsed = held();
    CHECK(lapsed.extended(anothers, start + 1s, ttl, end) == Outcome::stolen);
    CHECK(lapsed.state(end) == State::lost);
}

TEST_CASE("held: an extension refused or unknown leaves the lease as it was", "[lease]") {
    for (const Answer& answer : {refused, unknown}) {
        Lease lease = held();
        CHECK(lease.extended(answer, start + 1s, ttl, start + 1s) == Outcome::unknown);
        CHECK(lease.held(end - moment));
        CHECK_FALSE(lease.held(end));
    }
}

TEST_CASE("held or lapsed: letting go ends it before any release is sent", "[lease]") {
    CHECK(doubtful().state(start + 1ms) == State::doubtful);
    CHECK_FALSE(doubtful().held(start + 1ms));
    CHECK(doubtful().state(end) == State::doubtful);
    Lease lapsed = held();
    CHECK(lapsed.state(end) == State::lapsed);
    lapsed.let_go();
    CHECK(lapsed.state(end) == State::doubtful);
}

TEST_CASE("asking: what was never answered, for an exception, is unsettled, and let go doubtful", "[lease]") {
    Lease lease = asking();
    CHECK(lease.unsettled(start));
    lease.let_go();
    CHECK(lease.state(start) == State::doubtful);
}

TEST_CASE("doubtful: a release that deletes the key confirms that it was ours", "[lease]") {
    Lease lease = doubtful();
    CHECK(lease.released(yes) == Outcome::confirmed);
    CHECK(lease.state(start + 1s) == State::idle);
    CHECK(lease.token().is_nil());
}

TEST_CASE("doubtful: a release that finds the key gone or another's says which", "[lease]") {
    Lease first = doubtful();
    Lease second = doubtful();
    CHECK(first.released(gone) == Outcome::expired);
    CHECK(second.released(anothers) == Outcome::stolen);
    CHECK(first.state(start + 1s) == State::idle);
}

TEST_CASE("doubtful: gone, or another's, after a release that was unknown, may be its doing or not", "[lease]") {
    for (const Answer& answer : {gone, anothers}) {
        Lease lease = doubtful();
        CHECK(lease.released(unknown) == Outcome::unknown);
        CHECK(lease.released(answer) == Outcome::unknown);
        CHECK(lease.state(start + 1s) == State::idle);
    }
    Lease lease = doubtful();
    lease.released(unknown);
    CHECK(lease.released(yes) == Outcome::confirmed);
}

TEST_CASE("doubtful: a release refused or unknown settles nothing", "[lease]") {
    Lease lease = doubtful();
    CHECK(lease.released(refused) == Outcome::unknown);
    CHECK(lease.state(start + 1s) == State::doubtful);
    CHECK(lease.released(gone) == Outcome::expired); // the refused one had deleted nothing
}

TEST_CASE("lost: let go it's idle, and or asked for again", "[lease]") {
    Lease lease = lost(gone);
    lease.let_go();
    CHECK(lease.state(start) == State::idle);
    lease = lost(gone);
    lease.ask(other, start + 5s, ttl);
    CHECK(lease.state(start + 5s) == State::asking);
    CHECK(lease.token() == other);
}

TEST_CASE("a new attempt remembers nothing of an unanswered release before it", "[lease]") {
    Lease lease = doubtful();
    lease.released(unknown);
    lease.released(gone);
    lease.ask(other, start + 2s, ttl);
    lease.answered(yes, start + 2s);
    lease.let_go();
    CHECK(lease.released(gone) == Outcome::expired);
}
