/// Leases that end together, with callbacks that block, and a rival who wants the keys: has each token been requested
/// when the rival has the key?
#pragma once

#include "../support/redis_server.hpp"

#include <redislock/redislock.hpp>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

namespace together {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

enum class Trouble { refused, stopped, not_renewed };

struct Case {
    redislock::Millis ttl;
    double drift;
    int leases;
    std::chrono::milliseconds callback; ///< for how long it blocks
    Trouble trouble;
};

/// All combinations of them.
struct Cases {
    std::vector<int> ttls{100, 300, 1000}, leases{1, 20, 300, 1000}, blocks{0, 60};
    std::vector<double> drifts{0, 0.01};
};

struct Result {
    int losses = 0;
    int late = 0;       ///< the rival had the key, and the token was not requested
    int plain_late = 0; ///< a thread that only slept until the lease's end had not been woken
    int alone = 0;      ///< late where that was not
    int calls_late = 0; ///< or the callback had not begun
    double worst = 1e9; ///< from the beginning of the callback to the rival's grant, in ms: the least
    void add(const Result& other) {
        losses += other.losses;
        late += other.late;
        plain_late += other.plain_late;
        alone += other.alone;
        calls_late += other.calls_late;
        worst = std::min(worst, other.worst);
    }
};

/// A lock with a callback that blocks.
class Holder {
public:
    Holder(redislock::Redis& redis, std::string key, const redislock::Options& options,
           std::chrono::milliseconds blocks)
        : key_{std::move(key)}, lock_{redis, key_, options}, token_{lock_.lost()},
          callback_{token_, [this, blocks] {
                        called_ = Clock::now();
                        if (blocks > 0ms) std::this_thread::sleep_for(blocks);
                    }} {}

    const std::string& key() const { return key_; }
    redislock::Millis remaining() const { return lock_.remaining(); }

    std::atomic<bool> ended{false}; ///< what a thread that only sleeps until the end of the lease says

    /// The rival has the key, now.
    void judge(Result& result) const {
        const Clock::time_point now = Clock::now();
        const bool requested = token_.stop_requested();
        const Clock::time_point called = called_;
        const bool begun = called != Clock::time_point{} && called <= now;
        ++result.losses;
        result.late += !requested;
        result.plain_late += !ended;
        result.alone += !requested && ended;
        result.calls_late += !begun;
        if (begun)
            result.worst = std::min(result.worst, std::chrono::duration<double, std::milli>{now - called}.count());
    }

private:
    const std::string key_;
    redislock::RedisLock<redislock::Redis> lock_;
    const std::stop_token token_;
    std::atomic<Clock::time_point> called_{};
    std::stop_callback<std::function<void()>> callback_;
};

/// Asks for each key from shortly before its expiry on, again and again, until it has it: by hand. A server that was
/// stopped until the first expiry may have renewed the others: such a lease is not lost, and the rival gives up.
class Rival {
public:
    explicit Rival(const test::RedisServer& server) : context_{::redisConnectUnix(server.socket_path().c_str())} {}
    Rival(const Rival&) = delete;
    Rival& operator=(const Rival&) = delete;
    ~Rival() { ::redisFree(context_); }

    void learn_expiries(const std::deque<Holder>& holders) {
        for (const Holder& holder : holders) ::redisAppendCommand(context_, "PEXPIRETIME %s", holder.key().c_str());
        for (const Holder& holder : holders) wanted_.push_back({&holder, reply()->integer});
    }
    long long first_expiry() const {
        return std::min_element(wanted_.begin(), wanted_.end(),
                                [](const auto& a, const auto& b) { return a.expiry < b.expiry; })
            ->expiry;
    }
    static long long wall_clock() {
        return std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
            .count();
    }

    Result take_all() {
        Result result;
        while (!wanted_.empty()) {
            const long long now = wall_clock();
            const auto due =
                std::partition(wanted_.begin(), wanted_.end(), [&](const Wanted& one) { return one.expiry > now + 1; });
            for (auto one = due; one != wanted_.end(); ++one)
                ::redisAppendCommand(context_, "SET %s rival NX PX 60000", one->holder->key().c_str());
            wanted_.erase(std::remove_if(due, wanted_.end(),
                                         [&](const Wanted& one) {
                                             if (reply()->type != REDIS_REPLY_STATUS) return now > one.expiry + 1000;
                                             one.holder->judge(result);
                                             return true;
                                         }),
                          wanted_.end());
            std::this_thread::sleep_for(200us);
        }
        return result;
    }

private:
    struct Wanted {
        const Holder* holder;
        long long expiry; ///< on the wall clock, in ms
    };

    test::Reply reply() {
        void* reply = nullptr;
        if (::redisGetReply(context_, &reply) != REDIS_OK) throw std::runtime_error{"the server is gone"};
        return {static_cast<redisReply*>(reply), &::freeReplyObject};
    }

    redisContext* context_;
    std::vector<Wanted> wanted_;
};

class Benchmark {
public:
    Benchmark(int trials, Cases cases) : trials_{trials}, cases_{std::move(cases)} {
        server_.command({"ACL", "SETUSER", "holder", "on", ">p", "~*", "+@all"});
    }

    /// False: a token was not requested in time.
    bool run() {
        std::printf(
            "\nLeases that end together, with callbacks that block, and a rival. Late: the rival had the key, "
            "and the token was not "
            "requested.\nPlain: a thread that only slept until the lease's end was not awake either. Alone: late where "
            "it was.\nUncalled: or its callback had not begun. Lead: from there to the rival's grant.\n\n"
            "%-12s %7s %6s %7s %9s %7s %6s %6s %6s %9s %9s\n",
            "renewals", "ttl ms", "drift", "leases", "block ms", "losses", "late", "plain", "alone", "uncalled",
            "lead ms");
        Result all;
        for (const Trouble trouble : {Trouble::refused, Trouble::stopped, Trouble::not_renewed})
            for (const int ttl : cases_.ttls)
                for (const double drift : cases_.drifts)
                    for (const int leases : cases_.leases)
                        for (const int block : cases_.blocks)
                            all.add(run(
                                {redislock::Millis{ttl}, drift, leases, std::chrono::milliseconds{block}, trouble}));
        std::printf("%d losses, %d late, %d where a plain thread was not\n", all.losses, all.late, all.alone);
        return all.late == 0;
    }

private:
    Result run(const Case& of) {
        Result result;
        const int rounds = of.ttl > 1s ? 1 : std::clamp(trials_ / of.leases, 1, 5);
        for (int round = 0; round < rounds; ++round) result.add(lose(of));
        const char* const names[] = {"refused", "stopped", "not renewed"};
        std::printf("%-12s %7d %6.2f %7d %9d %7d %6d %6d %6d %9d %9.1f\n", names[static_cast<int>(of.trouble)],
                    static_cast<int>(of.ttl.count()), of.drift, of.leases, static_cast<int>(of.callback.count()),
                    result.losses, result.late, result.plain_late, result.alone, result.calls_late, result.worst);
        std::fflush(stdout);
        return result;
    }

    Result lose(const Case& of) {
        server_.command({"FLUSHALL"});
        redislock::Redis redis{"unix://holder:p@" + server_.socket_path()};
        const redislock::Options options{.ttl = of.ttl, .renew = of.trouble != Trouble::not_renewed, .drift = of.drift};
        std::deque<Holder> holders;
        for (int i = 0; i < of.leases; ++i) take(holders, redis, std::to_string(i), options, of.callback);
        if (options.renew) std::this_thread::sleep_for(of.ttl * (50 + ++rounds_ % 7 * 5) / 100);
        Rival rival{server_};
        if (of.trouble == Trouble::refused) server_.command({"ACL", "SETUSER", "holder", "-evalsha", "-eval", "-set"});
        rival.learn_expiries(holders);
        std::jthread plain{[&](std::stop_token stop) { sleep_until_the_ends(holders, stop); }};
        if (of.trouble == Trouble::stopped) {
            server_.stop();
            const auto span = std::chrono::milliseconds{rival.first_expiry() - Rival::wall_clock()};
            std::this_thread::sleep_for(std::max(span, 0ms));
            server_.go_on();
        }
        const Result result = rival.take_all();
        plain.request_stop();
        server_.command({"ACL", "SETUSER", "holder", "+evalsha", "+eval", "+set"});
        return result;
    }

    /// To tell what the machine does to any thread.
    static void sleep_until_the_ends(std::deque<Holder>& holders, const std::stop_token& stop) {
        std::vector<std::pair<Clock::time_point, Holder*>> ends;
        for (Holder& holder : holders) ends.emplace_back(Clock::now() + holder.remaining(), &holder);
        std::sort(ends.begin(), ends.end());
        for (const auto& [end, holder] : ends) {
            if (stop.stop_requested()) return;
            std::this_thread::sleep_until(end);
            holder->ended = true;
        }
    }

    /// On a busy machine a short lease may be granted too late.
    static void take(std::deque<Holder>& holders, redislock::Redis& redis, const std::string& key,
                     const redislock::Options& options, std::chrono::milliseconds callback) try {
        holders.emplace_back(redis, key, options, callback);
    } catch (const std::system_error&) {
    }

    const int trials_;
    const Cases cases_;
    int rounds_ = 0;
    test::RedisServer server_;
};

} // namespace together
