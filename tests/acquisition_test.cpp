// Waiting for a lock, row by row of its table, in simulated time and without a backend.
#include "catch.hpp"

#include <redislock/detail/lease/acquisition.hpp>

using namespace redislock;
using namespace std::chrono_literals;
using detail::Acquisition;
using Act = Acquisition::Step::Act;

namespace {

constexpr TimePoint start{1h};
constexpr Millis request_timeout{400};

const Answer busy{Verdict::no, {Errc::busy, {}}, 5s};
const Answer queued{.verdict = Verdict::no, .why = {Errc::busy, {}}, .holder_left = 5s, .queued = true};
const Answer silence{Verdict::unknown, {Errc::timed_out, {}}};
const Answer refused{Verdict::no, {Errc::unreachable, {}}};
const Answer cut{Verdict::unknown, {Errc::disconnected, {}}};
const Answer wrong_password{Verdict::no, {Errc::no_permission, {}}};
const Answer never_ends{Verdict::no, {Errc::no_expiry, {}}};

struct Fixture {
    detail::RoundTrip round_trip{request_timeout};
    Options options{.ttl = 10s, .request_timeout = request_timeout};
    Acquisition until(TimePoint give_up, bool expects_to_wait = false) {
        return Acquisition{options, round_trip, expects_to_wait, start, give_up};
    }

    /// What it says at the end of a wait of 300 ms, whose first answer is busy.
    Acquisition::Step at_the_end(const Answer& first, const Answer& last) {
        Acquisition waiter = until(start + 300ms);
        waiter.ask(start);
        CHECK(waiter.answered(first, start + 1ms).act == Act::ask);
        waiter.ask(start + 1ms);
        return waiter.answered(last, start + 300ms);
    }
};

} // namespace

TEST_CASE("who asks once has the request timeout, and is told that it is busy", "[acquisition]") {
    Fixture fixture;
    Acquisition once = fixture.until(TimePoint::min(), true);
    const auto asking = once.ask(start);
    CHECK(asking.deadline == start + request_timeout);
    CHECK(asking.patience == 0ms);
    const auto step = once.answered(busy, start + 1ms);
    CHECK(step.act == Act::busy);
    CHECK(step.until == start + 1ms);
}

TEST_CASE("a busy key is asked for at once with patience, and after a place in line again", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 20s);
    CHECK(waiter.ask(start).patience == 0ms);
    CHECK(waiter.answered(busy, start + 1ms).act == Act::ask);
    const auto asking = waiter.ask(start + 1ms);
    CHECK(asking.patience > 19s);
    CHECK(asking.deadline == start + 20s);
    CHECK(waiter.answered(queued, start + 10s).act == Act::ask);
    CHECK(waiter.ask(start + 10s).patience > 9s);
}

TEST_CASE("who had to wait for the last grant asks with patience at once, but not who asks once", "[acquisition]") {
    Fixture fixture;
    CHECK(fixture.until(start + 20s, true).ask(start).patience > 19s);
    CHECK(fixture.until(TimePoint::min(), true).ask(start).patience == 0ms);
}

TEST_CASE("who may not stand in line rests, for no longer than the holder has", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 20s, true);
    waiter.ask(start);
    const auto step = waiter.answered(busy, start + 1ms);
    CHECK(step.act == Act::rest);
    CHECK(step.holder_left == 5s);
    CHECK(step.until < start + 20s);
}

TEST_CASE("an error that time will not mend is told at once", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 20s);
    waiter.ask(start);
    const auto step = waiter.answered(wrong_password, start + 1ms);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::no_permission);
    CHECK(step.until == start + 1ms);
}

TEST_CASE("trouble is ridden out for the request timeout, from when it was noticed", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(TimePoint::max());
    waiter.ask(start);
    CHECK(waiter.answered(cut, start + 100ms).act == Act::rest);
    const auto asking = waiter.ask(start + 200ms);
    CHECK(asking.patience == 0ms);
    CHECK(asking.deadline == start + 100ms + request_timeout);
    CHECK(waiter.answered(cut, start + 499ms).act == Act::rest);
    waiter.ask(start + 499ms);
    const auto step = waiter.answered(refused, start + 500ms);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::unreachable); // that nobody is there tells more
    SECTION("and begins anew after an answer") {
        Acquisition other = fixture.until(TimePoint::max());
        other.ask(start);
        CHECK(other.answered(cut, start + 100ms).act == Act::rest);
        other.ask(start + 400ms);
        CHECK(other.answered(busy, start + 450ms).act == Act::ask);
        CHECK(other.ask(start + 450ms).patience > 0ms);
        CHECK(other.answered(cut, start + 500ms).act == Act::rest);
        other.ask(start + 800ms);
        CHECK(other.answered(cut, start + 850ms).act == Act::rest);
        other.ask(start + 890ms);
        CHECK(other.answered(cut, start + 900ms).act == Act::failed);
    }
}

TEST_CASE("a wait with a time of its own rides out trouble until that is over", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 20s);
    TimePoint now = start;
    for (; now < start + 20s - 1ms; now += 50ms) {
        CHECK(waiter.ask(now).deadline <= now + request_timeout);
        const auto step = waiter.answered(refused, now + 1ms);
        CHECK(step.act == Act::rest);
        CHECK(step.until <= start + 20s);
    }
    waiter.ask(now - 1ms);
    const auto step = waiter.answered(refused, start + 20s);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::unreachable);
}

TEST_CASE("retry_for says how long trouble is ridden out, whatever the wait", "[acquisition]") {
    Fixture fixture;
    for (const TimePoint give_up : {start + 20s, TimePoint::max()}) {
        fixture.options.retry_for = 5s;
        Acquisition waiter = fixture.until(give_up);
        waiter.ask(start);
        CHECK(waiter.answered(refused, start + 100ms).act == Act::rest);
        waiter.ask(start + 5s);
        CHECK(waiter.answered(refused, start + 5s).act == Act::rest);
        waiter.ask(start + 5s);
        CHECK(waiter.answered(refused, start + 5s + 100ms).act == Act::failed);
        fixture.options.retry_for = 0ms;
        Acquisition hasty = fixture.until(give_up);
        hasty.ask(start);
        CHECK(hasty.answered(refused, start).act == Act::failed);
    }
}

TEST_CASE("a question that was cut short tells less than the trouble before it", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 300ms);
    waiter.ask(start);
    CHECK(waiter.answered(refused, start + 1ms).act == Act::rest);
    waiter.ask(start + 290ms);
    const auto step = waiter.answered(silence, start + 300ms);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::unreachable);
}

TEST_CASE("at the end it is busy if somebody was seen to hold it, whatever trouble followed", "[acquisition]") {
    Fixture fixture;
    const auto step = fixture.at_the_end(busy, silence);
    CHECK(step.act == Act::busy);
    CHECK(step.until == start + 300ms);
}

TEST_CASE("at the end of an outage that the holder's lease did not outlast it is the outage", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 20s);
    waiter.ask(start);
    CHECK(waiter.answered(busy, start + 1ms).act == Act::ask); // it has 5 s left
    waiter.ask(start + 1ms);
    CHECK(waiter.answered(refused, start + 3s).act == Act::rest);
    waiter.ask(start + 20s - 1ms);
    const auto step = waiter.answered(refused, start + 20s);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::unreachable);
}

TEST_CASE("at the end a key whose holder has no lease that ends is an error", "[acquisition]") {
    Fixture fixture;
    const auto step = fixture.at_the_end(never_ends, never_ends);
    CHECK(step.act == Act::failed);
    CHECK(step.why.code == Errc::no_expiry);
}

TEST_CASE("where the last word is too near for another question, it is said in time and no sooner", "[acquisition]") {
    Fixture fixture;
    for (int i = 0; i < 20; ++i) fixture.round_trip.measured(100us);
    Acquisition waiter = fixture.until(start + 300ms, true);
    waiter.ask(start);
    const auto step = waiter.answered(queued, start + 299ms);
    CHECK(step.act == Act::busy);
    CHECK(step.until == start + 300ms);
}

TEST_CASE("a grant that came too late for its lease is trouble", "[acquisition]") {
    Fixture fixture;
    Acquisition waiter = fixture.until(start + 60s);
    waiter.ask(start);
    CHECK(waiter.answered({Verdict::yes}, start + 11s).act == Act::rest);
}
