/// What renewal costs: many leases renewed on one server, against a loop on blocking hiredis that pipelines the same
/// commands at the same times; memory per lock; and a cycle with renewal against one without.
#include "../support/redis_server.hpp"
#include "figures.hpp"

#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

using namespace std::chrono_literals;

namespace {

constexpr redislock::Millis ttl = 10s;

double seconds(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

void sleep_until(double moment) {
    const double left = moment - seconds(CLOCK_MONOTONIC);
    if (left > 0) std::this_thread::sleep_for(std::chrono::duration<double>{left});
}

long resident_bytes() {
    long pages = 0, resident = 0;
    if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
        if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
        std::fclose(file);
    }
    return resident * ::sysconf(_SC_PAGESIZE);
}

/// What the renewer tells, in its thread: when each renewal was asked for, and how many leases were lost.
struct Record {
    std::vector<double> asked{};
    std::atomic<unsigned long> lost{0};

    static void renewed(void* self, const redislock::Observer::Renewed& event) noexcept {
        auto& asked = static_cast<Record*>(self)->asked;
        const double at = seconds(CLOCK_MONOTONIC) - std::chrono::duration<double>{event.round_trip}.count();
        if (asked.size() < asked.capacity()) asked.push_back(at); // never allocates
    }
    static void was_lost(void* self, const redislock::Observer::Lost&) noexcept { ++static_cast<Record*>(self)->lost; }
};

/// Renewals that were asked for together: when, after the first of all, and how many.
struct Batch {
    double at;
    std::size_t count;
};

/// What is asked within `apart` seconds is one.
std::vector<Batch> batches_of(const std::vector<double>& asked, double apart) {
    std::vector<Batch> batches;
    for (const double at : asked) {
        if (batches.empty() || at - asked[0] - batches.back().at > apart) batches.push_back({at - asked[0], 0});
        ++batches.back().count;
    }
    return batches;
}

struct Key {
    std::string name, token;
};

using Context = std::unique_ptr<redisContext, decltype(&::redisFree)>;

/// The same renewals by hand. Returns the CPU time of the thread that calls it, or ends the program where one fails.
double by_hand(const std::string& path, const std::vector<Key>& keys, const std::vector<Batch>& batches) {
    const Context context{::redisConnectUnix(path.c_str()), &::redisFree};
    const std::string sha{redislock::detail::extend_sha}, span = std::to_string(ttl.count());
    const double start = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
    std::size_t next = 0;
    for (const Batch& batch : batches) {
        sleep_until(start + batch.at);
        for (std::size_t i = 0; i < batch.count; ++i) {
            const Key& key = keys[next++ % keys.size()];
            const char* texts[] = {"EVALSHA", sha.data(), "1", key.name.data(), key.token.data(), span.data()};
            const std::size_t sizes[] = {7, sha.size(), 1, key.name.size(), key.token.size(), span.size()};
            ::redisAppendCommandArgv(context.get(), 6, texts, sizes);
        }
        for (std::size_t i = 0; i < batch.count; ++i) {
            void* reply = nullptr;
            ::redisGetReply(context.get(), &reply);
            const test::Reply owner{static_cast<redisReply*>(reply), &::freeReplyObject};
            if (owner && owner->type == REDIS_REPLY_INTEGER && owner->integer == 1) continue;
            std::fprintf(stderr, "by hand: %s\n", owner && owner->str ? owner->str : "a lease is lost");
            std::exit(1);
        }
    }
    return seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
}

double in_use() { return static_cast<double>(::mallinfo2().uordblks); }

bool many(std::size_t count, double span) {
    test::RedisServer server;
    redislock::Redis redis{server.unix_uri()};
    Record record;
    record.asked.reserve(static_cast<std::size_t>((span + 20) * static_cast<double>(count)));
    const redislock::Observer observer{.context = &record, .renewed = &Record::renewed, .lost = &Record::was_lost};
    std::vector<redislock::RedisLock<redislock::Redis>> locks;
    locks.reserve(count);
    std::vector<Key> keys;
    for (std::size_t i = 0; i < count; ++i) keys.push_back({"benchmark:renewal:" + std::to_string(i), {}});

    const auto per_lock = [count](double bytes) { return bytes / static_cast<double>(count); };
    const double before = in_use();
    const long resident_before = resident_bytes();
    for (const Key& key : keys)
        locks.emplace_back(redis, key.name, redislock::Options{.ttl = ttl, .observer = &observer});
    const double taken = per_lock(in_use() - before) + sizeof locks[0];
    const double resident = per_lock(static_cast<double>(resident_bytes() - resident_before));

    const double start = seconds(CLOCK_MONOTONIC);
    const double all = seconds(CLOCK_PROCESS_CPUTIME_ID), mine = seconds(CLOCK_THREAD_CPUTIME_ID);
    const std::size_t first = record.asked.size();
    sleep_until(start + span);
    const double cpu = (seconds(CLOCK_PROCESS_CPUTIME_ID) - all) - (seconds(CLOCK_THREAD_CPUTIME_ID) - mine);
    const double renewing = per_lock(in_use() - before) + sizeof locks[0];

    const double before_listening = in_use();
    std::vector<std::stop_token> tokens;
    tokens.reserve(count);
    for (auto& lock : locks) tokens.push_back(lock.lost());
    const double listening = per_lock(in_use() - before_listening) - sizeof tokens[0];
    std::size_t owned = 0;
    for (std::size_t i = 0; i < count; ++i) {
        owned += locks[i].owns_lock();
        keys[i].token = locks[i].detach().hex();
    }

    const std::vector<double> asked(record.asked.begin() + static_cast<std::ptrdiff_t>(first), record.asked.end());
    if (asked.empty()) {
        std::printf("nothing was renewed: try more seconds\n");
        return false;
    }
    const double renewals = static_cast<double>(asked.size());
    std::printf("%zu locks with a ttl of %lld s, renewed for %.0f s: %lu lost, %zu owned at the end; %zu renewals\n",
                count, static_cast<long long>(ttl / 1s), span, record.lost.load(), owned, asked.size());
    std::printf("CPU of the renewer %.3f s, %.2f us for each renewal\n", cpu, cpu / renewals * 1e6);
    for (const double apart : {0.0002, 0.2}) { // as the renewer did it; and all at once that it did one after another
        const std::vector<Batch> batches = batches_of(asked, apart);
        const double hand = by_hand(server.socket_path(), keys, batches);
        std::printf("hiredis by hand, in %4zu batches %.3f s, %.2f us: ratio %.2f\n", batches.size(), hand,
                    hand / renewals * 1e6, cpu / hand);
    }
    std::printf(
        "Bytes for each lock: %.0f when taken, %.0f after its renewals, %.0f more with lost(); resident set %.0f\n",
        taken, renewing, listening, resident);
    return record.lost == 0 && owned == count;
}

/// In turns, so that a noisy machine is noisy for both.
void cycles_on(const char* transport, const std::string& uri, int repeats, int cycles) {
    redislock::Redis redis{uri};
    std::vector<double> medians[2], ratios;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        std::vector<double> times[2];
        for (int i = 0; i < 2 * cycles; ++i) {
            const bool renew = (i + repeat) % 2 == 0;
            const double start = seconds(CLOCK_MONOTONIC);
            { redislock::RedisLock lock{redis, "benchmark:renewal", {.ttl = ttl, .renew = renew}}; }
            times[renew].push_back((seconds(CLOCK_MONOTONIC) - start) * 1e6);
        }
        for (int renew : {0, 1}) medians[renew].push_back(median(times[renew]));
        ratios.push_back(medians[1].back() / medians[0].back());
    }
    const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
    std::printf("%-6s cycle without renewal %6.1f us, with %6.1f us: ratio %.3f (per repeat %.3f to %.3f)\n", transport,
                median(medians[0]), median(medians[1]), median(ratios), *low, *high);
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "What renewal costs: the thread that renews against the same commands by hand on hiredis, memory, and a\n"
        "lock-unlock cycle with and without it. Exit code 1: a lease was lost."};
    std::size_t locks = 10'000;
    double span = 60;
    int repeats = 15, cycles = 2000;
    app.add_option("--locks", locks, "that are held")->check(CLI::Range(1, 1'000'000))->capture_default_str();
    app.add_option("--seconds", span, "for how long they are renewed")
        ->check(CLI::Range(1.0, 86400.0))
        ->capture_default_str();
    app.add_option("--repeats", repeats, "of the cycles")->check(CLI::Range(1, 1000))->capture_default_str();
    app.add_option("--cycles", cycles, "of each kind in each repeat")
        ->check(CLI::Range(10, 1'000'000))
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    const bool good = many(locks, span);
    test::RedisServer server;
    cycles_on("unix", server.unix_uri(), repeats, cycles);
    cycles_on("tcp", server.tcp_uri(), repeats, cycles);
    return good ? 0 : 1;
}
