/// The signal of loss against the server's own expiry: when lost() is requested, under faults of all kinds, and when
/// the key goes in the server, which is when somebody else could get it.
#include "../support/proxy.hpp"
#include "figures.hpp"
#include "together.hpp"

#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <optional>
#include <random>

using namespace std::chrono_literals;
using test::Proxy;

namespace {

/// All times are milliseconds on CLOCK_BOOTTIME, as the library's are, but read without it.
double clock_ms(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}
double now() { return clock_ms(CLOCK_BOOTTIME); }

void sleep_ms(double span) {
    if (span > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::milli>{span});
}

/// What is to be added to the wall clock's time, on which the server counts: the tightest of several readings.
double from_wall_clock() {
    double best = 0, tightest = 1e9;
    for (int i = 0; i < 20; ++i) {
        const double before = now(), wall = clock_ms(CLOCK_REALTIME), after = now();
        if (after - before >= tightest) continue;
        tightest = after - before;
        best = (before + after) / 2 - wall;
    }
    return best;
}

std::mt19937 random_bits{1}; // the same ttls and pauses in each run
double random_between(double low, double high) { return std::uniform_real_distribution{low, high}(random_bits); }

/// A renewed lock, and what it tells.
class Watched {
public:
    Watched(redislock::Redis& redis, const std::string& key, double ttl)
        : lock{redis, key, {.ttl = redislock::Millis{static_cast<int>(ttl)}, .observer = &observer_}} {
        callback_.emplace(lock.lost(), [this] { signalled = now(); });
    }

    std::atomic<double> signalled{0};     ///< when; 0: not yet
    std::atomic<int> renewals{0};         ///< that were confirmed
    std::atomic<double> renewal_asked{0}; ///< when the last of them was asked for

private:
    static void renewed(void* self, const redislock::Observer::Renewed& event) noexcept {
        auto& watched = *static_cast<Watched*>(self);
        watched.renewal_asked = now() - std::chrono::duration<double, std::milli>{event.round_trip}.count();
        ++watched.renewals;
    }
    const redislock::Observer observer_{.context = this, .renewed = &renewed};

public:
    redislock::RedisLock<redislock::Redis> lock;

private:
    std::optional<std::stop_callback<std::function<void()>>> callback_;
};

struct Case {
    std::unique_ptr<Watched> watched;
    std::string key;
    double ttl;
    double since = 0;       ///< of a key that was taken away: when
    double expiry = 0;      ///< on the server
    int renewals_known = 0; ///< when that was read
    double end = 0;         ///< of the lease, for its holder
    double plain = 0;       ///< when a plain thread that slept until then was woken
};

/// A thread that only sleeps until each of the leases ends, to tell what the machine does to any thread.
void sleep_until_the_ends(std::vector<Case>& cases) {
    std::vector<Case*> sorted;
    for (Case& each : cases) sorted.push_back(&each);
    std::sort(sorted.begin(), sorted.end(), [](const Case* a, const Case* b) { return a->end < b->end; });
    for (Case* each : sorted) {
        sleep_ms(each->end - now());
        each->plain = now();
    }
}

struct Numbers {
    int trials = 0, late = 0, unprovoked = 0, bounded = 0, plain_late = 0, alone = 0;
    std::vector<double> values{}; ///< leads or delays
    std::vector<double> plain_leads{};
};

class Benchmark {
public:
    Benchmark(int trials, int parallel) : trials_{trials}, parallel_{parallel} {}

    bool run() {
        using Mode = Proxy::Mode;
        const auto server = [this](std::vector<std::string> words) {
            return [this, words] {
                if (server_.command(words)->type == REDIS_REPLY_ERROR)
                    throw std::runtime_error{words[0] + " is refused"};
            };
        };
        std::printf(
            "\nLead: the key's expiry on the server minus the signal. Late: signals behind the expiry, or never.\n"
            "Plain: a thread that only slept until the lease's end, for what the machine does to any thread. Alone: "
            "late "
            "where it was not.\n"
            "Unprovoked: lost before the fault. Bounded: renewed after the expiry was read, which is then the question "
            "plus ttl.\n\n%-44s %6s %5s %6s %6s %11s %8s %10s %9s %12s\n",
            "", "trials", "late", "plain", "alone", "unprovoked", "bounded", "median ms", "worst ms", "plain worst");
        faulty(
            "server stopped (SIGSTOP)", true, [this] { server_.stop(); }, [this] { server_.go_on(); });
        faulty(
            "server killed", true, [this] { server_.kill(); }, [this] { server_.start(); });
        faulty(
            "traffic swallowed", false, [this] { proxy_.set(Mode::swallow); }, [this] { heal(); });
        faulty(
            "each connection reset", false, [this] { proxy_.set(Mode::cut); }, [this] { heal(); });
        faulty("renewals refused: NOREPLICAS", false, server({"CONFIG", "SET", "min-replicas-to-write", "1"}),
               server({"CONFIG", "SET", "min-replicas-to-write", "0"}));
        faulty("renewals refused: NOPERM", false, server({"ACL", "SETUSER", "default", "-evalsha", "-eval"}),
               server({"ACL", "SETUSER", "default", "+evalsha", "+eval"}));
        faulty("renewals refused: READONLY", false, server({"REPLICAOF", "127.0.0.1", "1"}),
               server({"REPLICAOF", "NO", "ONE"}));

        std::printf("\nNothing is to be lost, so there is to be no signal:\n\n%-44s %6s %7s\n", "", "trials",
                    "signals");
        harmless("server stopped for ttl/3", [this](double ttl) {
            server_.stop();
            sleep_ms(ttl / 3);
            server_.go_on();
        });
        harmless("connections reset each ttl/10", [this](double ttl) {
            for (int i = 0; i < 20; ++i, sleep_ms(ttl / 10)) proxy_.reset();
        });
        harmless("memory exhausted (an extension needs none)", [&](double ttl) {
            server({"CONFIG", "SET", "maxmemory", "1"})();
            sleep_ms(2 * ttl);
            server({"CONFIG", "SET", "maxmemory", "0"})();
        });

        std::printf(
            "\nThe key is taken away, which is learned when it would be renewed:\n\n%-44s %6s %5s %14s %22s %14s\n", "",
            "trials", "never", "median, of ttl", "median - ttl/3, in ms", "worst - ttl/3");
        taken_away("key deleted", [this](const std::string& key) { server_.command({"DEL", key}); });
        taken_away("key stolen", [this](const std::string& key) {
            server_.command({"SET", key, "another", "PX", "1000"});
        });

        std::printf(
            "\nThe holder is stopped until its lease is over, and goes on (delay of the signal from then):\n\n%-44s "
            "%6s %5s %10s %10s %10s %8s %10s\n",
            "", "trials", "never", "unprovoked", "owns still", "median ms", "worst ms", "above 5 ms");
        holder_stopped();
        return good_;
    }

private:
    void heal() {
        proxy_.set(Proxy::Mode::forward);
        proxy_.reset(); // else what was swallowed is missing in the middle of a conversation
    }

    std::vector<Case> take(redislock::Redis& redis, int count, std::optional<double> ttl) {
        std::vector<Case> cases;
        for (int i = 0; i < count; ++i) {
            const double its = std::floor(ttl.value_or(random_between(300, 600)));
            const std::string key = "benchmark:loss:" + std::to_string(keys_++);
            cases.push_back({std::make_unique<Watched>(redis, key, its), key, its});
        }
        return cases;
    }

    void read_expiries(std::vector<Case>& cases) {
        const double offset = from_wall_clock();
        for (Case& each : cases) {
            each.renewals_known = each.watched->renewals;
            each.expiry = static_cast<double>(server_.integer({"PEXPIRETIME", each.key})) + offset;
        }
    }

    static bool as_read(const std::vector<Case>& cases) {
        return std::all_of(cases.begin(), cases.end(),
                           [](const Case& each) { return each.watched->renewals == each.renewals_known; });
    }

    static void await_signals(const std::vector<Case>& cases, double until) {
        while (now() < until &&
               !std::all_of(cases.begin(), cases.end(), [](const Case& each) { return each.watched->signalled != 0; }))
            sleep_ms(2);
    }

    /// Where the server can't be asked after the fault, it is asked just before; and again if a renewal came in
    /// between.
    void faulty(const char* name, bool ask_first, std::function<void()> fault, std::function<void()> recover) {
        redislock::Redis redis{proxy_.uri()};
        Numbers numbers;
        while (numbers.trials < trials_) {
            std::vector<Case> cases = take(redis, std::min(parallel_, trials_ - numbers.trials), std::nullopt);
            sleep_ms(random_between(0, 600));
            if (ask_first) read_expiries(cases);
            const double started = now();
            fault();
            if (!ask_first) read_expiries(cases);
            double last = 0;
            for (const Case& each : cases) last = std::max(last, each.expiry);
            for (Case& each : cases) each.end = now() + static_cast<double>(each.watched->lock.remaining().count());
            std::thread plain{[&] { sleep_until_the_ends(cases); }};
            await_signals(cases, std::max(last, now()) + 1000);
            plain.join();
            for (Case& each : cases) {
                ++numbers.trials;
                const double signalled = each.watched->signalled;
                if (signalled != 0 && signalled < started) {
                    ++numbers.unprovoked;
                    continue;
                }
                if (each.watched->renewals != each.renewals_known) {
                    ++numbers.bounded;
                    each.expiry = std::max(each.expiry, each.watched->renewal_asked + each.ttl);
                }
                const bool was_late = signalled == 0 || signalled > each.expiry;
                numbers.late += was_late;
                numbers.plain_late += each.plain > each.expiry;
                numbers.alone += was_late && each.plain <= each.expiry;
                numbers.plain_leads.push_back(each.expiry - each.plain);
                if (signalled != 0) numbers.values.push_back(each.expiry - signalled);
            }
            recover();
        }
        good_ = good_ && numbers.late == 0;
        const auto worst = [](const std::vector<double>& leads) {
            return leads.empty() ? 0 : *std::min_element(leads.begin(), leads.end());
        };
        std::printf("%-44s %6d %5d %6d %6d %11d %8d %10.1f %9.1f %12.1f\n", name, numbers.trials, numbers.late,
                    numbers.plain_late, numbers.alone, numbers.unprovoked, numbers.bounded, median(numbers.values),
                    worst(numbers.values), worst(numbers.plain_leads));
        std::fflush(stdout);
    }

    void harmless(const char* name, std::function<void(double)> trouble) {
        redislock::Redis redis{proxy_.uri()};
        int trials = 0, signals = 0;
        while (trials < trials_) {
            const double ttl = random_between(300, 600);
            const std::vector<Case> cases = take(redis, std::min(parallel_, trials_ - trials), ttl);
            sleep_ms(random_between(0, ttl));
            trouble(ttl);
            sleep_ms(ttl);
            trials += static_cast<int>(cases.size());
            for (const Case& each : cases) signals += each.watched->signalled != 0;
        }
        good_ = good_ && signals == 0;
        std::printf("%-44s %6d %7d\n", name, trials, signals);
        std::fflush(stdout);
    }

    void taken_away(const char* name, std::function<void(const std::string&)> take_away) {
        redislock::Redis redis{proxy_.uri()};
        Numbers numbers;
        std::vector<double> parts;
        while (numbers.trials < trials_) {
            std::vector<Case> cases = take(redis, std::min(parallel_, trials_ - numbers.trials), std::nullopt);
            sleep_ms(random_between(0, 600));
            for (Case& each : cases) {
                each.since = now();
                take_away(each.key);
            }
            await_signals(cases, now() + 1600);
            for (const Case& each : cases) {
                ++numbers.trials;
                const double signalled = each.watched->signalled;
                if (signalled == 0) {
                    ++numbers.late;
                    continue;
                }
                numbers.values.push_back(signalled - each.since - each.ttl / 3);
                parts.push_back((signalled - each.since) / each.ttl);
            }
        }
        good_ = good_ && numbers.late == 0;
        const auto& delays = numbers.values;
        std::printf("%-44s %6d %5d %14.2f %22.1f %14.1f\n", name, numbers.trials, numbers.late, median(parts),
                    median(delays), delays.empty() ? 0 : *std::max_element(delays.begin(), delays.end()));
        std::fflush(stdout);
    }

    /// What a holder in a process of its own has to say, in memory that is shared with it.
    struct Shared {
        std::atomic<bool> ready, done;
        std::atomic<double> goes_on; ///< just before SIGCONT
        std::atomic<int> owns;       ///< of how many locks owns_lock() was still true then
        std::atomic<double> signalled[100];
    };

    void holder_stopped() {
        Numbers numbers;
        int owns = 0, above = 0;
        const auto shared = static_cast<Shared*>(
            ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        while (numbers.trials < trials_) {
            const int count = std::min(parallel_, trials_ - numbers.trials);
            const double ttl = random_between(300, 600);
            std::memset(static_cast<void*>(shared), 0, sizeof(Shared));
            const pid_t parent = ::getpid();
            const pid_t holder = ::fork();
            if (holder == 0) {
                ::prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (::getppid() == parent) hold(*shared, count, ttl);
                ::_exit(0);
            }
            while (!shared->ready) sleep_ms(1);
            sleep_ms(random_between(0, ttl));
            ::kill(holder, SIGSTOP);
            ::waitpid(holder, nullptr, WUNTRACED);
            sleep_ms(1.1 * ttl);
            shared->goes_on = now();
            ::kill(holder, SIGCONT);
            for (const double until = now() + 1000; !shared->done && now() < until;) sleep_ms(2);
            ::kill(holder, SIGKILL);
            ::waitpid(holder, nullptr, 0);
            numbers.trials += count;
            owns += shared->owns;
            for (int i = 0; i < count; ++i) {
                const double signalled = shared->signalled[i];
                numbers.late += signalled == 0;
                numbers.unprovoked += signalled != 0 && signalled < shared->goes_on;
                if (signalled < shared->goes_on) continue;
                numbers.values.push_back(signalled - shared->goes_on);
                above += numbers.values.back() > 5;
            }
        }
        good_ = good_ && owns == 0 && numbers.late == 0;
        const auto& delays = numbers.values;
        std::printf("%-44s %6d %5d %10d %10d %10.2f %8.2f %10d\n", "holder stopped (SIGSTOP)", numbers.trials,
                    numbers.late, numbers.unprovoked, owns, median(delays),
                    delays.empty() ? 0 : *std::max_element(delays.begin(), delays.end()), above);
        ::munmap(shared, sizeof(Shared));
    }

    /// In the child. It notices that it goes on by the time in the shared memory.
    void hold(Shared& shared, int count, double ttl) {
        redislock::Redis redis{server_.unix_uri()};
        const std::vector<Case> cases = take(redis, count, ttl);
        shared.ready = true;
        while (shared.goes_on == 0) sleep_ms(0.2);
        for (const Case& each : cases) shared.owns += each.watched->lock.owns_lock();
        await_signals(cases, now() + 500);
        for (std::size_t i = 0; i < cases.size(); ++i) shared.signalled[i] = cases[i].watched->signalled.load();
        shared.done = true;
        ::pause();
    }

    const int trials_, parallel_;
    int keys_ = 0;
    bool good_ = true;
    test::RedisServer server_;
    Proxy proxy_{server_.socket_path()};
};

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"When lost() is requested, against the key's expiry on the server, for leases of 300 to 600 ms.\n"
                 "Exit code 1: a signal was late, or there was one for nothing."};
    int trials = 200, parallel = 20;
    bool busy = false, ends_together = false;
    app.add_option("--trials", trials, "of each scenario")->check(CLI::Range(1, 1'000'000))->capture_default_str();
    app.add_option("--parallel", parallel, "locks at a time")->check(CLI::Range(1, 100))->capture_default_str();
    app.add_flag("--busy", busy, "with two spinning threads per core alongside");
    app.add_flag("--together", ends_together,
                 "instead: leases that end together, with callbacks that block, and a rival who takes the keys");
    together::Cases cases;
    app.add_option("--ttls", cases.ttls, "of --together, in ms")->delimiter(',')->capture_default_str();
    app.add_option("--drifts", cases.drifts, "of --together")->delimiter(',')->capture_default_str();
    app.add_option("--leases", cases.leases, "of --together: how many")->delimiter(',')->capture_default_str();
    app.add_option("--blocks", cases.blocks, "of --together: for how long a callback does, in ms")
        ->delimiter(',')
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    const Spinning spinning{busy ? 2 * std::thread::hardware_concurrency() : 0};
    std::printf("%d trials each, %d locks at a time, %zu spinning threads\n", trials, parallel, spinning.count());
    if (ends_together) return together::Benchmark{trials, cases}.run() ? 0 : 1;
    return Benchmark{trials, parallel}.run() ? 0 : 1;
}
