/// What a failover means for a lock, by sentinels and in a cluster: how long two hold it at once, and when the next one
/// gets it.
#include "../support/redis_cluster.hpp"
#include "../support/rivals.hpp"
#include "../support/sentinels.hpp"
#include "figures.hpp"

#include <redislock/cluster.hpp>

#include <CLI/CLI.hpp>

#include <cstdio>
#include <future>

using namespace redislock;
using namespace std::chrono_literals;

namespace {

constexpr Millis ttl{2'000};

struct Row {
    const char* name;
    unsigned min_replicas;
    Millis restart_delay;
    bool is_stopped; ///< the primary stands still until another one is promoted, and then goes on
    bool is_cluster = false;
};

struct Result {
    int failovers = 0, overlaps = 0, refused = 0;
    double overlap_ms = 0;
    std::size_t grants = 0;
    std::vector<double> next_grant_ms{};

    void add(const Result& other) {
        failovers += other.failovers;
        overlaps += other.overlaps;
        refused += other.refused;
        overlap_ms = std::max(overlap_ms, other.overlap_ms);
        grants += other.grants;
        next_grant_ms.insert(next_grant_ms.end(), other.next_grant_ms.begin(), other.next_grant_ms.end());
    }
};

double in_ms(TimePoint::duration span) { return std::chrono::duration<double, std::milli>(span).count(); }

/// Until the first token at that server that was not there before.
TimePoint::duration until_next_grant(test::RedisServer& after) {
    const TimePoint switched = detail::now();
    const std::string before = after.text({"GET", "k"});
    test::until([&] {
        const std::string now = after.text({"GET", "k"});
        return !now.empty() && now != before;
    });
    return detail::now() - switched;
}

void judge(test::Rivals& rivals, Result& result) {
    rivals.stop();
    const auto beliefs = rivals.beliefs();
    const auto verdict = test::Rivals::judge(beliefs);
    result.grants = beliefs.size();
    result.overlaps = verdict.overlaps;
    result.refused = verdict.refused;
    result.overlap_ms = in_ms(verdict.overlap);
}

Options options_of(const Row& row) { return {.ttl = ttl, .fencing = true, .min_replicas = row.min_replicas}; }

Result fail_over(const Row& row, int times) {
    test::Service service;
    Result result;
    const Options options = options_of(row);
    test::Rivals rivals{
        4, options,
        [&] { return std::make_unique<Redis>(service.uri(), RedisOptions{.restart_delay = row.restart_delay}); }};
    for (; result.failovers < times; ++result.failovers) {
        service.settle();
        const std::size_t grants = rivals.grants();
        test::until([&] { return rivals.grants() > grants + 20; });
        test::RedisServer& before = *service.primary();
        if (row.is_stopped)
            before.stop();
        else
            test::until([&] { return service.begin_failover(); });
        test::RedisServer& after = service.another_than(before);
        before.go_on();
        result.next_grant_ms.push_back(in_ms(until_next_grant(after)));
    }
    judge(rivals, result);
    return result;
}

/// Between the primary that has the key and its replica, to and fro.
Result fail_over_in_cluster(const Row& row, int times) {
    test::RedisCluster nodes{3, true};
    Result result;
    test::Rivals rivals{4, options_of(row), [&] { return std::make_unique<Cluster>(nodes.uri()); }};
    const std::size_t home = nodes.home("k");
    for (; result.failovers < times; ++result.failovers) {
        const std::size_t grants = rivals.grants();
        test::until([&] { return rivals.grants() > grants + 20; });
        const std::size_t from = nodes.is_primary(home) ? home : home + 3, to = from == home ? home + 3 : home;
        test::until([&] { return nodes.has_replica(from); });
        if (row.is_stopped) {
            nodes.at(from).stop();
            test::until([&] { return nodes.is_primary(to); });
        } else {
            nodes.fail_over_to(to);
        }
        result.next_grant_ms.push_back(in_ms(until_next_grant(nodes.at(to))));
        nodes.at(from).go_on();
        test::until([&] { return !nodes.is_primary(from) && nodes.agree(); });
    }
    judge(rivals, result);
    return result;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "A primary, two replicas and three sentinels, or a cluster; four clients take one lock in turn, for up to 30 "
        "ms each, while the primary changes. Prints for how long two of them held the lock at once, how many came "
        "with a fencing token that a resource refuses, and when the new primary granted it first."};
    int services = 2, failovers = 2;
    app.add_option("--services", services, "so many at once for each row")->capture_default_str();
    app.add_option("--failovers", failovers, "so many of each service, one every 12 s or so")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    std::printf("%-46s %9s %8s %9s %11s %10s %20s\n", "min_replicas, and how the primary changes", "failovers",
                "grants", "overlaps", "longest ms", "refused", "next grant ms (max)");
    bool is_safe = true;
    for (const Row& row :
         {Row{"0, planned", 0, Millis{0}, false}, Row{"0, stopped", 0, Millis{0}, true},
          Row{"1 and restart_delay = 2 s, planned", 1, ttl, false},
          Row{"1 and restart_delay = 2 s, stopped", 1, ttl, true}, Row{"2, all replicas, planned", 2, Millis{0}, false},
          Row{"2, all replicas, stopped", 2, Millis{0}, true}, Row{"cluster: 0, planned", 0, Millis{0}, false, true},
          Row{"cluster: 0, stopped", 0, Millis{0}, true, true},
          Row{"cluster: 1, all replicas, planned", 1, Millis{0}, false, true},
          Row{"cluster: 1, all replicas, stopped", 1, Millis{0}, true, true}}) {
        std::vector<std::future<Result>> running;
        for (int i = 0; i < services; ++i)
            running.push_back(std::async(std::launch::async, [&] {
                return row.is_cluster ? fail_over_in_cluster(row, failovers) : fail_over(row, failovers);
            }));
        Result all;
        for (auto& one : running) all.add(one.get());
        std::printf("%-46s %9d %8zu %9d %11.0f %10d %11.0f (%6.0f)\n", row.name, all.failovers, all.grants,
                    all.overlaps, all.overlap_ms, all.refused, median(all.next_grant_ms),
                    *std::max_element(all.next_grant_ms.begin(), all.next_grant_ms.end()));
        std::fflush(stdout);
        is_safe = is_safe && (row.min_replicas == 0 || all.overlaps + all.refused == 0);
    }
    std::puts(is_safe ? "Two held it at once with min_replicas = 0 alone."
                      : "TWO HELD IT AT ONCE with min_replicas > 0.");
    return is_safe ? 0 : 1;
}
