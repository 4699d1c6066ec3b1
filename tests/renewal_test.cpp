// The life of a lease: it is renewed while it is held, and its loss is told before anybody else can have it.
#include "catch.hpp"
#include "proxy.hpp"

#include <redislock/redislock.hpp>

#include <atomic>
#include <ctime>
#include <deque>
#include <functional>
#include <future>
#include <set>
#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;

namespace {

constexpr Options renewed{.ttl = 10s, .renew = true};

/// Notes when a stop is requested, on a backend's clock.
template <class Backend>
class Watch {
public:
    Watch(Backend& backend, std::stop_token token) : backend_{backend}, callback_{std::move(token), Note{*this}} {}
    bool told() const { return told_.load(); }
    TimePoint when() const { return when_; }
    bool within(Millis limit) const {
        for (const TimePoint end = now() + limit; !told();)
            if (now() >= end) return false;
        return true;
    }

private:
    struct Note {
        Watch& watch;
        void operator()() const noexcept {
            watch.when_ = watch.backend_.now();
            watch.told_ = true;
        }
    };
    Backend& backend_;
    TimePoint when_{};
    std::atomic<bool> told_{false};
    std::stop_callback<Note> callback_;
};

} // namespace

TEST_CASE("a renewal asks for as long as the lease lasts, where a longer one was had", "[renewal]") {
    const TimePoint start{1h};
    const Options options{.ttl = 2s};
    detail::HeldLease held_lease{"k", options};
    const Token token = Token::from_bits(1, 1);
    held_lease.lease.ask(token, start, options.ttl);
    held_lease.lease.answered({Verdict::yes}, start);
    held_lease.keep(start);
    held_lease.step(start + 600ms);
    CHECK(held_lease.worker_request(token, start + 1s).ttl == 2s);
    held_lease.extended(token, {Verdict::yes}, start, 20s, start);
    held_lease.step(start + 1s);
    const Millis asked = held_lease.worker_request(token, start + 2s).ttl;
    CHECK(start + 1s + asked >= start + 20s - 1s); // a server that sets what is left must not end it sooner
    CHECK(asked - allowance(asked, options.drift) >= held_lease.remaining(start + 1s));
}

TEST_CASE("a renewed lock is held for as long as it is not unlocked, and not a moment longer", "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", renewed};
    const Watch watch{memory, lock.lost()};
    for (int i = 0; i < 600; ++i) {
        memory.advance(1s);
        REQUIRE(lock.remaining() > 6s);
        REQUIRE(memory.get("k") == std::string{lock.token().hex()});
    }
    CHECK_FALSE(watch.told());
    SECTION("unlocked") {
        CHECK(lock.unlock() == Outcome::confirmed);
        CHECK_FALSE(memory.get("k"));
    }
    SECTION("given away") {
        CHECK_FALSE(lock.detach().is_nil());
        memory.advance(10s);
        CHECK_FALSE(memory.get("k"));
    }
    memory.advance(1h);
    CHECK_FALSE(watch.told());
    CHECK(lock.lost().stop_requested());
}

TEST_CASE(
    "a lock that is not renewed is lost just before the end of its lease, and the server can give it to nobody yet",
    "[renewal]") {
    Memory memory;
    const RedisLock<Memory>* held = nullptr;
    RedisLock lock{memory, "k", {.ttl = 10s, .renew = false}};
    held = &lock;
    const TimePoint end = memory.now() + lock.remaining();
    const Watch watch{memory, lock.lost()};
    memory.advance(1h);
    CHECK(watch.told());
    CHECK(watch.when() >= end - 4ms);
    CHECK(watch.when() <= end);
    CHECK_FALSE(held->owns_lock());
}

TEST_CASE("whatever becomes of the renewals, the loss is told just before the end of the usable lease, and no sooner",
          "[renewal]") {
    for (const Fault fault : {Fault::request_lost, Fault::reply_lost, Fault::reset_before, Fault::reset_after}) {
        Memory memory;
        RedisLock lock{memory, "k", renewed};
        const Watch watch{memory, lock.lost()};
        memory.advance(30s);
        const TimePoint end = memory.now() + lock.remaining();
        memory.set_fault(fault);
        memory.advance(1h);
        REQUIRE(watch.told());
        CHECK(watch.when() >= end - 5ms);
        CHECK(watch.when() <= end);
        CHECK_FALSE(lock.owns_lock());
        memory.set_fault(Fault::none);
        memory.advance(1h);
        CHECK_FALSE(memory.get("k")); // and nothing is renewed any more
    }
}

TEST_CASE("trouble that ends in time is no loss", "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", renewed};
    const Watch watch{memory, lock.lost()};
    for (int round = 0; round < 20; ++round) {
        memory.set_fault(round % 2 == 0 ? Fault::request_lost : Fault::reset_after);
        memory.advance(6s);
        memory.set_fault(Fault::none);
        memory.advance(6s);
        REQUIRE(lock.owns_lock());
    }
    CHECK_FALSE(watch.told());
}

TEST_CASE("a key that is deleted or stolen behind our back is learned at the next renewal", "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", renewed};
    const Watch watch{memory, lock.lost()};
    memory.advance(5s);
    const TimePoint then = memory.now();
    SECTION("deleted") { memory.erase("k"); }
    SECTION("stolen") { memory.put("k", "somebody", 1h); }
    SECTION("made something else") { memory.put_hash("k"); }
    memory.advance(4s);
    CHECK(watch.told());
    CHECK(watch.when() <= then + 10s / 3 + 1ms);
    CHECK_FALSE(lock.owns_lock());
    const Outcome outcome = lock.unlock();
    CHECK((outcome == Outcome::expired || outcome == Outcome::stolen));
    CHECK(lock.unlock() == Outcome::not_held);
}

TEST_CASE("the holder's own extension that finds the lease gone tells it at once", "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", renewed};
    const Watch watch{memory, lock.lost()};
    memory.erase("k");
    CHECK(lock.extend(20s) == Outcome::expired);
    memory.advance(0ms);
    CHECK(watch.told());
}

TEST_CASE("a lease is renewed for max_hold at most: then its holder is told, and has the rest of it to finish",
          "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", {.ttl = 10s, .renew = true, .max_hold = 60s}};
    const TimePoint start = memory.now();
    const Watch watch{memory, lock.lost()};
    memory.advance(59s);
    CHECK_FALSE(watch.told());
    memory.advance(1s);
    CHECK(watch.told());
    CHECK(watch.when() == start + 60s);
    CHECK(lock.owns_lock());
    CHECK(lock.lost().stop_requested());
    memory.advance(10s);
    CHECK_FALSE(lock.owns_lock());
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("each lease has a signal of its own", "[renewal]") {
    Memory memory;
    RedisLock lock{memory, "k", renewed, std::defer_lock};
    CHECK(lock.lost().stop_requested());
    lock.lock();
    const std::stop_token first = lock.lost();
    CHECK((first.stop_possible() && !first.stop_requested()));
    CHECK(lock.lost() == first);
    lock.unlock();
    lock.lock();
    const std::stop_token second = lock.lost();
    memory.erase("k");
    memory.advance(5s);
    CHECK(second.stop_requested());
    CHECK_FALSE(first.stop_requested());
    CHECK(lock.lost().stop_requested());
}

TEST_CASE("a callback may unlock, destroy or lock again what was lost", "[renewal]") {
    Memory memory;
    auto lock = std::make_unique<RedisLock<Memory>>(memory, "k", renewed);
    bool called = false;
    std::function<void()> react;
    SECTION("unlock") {
        react = [&] { lock->unlock(); };
    }
    SECTION("destroy") {
        react = [&] { lock.reset(); };
    }
    SECTION("lock again") {
        react = [&] { lock->unlock(), lock->lock(); };
    }
    const std::stop_callback callback{lock->lost(), [&] {
                                          called = true;
                                          react();
                                      }};
    memory.erase("k");
    memory.advance(5s);
    CHECK(called);
    memory.advance(1min);
    CHECK((!lock || lock->unlock() != Outcome::stolen));
    CHECK_FALSE(memory.get("k"));
}

TEST_CASE("a lease moves with its lock, and is renewed on", "[renewal]") {
    Memory memory;
    RedisLock first{memory, "k", renewed};
    const std::stop_token lost = first.lost();
    RedisLock second{std::move(first)}, third{memory, "another", renewed};
    swap(second, third);
    memory.advance(1min);
    CHECK((third.owns_lock() && third.key() == "k" && !lost.stop_requested()));
    second = std::move(third); // which unlocks the other one
    memory.advance(1min);
    CHECK((second.owns_lock() && second.lost() == lost));
    CHECK_FALSE(memory.get("another"));
}

TEST_CASE("an adopted lease is renewed too", "[renewal]") {
    Memory memory;
    RedisLock giver{memory, "k", 10s};
    RedisLock taker{memory, "k", renewed, std::adopt_lock, giver.detach()};
    memory.advance(1min);
    CHECK(taker.owns_lock());
}

TEST_CASE("a late answer to another lease's renewal changes nothing for this one", "[renewal]") {
    detail::HeldLease held_lease{"k", renewed};
    const Token first = Token::from_bits(1, 1), second = Token::from_bits(2, 2);
    const TimePoint start{1h};
    const auto granted = [&](const Token& token, TimePoint asked) {
        held_lease.lease.ask(token, asked, renewed.ttl);
        held_lease.lease.answered({Verdict::yes}, asked);
        return held_lease.keep(asked);
    };
    const TimePoint due = granted(first, start);
    CHECK(due < start + 4s);
    CHECK(held_lease.step(due).act == detail::HeldLease::Step::Act::ask);
    held_lease.drop();
    held_lease.lease = Lease{renewed};
    granted(second, start + 5s);
    CHECK_FALSE(held_lease.answered(first, {Verdict::no, {Errc::expired, {}}}, due, start + 5s));
    CHECK(held_lease.held(start + 5s));
    CHECK(held_lease.step(start + 9s).act == detail::HeldLease::Step::Act::ask);
    CHECK(held_lease.answered(second, {Verdict::yes}, start + 9s, start + 9s)->next > start + 9s);
}

TEST_CASE("who asks for the signal of a lease that was found over before is told at once", "[renewal]") {
    detail::HeldLease held_lease{"k", renewed};
    const TimePoint start{1h};
    held_lease.lease.ask(Token::from_bits(1, 1), start, renewed.ttl);
    held_lease.lease.answered({Verdict::yes}, start);
    held_lease.keep(start);
    CHECK_FALSE(held_lease.over(start + 9s));
    const detail::HeldLease::Step step = held_lease.step(start + 10s);
    CHECK(step.act == detail::HeldLease::Step::Act::tell);
    CHECK_FALSE(step.listeners);
    CHECK(held_lease.listen().second);
    CHECK_FALSE(held_lease.listen().second);
    CHECK(held_lease.over(start + 10s));
    CHECK(held_lease.extended(held_lease.copy().token(), {Verdict::yes}, start, 20s, start + 9s) == Outcome::expired);
    CHECK(held_lease.over(start + 9s)); // it stays so, whenever the clock was read
}

TEST_CASE("a renewed lease is kept on a real server, by a thread, whatever happens to its connection",
          "[redis][renewal]") {
    test::RedisServer server;
    Redis redis{server.tcp_uri()};
    RedisLock lock{redis, "k", {.ttl = 2s, .renew = true}};
    const Watch watch{redis, lock.lost()};
    for (const TimePoint end = now() + 5s; now() < end;) {
        server.command({"CLIENT", "KILL", "TYPE", "normal"});
        server.command({"SCRIPT", "FLUSH"});
        detail::wait(-1, 0, now() + 150ms);
        CHECK(lock.owns_lock());
        CHECK(server.integer({"EXISTS", "k"}) == 1);
    }
    CHECK_FALSE(watch.told());
    CHECK(lock.unlock() == Outcome::confirmed);
    CHECK(server.integer({"EXISTS", "k"}) == 0);
}

TEST_CASE("the loss is told when the lease ends for us, whatever becomes of the server", "[redis][renewal]") {
    test::RedisServer server;
    server.command({"ACL", "SETUSER", "holder", "on", ">p", "~*", "+@all"});
    Redis redis{"unix://holder:p@" + server.socket_path()};
    const bool renew = GENERATE(true, false);
    const TimePoint asked = now();
    RedisLock lock{redis, "k", {.ttl = 1s, .renew = renew}};
    const TimePoint end = now() + lock.remaining();
    const Watch watch{redis, lock.lost()};
    SECTION("stopped") { server.stop(); }
    SECTION("killed") { server.kill(); }
    SECTION("not permitted") { server.command({"ACL", "SETUSER", "holder", "-evalsha", "-eval", "-set"}); }
    CHECK(watch.within(10s));
    CHECK(watch.when() >= asked + 900ms);
    CHECK(watch.when() < end + 500ms); // in time on a machine that is not busy: see benchmark_loss
    CHECK_FALSE(lock.owns_lock());
    server.go_on();
}

TEST_CASE("a stuck server does not delay the locks of another", "[redis][renewal]") {
    test::RedisServer stuck, well;
    Redis there{stuck.unix_uri()}, here{well.unix_uri()};
    RedisLock a{there, "k", {.ttl = 1s, .renew = true}}, b{here, "k", {.ttl = 1s, .renew = true}};
    const Watch of_a{there, a.lost()}, of_b{here, b.lost()};
    stuck.stop();
    CHECK(of_a.within(10s));
    detail::wait(-1, 0, now() + 1s);
    CHECK_FALSE(of_b.told());
    CHECK(b.owns_lock());
    stuck.go_on();
}

TEST_CASE("renewals that nobody can answer in time do not hold up the others of their connection", "[redis][renewal]") {
    test::RedisServer server;
    test::Proxy proxy{server.socket_path()};
    Redis redis{proxy.uri()};
    std::deque<RedisLock<Redis>> impatient;
    for (int i = 0; i < 20; ++i) {
        const Options options{.ttl = Millis{1500 + 37 * i}, .request_timeout = 5ms};
        RedisLock<Redis>& lock = impatient.emplace_back(redis, std::to_string(i), options, std::defer_lock);
        for (bool locked = false; !locked;) try {
                locked = lock.try_lock();
            } catch (const std::system_error&) { // 5 ms are not much on a busy machine
            }
    }
    RedisLock patient{redis, "k", 3s};
    const Watch watch{redis, patient.lost()};
    SECTION("the server is far") { proxy.set(test::Proxy::Mode::delay, 60ms); }
    SECTION("and a connection is dead, in silence") {
        proxy.set(test::Proxy::Mode::delay, 60ms);
        detail::wait(-1, 0, now() + 1200ms); // until then it has been renewed
        proxy.strike_at({test::Proxy::Fault::Kind::stall, test::Proxy::Way::up, 0});
    }
    for (const TimePoint limit = now() + 6s; now() < limit && !watch.told();) detail::wait(-1, 0, now() + 10ms);
    CHECK_FALSE(watch.told());
    CHECK(patient.owns_lock());
    for (const RedisLock<Redis>& lock : impatient) CHECK_FALSE(lock.owns_lock());
}

TEST_CASE("a callback that runs on does not hold up the end of its lock and its backend", "[renewal]") {
    std::promise<void> running, ended, done;
    std::optional<std::stop_callback<std::function<void()>>> callback;
    {
        Memory memory{Memory::Time::real};
        RedisLock lock{memory, "k", {.ttl = 50ms, .renew = false}};
        callback.emplace(lock.lost(), [&] {
            running.set_value();
            ended.get_future().wait();
            done.set_value();
        });
        running.get_future().wait();
    }
    ended.set_value();
    CHECK(done.get_future().wait_for(10s) == std::future_status::ready);
}

TEST_CASE("a callback that takes its time holds up no other's", "[redis][renewal]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    constexpr int many = 8;
    std::deque<RedisLock<Redis>> locks;
    std::atomic<int> told{0};
    std::atomic<bool> go_on{false};
    std::deque<std::stop_callback<std::function<void()>>> callbacks;
    for (int i = 0; i < many; ++i) {
        locks.emplace_back(redis, std::to_string(i), Options{.ttl = 600ms, .renew = true});
        callbacks.emplace_back(locks.back().lost(), [&] {
            ++told;
            while (!go_on) std::this_thread::yield();
        });
    }
    server.command({"FLUSHALL"});
    for (const TimePoint limit = now() + 10s; told < many && now() < limit;) std::this_thread::yield();
    CHECK(told == many);
    RedisLock other{redis, "other", {.ttl = 600ms, .renew = true}};
    detail::wait(-1, 0, now() + 1s);
    CHECK(other.owns_lock());
    go_on = true;
}

TEST_CASE("however many losses there are at once, few threads tell them", "[renewal]") {
    Memory memory{Memory::Time::real};
    constexpr std::size_t many = 2'000;
    std::mutex mutex;
    std::set<std::thread::id> tellers;
    std::atomic<std::size_t> told{0};
    const auto note = [&] {
        for (const TimePoint end = now() + 50us; now() < end;) {
        }
        const std::lock_guard guard{mutex};
        tellers.insert(std::this_thread::get_id());
        ++told;
    };
    std::deque<RedisLock<Memory>> locks;
    std::deque<std::stop_callback<decltype(note)>> callbacks;
    for (std::size_t i = 0; i < many; ++i) {
        locks.emplace_back(memory, std::to_string(i), Options{.ttl = 600ms});
        callbacks.emplace_back(locks.back().lost(), note);
    }
    for (std::size_t i = 0; i < many; ++i) memory.erase(std::to_string(i));
    for (const TimePoint limit = now() + 20s; told < many && now() < limit;) std::this_thread::yield();
    CHECK(told == many);
    CHECK(tellers.size() <= 64);
}

TEST_CASE("renewed locks may be made and unmade by many threads", "[redis][renewal]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    std::vector<std::thread> threads;
    std::atomic<int> unwell{0};
    for (int i = 0; i < 16; ++i)
        threads.emplace_back([&, key = "k" + std::to_string(i)] {
            for (int round = 0; round < 100; ++round) {
                RedisLock lock{redis,
                               key,
                               {.ttl = 10ms + Millis{round % 7}, .renew = true, .request_timeout = 5ms},
                               std::defer_lock};
                try {
                    if (!lock.try_lock()) ++unwell;
                    if (round % 3 == 0) detail::wait(-1, 0, now() + 5ms);
                    if (round % 5 == 0) static_cast<void>(lock.lost());
                } catch (const std::system_error&) { // on a busy machine 5 ms may be too few
                }
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(server.is_empty_within(10s));
    CHECK(unwell < 800);
}

TEST_CASE("a renewer whose connection is closed between two renewals sleeps on, and opens another one",
          "[redis][renewal]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock lock{redis, "k", 3s};
    redis.pause(later(redis.now(), 1200ms)); // until then it has renewed once
    server.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
    const std::clock_t before = std::clock();
    redis.pause(later(redis.now(), 500ms));
    CHECK(std::clock() - before < CLOCKS_PER_SEC / 20);
    redis.pause(later(redis.now(), 3s));
    CHECK(lock.owns_lock());
}

TEST_CASE("the loss of a lease is told to those who asked for it, though the lock has another lease by then",
          "[renewal]") {
    detail::HeldLease held_lease{"k", renewed};
    const TimePoint start{1h};
    const auto hold = [&](std::uint64_t token, TimePoint asked) {
        held_lease.lease.ask(Token::from_bits(1, token), asked, renewed.ttl);
        held_lease.lease.answered({Verdict::yes}, asked);
        held_lease.keep(asked);
    };
    hold(1, start);
    const std::stop_token first = held_lease.listen().first.get_token();
    detail::Message message{std::make_shared<detail::HeldLease>("k", renewed), held_lease.step(start + 10s)};
    held_lease.drop();
    held_lease.lease = Lease{renewed};
    hold(2, start + 11s);
    const std::stop_token second = held_lease.listen().first.get_token();
    message.tell();
    CHECK(first.stop_requested());
    CHECK_FALSE(second.stop_requested());
}

TEST_CASE("a renewal waits for replicas as long as the lock's own questions do", "[renewal]") {
    Options options{.ttl = 300ms, .request_timeout = 100ms, .min_replicas = 2};
    const auto held_lease = std::make_shared<detail::HeldLease>("k", options);
    const Request request = detail::Renewal{held_lease, {}, {}, {}}.request();
    CHECK(request.recheck == options.recheck());
    CHECK(request.replicas == 2);
}

TEST_CASE("the tokens of all leases that end together are requested, though no callback returns", "[renewal]") {
    constexpr std::size_t most = detail::CallbackPool<detail::System>::most;
    const std::size_t many = GENERATE_COPY(std::size_t{300}, most + 100);
    Memory memory{Memory::Time::real};
    std::promise<void> released;
    std::atomic<std::size_t> returned{0};
    const auto block = [&returned, until = released.get_future().share()] {
        until.wait();
        ++returned;
    };
    std::deque<RedisLock<Memory>> locks;
    std::vector<std::stop_token> tokens;
    std::deque<std::stop_callback<decltype(block)>> callbacks;
    for (std::size_t i = 0; i < many; ++i) {
        locks.emplace_back(memory, std::to_string(i), Options{.ttl = 2s, .renew = false});
        tokens.push_back(locks.back().lost());
        callbacks.emplace_back(tokens.back(), block);
    }
    const auto requested_within = [&](Millis limit, std::size_t count) {
        const auto requested = [](const std::stop_token& token) { return token.stop_requested(); };
        for (const TimePoint end = now() + limit; now() < end; std::this_thread::yield())
            if (std::count_if(tokens.begin(), tokens.end(), requested) >= static_cast<std::ptrdiff_t>(count))
                return true;
        return false;
    };
    CHECK(requested_within(60s, std::min(many, most)));
    CHECK(returned == 0);
    released.set_value();
    CHECK(requested_within(60s, many));
}

TEST_CASE("a thread that is late requests all tokens before it runs callbacks", "[renewal]") {
    struct Lease {
        explicit Lease(std::shared_future<void> until) : callback{source.get_token(), [until] { until.wait(); }} {}
        std::stop_source source;
        std::stop_callback<std::function<void()>> callback;
    };
    std::promise<void> first_returns, others_return;
    Lease first{first_returns.get_future().share()};
    std::deque<Lease> others;
    for (const std::shared_future<void> until = others_return.get_future().share(); others.size() < 100;)
        others.emplace_back(until);
    detail::CallbackPool<detail::System> pool;
    pool.stand_by(1);
    const auto tell = [&](const Lease& lease) {
        detail::Message message{std::make_shared<detail::HeldLease>("k", renewed),
                                {detail::HeldLease::Step::Act::tell, TimePoint::max()}};
        message.step.listeners = lease.source;
        pool.tell(message, now());
    };
    tell(first);
    while (!first.source.stop_requested()) std::this_thread::yield();
    for (const Lease& lease : others) tell(lease);
    detail::wait(-1, 0, now() + 2ms); // they were to be told within 1 ms
    first_returns.set_value();
    const auto requested = [](const Lease& lease) { return lease.source.stop_requested(); };
    for (const TimePoint limit = now() + 30s; !std::all_of(others.begin(), others.end(), requested) && now() < limit;)
        std::this_thread::yield();
    CHECK(std::all_of(others.begin(), others.end(), requested));
    others_return.set_value();
}

TEST_CASE("a lease is renewed at a third of the time that it can be used", "[renewal]") {
    Memory memory;
    const RedisLock lock{memory, "k", {.ttl = 10ms, .drift = 0.5}};
    memory.advance(1s);
    CHECK(lock.owns_lock());
}

TEST_CASE("a lease that was seen to be over stays over, though an answer's time was read before", "[renewal]") {
    detail::HeldLease held_lease{"k", renewed};
    const TimePoint start{1h};
    const Token token = Token::from_bits(1, 1);
    held_lease.lease.ask(token, start, renewed.ttl);
    held_lease.lease.answered({Verdict::yes}, start);
    held_lease.keep(start);
    CHECK(held_lease.held(start + 9s));
    CHECK_FALSE(held_lease.held(start + 10s));
    SECTION("of the renewer") { held_lease.answered(token, {Verdict::yes}, start + 5s, start + 9s); }
    SECTION("of the holder") {
        CHECK(held_lease.extended(token, {Verdict::yes}, start + 5s, 10s, start + 9s) == Outcome::expired);
    }
    CHECK_FALSE(held_lease.held(start + 9s));
    CHECK_FALSE(held_lease.held(start + 10s));
    CHECK(held_lease.remaining(start + 9s) == 0ms);
}

namespace {

/// A system in which every second thread can't be started.
struct ScarceThreads : detail::System {
    static inline int asked = 0;
    static inline std::atomic<int> alive{0};

    struct Thread : detail::System::Thread {
        template <class Work>
        void start(Work work) {
            if (++asked % 2 == 0)
                throw std::system_error{std::make_error_code(std::errc::resource_unavailable_try_again)};
            detail::System::Thread::start(std::move(work));
            ++alive;
        }
    };
};

struct PortWithScarceThreads {
    using Engine = ScarceThreads;
    void send(const detail::Renewal&) {}
    template <class Answered>
    void advance(TimePoint, Answered) {}
    TimePoint due() const { return TimePoint::max(); }
    void wait(const detail::Alarm& alarm) { detail::wait(alarm.fd(), POLLIN, TimePoint::max()); }
};

} // namespace

TEST_CASE("where threads can't be started, no try leaves another one behind", "[renewal]") {
    detail::Renewer<PortWithScarceThreads> renewer;
    int failures = 0;
    for (int tries = 0; tries < 200; ++tries) {
        const auto held_lease = std::make_shared<detail::HeldLease>("k", renewed);
        held_lease->listen();
        held_lease->lease.ask(Token::from_bits(1, 1), now(), renewed.ttl);
        held_lease->lease.answered({Verdict::yes}, now());
        try {
            renewer.keep(held_lease, held_lease->keep(now()));
            renewer.drop(*held_lease);
        } catch (const std::system_error&) {
            ++failures;
        }
    }
    CHECK(failures > 0);
    CHECK(ScarceThreads::alive <= 2);
}
