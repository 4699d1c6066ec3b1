/// What the renewal of many leases costs over a cluster, against one server; and whether one is lost by a planned
/// failover.
#include "../support/redis_cluster.hpp"
#include "figures.hpp"

#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <time.h>

#include <cstdio>

using namespace redislock;
using namespace std::chrono_literals;

namespace {

double cpu_seconds(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

/// What the worker tells.
struct Told {
    std::atomic<unsigned long> renewed{0}, lost{0};
    static void was_renewed(void* self, const Observer::Renewed&) noexcept { ++static_cast<Told*>(self)->renewed; }
    static void was_lost(void* self, const Observer::Lost&) noexcept { ++static_cast<Told*>(self)->lost; }
};

struct Result {
    double us_for_each = 0; ///< renewal, of the worker's CPU time
    unsigned long renewed = 0, lost = 0;
    std::size_t owned = 0;
};

/// Holds so many leases for so long, while this thread does what `meanwhile` says.
template <class Backend, class Meanwhile>
Result hold(Backend& backend, std::size_t count, std::chrono::duration<double> span, Meanwhile meanwhile) {
    Told told;
    const Observer observer{.context = &told, .renewed = &Told::was_renewed, .lost = &Told::was_lost};
    std::vector<RedisLock<Backend>> locks;
    locks.reserve(count);
    for (std::size_t i = 0; i < count; ++i)
        locks.emplace_back(backend, "benchmark:" + std::to_string(i), Options{.ttl = 10s, .observer = &observer});
    const TimePoint end = detail::now() + std::chrono::duration_cast<TimePoint::duration>(span);
    const unsigned long before = told.renewed;
    const double all = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID), mine = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    meanwhile();
    detail::wait(-1, 0, end);
    const double cpu = (cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - all) - (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - mine);
    Result result{.renewed = told.renewed - before, .lost = told.lost};
    result.us_for_each = cpu / static_cast<double>(std::max(result.renewed, 1UL)) * 1e6;
    for (auto& lock : locks) result.owned += lock.owns_lock();
    return result;
}

void print(const char* name, const Result& result) {
    std::printf("%-32s %8lu renewals, %.2f us of CPU for each; %lu lost, %zu owned at the end\n", name, result.renewed,
                result.us_for_each, result.lost, result.owned);
    std::fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Many leases of 10 s, renewed on one server, over a cluster of three primaries, and there again while "
                 "a replica of each takes over in turn. Exit code 1: a lease was lost."};
    std::size_t locks = 10'000;
    double span = 20;
    int repeats = 3;
    app.add_option("--locks", locks, "that are held")->check(CLI::Range(1, 100'000))->capture_default_str();
    app.add_option("--seconds", span, "for how long, each time")->check(CLI::Range(1.0, 3600.0))->capture_default_str();
    app.add_option("--repeats", repeats, "how often the two take turns")
        ->check(CLI::Range(1, 100))
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    test::RedisServer server;
    test::RedisCluster nodes{3, true};
    std::vector<double> on_one, on_cluster;
    bool is_well = true;
    const auto count = [&](const char* name, const Result& result) {
        print(name, result);
        is_well = is_well && result.lost == 0 && result.owned == locks;
        return result.us_for_each;
    };
    for (int i = 0; i < repeats; ++i) {
        Redis redis{server.tcp_uri()};
        on_one.push_back(count("one server", hold(redis, locks, std::chrono::duration<double>{span}, [] {})));
        Cluster cluster{nodes.uri()};
        on_cluster.push_back(
            count("cluster of three", hold(cluster, locks, std::chrono::duration<double>{span}, [] {})));
    }
    std::printf("a cluster of three costs %.2f of one server for each renewal\n", ratio(on_cluster, on_one));
    Cluster cluster{nodes.uri()};
    count("cluster, with three failovers", hold(cluster, locks, std::chrono::duration<double>{span}, [&] {
              for (std::size_t n = 0; n < 3; ++n) nodes.fail_over_to(n + 3);
          }));
    return is_well ? 0 : 1;
}
