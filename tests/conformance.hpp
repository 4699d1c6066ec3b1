/// What every backend must do, and every lock over it; written once, and run over each backend. A world is a backend
/// with what a test needs around it: another client's hands, and a way to let time pass.
#pragma once

#include "catch.hpp"

#include <redislock/inspect.hpp>
#include <redislock/lock.hpp>

#include <mutex>
#include <set>
#include <thread>

namespace test {

using namespace redislock;
using namespace std::chrono_literals;

inline std::string text(const Token& token) { return std::string{token.hex()}; }

/// World: `backend()`, `pass(Millis)`, `put(key, value, optional ttl)`, `put_hash(key)`, `erase(key)`, `get(key)` ->
/// optional string, `unit`, a time that's long for it, and `has_line`, whether a waiter stands in line.
template <class World>
class Conformance {
public:
    using Lock = RedisLock<std::remove_reference_t<decltype(std::declval<World&>().backend())>>;

    explicit Conformance(World& world) : world_{world}, backend_{world.backend()} {}

    void run() {
        SECTION("an acquire is granted to one token, and told to the others") { acquire(); }
        SECTION("a release deletes the token's own key alone") { release(); }
        SECTION("an unanswered release is carried out all the same") { unanswered_release(); }
        SECTION("an extension never shortens, never re-creates, never takes over") { extend(); }
        SECTION("a granted key lives for its ttl, and no longer") { expiry(); }
        SECTION("a key of another type, or without an expiry, is busy") { foreign_keys(); }
        SECTION("who has a key can be seen, and be made to give it up") { inspection(); }
        SECTION("a key may hold any byte") { binary_keys(); }
        SECTION("a question whose deadline has passed is answered at once") { late_question(); }
        SECTION("an acquire with patience waits for its turn, and says so") { patience(); }
        SECTION("a value that is almost our token is another's") { alike(); }
        SECTION("a stop ends an acquire that waits, and it leaves nothing") { stopped_patience(); }
        SECTION("a pause lasts, unless it is stopped") { pause(); }
        SECTION("tokens are fresh") { fresh(); }
        SECTION("a lock excludes, from its construction to the end of its scope") { scope(); }
        SECTION("unlocking says what had become of the lease") { outcomes(); }
        SECTION("a timed wait ends when its time is up") { timed_wait(); }
        SECTION("a waiter gets the lock when the holder's lease has ended") { wait_for_expiry(); }
        SECTION("a wait for a key that no lease will free ends with the reason") { wait_for_foreign_keys(); }
        SECTION("a lease ends by the clock, before the key does") { lapse(); }
        SECTION("a lock that lapsed is locked again without waiting for itself") { relock(); }
        SECTION("extending moves the end, and revives nothing") { extend_lock(); }
        SECTION("moving and swapping carry the lease along") { moves(); }
        SECTION("a lease is adopted with its token, and with no other") { adopt(); }
        SECTION("the standard's guards and std::lock take it for a mutex") { standard_guards(); }
        SECTION("a wait that is stopped is no error, and one that is not is as any other") { stops(); }
        SECTION("a lease that was waited for is as good as new") { waited_lease(); }
        SECTION("locking what is held already is misuse") { misuse(); }
    }

private:
    Answer ask(Verb verb, const Token& token, Millis ttl, Millis patience = 0ms) {
        return backend_.ask({verb, key_, token, ttl, later(backend_.now(), World::unit * 10), patience});
    }
    Millis left() { return ask(Verb::acquire, backend_.fresh(), 10ms, 1ms).holder_left.value(); }
    bool held_by(const Token& token) { return world_.get(key_) == text(token); }
    Options not_renewed(Millis ttl) const { return {.ttl = ttl, .renew = false}; }
    Options with_ttl(Millis ttl) const { return {.ttl = ttl, .renew = false, .request_timeout = ttl / 2}; }

    void acquire() {
        CHECK(ask(Verb::acquire, a_, unit * 10).verdict == Verdict::yes);
        CHECK(held_by(a_));
        for (const Token& token : {a_, b_}) {
            const Answer answer = ask(Verb::acquire, token, unit);
            CHECK(answer.verdict == Verdict::no);
            CHECK(answer.is_busy());
        }
        CHECK(left() <= unit * 10);
        CHECK(left() > unit * 5);
        CHECK(held_by(a_));
    }

    void release() {
        CHECK(ask(Verb::release, a_, unit).why.code == Errc::expired);
        ask(Verb::acquire, a_, unit * 10);
        const Answer answer = ask(Verb::release, b_, unit);
        CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::stolen));
        CHECK(held_by(a_));
        CHECK(ask(Verb::release, a_, unit).verdict == Verdict::yes);
        CHECK_FALSE(world_.get(key_));
    }

    void unanswered_release() {
        ask(Verb::acquire, a_, unit);
        Request request{Verb::release, key_, a_, unit, later(backend_.now(), unit)};
        request.wants_answer = false;
        const Answer answer = backend_.ask(request);
        CHECK((answer.verdict == Verdict::unknown && !answer.why));
        CHECK(ask(Verb::acquire, b_, unit).verdict == Verdict::yes); // and its answer isn't taken for this one
    }

    void extend() {
        CHECK(ask(Verb::extend, a_, unit).why.code == Errc::expired);
        CHECK_FALSE(world_.get(key_));
        ask(Verb::acquire, a_, unit * 5);
        CHECK(ask(Verb::extend, a_, 10 * unit).verdict == Verdict::yes);
        CHECK(left() > 9 * unit);
        CHECK(ask(Verb::extend, a_, unit).verdict == Verdict::yes);
        CHECK(left() > 9 * unit);
        CHECK(ask(Verb::extend, b_, 20 * unit).why.code == Errc::stolen);
        CHECK(left() <= 10 * unit);
        CHECK(held_by(a_));
        world_.put(key_, text(b_), std::nullopt);
        CHECK(ask(Verb::extend, b_, unit).verdict == Verdict::yes);
        CHECK(left() <= unit);
    }

    void alike() {
        std::string values[] = {text(a_), text(a_), {}};
        values[0].push_back('x');
        values[1].erase(0, 1);
        for (const std::string& value : values) {
            world_.put(key_, value, unit * 10);
            for (const Verb verb : {Verb::extend, Verb::release}) CHECK(ask(verb, a_, unit).why.code == Errc::stolen);
            CHECK(world_.get(key_) == value);
        }
    }

    void expiry() {
        const TimePoint asked = backend_.now();
        ask(Verb::acquire, a_, unit);
        while (world_.get(key_)) world_.pass(1ms);
        CHECK(backend_.now() >= asked + unit);
        CHECK(ask(Verb::acquire, b_, unit).verdict == Verdict::yes);
    }

    void foreign_keys() {
        world_.put(key_, "somebody", std::nullopt);
        CHECK(ask(Verb::acquire, a_, unit).is_busy());
        CHECK(ask(Verb::acquire, a_, unit, 1ms).why.code == Errc::no_expiry);
        CHECK(ask(Verb::release, a_, unit).why.code == Errc::stolen);
        world_.erase(key_);
        world_.put_hash(key_);
        CHECK(ask(Verb::acquire, a_, unit).is_busy());
        CHECK(ask(Verb::acquire, a_, unit, 1ms).why.code == Errc::wrong_type);
        for (const Verb verb : {Verb::extend, Verb::release}) {
            const Answer answer = ask(verb, a_, unit);
            CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::stolen));
        }
    }

    void inspection() {
        CHECK_FALSE(inspect(backend_, key_));
        CHECK(force_unlock(backend_, key_, a_) == Outcome::expired);
        Lock lock{backend_, key_, unit * 10};
        const std::optional<Holder> holder = inspect(backend_, key_);
        REQUIRE(holder);
        CHECK(holder->token() == lock.token());
        CHECK((holder->remaining > unit * 9 && holder->remaining <= unit * 10));
        CHECK_FALSE(holder->is_awaited);
        CHECK(force_unlock(backend_, key_, a_) == Outcome::stolen);
        CHECK(force_unlock(backend_, key_, *holder->token()) == Outcome::confirmed);
        CHECK(lock.unlock() == Outcome::expired);
        world_.put(key_, "somebody", std::nullopt);
        CHECK((inspect(backend_, key_)->value == "somebody" && !inspect(backend_, key_)->token()));
        CHECK_FALSE(inspect(backend_, key_)->remaining);
        world_.erase(key_);
        world_.put_hash(key_);
        CHECK(inspect(backend_, key_)->value.empty());
        CHECK(reason([&] { return inspect(backend_, ""); }) == Errc::bad_key);
        CHECK(reason([&] { return force_unlock(backend_, "", a_); }) == Errc::bad_key);
    }

    void binary_keys() {
        std::set<std::string> keys;
        for (int byte = 0; byte < 256; ++byte) keys.insert(std::string{static_cast<char>(byte)});
        keys.insert({"a b", std::string{"a\0b", 3}, "a\r\nDEL a\r\n", "sch\xc3\xb6n", "%s%n", std::string(512, 'k')});
        for (const std::string& key : keys) {
            Lock lock{backend_, key, unit * 10};
            REQUIRE(world_.get(key) == text(lock.token()));
            REQUIRE(lock.unlock() == Outcome::confirmed);
        }
    }

    void late_question() {
        ask(Verb::acquire, a_, unit); // so that there is a connection
        const TimePoint before = backend_.now();
        backend_.ask({Verb::extend, key_, a_, unit, before});
        CHECK(backend_.now() < before + unit);
    }

    void patience() {
        ask(Verb::acquire, a_, unit * 2);
        Answer answer = ask(Verb::acquire, b_, unit, unit / 4);
        CHECK((answer.is_busy() && answer.queued == World::has_line && answer.holder_left > 0ms));
        CHECK(held_by(a_));
        if (!World::has_line) return;
        answer = ask(Verb::acquire, b_, unit * 10, unit * 5);
        CHECK((answer.verdict == Verdict::yes && answer.queued));
        CHECK(held_by(b_));
        world_.erase(key_);
        answer = ask(Verb::acquire, a_, unit, unit * 5);
        CHECK(answer.verdict == Verdict::yes);
    }

    void stopped_patience() {
        const detail::Signal stop;
        stop.set();
        ask(Verb::acquire, a_, unit * 5);
        const TimePoint before = backend_.now();
        Request request{Verb::acquire, key_, b_, unit, {later(before, unit * 10), stop.fd()}, unit * 5};
        CHECK(backend_.ask(request).verdict != Verdict::yes);
        CHECK(backend_.now() < before + unit);
        CHECK(ask(Verb::release, a_, unit).verdict == Verdict::yes);
        CHECK(ask(Verb::acquire, a_, unit, unit).verdict == Verdict::yes);
    }

    void pause() {
        const TimePoint until = later(backend_.now(), 3ms);
        backend_.pause(until);
        CHECK(backend_.now() >= until);
        backend_.pause(TimePoint{});
        const detail::Signal stop;
        stop.set();
        backend_.pause({later(backend_.now(), 1h), stop.fd()});
        CHECK(backend_.now() < until + 1h);
    }

    void fresh() {
        std::set<std::string> seen;
        for (int i = 0; i < 1000; ++i) seen.insert(text(backend_.fresh()));
        CHECK(seen.size() == 1000);
    }

    void scope() {
        {
            Lock lock{backend_, key_, unit * 10};
            CHECK((lock && lock.owns_lock()));
            CHECK(lock.remaining() > unit * 9);
            CHECK(lock.remaining() < unit * 10);
            CHECK(lock.key() == key_);
            CHECK(held_by(lock.token()));
            Lock other{backend_, key_, unit * 10, std::try_to_lock};
            CHECK_FALSE(other.owns_lock());
            CHECK(other.token().is_nil());
            CHECK(other.remaining() == 0ms);
        }
        CHECK_FALSE(world_.get(key_));
        Lock lock{backend_, key_, {.ttl = unit * 10, .confirm_release = false}};
        lock = Lock{backend_, "another", unit, std::defer_lock};
        CHECK(ask(Verb::acquire, a_, unit).verdict == Verdict::yes);
    }

    void outcomes() {
        Lock lock{backend_, key_, unit * 10, std::defer_lock};
        CHECK(lock.unlock() == Outcome::not_held);
        lock.lock();
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK(lock.unlock() == Outcome::not_held);
        lock.lock();
        world_.erase(key_);
        CHECK(lock.unlock() == Outcome::expired);
        lock.lock();
        world_.put(key_, "somebody", unit * 10);
        CHECK(lock.unlock() == Outcome::stolen);
        CHECK(world_.get(key_) == "somebody");
        world_.erase(key_);
        lock.lock();
        world_.erase(key_);
        CHECK(lock.extend(unit * 10) == Outcome::expired);
        CHECK_FALSE(lock.owns_lock());
        CHECK(lock.extend(unit * 10) == Outcome::expired);
        CHECK(lock.unlock() == Outcome::expired);
        CHECK(lock.unlock() == Outcome::not_held);
        lock.lock();
        world_.put(key_, "somebody", unit * 10);
        CHECK(lock.extend(unit * 10) == Outcome::stolen);
        CHECK(lock.unlock() == Outcome::stolen);
        CHECK(world_.get(key_) == "somebody");
    }

    void timed_wait() {
        Lock holder{backend_, key_, not_renewed(unit * 20)};
        Lock waiter{backend_, key_, unit * 20, std::defer_lock};
        TimePoint before = backend_.now();
        CHECK_FALSE(waiter.try_lock_for(unit));
        CHECK(backend_.now() >= before + unit);
        before = backend_.now();
        CHECK_FALSE(waiter.try_lock_until(before + unit));
        CHECK(backend_.now() >= before + unit);
        CHECK(backend_.now() < before + unit * 10);
        before = backend_.now();
        CHECK_FALSE(waiter.try_lock_for(0s));
        CHECK_FALSE(waiter.try_lock_for(-1h));
        CHECK_FALSE(waiter.try_lock_until(TimePoint{}));
        CHECK_FALSE(waiter.try_lock_until(std::chrono::system_clock::now() - 1h));
        CHECK(backend_.now() < before + unit * 10);
        CHECK(holder.owns_lock());
        holder.unlock();
        CHECK(waiter.try_lock_for(std::chrono::hours::max()));
    }

    void wait_for_expiry() {
        Lock dead{backend_, key_, not_renewed(unit)};
        const TimePoint asked = backend_.now();
        const TimePoint end = asked + dead.remaining();
        Lock waiter{backend_, key_, not_renewed(unit * 10)};
        CHECK(backend_.now() > end);
        CHECK(waiter.owns_lock());
        CHECK_FALSE(dead.owns_lock());
        CHECK(dead.unlock() == Outcome::stolen);
        CHECK(held_by(waiter.token()));
    }

    void wait_for_foreign_keys() {
        Lock waiter{backend_, key_, with_ttl(unit), std::defer_lock};
        world_.put(key_, "somebody", std::nullopt);
        CHECK_FALSE(waiter.try_lock());
        CHECK(reason([&] { return waiter.try_lock_for(unit / 4); }) == Errc::no_expiry);
        world_.erase(key_);
        world_.put_hash(key_);
        CHECK_FALSE(waiter.try_lock());
        CHECK(reason([&] { return waiter.try_lock_for(unit / 4); }) == Errc::wrong_type);
        world_.erase(key_);
        CHECK(waiter.try_lock_for(unit * 10));
    }

    void stops() {
        Lock holder{backend_, key_, not_renewed(unit * 2)};
        Lock waiter{backend_, key_, unit * 2, std::defer_lock};
        std::stop_source stop;
        CHECK_FALSE(waiter.try_lock_for(unit / 4, stop.get_token()));
        CHECK(waiter.lock(stop.get_token()));
        waiter.unlock();
        stop.request_stop();
        CHECK_FALSE(waiter.lock(stop.get_token()));
        CHECK_FALSE(waiter.try_lock_for(unit, stop.get_token()));
        CHECK_FALSE(waiter.try_lock_until(later(backend_.now(), unit), stop.get_token()));
        CHECK_FALSE(world_.get(key_));
    }

    void waited_lease() {
        const Lock dead{backend_, key_, not_renewed(unit * 2)};
        const Lock waiter{backend_, key_, not_renewed(unit * 4)};
        CHECK(waiter.remaining() > unit * 3);
        CHECK(left() >= waiter.remaining());
    }

    void lapse() {
        Lock lock{backend_, key_, not_renewed(unit)};
        world_.pass(lock.remaining() + 1ms);
        CHECK_FALSE(lock.owns_lock());
        CHECK(lock.remaining() == 0ms);
        CHECK(lock.token().is_nil());
        CHECK(lock.extend(unit) == Outcome::expired);
    }

    void relock() {
        Lock lock{backend_, key_, not_renewed(unit)};
        world_.pass(lock.remaining() + 1ms);
        // Somebody keeps the lapsed lease's key alive, as a delayed extension would.
        const std::optional<std::string> own = world_.get(key_);
        if (own) world_.put(key_, *own, unit * 50);
        const TimePoint before = backend_.now();
        lock.lock();
        CHECK(backend_.now() < before + unit * 10);
        CHECK(held_by(lock.token()));
    }

    void extend_lock() {
        Lock lock{backend_, key_, not_renewed(unit * 5), std::defer_lock};
        CHECK(lock.extend(unit) == Outcome::not_held);
        lock.lock();
        CHECK(lock.extend(unit * 10) == Outcome::confirmed);
        CHECK(lock.remaining() > unit * 9);
        CHECK(lock.extend(unit) == Outcome::confirmed);
        CHECK(lock.remaining() > unit * 9);
        for (const Millis bad : {0ms, -1ms, 9ms, Millis{25h}, Millis::max(), Millis::min()})
            CHECK(reason([&] { return lock.extend(bad); }) == Errc::bad_option);
        CHECK(held_by(lock.token()));
    }

    void moves() {
        Lock first{backend_, key_, unit * 10};
        const Token token = first.token();
        Lock second{std::move(first)};
        CHECK((second.owns_lock() && second.token() == token));
        CHECK((!first.owns_lock() && first.key().empty() && first.token().is_nil() && first.remaining() == 0ms));
        CHECK(first.unlock() == Outcome::not_held);
        CHECK(reason([&] { first.lock(); }) == std::errc::operation_not_permitted);
        CHECK(reason([&] { return first.try_lock_for(1ms); }) == std::errc::operation_not_permitted);
        CHECK(reason([&] { return first.extend(unit); }) == std::errc::operation_not_permitted);
        Lock third{backend_, "another", unit * 10};
        swap(second, third);
        CHECK((third.token() == token && second.key() == "another"));
        third = std::move(second); // unlocks what it held
        CHECK_FALSE(world_.get(key_));
        CHECK((third.owns_lock() && third.key() == "another"));
        auto& self = third;
        third = std::move(self);
        CHECK(third.owns_lock());
    }

    void adopt() {
        Lock giver{backend_, key_, unit * 10};
        CHECK(reason([&] { return Lock{backend_, key_, unit * 10, std::adopt_lock, a_}; }) == Errc::stolen);
        CHECK(reason([&] { return Lock{backend_, "free", unit * 10, std::adopt_lock, a_}; }) == Errc::expired);
        const Token token = giver.detach();
        CHECK((!token.is_nil() && !giver.owns_lock() && giver.detach().is_nil()));
        CHECK(giver.unlock() == Outcome::not_held);
        CHECK(held_by(token));
        CHECK_FALSE(giver.try_lock());
        {
            Lock taker{backend_, key_, unit * 10, std::adopt_lock, token};
            CHECK((taker.owns_lock() && taker.token() == token));
        }
        CHECK(giver.try_lock());
    }

    void standard_guards() {
        Lock a{backend_, key_, unit * 10, std::defer_lock}, b{backend_, "another", unit * 10, std::defer_lock};
        {
            const std::scoped_lock both{a, b};
            CHECK((a.owns_lock() && b.owns_lock()));
        }
        CHECK_FALSE((a.owns_lock() || b.owns_lock()));
        {
            const std::lock_guard guard{a};
            CHECK(a.owns_lock());
        }
        std::unique_lock<Lock> unique{a, std::defer_lock};
        CHECK(unique.try_lock());
        unique.unlock();
        CHECK(unique.try_lock_for(unit));
        unique.unlock();
        CHECK(unique.try_lock_for(std::chrono::microseconds{1'000'000}));
        unique.unlock();
        CHECK(unique.try_lock_until(std::chrono::steady_clock::now() + 10s));
        unique.unlock();
        CHECK(std::try_lock(a, b) == -1);
        a.unlock();
        b.unlock();
        std::lock(a, b);
        CHECK((a.owns_lock() && b.owns_lock()));
    }

    void misuse() {
        Lock lock{backend_, key_, unit * 10};
        CHECK(reason([&] { lock.lock(); }) == std::errc::resource_deadlock_would_occur);
        CHECK(reason([&] { return lock.try_lock(); }) == std::errc::resource_deadlock_would_occur);
        CHECK(lock.owns_lock());
        CHECK(reason([&] { return Lock{backend_, "", unit}; }) == Errc::bad_key);
        CHECK(reason([&] { return Lock{backend_, std::string(513, 'k'), unit}; }) == Errc::bad_key);
        CHECK(reason([&] { return Lock{backend_, key_, 0ms}; }) == Errc::bad_option);
        CHECK(reason([&] { return Lock{backend_, key_, {.ttl = 1s, .request_timeout = 1s}}; }) == Errc::bad_option);
    }

    template <class Action>
    static std::error_code reason(Action action) {
        try {
            static_cast<void>(action());
        } catch (const std::system_error& error) {
            return error.code();
        }
        return {};
    }

    static constexpr Millis unit = World::unit;
    World& world_;
    decltype(std::declval<World&>().backend()) backend_;
    const std::string key_ = "conformance";
    const Token a_ = Token::from_bits(1, 1), b_ = Token::from_bits(2, 2);
};

} // namespace test
