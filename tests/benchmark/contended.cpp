/// What a lock is worth when many wait for it: how fast it passes from one owner to the next, how long and how fairly
/// they wait, and what that costs the server. RedisLock against a hand-off and against polling, both written by hand on
/// blocking hiredis, and over TLS against itself without; the contenders take turns within one run, so that a noisy
/// machine is noisy for all of them.
#include "../support/until.hpp"
#include "waiters.hpp"

#include <CLI/CLI.hpp>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <numeric>
#include <span>
#include <thread>

using namespace std::chrono_literals;

namespace {

using namespace benchmark;

using Time = std::chrono::nanoseconds; // of CLOCK_MONOTONIC, which threads and processes share

Time now() { return std::chrono::steady_clock::now().time_since_epoch(); }
double ms(Time time) { return std::chrono::duration<double, std::milli>{time}.count(); }

using MakeWaiter = std::function<std::unique_ptr<Waiter>()>;

struct Grant {
    int waiter;
    Time asked, obtained, released;
};

/// One run as all waiters see it. Only the one who holds the lock logs its grant, so one log serves all.
struct Run {
    std::atomic<int> ready{0};
    std::atomic<bool> started{false}, over{false}, failed{false};
    std::atomic<bool> inside{false};
    std::atomic<std::size_t> count{0};
    Grant grants[2'000'000]; // left as it is: a page that nobody writes to takes no memory
};

struct Unmap {
    void operator()(Run* run) const { ::munmap(run, sizeof *run); }
};

std::unique_ptr<Run, Unmap> shared_run() {
    constexpr int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = ::mmap(nullptr, sizeof(Run), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc{};
    return {new (memory) Run, {}};
}

/// What a waiter does. One that still waits when it is over has its turn all the same, so that nobody is left waiting.
void contend(Run& run, int waiter, const MakeWaiter& make, Time section) noexcept try {
    const std::unique_ptr<Waiter> lock = make();
    lock->lock(); // warms up
    lock->unlock();
    ++run.ready;
    while (!run.started && !run.over) std::this_thread::sleep_for(1ms);
    Grant grant{.waiter = waiter, .asked = {}, .obtained = {}, .released = {}};
    while (!run.over) {
        grant.asked = now();
        lock->lock();
        grant.obtained = now();
        if (run.inside.exchange(true)) throw std::runtime_error{"TWO WAITERS HOLD THE LOCK AT ONCE"};
        const std::size_t nth = run.count++;
        if (nth == std::size(run.grants)) throw std::runtime_error{"too many grants for one run: make it shorter"};
        if (section > Time::zero() && !run.over) std::this_thread::sleep_for(section);
        grant.released = now();
        run.grants[nth] = grant;
        run.inside = false;
        lock->unlock();
    }
} catch (const std::exception& error) {
    if (!run.failed.exchange(true)) std::fprintf(stderr, "waiter %d: %s\n", waiter, error.what());
    run.over = true;
}

/// The waiters of a run: threads, or processes that are forked before they connect. They don't outlive the object.
class Waiters {
public:
    Waiters(Run& run, int count, bool processes, const std::function<void(int)>& work) : Waiters{run} {
        for (int waiter = 0; waiter < count; ++waiter)
            if (processes)
                children_.push_back(child(work, waiter));
            else
                threads_.emplace_back(work, waiter);
    }
    Waiters(const Waiters&) = delete;
    Waiters& operator=(const Waiters&) = delete;
    ~Waiters() {
        run_.over = true;
        for (const pid_t child : children_) ::kill(child, SIGKILL);
        join();
    }
    void join() {
        threads_.clear();
        for (const pid_t child : children_) {
            int status = -1;
            ::waitpid(child, &status, 0);
            if (status != 0) run_.failed = true;
        }
        children_.clear();
    }

private:
    explicit Waiters(Run& run) : run_{run} {} // those that were started are ended even if another can't be

    static pid_t child(const std::function<void(int)>& work, int waiter) {
        const pid_t parent = ::getpid(), pid = ::fork();
        if (pid < 0) throw std::system_error{errno, std::generic_category(), "fork"};
        if (pid > 0) return pid;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(1);
        work(waiter);
        ::_exit(0);
    }

    Run& run_;
    std::vector<std::jthread> threads_;
    std::vector<pid_t> children_;
};

std::string field(const std::string& info, const std::string& name) {
    const auto at = info.find("\n" + name + ":");
    if (at == info.npos) throw std::runtime_error{"INFO does not tell " + name};
    const auto begin = at + name.size() + 2;
    return info.substr(begin, info.find('\r', begin) - begin);
}

double cpu_us(const std::string& info) {
    return (std::stod(field(info, "used_cpu_user")) + std::stod(field(info, "used_cpu_sys"))) * 1e6;
}

/// What waiters sent since CONFIG RESETSTAT. Redis counts what scripts call as well: all GET, DEL, PEXPIRE, RPUSH and
/// LPOP are theirs, and one SET goes with each RPUSH. A script that announces calls TYPE once, and no GET, which
/// releases do once; the other TYPEs are a polling waiter's looks at the holder, each with a PTTL.
double commands_sent(const std::string& info) {
    const auto calls = [&](const std::string& command) {
        const auto at = info.find("cmdstat_" + command + ":calls=");
        return at == info.npos ? 0.0 : std::stod(info.substr(info.find('=', at) + 1));
    };
    const double scripts = calls("evalsha") + calls("eval"), announcements = scripts - calls("get");
    const double looks = std::max(0.0, calls("type") - announcements);
    return scripts + calls("blpop") + calls("set") - calls("rpush") + 2 * looks + calls("client|setname");
}

double quantile(std::vector<double> values, double share) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return values[std::min(values.size() - 1, static_cast<std::size_t>(static_cast<double>(values.size()) * share))];
}

/// Jain's index: 1 if all have the same, 1/n if one has all.
double fairness(const std::vector<double>& shares) {
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    const double squares = std::inner_product(shares.begin(), shares.end(), shares.begin(), 0.0);
    return sum * sum / (static_cast<double>(shares.size()) * squares);
}

struct Conditions {
    int waiters;
    Time section, window;
    bool processes;
};

/// The part of a run that counts: all are busy with each other before it begins, and after it ends.
struct Window {
    Time begin, end;
    double commands, cpu_us;
};

struct Wait {
    double ms;
    bool for_another; // who had the lock last; else the waiter takes again what it has just released
};

/// What came of a run. A hand-off is a grant to another waiter than the last one.
struct Figures {
    double rate = 0;  // hand-offs per second
    double ratio = 0; // of rates, to the base
    double p50 = 0, p99 = 0, longest = 0;
    double ideals = 0; // in the longest wait; an ideal one is a round of all, each with its section and one hand-off
    double jain = 0;
    double commands = 0, cpu_us = 0; // of the server, per hand-off
    std::vector<Wait> waits{};
};

Figures figures(std::span<Grant> grants, const Conditions& conditions, const Window& window) {
    std::sort(grants.begin(), grants.end(), [](const Grant& a, const Grant& b) { return a.obtained < b.obtained; });
    Figures result;
    std::vector<double> waits, gaps, shares(static_cast<std::size_t>(conditions.waiters));
    const Grant* last = nullptr;
    for (const Grant& grant : grants) {
        const Grant* previous = std::exchange(last, &grant);
        if (grant.obtained < window.begin || grant.asked >= window.end) continue;
        // A wait that outlasts the window is at least as long as it was until then.
        result.longest = std::max(result.longest, ms(std::min(grant.obtained, window.end) - grant.asked));
        if (grant.obtained >= window.end) continue;
        const bool handed_over = previous != nullptr && previous->waiter != grant.waiter;
        if (handed_over) gaps.push_back(ms(grant.obtained - previous->released));
        waits.push_back(ms(grant.obtained - grant.asked));
        result.waits.push_back({waits.back(), handed_over});
        ++shares[static_cast<std::size_t>(grant.waiter)];
    }
    const auto handoffs = static_cast<double>(gaps.size());
    result.rate = handoffs / ms(window.end - window.begin) * 1e3;
    result.p50 = quantile(waits, 0.5);
    result.p99 = quantile(waits, 0.99);
    result.ideals = result.longest / (conditions.waiters * (ms(conditions.section) + quantile(gaps, 0.5)));
    result.jain = fairness(shares);
    result.commands = window.commands / handoffs;
    result.cpu_us = window.cpu_us / handoffs;
    return result;
}

using Servers = std::vector<test::RedisServer*>;

/// What the servers have done since, each on average.
struct Usage {
    explicit Usage(const Servers& servers) {
        for (test::RedisServer* server : servers) {
            const std::string info = server->text({"INFO", "all"});
            commands += commands_sent(info) / static_cast<double>(servers.size());
            cpu += cpu_us(info) / static_cast<double>(servers.size());
        }
    }
    double commands = 0, cpu = 0;
};

/// The one where the line stands is stopped. The others.
Servers freeze_one(const Servers& servers) {
    const auto frozen = std::max_element(servers.begin(), servers.end(), [](auto* one, auto* other) {
        return one->blocked_clients() < other->blocked_clients();
    });
    (*frozen)->stop();
    Servers others;
    for (test::RedisServer* server : servers)
        if (server != *frozen) others.push_back(server);
    return others;
}

/// `freezes`: one of the servers, a second before the window begins.
Figures measure(const Servers& servers, const MakeWaiter& make, const Conditions& conditions, bool freezes) {
    for (test::RedisServer* server : servers) server->command({"FLUSHALL"});
    const auto run = shared_run();
    Waiters waiters{*run, conditions.waiters, conditions.processes,
                    [&](int waiter) { contend(*run, waiter, make, conditions.section); }};
    const Time patience = now() + 60s;
    while (run->ready < conditions.waiters && !run->failed && now() < patience) std::this_thread::sleep_for(1ms);
    if (run->ready < conditions.waiters) throw std::runtime_error{"not all waiters have warmed up"};
    run->started = true;
    std::this_thread::sleep_for(conditions.window / 4);
    const std::shared_ptr<void> thaw{nullptr, [&](void*) {
                                         for (test::RedisServer* server : servers) server->go_on();
                                     }};
    const Servers alive = freezes ? freeze_one(servers) : servers;
    if (freezes) std::this_thread::sleep_for(1s);
    for (test::RedisServer* server : alive) server->command({"CONFIG", "RESETSTAT"});
    const double cpu_before = Usage{alive}.cpu;
    const Time begin = now();
    std::this_thread::sleep_for(conditions.window);
    const Usage after{alive};
    const Window window{begin, now(), after.commands, after.cpu - cpu_before};
    run->over = true;
    waiters.join();
    if (run->failed) throw std::runtime_error{"a waiter has failed"};
    return figures({run->grants, run->count}, conditions, window);
}

struct Contender {
    const char* name;
    MakeWaiter make;
    std::size_t base;     // whose hand-offs its own are compared with
    bool is_one = true;   // it asks one server alone
    bool freezes = false; // one of its servers
    std::vector<Figures> runs{};

    double median(double Figures::*figure) const {
        std::vector<double> values;
        for (const Figures& run : runs) values.push_back(run.*figure);
        return quantile(values, 0.5);
    }
};

#ifdef REDISLOCK_TLS
const test::Certificates& certificates() {
    static const test::Certificates all{{"server"}};
    return all;
}
#endif

/// TLS is compared with TCP: what that costs is told by the row of TCP.
enum { library, polling_library, by_hand, polling_by_hand, by_tcp, by_tls };

std::vector<Contender> contenders(const test::RedisServer& server, [[maybe_unused]] int tls_port, bool is_cluster) {
    using ByRedis = ByLibrary<redislock::Redis>;
    const std::string path = server.socket_path();
    std::vector<Contender> all{
        {"RedisLock", [path] { return std::make_unique<ByRedis>("unix://" + path); }, by_hand},
        {"RedisLock, polling", [path] { return std::make_unique<ByRedis>("unix://poller:any@" + path); }, by_hand},
        {"hand-off by hand", [path] { return std::make_unique<HandOffByHand>(path); }, by_hand},
        {"polling by hand", [path] { return std::make_unique<PollingByHand>(path); }, by_hand},
        {"RedisLock, TCP",
         [uri = "redis://127.0.0.1:" + std::to_string(server.port())] { return std::make_unique<ByRedis>(uri); },
         by_hand},
#ifdef REDISLOCK_TLS
        {"RedisLock, TLS",
         [uri = "rediss://127.0.0.1:" + std::to_string(tls_port)] {
             return std::make_unique<ByRedis>(
                 uri, redislock::RedisOptions{.tls = {.ca_file = certificates().file("ca.pem")}});
         },
         by_tcp},
#endif
    };
    if (is_cluster)
        all.push_back({"RedisLock, Cluster",
                       [path] { return std::make_unique<ByLibrary<redislock::Cluster>>("unix://" + path); }, by_hand});
    return all;
}

enum { one_server, majority, majority_by_hand, majority_with_one_frozen };

std::vector<Contender> majority_contenders(const Servers& servers) {
    std::vector<std::string> paths, uris;
    for (const test::RedisServer* server : servers) {
        paths.push_back(server->socket_path());
        uris.push_back("unix://" + server->socket_path());
    }
    const auto by_quorum = [uris] { return std::make_unique<ByQuorum>(uris); };
    return {
        {"RedisLock, one server", [uri = uris.front()] { return std::make_unique<ByLibrary<redislock::Redis>>(uri); },
         one_server},
        {"RedisLock, majority", by_quorum, one_server, false},
        {"majority by hand", [paths] { return std::make_unique<MajorityByHand>(paths); }, one_server, false},
        {"majority, one frozen", by_quorum, majority, false, true},
    };
}

/// A cluster of one node.
std::vector<std::string> cluster_arguments() {
    return {"--cluster-enabled", "yes", "--cluster-port", std::to_string(test::free_port())};
}
void make_cluster(test::RedisServer& server) {
    server.command({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"});
    test::until([&] { return server.text({"CLUSTER", "INFO"}).find("cluster_state:ok") != std::string::npos; });
}

/// A user to whom all is forbidden that a hand-off needs and polling doesn't: commands that block, and other keys.
void allow_polling_only(test::RedisServer& server) {
    server.command({"ACL", "SETUSER", "poller", "on", "nopass", "~" + std::string{key}, "+set", "+get", "+del", "+pttl",
                    "+pexpire", "+eval", "+evalsha", "+type", "+client|setname"});
}

void print(const Conditions& conditions, const std::vector<Contender>& all) {
    static constexpr struct {
        const char* head;
        double Figures::*figure;
        int decimals;
    } columns[] = {
        {"hand-offs/s", &Figures::rate, 0}, {"ratio", &Figures::ratio, 2},        {"wait p50 ms", &Figures::p50, 2},
        {"p99 ms", &Figures::p99, 2},       {"longest ms", &Figures::longest, 2}, {"x ideal", &Figures::ideals, 2},
        {"Jain", &Figures::jain, 4},        {"commands", &Figures::commands, 1},  {"server us", &Figures::cpu_us, 1},
    };
    std::printf("\n%3d waiters, %g ms inside", conditions.waiters, ms(conditions.section));
    for (const auto& column : columns) std::printf(" %11s", column.head);
    for (const Contender& contender : all) {
        std::printf("\n%-24s", contender.name);
        for (const auto& [head, figure, decimals] : columns) std::printf(" %11.*f", decimals, contender.median(figure));
        if (&contender != &all[contender.base]) std::printf("  ratio to: %s", all[contender.base].name);
    }
    std::printf("\n");
    std::fflush(stdout);
}

constexpr int summed_up = 32; // waiters

struct Bound {
    const char* text;
    double Figures::*figure;
    bool at_least;
    double bound;
};

std::string line_of(const Conditions& conditions, const Bound& bound, const Contender& contender) {
    const double value = contender.median(bound.figure);
    const bool is_kept = bound.at_least ? value >= bound.bound : value <= bound.bound;
    char line[128];
    std::snprintf(line, sizeof line, "%g ms inside  %-22s %s %-5g  %9.4f %-7s", ms(conditions.section), bound.text,
                  bound.at_least ? ">=" : "<=", bound.bound, value, is_kept ? "reached" : "MISSED");
    return line;
}

constexpr Bound is_fair{"Jain index", &Figures::jain, true, 0.999};
constexpr Bound is_prompt{"longest wait, x ideal", &Figures::ideals, false, 3};

/// Which bounds the library keeps, and what the same protocol by hand comes to.
std::string summary(const Conditions& conditions, const std::vector<Contender>& all) {
    static constexpr Bound bounds[] = {
        is_fair,
        is_prompt,
        {"commands per hand-off", &Figures::commands, false, 5},
        {"hand-offs/s, ratio", &Figures::ratio, true, 0.9},
    };
    std::string text;
    for (const Bound& bound : bounds) {
        char by_hand_too[48];
        std::snprintf(by_hand_too, sizeof by_hand_too, "  (by hand %.4f)\n", all[by_hand].median(bound.figure));
        text += line_of(conditions, bound, all[library]) + by_hand_too;
    }
    if (all.size() > by_tls)
        text += line_of(conditions, {"over TLS, ratio to TCP", &Figures::ratio, true, 0.8}, all[by_tls]) + "\n";
    return text;
}

std::string majority_summary(const Conditions& conditions, const std::vector<Contender>& all) {
    std::string text;
    const auto add = [&](const Bound& bound, const Contender& contender) {
        text += std::to_string(conditions.waiters) + " waiters, " + line_of(conditions, bound, contender) + "\n";
    };
    add(is_fair, all[majority]);
    add(is_prompt, all[majority]);
    add({"ratio to one server", &Figures::ratio, true, 0.8}, all[majority]);
    add({"one frozen, ratio", &Figures::ratio, true, 0.8}, all[majority_with_one_frozen]);
    return text;
}

void print_reaction(const char* what, std::vector<double>& milliseconds) {
    std::printf("%-58s median %7.3f ms, longest %7.3f ms, of %zu\n", what, quantile(milliseconds, 0.5),
                quantile(milliseconds, 1), milliseconds.size());
}

/// How soon one who stands in line notices what no release tells him.
void measure_reactions(test::RedisServer& server) {
    using redislock::RedisLock;
    redislock::Redis redis{server.unix_uri()};
    const auto until_blocked = [&] {
        while (server.blocked_clients() == 0) std::this_thread::sleep_for(1ms);
    };
    std::vector<double> stops, ends;
    for (int i = 0; i < 200; ++i) {
        RedisLock holder{redis, key, 10s}, waiter{redis, key, 10s, std::defer_lock};
        std::stop_source stop;
        Time ended{};
        std::jthread waits{[&] {
            if (!waiter.lock(stop.get_token())) ended = now();
        }};
        until_blocked();
        const Time requested = now();
        stop.request_stop();
        waits.join();
        stops.push_back(ms(ended - requested));
    }
    for (int i = 0; i < 20; ++i) {
        RedisLock dead{redis, key, 200ms};
        const Time end = now() + 200ms; // at the latest
        static_cast<void>(dead.detach());
        RedisLock waiter{redis, key, 10s};
        ends.push_back(ms(now() - end));
    }
    std::printf("\nA single waiter:\n");
    print_reaction("has returned after a stop was requested", stops);
    print_reaction("has the lock after the lease of a dead holder has ended", ends);
}

/// For waiting.gnuplot: a block of lines per contender, each line a Wait.
void write_waits(std::ostream& file, const Contender& contender) {
    file << "# " << contender.name << '\n';
    for (const Figures& run : contender.runs)
        for (const Wait& wait : run.waits) file << wait.ms << '\t' << wait.for_another << '\n';
    file << "\n\n";
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app{
        "Many waiters and one lock: each acquires it, sleeps for a while inside, releases it, and asks again.\n"
        "Figures are medians over the repeats; ratios are those within each repeat to the hand-offs/s of the "
        "contender\n"
        "that the row names, and above 1 is faster. Commands and the server's CPU time are per hand-off, and of "
        "several\n"
        "servers the average. The ideal wait is a round of all waiters, each with its time inside and one hand-off.\n"
        "Who takes again what it has just released waits too, if not for long."};
    std::vector<int> waiters{2, 8, summed_up, 128}, sections{0, 1};
    double seconds = 2;
    int repeats = 3;
    bool processes = false;
    std::string waits_name;
    app.add_option("--waiters", waiters, "how many contend; a table for each")
        ->delimiter(',')
        ->check(CLI::Range(2, 500))
        ->capture_default_str();
    app.add_option("--sections", sections, "how long each stays inside, in ms; tables for each")
        ->delimiter(',')
        ->check(CLI::Range(0, 1000))
        ->capture_default_str();
    app.add_option("--seconds", seconds, "how long a turn of a contender is; a quarter more goes before")
        ->check(CLI::Range(0.1, 60.0))
        ->capture_default_str();
    app.add_option("--repeats", repeats, "how often the contenders take turns")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    std::size_t server_count = 1;
    app.add_option("--servers", server_count, "of a majority; and then it is compared with one server")
        ->check(CLI::IsMember({1, 3, 5, 7}))
        ->capture_default_str();
    bool with_cluster = false;
    app.add_flag("--cluster", with_cluster, "the server is a cluster's only node, and a Cluster contends too");
    app.add_flag("--processes", processes, "the waiters are processes; else threads with a connection each");
    app.add_option("--waits", waits_name, "a file for RedisLock's waiting times, which waiting.gnuplot draws");
    CLI11_PARSE(app, argc, argv);
    std::ofstream waits;
    if (!waits_name.empty()) {
        if (std::ranges::find(waiters, summed_up) == waiters.end() || std::ranges::find(sections, 1) == sections.end())
            return app.exit(CLI::ValidationError{"--waits", "it needs 32 waiters, and a section of 1 ms"});
        waits.open(waits_name);
        if (!waits) return app.exit(CLI::ValidationError{"--waits", "can't write " + waits_name});
    }

    ::signal(SIGPIPE, SIG_IGN); // hiredis raises it, where an error is clearer
    std::vector<std::string> arguments = with_cluster ? cluster_arguments() : std::vector<std::string>{};
#ifdef REDISLOCK_TLS
    const int tls_port = test::free_port();
    for (std::string& word : certificates().at_port(tls_port, "server")) arguments.push_back(std::move(word));
#else
    constexpr int tls_port = 0;
#endif
    test::RedisServer server{std::move(arguments)};
    std::deque<test::RedisServer> more(server_count - 1);
    Servers servers{&server};
    for (test::RedisServer& one : more) servers.push_back(&one);
    if (with_cluster) make_cluster(server);
    allow_polling_only(server);
    std::printf("%d repeats of %g s each, %s; redis-server %s, hiredis %d.%d.%d\n", repeats, seconds,
                processes ? "processes" : "threads with a connection each",
                field(server.text({"INFO", "server"}), "redis_version").c_str(), HIREDIS_MAJOR, HIREDIS_MINOR,
                HIREDIS_PATCH);
    std::string summaries;
    for (const int section : sections) {
        for (const int count : waiters) {
            const Conditions conditions{count, std::chrono::milliseconds{section},
                                        Time{static_cast<Time::rep>(seconds * 1e9)}, processes};
            const bool is_majority = server_count > 1;
            std::vector<Contender> all =
                is_majority ? majority_contenders(servers) : contenders(server, tls_port, with_cluster);
            for (int i = 0; i < repeats; ++i) {
                // Each repeat starts with another one, so that none is always the one that follows the slowest.
                for (std::size_t j = 0; j < all.size(); ++j) {
                    Contender& contender = all[(j + static_cast<std::size_t>(i)) % all.size()];
                    const Servers its_own = contender.is_one ? Servers{&server} : servers;
                    contender.runs.push_back(measure(its_own, contender.make, conditions, contender.freezes));
                }
                for (Contender& contender : all)
                    contender.runs.back().ratio = contender.runs.back().rate / all[contender.base].runs.back().rate;
            }
            print(conditions, all);
            if (is_majority && section == 1) summaries += majority_summary(conditions, all);
            if (count != summed_up) continue;
            if (!is_majority) summaries += summary(conditions, all);
            if (section != 1) continue;
            write_waits(waits, is_majority ? all[majority] : all[library]);
            if (!is_majority) write_waits(waits, all[polling_library]);
        }
    }
    if (server_count == 1) measure_reactions(server);
    if (!summaries.empty())
        std::printf("\n%s:\n%s", server_count == 1 ? "RedisLock, 32 waiters" : "A majority", summaries.c_str());
    if (waits.is_open() && !waits.flush()) throw std::runtime_error{"can't write " + waits_name};
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
