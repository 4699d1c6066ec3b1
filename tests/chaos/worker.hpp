/// A process that takes one of the locks again and again, works under it, and writes down what it believes.
#pragma once

#include "../support/redis_server.hpp"
#include "log.hpp"

#include <cstring>
#include <optional>
#include <random>
#include <thread>

namespace chaos {

/// What the locks are for: two numbers for each key, on a server that nobody disturbs. One is guarded by the fencing
/// token, the other by the lock alone.
class Registers {
public:
    explicit Registers(const std::string& path) : context_{::redisConnectUnix(path.c_str()), &::redisFree} {}

    /// 1, or 0: the token is an old one; -1: nobody knows.
    int add_guarded(int key, std::uint64_t fencing_token) {
        static constexpr const char* script =
            "if tonumber(redis.call('GET', KEYS[1] .. 'fence') or 0) > tonumber(ARGV[1]) then return 0 end "
            "redis.call('SET', KEYS[1] .. 'fence', ARGV[1]) redis.call('INCR', KEYS[1] .. 'guarded') return 1";
        return integer(call("EVAL %s 1 %d %llu", script, key, static_cast<unsigned long long>(fencing_token)));
    }

    /// Read, and written back one higher, by whoever still owns the lock just before. Returns whether it was, and notes
    /// in `stale` if somebody had come with a later token meanwhile.
    template <class Owns>
    bool add_unguarded(int key, std::uint64_t fencing_token, Owns owns, std::atomic<std::uint64_t>& stale) {
        const long long value = unguarded(key);
        if (!owns()) return false;
        const test::Reply reply = call("EVAL %s 1 %d %lld %llu",
                                       "redis.call('SET', KEYS[1] .. 'unguarded', ARGV[1]) "
                                       "local last = tonumber(redis.call('GET', KEYS[1] .. 'seen') or 0) "
                                       "if last > tonumber(ARGV[2]) then return 1 end "
                                       "redis.call('SET', KEYS[1] .. 'seen', ARGV[2]) return 0",
                                       key, value + 1, static_cast<unsigned long long>(fencing_token));
        stale += integer(reply) == 1;
        return true;
    }

    long long guarded(int key) { return number(call("GET %dguarded", key)); }
    long long unguarded(int key) { return number(call("GET %dunguarded", key)); }

private:
    template <class... Values>
    test::Reply call(const char* format, Values... values) {
        return {static_cast<redisReply*>(::redisCommand(context_.get(), format, values...)), &::freeReplyObject};
    }
    static int integer(const test::Reply& reply) {
        return reply && reply->type == REDIS_REPLY_INTEGER ? static_cast<int>(reply->integer) : -1;
    }
    static long long number(const test::Reply& reply) { return reply && reply->str ? std::atoll(reply->str) : 0; }

    std::unique_ptr<redisContext, decltype(&::redisFree)> context_;
};

template <class Place>
class Work {
public:
    using Lock = redislock::RedisLock<Place>;

    Work(Place& place, unsigned min_replicas, int keys, int number, std::uint64_t seed, Log& log,
         const std::string& registers)
        : place_{place}, min_replicas_{min_replicas}, keys_{keys}, number_{number}, random_{seed}, log_{log},
          registers_{registers} {}

    void run() {
        while (log_.healed == 0) turn();
        while (log_.workers[number_].last < log_.healed) turn();
    }

private:
    Time between(Time least, Time most) { return std::uniform_int_distribution<Time>{least, most}(random_); }
    Millis some_ttl() { return Millis{between(shortest_ttl.count(), longest_ttl.count())}; }
    bool chance(double probability) { return std::bernoulli_distribution{probability}(random_); }
    static void pause(Time ns) { std::this_thread::sleep_for(std::chrono::nanoseconds{ns}); }

    void turn() {
        constexpr Time ms = 1'000'000;
        const Millis ttl = some_ttl();
        const redislock::Options options{
            .ttl = ttl, .renew = chance(0.7), .fencing = true, .min_replicas = min_replicas_};
        const int key = static_cast<int>(between(0, keys_ - 1));
        Lock lock{place_, key_name(key), options, std::defer_lock};
        try {
            const bool timed = chance(0.8);
            if (!(timed ? lock.try_lock_for(Millis{between(1, 300)}) : lock.try_lock())) return pause(between(0, ms));
        } catch (const std::system_error&) { // trouble is what we make
            ++log_.errors;
            return pause(between(0, 10 * ms));
        }
        hold(lock, key, chance(0.95) ? between(0, 3 * ms) : between(0, 2 * ttl.count() * ms));
        log_.workers[number_].last = now();
        if (chance(0.9) && log_.healed == 0) pause(between(0, 5 * ms));
    }

    void hold(Lock& lock, int key, Time span) {
        Grant& grant = log_.next();
        grant.fencing_token = lock.fencing_token();
        grant.key = key;
        grant.worker = number_;
        const redislock::Token token = lock.token();
        std::memcpy(grant.token, token.hex().data(), sizeof grant.token);
        const auto look = [&] {
            const Time time = now();
            const Time left = std::chrono::nanoseconds{lock.remaining()}.count();
            if (!lock.owns_lock()) return false;
            grant.owned = time;
            if (time + left > grant.until) grant.until = time + left;
            return true;
        };
        const Time start = now();
        if (!look()) return; // before we could look it was over: nobody has believed anything
        grant.granted = start;
        for (const Time end = start + span; look() && now() < end; pause(between(0, 500'000))) {
            const int added = registers_.add_guarded(key, grant.fencing_token);
            if (added == 1) ++grant.guarded;
            if (added == 0) ++log_.refused;
            if (registers_.add_unguarded(key, grant.fencing_token, look, log_.stale)) ++grant.unguarded;
            if (chance(0.02) && lock.extend(some_ttl()) == redislock::Outcome::confirmed) ++log_.extensions;
        }
        grant.ended = now();
        if (!lock.owns_lock()) ++log_.losses;
        const redislock::Outcome outcome = lock.unlock();
        log_.unconfirmed += outcome != redislock::Outcome::confirmed;
    }

    Place& place_;
    const unsigned min_replicas_;
    const int keys_, number_;
    std::mt19937_64 random_;
    Log& log_;
    Registers registers_;
};

/// `arguments`: the log, the registers' server, the number of keys, our number, our seed, how many replicas must have a
/// grant, and the URIs.
inline int work(const std::vector<std::string>& arguments) {
    Log& log = Log::open(arguments[0], false);
    const int keys = std::stoi(arguments[2]), number = std::stoi(arguments[3]);
    const std::uint64_t seed = std::stoull(arguments[4]);
    const auto min_replicas = static_cast<unsigned>(std::stoul(arguments[5]));
    std::deque<redislock::Redis> nodes;
    std::vector<redislock::Redis*> all;
    for (auto uri = arguments.begin() + 6; uri != arguments.end(); ++uri) all.push_back(&nodes.emplace_back(*uri));
    if (all.size() == 1) {
        Work{nodes.front(), min_replicas, keys, number, seed, log, arguments[1]}.run();
    } else {
        redislock::Quorum<redislock::Redis> quorum{all};
        Work{quorum, min_replicas, keys, number, seed, log, arguments[1]}.run();
    }
    return 0;
}

} // namespace chaos
