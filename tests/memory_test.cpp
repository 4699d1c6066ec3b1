#include "conformance.hpp"

#include <redislock/any_backend.hpp>
#include <redislock/memory.hpp>

namespace {

using namespace redislock;
using namespace std::chrono_literals;

struct MemoryWorld {
    static constexpr Millis unit{60'000};
    static constexpr bool has_line = true;
    Memory memory;

    Memory& backend() { return memory; }
    void pass(Millis span) { memory.advance(span); }
    void put(const std::string& key, const std::string& value, std::optional<Millis> ttl) {
        memory.put(key, value, ttl);
    }
    void put_hash(const std::string& key) { memory.put_hash(key); }
    void erase(const std::string& key) { memory.erase(key); }
    std::optional<std::string> get(const std::string& key) { return memory.get(key); }
};

struct AnyWorld : MemoryWorld {
    AnyBackend any{memory};

    AnyBackend& backend() { return any; }
};

Answer ask(Memory& memory, Verb verb, const Token& token, Millis within = 1s) {
    return memory.ask({verb, "k", token, 10s, memory.now() + within});
}

const Token a = Token::from_bits(1, 1), b = Token::from_bits(2, 2);

} // namespace

TEST_CASE("a memory is a backend like any other", "[memory][conformance]") {
    MemoryWorld world;
    test::Conformance{world}.run();
}

TEST_CASE("a memory with a slow line is a backend like any other", "[memory][conformance]") {
    MemoryWorld world;
    world.memory.set_latency(20ms);
    test::Conformance{world}.run();
}

TEST_CASE("any backend is a backend like any other", "[memory][conformance]") {
    AnyWorld world;
    test::Conformance{world}.run();
}

TEST_CASE("a memory that refuses does so as a server would, and serves again", "[memory]") {
    Memory memory;
    RedisLock held{memory, "held", {.ttl = 9s, .max_retry_delay = 1ms}};
    RedisLock lock{memory, "k", {.ttl = 10s}, std::defer_lock};
    const auto code = [&](auto ask) -> std::error_code {
        try {
            ask();
        } catch (const std::system_error& error) {
            return error.code();
        }
        return {};
    };
    for (const Errc why : {Errc::auth_failed, Errc::no_permission, Errc::out_of_memory, Errc::unsupported}) {
        const TimePoint start = memory.now();
        memory.refuse(why);
        CHECK(code([&] { lock.lock(); }) == why); // at once
        CHECK(code([&] { static_cast<void>(inspect(memory, "k")); }) == why);
        CHECK(memory.now() == start);
    }
    for (const Errc why : {Errc::read_only, Errc::loading, Errc::unreachable}) {
        const TimePoint start = memory.now();
        memory.refuse(why);
        CHECK(code([&] { static_cast<void>(lock.try_lock_for(1s)); }) == why);
        CHECK(memory.now() == start + 1s);
    }
    memory.refuse(Errc{});
    CHECK(lock.try_lock());
    CHECK(held.owns_lock());
    memory.refuse(Errc::unreachable);
    memory.advance(9s);
    CHECK(held.lost().stop_requested());
    CHECK(lock.unlock() == Outcome::unknown);
    memory.refuse(Errc{});
    memory.advance(2s);
    CHECK_FALSE(memory.get("k")); // its worker has released it
}

TEST_CASE("nor does one that refuses hand the lock to who stands in line", "[memory]") {
    Memory memory{Memory::Time::real};
    RedisLock holder{memory, "k", {.ttl = 300ms, .renew = false}};
    std::error_code code;
    std::thread waiter{[&] {
        try {
            RedisLock lock{memory, "k", {.ttl = 10s, .request_timeout = 100ms}, std::defer_lock};
            static_cast<void>(lock.try_lock_for(1s));
        } catch (const std::system_error& error) {
            code = error.code();
        }
    }};
    while (memory.waiting("k") == 0) std::this_thread::yield();
    memory.refuse(Errc::unreachable);
    waiter.join();
    CHECK(code == Errc::unreachable);
}

TEST_CASE("a release that nobody waits for is asked for again by the worker where it was refused", "[memory]") {
    Memory memory;
    {
        RedisLock lock{memory, "k", {.ttl = 60s, .confirm_release = false}};
        memory.refuse(Errc::read_only);
    }
    CHECK(memory.get("k"));
    memory.refuse(Errc{});
    memory.advance(3s);
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("simulated time stands still until it is moved or waited for", "[memory]") {
    Memory memory;
    const TimePoint start = memory.now();
    CHECK(memory.now() == start);
    memory.advance(5s);
    CHECK(memory.now() == start + 5s);
    memory.set_latency(10ms);
    ask(memory, Verb::acquire, a);
    CHECK(memory.now() == start + 5s + 10ms);
}

TEST_CASE("real time passes by itself", "[memory]") {
    Memory memory{Memory::Time::real};
    const TimePoint start = memory.now();
    memory.pause(start + 2ms);
    CHECK(memory.now() >= start + 2ms);
    CHECK(ask(memory, Verb::acquire, a).verdict == Verdict::yes);
    CHECK(ask(memory, Verb::acquire, b).is_busy());
}

TEST_CASE("a request that is lost does nothing, and takes all the time there is", "[memory]") {
    Memory memory;
    memory.inject(Fault::request_lost);
    const TimePoint start = memory.now();
    CHECK(ask(memory, Verb::acquire, a).why.code == Errc::timed_out);
    CHECK(memory.now() == start + 1s);
    CHECK_FALSE(memory.get("k"));
    CHECK(ask(memory, Verb::acquire, b).verdict == Verdict::yes);
}

TEST_CASE("a reply that is lost leaves the deed done, and a grant so lost is undone behind it", "[memory]") {
    Memory memory;
    memory.inject(Fault::reply_lost);
    CHECK(ask(memory, Verb::acquire, a).verdict == Verdict::unknown);
    CHECK_FALSE(memory.get("k"));
    ask(memory, Verb::acquire, b);
    memory.inject(Fault::reply_lost);
    CHECK(ask(memory, Verb::release, b).verdict == Verdict::unknown);
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("what is delayed beyond its deadline is carried out late, and its undo can't overtake it", "[memory]") {
    Memory memory;
    memory.set_latency(2ms);
    memory.delay_next(5s);
    CHECK(ask(memory, Verb::acquire, a).why.code == Errc::timed_out);
    CHECK_FALSE(memory.get("k"));
    memory.advance(5s);
    CHECK_FALSE(memory.get("k"));
    ask(memory, Verb::acquire, b);
    memory.delay_next(3s);
    ask(memory, Verb::release, b);
    CHECK(memory.get("k") == std::string{b.hex()});
    memory.advance(3s);
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("a connection breaks at once, before or after the deed", "[memory]") {
    Memory memory;
    const TimePoint start = memory.now();
    memory.inject(Fault::reset_before);
    memory.inject(Fault::reset_after);
    CHECK(ask(memory, Verb::acquire, a).why.code == Errc::disconnected);
    CHECK_FALSE(memory.get("k"));
    CHECK(ask(memory, Verb::acquire, a).why.code == Errc::disconnected);
    CHECK(memory.get("k") == std::string{a.hex()});
    CHECK(memory.now() == start);
}

TEST_CASE("a lasting fault lasts until it is ended", "[memory]") {
    Memory memory;
    memory.set_fault(Fault::request_lost);
    for (int i = 0; i < 3; ++i) CHECK(ask(memory, Verb::acquire, a).verdict == Verdict::unknown);
    memory.set_fault(Fault::none);
    CHECK(ask(memory, Verb::acquire, a).verdict == Verdict::yes);
}

TEST_CASE("two memories draw the same tokens, and one never the same twice", "[memory]") {
    Memory first, second;
    const Token token = first.fresh();
    CHECK(second.fresh() == token);
    CHECK(first.fresh() != token);
}
