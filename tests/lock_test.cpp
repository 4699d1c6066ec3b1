// What a lock makes of unclear answers, of trouble and of time: all in simulated time.
#include "catch.hpp"
#include "support/until.hpp"

#include <redislock/inspect.hpp>
#include <redislock/lock.hpp>
#include <redislock/memory.hpp>

#include <atomic>
#include <optional>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;

namespace {

constexpr Options options{.ttl = 10s, .renew = false, .request_timeout = 1s};

/// A memory that keeps a record of what it's asked, and may answer in its own way.
struct Scripted {
    struct Asked {
        Verb verb;
        Token token;
        TimePoint when, deadline;
    };
    Memory memory{};
    std::vector<Asked> asked{};
    std::vector<Errc> refusals{}; // one for each request, the last one first; none of them is asked of the memory
    Millis pause_after_answer{0}; // the whole machine stands still, as in a suspend
    bool out_of_memory = false;   // once
    bool has_line = true;         // false: nobody can stand in line, and who wants to is answered at once

    TimePoint now() const noexcept { return memory.now(); }
    Token fresh() { return memory.fresh(); }
    void pause(const Deadline& until) noexcept { memory.pause(until); }
    void keep(const std::shared_ptr<detail::WorkerTask>& holding, TimePoint when) { memory.keep(holding, when); }
    void drop(detail::WorkerTask& holding) noexcept { memory.drop(holding); }
    Answer ask(Request request) {
        asked.push_back({request.verb, request.token, now(), request.deadline.at});
        if (!has_line) request.patience = 0ms;
        if (std::exchange(out_of_memory, false)) throw std::bad_alloc{};
        if (!refusals.empty()) {
            const Errc code = refusals.back();
            refusals.pop_back();
            if (code != Errc{}) return {Verdict::no, {code, "the server's sentence"}};
        }
        const Answer answer = memory.ask(request);
        memory.advance(std::exchange(pause_after_answer, 0ms));
        return answer;
    }
};

std::string text(const Token& token) { return std::string{token.hex()}; }

template <class Action>
std::string failure(Action action, std::error_code expected) {
    try {
        static_cast<void>(action());
    } catch (const std::system_error& error) {
        CHECK(error.code() == expected);
        return error.what();
    }
    FAIL("no exception");
    return {};
}

} // namespace

TEST_CASE("a grant whose answer was lost with the connection is undone, and the lock taken at once", "[lock]") {
    Memory memory;
    memory.inject(Fault::reset_after);
    const TimePoint start = memory.now();
    RedisLock lock{memory, "k", options};
    CHECK(lock.owns_lock());
    CHECK(memory.now() < start + 10ms);
    CHECK(memory.get("k") == text(lock.token()));
}

TEST_CASE("a grant whose answer is lost is an error when the time is up, and leaves no key behind", "[lock]") {
    for (const Fault fault : {Fault::reply_lost, Fault::request_lost}) {
        Memory memory;
        memory.inject(fault);
        const TimePoint start = memory.now();
        RedisLock lock{memory, "k", options, std::defer_lock};
        failure([&] { return lock.try_lock(); }, Errc::timed_out);
        CHECK(memory.now() == start + 1s);
        CHECK_FALSE(memory.get("k"));
        CHECK(lock.try_lock());
    }
}

TEST_CASE("a grant that comes after we gave up is undone behind it", "[lock]") {
    Memory memory;
    memory.delay_next(3s);
    RedisLock lock{memory, "k", options, std::defer_lock};
    failure([&] { return lock.try_lock(); }, Errc::timed_out);
    memory.advance(5s);
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("one question that is never answered does not end a wait: it is undone, and asked anew", "[lock]") {
    for (const Fault fault : {Fault::request_lost, Fault::reply_lost}) {
        Memory memory;
        memory.inject(fault);
        const TimePoint start = memory.now();
        RedisLock lock{memory, "k", options};
        CHECK(lock.owns_lock());
        CHECK(memory.now() < start + 1100ms);
    }
    Memory deaf;
    deaf.set_fault(Fault::request_lost);
    const TimePoint start = deaf.now();
    failure([&] { return RedisLock{deaf, "k", options}; }, Errc::timed_out);
    CHECK(deaf.now() <=
          start + 3s); // the time-out, to notice; and trouble of the same length, its last question included
}

TEST_CASE("no token is asked for twice, nor after a release that carries it", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options, std::defer_lock};
    for (const Fault fault : {Fault::reset_after, Fault::reset_before, Fault::none, Fault::reset_after, Fault::none}) {
        backend.memory.inject(fault);
        backend.memory.inject(fault);
        lock.lock();
        lock.unlock();
    }
    std::vector<Token> acquired;
    for (const auto& asked : backend.asked) {
        if (asked.verb != Verb::acquire) continue;
        CHECK(std::find(acquired.begin(), acquired.end(), asked.token) == acquired.end());
        acquired.push_back(asked.token);
    }
    CHECK(acquired.size() > 5);
}

TEST_CASE("a lease that is answered too late is undone", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options, std::defer_lock};
    backend.pause_after_answer = 9899ms; // the usable part is 9898 ms
    const std::string sentence = failure([&] { return lock.try_lock(); }, Errc::timed_out);
    CHECK_THAT(sentence, containing("too late"));
    CHECK_FALSE(lock.owns_lock());
    CHECK(backend.asked.back().verb == Verb::release);
    CHECK_FALSE(backend.memory.get("k"));
    backend.pause_after_answer = 9897ms;
    CHECK(RedisLock{backend, "k", options, std::try_to_lock}.remaining() == 1ms);
}

TEST_CASE("trouble is ridden out for the request timeout, and no longer", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options, std::defer_lock};
    backend.refusals = {Errc::loading, Errc::unreachable, Errc::script_running};
    lock.lock();
    CHECK(backend.asked.size() == 4);
    lock.unlock();
    backend.refusals.assign(100'000, Errc::loading);
    const TimePoint start = backend.now();
    const std::string sentence = failure([&] { lock.lock(); }, Errc::loading);
    CHECK_THAT(sentence, containing("lock \"k\": the server's sentence"));
    CHECK(backend.now() >= start + 1s);
    CHECK(backend.now() < start + 1100ms);
}

TEST_CASE("what time does not mend is an error at once", "[lock]") {
    for (const Errc code : {Errc::auth_failed, Errc::no_permission, Errc::out_of_memory, Errc::moved}) {
        Scripted backend;
        backend.refusals = {code};
        const TimePoint start = backend.now();
        failure([&] { return RedisLock{backend, "k", options}; }, code);
        CHECK(backend.now() == start);
        CHECK(backend.asked.size() == 1);
    }
}

TEST_CASE("a waiter survives trouble shorter than the request timeout, time and again", "[lock]") {
    Scripted backend;
    RedisLock holder{backend, "k", options};
    for (int i = 0; i < 60; ++i) backend.refusals.push_back(i % 3 == 0 ? Errc::busy : Errc::loading);
    RedisLock waiter{backend, "k", options};
    CHECK(waiter.owns_lock());
    CHECK_FALSE(holder.owns_lock());
}

TEST_CASE("a timed wait is over in its time, whatever the server does", "[lock]") {
    for (const Fault fault : {Fault::request_lost, Fault::reply_lost, Fault::reset_before, Fault::reset_after}) {
        Memory memory;
        memory.set_fault(fault);
        RedisLock lock{memory, "k", options, std::defer_lock};
        const TimePoint start = memory.now();
        CHECK_THROWS_AS(lock.try_lock_for(50ms), std::system_error);
        CHECK(memory.now() <= start + 50ms);
        CHECK_FALSE(lock.owns_lock());
    }
}

TEST_CASE("a timed wait that saw the lock held and then hears no more ends as contention, in time", "[lock]") {
    Memory memory;
    RedisLock holder{memory, "k", options};
    RedisLock waiter{memory, "k", options, std::defer_lock};
    memory.inject(Fault::none);
    memory.set_fault(Fault::reply_lost);
    const TimePoint start = memory.now();
    CHECK_FALSE(waiter.try_lock_for(500ms));
    CHECK(memory.now() == start + 500ms);
}

TEST_CASE("a waiter without a line asks soon when the holder's lease is about to end, and else not too often",
          "[lock]") {
    Scripted backend;
    backend.has_line = false;
    RedisLock holder{backend, "k", options};
    const TimePoint end = backend.now() + 10s;
    RedisLock waiter{backend, "k", {.ttl = 10s, .renew = false, .max_retry_delay = 200ms}};
    CHECK(backend.now() >= end);
    CHECK(backend.now() < end + 210ms);
    CHECK(backend.asked.size() > 50);
    CHECK(backend.asked.size() < 300);
}

TEST_CASE("a waiter asks once to find the key held, and then stands in line for as long as he wants to wait",
          "[lock]") {
    Scripted backend;
    RedisLock holder{backend, "k", options};
    backend.asked.clear();
    RedisLock waiter{backend, "k", 60s, std::defer_lock};
    SECTION("until he has the lock") {
        waiter.lock();
        CHECK(backend.asked.size() == 3); // the last one renews the lease that he waited for
        CHECK(backend.asked.back().verb == Verb::extend);
    }
    SECTION("until his time is up, and a few moments before he asks again") {
        CHECK_FALSE(waiter.try_lock_for(5s));
        CHECK(backend.asked.size() < 10);
    }
    SECTION("not at all without a server that answers: that is found out first") {
        backend.refusals = {Errc::loading, Errc::busy};
        waiter.lock();
        CHECK(backend.asked.size() == 5);
    }
}

TEST_CASE("a lease that was waited for, and whose renewal is not answered, is used for what it is", "[lock]") {
    Memory memory;
    RedisLock dead{memory, "k", {.ttl = 10s, .renew = false}};
    memory.inject(Fault::none);
    memory.inject(Fault::none);
    memory.inject(Fault::request_lost);
    RedisLock waiter{memory, "k", 60s, std::defer_lock};
    const TimePoint asked = memory.now();
    waiter.lock();
    CHECK(waiter.owns_lock());
    CHECK(memory.now() + waiter.remaining() < asked + 60s);
    CHECK(memory.get("k") == text(waiter.token()));
}

TEST_CASE("a lease that has ended before it could be renewed is asked for again", "[lock]") {
    Scripted backend;
    RedisLock dead{backend, "k", {.ttl = 10s, .renew = false}};
    RedisLock waiter{backend, "k", 1s, std::defer_lock};
    backend.refusals = {Errc::expired, {}, {}}; // the third one, from behind
    waiter.lock();
    CHECK(waiter.owns_lock());
    CHECK(backend.memory.get("k") == text(waiter.token()));
}

TEST_CASE("a lease that ended while it was waited for, and can't be renewed, is undone", "[lock]") {
    Memory memory;
    RedisLock dead{memory, "k", {.ttl = 10s, .renew = false}};
    RedisLock waiter{memory, "k", 1s, std::defer_lock};
    memory.inject(Fault::none);
    memory.inject(Fault::none);
    memory.inject(Fault::reset_after);
    waiter.lock();
    CHECK(waiter.owns_lock());
    CHECK(waiter.remaining() > 900ms);
    CHECK(memory.get("k") == text(waiter.token()));
}

TEST_CASE("a release whose answer was lost with the connection is asked again, and claims no more than is known",
          "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    memory.inject(Fault::reset_before);
    CHECK(lock.unlock() == Outcome::confirmed);
    lock.lock();
    memory.inject(Fault::reset_after);
    CHECK(lock.unlock() == Outcome::unknown); // gone: by our doing, as it happens
    CHECK_FALSE(memory.get("k"));
    lock.lock();
    memory.put("k", "another's");
    memory.inject(Fault::reset_after);
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(memory.get("k") == "another's");
}

TEST_CASE("what an attempt may have left behind is undone when the lock ends, if it was not before", "[lock]") {
    Memory memory;
    {
        RedisLock lock{memory, "k", options, std::defer_lock};
        memory.inject(Fault::reset_after);
        memory.set_fault(Fault::reset_before);
        failure([&] { return lock.try_lock(); }, Errc::disconnected);
        memory.set_fault(Fault::none);
        CHECK(memory.get("k"));
    }
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("a wait goes on after one question that took long, and asks as often as time allows", "[lock]") {
    Scripted backend;
    RedisLock holder{backend, "k", options};
    backend.asked.clear();
    RedisLock waiter{backend, "k", options, std::defer_lock};
    backend.pause_after_answer = 100ms;
    CHECK_FALSE(waiter.try_lock_for(300ms));
    CHECK(backend.asked.size() > 2); // in line for the rest of the time, as soon as an answer was fast
    backend.asked.clear();
    holder.unlock();
    backend.memory.inject(Fault::request_lost);
    CHECK(waiter.try_lock_for(1500ms)); // the first second is lost on it
}

TEST_CASE("no moment and no duration is too far for a wait", "[lock]") {
    Memory memory;
    RedisLock holder{memory, "k", {.ttl = 60s, .renew = false}};
    RedisLock waiter{memory, "k", options, std::defer_lock};
    const TimePoint start = memory.now();
    using Steady = std::chrono::steady_clock;
    using System = std::chrono::system_clock;
    CHECK_FALSE(waiter.try_lock_until(Steady::time_point::min()));
    CHECK_FALSE(waiter.try_lock_until(std::chrono::time_point<Steady, std::chrono::seconds>::min()));
    CHECK_FALSE(waiter.try_lock_for(std::chrono::hours::min()));
    CHECK_FALSE(waiter.try_lock_until(TimePoint::min()));
    CHECK(memory.now() == start);
    CHECK(waiter.try_lock_until(Steady::time_point::max()));
    for (int i = 0; i < 3; ++i) {
        waiter.unlock();
        RedisLock again{memory, "k", {.ttl = 60s, .renew = false}};
        if (i == 0) CHECK(waiter.try_lock_until(std::chrono::time_point<System, std::chrono::hours>::max()));
        if (i == 1) CHECK(waiter.try_lock_until(std::chrono::time_point<Steady, std::chrono::seconds>::max()));
        if (i == 2) CHECK(waiter.try_lock_for(std::chrono::duration<double>::max()));
    }
}

TEST_CASE("a ttl that is too long for milliseconds is refused, and does not become a short one", "[lock]") {
    constexpr std::chrono::hours wraps_to_34_minutes{5124095576031}, wraps_below_zero{-5124095576031};
    using Years = std::chrono::duration<std::int64_t, std::ratio<31'556'952>>;
    Memory memory;
    RedisLock lock{memory, "k", options};
    const auto check = [&](auto span) {
        CHECK_THAT(failure(
                       [&] {
                           return RedisLock{memory, "other", span, std::defer_lock};
                       },
                       Errc::bad_option),
                   containing("ttl is "));
        failure([&] { return RedisLock{memory, "other", span}; }, Errc::bad_option);
        failure([&] { return lock.extend(span); }, Errc::bad_option);
    };
    check(wraps_to_34_minutes);
    check(wraps_below_zero);
    check(Years::max());
    check(Years::min());
    check(std::chrono::duration<std::uint64_t>::max());
    CHECK_FALSE(memory.get("other"));
    CHECK(lock.remaining() < 10s);
    CHECK(inspect(memory, "k", wraps_to_34_minutes)->token() == lock.token());
    CHECK(force_unlock(memory, "k", lock.token(), wraps_to_34_minutes) == Outcome::confirmed);
}

TEST_CASE("a thread that is cancelled while it waits for a lock gets it, and ends behind the call with all destroyed",
          "[lock]") {
    struct Shared {
        Memory memory{Memory::Time::real};
        std::atomic<bool> locked{false};
    } shared;
    std::optional<RedisLock<Memory>> holder{std::in_place, shared.memory, "k", 60s};
    const auto work = [](void* argument) -> void* {
        auto& [memory, locked] = *static_cast<Shared*>(argument);
        const RedisLock lock{memory, "k", 60s};
        locked = lock.owns_lock();
        for (;;) ::pause(); // a cancellation point
    };
    pthread_t thread{};
    REQUIRE(::pthread_create(&thread, nullptr, work, &shared) == 0);
    while (shared.memory.waiting("k") == 0) std::this_thread::yield();
    CHECK(::pthread_cancel(thread) == 0);
    detail::wait(-1, 0, later(detail::now(), 20ms)); // in which it would have ended there
    CHECK(shared.memory.waiting("k") == 1);
    holder.reset();
    void* result = nullptr;
    CHECK(::pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(shared.locked);
    CHECK_FALSE(shared.memory.get("k"));
}

TEST_CASE("a release that nobody answers is unknown when the request timeout is over", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    memory.set_fault(Fault::request_lost);
    const TimePoint start = memory.now();
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(memory.now() == start + 1s);
    CHECK_FALSE(lock.owns_lock());
    memory.set_fault(Fault::none);
    lock.lock(); // what is left of the old lease is deleted first
    CHECK(memory.now() < start + 1100ms);
}

TEST_CASE("the lease has ended when the release is sent", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    memory.set_fault(Fault::request_lost);
    lock.unlock();
    CHECK(memory.get("k"));
    CHECK_FALSE(lock.owns_lock());
    CHECK(lock.extend(10s) == Outcome::not_held);
}

TEST_CASE("a release that is refused for good is not repeated", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options};
    backend.refusals.assign(10, Errc::no_permission);
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(backend.refusals.size() == 9);
    backend.refusals.clear();
}

TEST_CASE("a destructor waits for the request timeout at most, and not at all if it need not know", "[lock]") {
    for (const bool confirm : {true, false}) {
        Memory memory;
        const TimePoint start = memory.now();
        {
            RedisLock lock{memory, "k", {.ttl = 10s, .request_timeout = 1s, .confirm_release = confirm}};
            memory.set_fault(Fault::request_lost);
        }
        CHECK(memory.now() == (confirm ? start + 1s : start));
    }
}

TEST_CASE("a thousand locks going out of scope on a dead server throw nothing", "[lock]") {
    Memory memory;
    try {
        std::vector<RedisLock<Memory>> locks;
        for (int i = 0; i < 1000; ++i) locks.emplace_back(memory, std::to_string(i), options);
        memory.set_fault(Fault::request_lost);
        throw std::runtime_error{"unwinding"};
    } catch (const std::runtime_error&) {
        SUCCEED();
    }
}

TEST_CASE("an extension is asked again after trouble, and counts from its first asking", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options};
    backend.memory.advance(2s);
    const TimePoint asked = backend.now();
    backend.refusals = {Errc::loading, Errc::loading, Errc::loading, Errc::loading};
    CHECK(lock.extend(10s) == Outcome::confirmed);
    CHECK(backend.now() > asked);
    CHECK(backend.now() + lock.remaining() <= asked + 9898ms);
}

TEST_CASE("the reason of an unknown outcome is kept until the next one", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", {.ttl = 10s, .renew = false}};
    CHECK_FALSE(lock.last_error());
    memory.inject(Fault::reset_before);
    memory.set_fault(Fault::request_lost);
    CHECK(lock.extend(20s) == Outcome::unknown);
    CHECK(lock.last_error().code == Errc::disconnected); // and not that the last one was cut short
    memory.set_fault(Fault::none);
    CHECK(lock.extend(20s) == Outcome::confirmed);
    CHECK_FALSE(lock.last_error());
    memory.refuse(Errc::read_only);
    CHECK(lock.unlock() == Outcome::unknown);
    CHECK(lock.last_error().code == Errc::read_only);
    CHECK(lock.extend(20s) == Outcome::not_held);
    CHECK_FALSE(lock.last_error());
    memory.refuse(Errc{});
    memory.advance(20s);
    CHECK(lock.try_lock());
    memory.refuse(Errc::read_only);
    CHECK(lock.unlock() == Outcome::unknown);
    memory.refuse(Errc::auth_failed);
    CHECK_FALSE(failure([&] { return lock.try_lock(); }, Errc::auth_failed).empty());
    CHECK_FALSE(lock.last_error()); // of an attempt what was thrown has told
    const RedisLock<Memory> moved = std::move(lock);
    CHECK_FALSE(lock.last_error());
}

TEST_CASE("an extension that nobody answers is unknown, and leaves the lease as it was", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    const TimePoint end = memory.now() + lock.remaining();
    memory.set_fault(Fault::reply_lost);
    CHECK(lock.extend(20s) == Outcome::unknown);
    CHECK(lock.owns_lock());
    CHECK(memory.now() + lock.remaining() == end);
    memory.set_fault(Fault::none);
}

TEST_CASE("an extension does not wait beyond the end of the lease, nor revive it", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    const TimePoint end = memory.now() + lock.remaining();
    memory.advance(9800ms);
    memory.set_fault(Fault::request_lost);
    CHECK(lock.extend(20s) == Outcome::unknown);
    CHECK(memory.now() == end);
    CHECK_FALSE(lock.owns_lock());
    memory.set_fault(Fault::none);
    CHECK(lock.extend(20s) == Outcome::expired);
}

TEST_CASE("an extension that was granted while the machine slept beyond the end is none", "[lock]") {
    Scripted backend;
    RedisLock lock{backend, "k", options};
    backend.memory.advance(9s);
    backend.pause_after_answer = 2s;
    CHECK(lock.extend(24h) == Outcome::expired);
    CHECK_FALSE(lock.owns_lock());
    CHECK(backend.memory.get("k"));
    CHECK(lock.unlock() == Outcome::confirmed); // and it does not block the others for a day
    CHECK_FALSE(backend.memory.get("k"));
}

TEST_CASE("of two threads that lock one object the second is told, and does not wait for the first", "[lock]") {
    Memory memory{Memory::Time::real};
    RedisLock holder{memory, "k", options};
    RedisLock shared{memory, "k", options, std::defer_lock};
    std::jthread first{[&](std::stop_token stop) { static_cast<void>(shared.lock(stop)); }};
    test::until([&] { return memory.waiting("k") == 1; });
    std::error_code code;
    try {
        static_cast<void>(shared.try_lock());
    } catch (const std::system_error& error) {
        code = error.code();
    }
    CHECK(code == std::errc::resource_deadlock_would_occur);
    CHECK(holder.unlock() == Outcome::confirmed);
    first.join();
    CHECK(shared.owns_lock());
}

TEST_CASE("a suspended machine finds its lease ended, without a thread", "[lock]") {
    Memory memory;
    RedisLock lock{memory, "k", options};
    memory.advance(20s);
    CHECK_FALSE(lock.owns_lock());
    RedisLock other{memory, "k", options, std::try_to_lock};
    CHECK(other.owns_lock());
    CHECK(lock.unlock() == Outcome::stolen);
    CHECK_FALSE(RedisLock{memory, "k", std::try_to_lock});
    CHECK_FALSE(RedisLock{memory, "k", std::defer_lock});
    const Token token = other.detach();
    CHECK(RedisLock{memory, "k", std::adopt_lock, token});
}

TEST_CASE("an adoption that nobody answers deletes nothing of the giver's", "[lock]") {
    Memory memory;
    RedisLock giver{memory, "k", options};
    const Token token = giver.token();
    memory.set_fault(Fault::reply_lost);
    failure([&] { return RedisLock{memory, "k", options, std::adopt_lock, token}; }, Errc::timed_out);
    memory.set_fault(Fault::none);
    CHECK(memory.get("k") == std::string{token.hex()});
}

TEST_CASE("an adoption that fails tells the trouble, and not that its last question was cut short", "[lock]") {
    Memory memory;
    memory.inject(Fault::reset_before);
    memory.inject(Fault::request_lost);
    failure(
        [&] {
            return RedisLock{memory, "k", options, std::adopt_lock, Token::from_bits(1, 1)};
        },
        Errc::disconnected);
}

TEST_CASE("an adoption that is cut short by an exception deletes nothing of the giver's", "[lock]") {
    Scripted backend;
    RedisLock giver{backend, "k", options};
    const Token token = giver.detach();
    backend.asked.clear();
    backend.out_of_memory = true;
    CHECK_THROWS_AS((RedisLock{backend, "k", options, std::adopt_lock, token}), std::bad_alloc);
    CHECK(backend.asked.size() == 1);
    CHECK(backend.memory.get("k") == text(token));
}

TEST_CASE("waiters get the lock in the order of their arrival, over a memory in real time as well", "[lock]") {
    Memory memory{Memory::Time::real};
    RedisLock holder{memory, "k", 60s};
    std::vector<int> order;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
        threads.emplace_back([&, i] {
            const RedisLock lock{memory, "k", 60s};
            order.push_back(i);
        });
        while (memory.waiting("k") <= static_cast<std::size_t>(i)) std::this_thread::yield();
    }
    CHECK(memory.waiting("another") == 0);
    holder.unlock();
    for (std::thread& thread : threads) thread.join();
    CHECK(order == std::vector{0, 1, 2, 3, 4, 5, 6, 7});
    CHECK(memory.waiting("k") == 0);
}

TEST_CASE("a wait in real time ends when a stop is requested, and the next in line is not held up", "[lock]") {
    Memory memory{Memory::Time::real};
    RedisLock holder{memory, "k", 60s};
    RedisLock first{memory, "k", 60s, std::defer_lock}, second{memory, "k", 60s, std::defer_lock};
    std::stop_source stop;
    std::thread waits{[&] { CHECK_FALSE(first.lock(stop.get_token())); }};
    while (memory.waiting("k") < 1) std::this_thread::yield();
    std::thread waits_behind{[&] { second.lock(); }};
    while (memory.waiting("k") < 2) std::this_thread::yield();
    stop.request_stop();
    waits.join();
    CHECK(memory.waiting("k") == 1);
    holder.unlock();
    waits_behind.join();
    CHECK(second.owns_lock());
}

TEST_CASE("threads exclude each other over a memory in real time", "[lock]") {
    Memory memory{Memory::Time::real};
    int counter = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            for (int round = 0; round < 25; ++round) {
                RedisLock lock{memory, "k", {.ttl = 60s, .max_retry_delay = 1ms}};
                const int seen = counter;
                std::this_thread::yield();
                counter = seen + 1;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(counter == 100);
}
