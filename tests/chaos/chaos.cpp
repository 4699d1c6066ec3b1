/// Many processes that take locks in turn, over real servers, while processes, servers and connections stop, die and
/// break; and what must be true of it all the same.
#include "../support/troubles.hpp"
#include "nemesis.hpp"
#include "worker.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <set>

using namespace std::chrono_literals;

namespace {

std::atomic<bool> interrupted{false};

/// For each server: sixteen idle connections, and those that linger behind a call that was not answered in time.
constexpr std::size_t most_descriptors = 100, most_growth_in_kib = 1024;

struct Settings {
    double seconds = 20;
    std::size_t servers = 1, workers = 12;
    int keys = 6;
    std::uint64_t seed = 0;
    bool has_sentinels = false;
    chaos::Broken broken = chaos::Broken::nothing;
};

double in_ms(chaos::Time span) { return static_cast<double>(span) / 1e6; }

struct Findings {
    std::vector<std::string> all{};
    int overlaps = 0;

    void violated(const std::string& what) {
        if (all.size() < 10) std::printf("VIOLATION: %s\n", what.c_str());
        all.push_back(what);
    }
};

std::string sentence(const chaos::Grant& grant, chaos::Time since) {
    char text[160];
    std::snprintf(text, sizeof text, "key %d, worker %d, fence %llu, %.3f to %.3f ms", grant.key, grant.worker,
                  static_cast<unsigned long long>(grant.fencing_token), in_ms(grant.granted - since),
                  in_ms(grant.believed_until() - since));
    return text;
}

/// No two beliefs in one key overlap, and numbers rise from one to the next.
void judge(const chaos::Log& log, chaos::Time since, Findings& findings) {
    std::vector<const chaos::Grant*> grants;
    std::set<std::string> tokens;
    for (std::size_t i = 0; i < log.size(); ++i) {
        const chaos::Grant& grant = log.grants[i];
        if (grant.granted == 0) continue; // killed before it could be written
        grants.push_back(&grant);
        if (!tokens.emplace(grant.token, sizeof grant.token).second)
            findings.violated("a token was granted twice: " + sentence(grant, since));
    }
    std::sort(grants.begin(), grants.end(),
              [](const auto* a, const auto* b) { return a->granted.load() < b->granted.load(); });
    std::map<int, const chaos::Grant*> longest_of; // all before, by the key
    for (const chaos::Grant* grant : grants) {
        const chaos::Grant*& longest = longest_of[grant->key];
        if (longest != nullptr && longest->believed_until() > grant->granted) {
            ++findings.overlaps;
            findings.violated("two holders: " + sentence(*longest, since) + "; " + sentence(*grant, since));
        }
        if (longest != nullptr && grant->fencing_token <= longest->fencing_token)
            findings.violated("a fence that is not above the last: " + sentence(*longest, since) + "; " +
                              sentence(*grant, since));
        if (longest == nullptr || grant->believed_until() > longest->believed_until()) longest = grant;
    }
}

/// What a process has open, and has of memory to itself, at most: in the first half of the time, and in the second.
struct Growth {
    std::size_t descriptors[2] = {}, kib[2] = {};

    void look(pid_t pid, std::size_t half) {
        descriptors[half] = std::max(descriptors[half], test::open_descriptors(std::to_string(pid)));
        kib[half] = std::max(kib[half], test::memory_in_kib(std::to_string(pid)));
    }
};

/// What was added to registers, as far as that was acknowledged, and what of it is not there any more.
struct Additions {
    long long made = 0, lost = 0;

    void count(const chaos::Log& log, int key, std::atomic<int> chaos::Grant::*added, long long is_there) {
        long long all = 0;
        for (std::size_t i = 0; i < log.size(); ++i)
            if (log.grants[i].key == key) all += log.grants[i].*added;
        made += all;
        lost += std::max(all - is_there, 0LL);
    }
};

int run(const Settings& settings) {
    test::TemporaryFolder folder;
    const std::string log_path = folder.path() / "log";
    chaos::Log& log = chaos::Log::open(log_path, true);
    test::RedisServer registers;
    const std::string shim = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libchaos_clock.so";
    std::deque<chaos::Node> nodes;
    std::optional<test::Service> service;
    if (settings.has_sentinels) service.emplace();
    const bool waits_for_replicas = service && settings.broken != chaos::Broken::replicas;
    std::vector<std::string> arguments{log_path, registers.socket_path(), std::to_string(settings.keys),
                                       waits_for_replicas ? std::to_string(service->servers() - 1) : "0"};
    if (service) arguments.push_back(service->uri());
    for (std::size_t n = 0; n < settings.servers && !service; ++n) {
        // Servers' clocks differ from ours by less than Options::drift.
        nodes.emplace_back(folder.path(), static_cast<int>(n), shim, std::vector{0.008, -0.008, 0.0}[n % 3]);
        arguments.push_back(nodes.back().proxy().uri());
    }
    chaos::Workers workers{arguments, settings.seed};
    for (std::size_t n = 0; n < settings.workers; ++n) workers.start(n);
    chaos::Nemesis nemesis{log, nodes, service ? &*service : nullptr, workers, settings.broken, settings.seed};
    Findings findings;
    Growth growth;

    const chaos::Time start = chaos::now(), end = start + static_cast<chaos::Time>(settings.seconds * 1e9);
    while (chaos::now() < end && !interrupted && !log.is_nearly_full()) {
        const chaos::Time next = nemesis.act();
        while (chaos::now() < next) std::this_thread::sleep_for(1ms);
        if (workers.any_has_died()) {
            findings.violated("a worker has ended by itself");
            break;
        }
        growth.look(workers.survivor_pid(), chaos::now() - start < (end - start) / 2 ? 0 : 1);
    }
    nemesis.heal();
    const chaos::Time healed = chaos::now();
    log.healed = healed;
    int failed = 0;
    if (!workers.end_by(healed + 15'000'000'000, failed))
        findings.violated("a worker does not get the lock though all is well");
    if (failed > 0) findings.violated(std::to_string(failed) + " workers have ended badly");
    chaos::Time longest = 0;
    for (std::size_t n = 0; n < settings.workers; ++n) longest = std::max(longest, log.workers[n].last - healed);
    std::vector<test::RedisServer*> servers;
    for (chaos::Node& node : nodes) servers.push_back(&node.server());
    if (service) servers.push_back(service->primary());
    for (test::RedisServer* const server : servers)
        for (int key = 0; key < settings.keys; ++key)
            for (const chaos::Time limit = chaos::now() + 1'000'000'000;
                 server->integer({"EXISTS", chaos::key_name(key)}) == 1;)
                if (chaos::now() > limit) {
                    findings.violated("a key is left on a server");
                    break;
                }

    if (growth.descriptors[1] > most_descriptors * settings.servers) findings.violated("descriptors are left open");
    if (growth.kib[1] > growth.kib[0] + most_growth_in_kib) findings.violated("memory grows");

    judge(log, start, findings);
    chaos::Registers after{registers.socket_path()};
    Additions guarded, unguarded;
    for (int key = 0; key < settings.keys; ++key) {
        guarded.count(log, key, &chaos::Grant::guarded, after.guarded(key));
        unguarded.count(log, key, &chaos::Grant::unguarded, after.unguarded(key));
    }
    if (guarded.lost > 0)
        findings.violated(std::to_string(guarded.lost) + " additions are lost though the fence guards them");

    std::printf("%zu server%s%s, %zu workers, %d keys, %.0f s, seed %llu\n", settings.servers,
                settings.servers > 1 ? "s" : "", service ? " that sentinels name" : "", settings.workers, settings.keys,
                settings.seconds, static_cast<unsigned long long>(settings.seed));
    int faults = 0;
    for (const auto& [what, count] : nemesis.counts()) {
        std::printf("  %-24s %6d\n", what.c_str(), count);
        faults += count;
    }
    const auto number = [](const std::atomic<std::uint64_t>& value) {
        return static_cast<unsigned long long>(value.load());
    };
    std::printf("  %zu grants, %d faults, %llu extensions, %llu leases lost while held, %llu calls that failed, %llu "
                "releases not confirmed\n",
                log.size(), faults, number(log.extensions), number(log.losses), number(log.errors),
                number(log.unconfirmed));
    std::printf("  guarded by the fence: %lld additions, %lld lost, %llu refused; by owns_lock() alone: %lld, %lld "
                "lost, %llu came too late\n",
                guarded.made, guarded.lost, number(log.refused), unguarded.made, unguarded.lost, number(log.stale));
    std::printf(
        "  the worker that is never killed has %zu descriptors and %zu KiB at most, and had %zu and %zu in the first "
        "half\n",
        growth.descriptors[1], growth.kib[1], growth.descriptors[0], growth.kib[0]);
    std::printf("  overlaps %d, violations %zu; after all was well each had the lock within %.0f ms\n",
                findings.overlaps, findings.all.size(), in_ms(longest));
    if (settings.broken != chaos::Broken::nothing) {
        std::printf(findings.overlaps > 0 ? "The broken assumption shows, as it must.\n"
                                          : "NOTHING WAS FOUND, though an assumption is broken.\n");
        return findings.overlaps > 0 ? 0 : 1;
    }
    if (!findings.all.empty())
        std::printf("Run it again: chaos %s%zu --workers %zu --keys %d --seconds %.0f --seed %llu\n",
                    service ? "--sentinel --servers " : "--servers ", settings.servers, settings.workers, settings.keys,
                    settings.seconds, static_cast<unsigned long long>(settings.seed));
    return findings.all.empty() ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::string_view{argv[1]} == "worker") return chaos::work({argv + 2, argv + argc});
    CLI::App app{
        "Processes that take locks in turn, over real servers, while processes, servers, connections and clocks go "
        "wrong.\n"
        "A seed makes the same troubles in the same order, though not at the same instants; every third time they "
        "strike\n"
        "whoever holds a lock then.\n"
        "Exit code 1: two held the lock, a fence did not rise, descriptors or memory grew, or somebody did not get on\n"
        "when all was well again."};
    Settings settings;
    app.add_option("--seconds", settings.seconds, "of trouble")->check(CLI::Range(1.0, 86400.0))->capture_default_str();
    app.add_option("--servers", settings.servers, "1, or an odd number for a majority of them")
        ->check(CLI::Range(1, 15))
        ->capture_default_str();
    app.add_option("--workers", settings.workers, "processes")->check(CLI::Range(1, 64))->capture_default_str();
    app.add_option("--keys", settings.keys, "locks, of which each takes one after another")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--seed", settings.seed, "default: another one each time");
    app.add_option("--break", settings.broken, "an assumption that the library needs, to see that it does")
        ->transform(
            CLI::CheckedTransformer(std::map<std::string, chaos::Broken>{{"nothing", chaos::Broken::nothing},
                                                                         {"clocks", chaos::Broken::clocks},
                                                                         {"memory", chaos::Broken::memory},
                                                                         {"replicas", chaos::Broken::replicas}}));
    app.add_flag("--sentinel", settings.has_sentinels,
                 "a primary and two replicas, which must all have each grant, under sentinels: failovers go wrong");
    CLI11_PARSE(app, argc, argv);
    if (settings.servers % 2 == 0) return app.exit(CLI::ValidationError{"--servers", "a majority needs an odd number"});
    if (settings.has_sentinels && settings.servers > 1)
        return app.exit(CLI::ValidationError{"--sentinel", "it is one server"});
    using chaos::Broken;
    const bool is_breakable =
        settings.broken == Broken::nothing || (settings.broken == Broken::replicas) == settings.has_sentinels;
    if (!is_breakable)
        return app.exit(CLI::ValidationError{"--break", "replicas is for --sentinel, and the others are not"});
    if (app.count("--seed") == 0) settings.seed = std::random_device{}();
    ::signal(SIGINT, [](int) { interrupted = true; });
    ::signal(SIGTERM, [](int) { interrupted = true; });
    return run(settings);
}
