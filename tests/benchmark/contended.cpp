/// What a lock is worth when many wait for it: how fast it passes from one owner to the next, how long and how fairly
/// they wait, and what that costs the server. RedisLock against a hand-off and against polling, both written by hand on
/// blocking hiredis; the contenders take turns within one run, so that a noisy machine is noisy for all of them.
#include "../support/redis_server.hpp"

#include <redislock/redislock.hpp>

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

constexpr std::string_view key = "benchmark:contended";

using Time = std::chrono::nanoseconds; // of CLOCK_MONOTONIC, which threads and processes share

Time now() { return std::chrono::steady_clock::now().time_since_epoch(); }
double ms(Time time) { return std::chrono::duration<double, std::milli>{time}.count(); }

/// One that waits for the lock, with a connection of its own.
class Waiter {
public:
    Waiter() = default;
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    virtual ~Waiter() = default;
    virtual void lock() = 0;
    virtual void unlock() = 0;
};

class ByLibrary : public Waiter {
public:
    explicit ByLibrary(const std::string& uri) : redis_{uri} {}
    void lock() override { lock_.lock(); }
    void unlock() override {
        if (lock_.unlock() != redislock::Outcome::confirmed) throw std::runtime_error{"the release is not confirmed"};
    }

private:
    redislock::Redis redis_;
    redislock::RedisLock<redislock::Redis> lock_{redis_, key, 10s, std::defer_lock};
};

/// What both ways by hand have in common: the connection, the attempt and its token.
class ByHand : public Waiter {
protected:
    using Words = std::initializer_list<std::string_view>;

    explicit ByHand(const std::string& socket_path) : context_{::redisConnectUnix(socket_path.c_str()), &::redisFree} {
        if (!context_ || context_->err != 0) throw std::runtime_error{"by hand: no connection"};
    }

    /// Goes out with the next answer() that is asked for.
    void send(Words words) {
        std::vector<const char*> texts;
        std::vector<std::size_t> sizes;
        for (const std::string_view word : words) {
            texts.push_back(word.data());
            sizes.push_back(word.size());
        }
        ::redisAppendCommandArgv(context_.get(), static_cast<int>(words.size()), texts.data(), sizes.data());
    }
    test::Reply answer() {
        void* reply = nullptr;
        if (::redisGetReply(context_.get(), &reply) != REDIS_OK)
            throw std::runtime_error{std::string{"by hand: "} + context_->errstr};
        test::Reply owned{static_cast<redisReply*>(reply), &::freeReplyObject};
        if (owned->type == REDIS_REPLY_ERROR) throw std::runtime_error{std::string{"by hand: "} + owned->str};
        return owned;
    }
    test::Reply ask(Words words) {
        send(words);
        return answer();
    }
    std::string load(std::string_view script) { return ask({"SCRIPT", "LOAD", script})->str; }

    void send_attempt() { send({"SET", key, token_.hex(), "NX", "PX", "10000"}); }
    bool granted() { return answer()->type == REDIS_REPLY_STATUS; }

    redislock::Token token_;

private:
    std::unique_ptr<redisContext, decltype(&::redisFree)> context_;
};

/// The library's protocol, with its scripts, and without all that makes it safe: no look at a holder that may be dead,
/// no time-out of our own, nothing undone.
class HandOffByHand : public ByHand {
public:
    explicit HandOffByHand(const std::string& socket_path) : ByHand{socket_path} {}
    void lock() override {
        token_ = redislock::detail::random_token();
        send_attempt();
        while (!granted()) {
            send({"EVALSHA", announce_, "1", key, "1000", beside_.waiting, beside_.turn, beside_.given});
            send({"BLPOP", beside_.turn, "10"});
            send_attempt();
            answer(); // to the announcement
            answer(); // that it is our turn, or that nobody said so for 10 s
        }
    }
    void unlock() override {
        if (ask({"EVALSHA", release_, "1", key, token_.hex(), beside_.waiting, beside_.turn, beside_.given})->integer !=
            1)
            throw std::runtime_error{"hand-off by hand: the lock was lost"};
    }

private:
    const redislock::detail::AuxiliaryKeys beside_{key};
    const std::string announce_ = load(redislock::detail::announce_script);
    const std::string release_ = load(redislock::detail::release_script);
};

class PollingByHand : public ByHand {
public:
    explicit PollingByHand(const std::string& socket_path) : ByHand{socket_path} {}
    void lock() override {
        token_ = redislock::detail::random_token();
        for (send_attempt(); !granted(); send_attempt()) std::this_thread::sleep_for(1ms);
    }
    void unlock() override {
        if (ask({"EVALSHA", release_, "1", key, token_.hex()})->integer != 1)
            throw std::runtime_error{"polling by hand: the lock was lost"};
    }

private:
    const std::string release_ =
        load("if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end");
};

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
    double ratio = 0; // of rates, to the hand-off by hand
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

Figures measure(test::RedisServer& server, const MakeWaiter& make, const Conditions& conditions) {
    server.command({"FLUSHALL"});
    const auto run = shared_run();
    Waiters waiters{*run, conditions.waiters, conditions.processes,
                    [&](int waiter) { contend(*run, waiter, make, conditions.section); }};
    const Time patience = now() + 60s;
    while (run->ready < conditions.waiters && !run->failed && now() < patience) std::this_thread::sleep_for(1ms);
    if (run->ready < conditions.waiters) throw std::runtime_error{"not all waiters have warmed up"};
    run->started = true;
    std::this_thread::sleep_for(conditions.window / 4);
    server.command({"CONFIG", "RESETSTAT"});
    const double cpu_before = cpu_us(server.text({"INFO", "cpu"}));
    const Time begin = now();
    std::this_thread::sleep_for(conditions.window);
    const std::string info = server.text({"INFO", "all"});
    const Window window{begin, now(), commands_sent(info), cpu_us(info) - cpu_before};
    run->over = true;
    waiters.join();
    if (run->failed) throw std::runtime_error{"a waiter has failed"};
    return figures({run->grants, run->count}, conditions, window);
}

struct Contender {
    const char* name;
    MakeWaiter make;
    std::vector<Figures> runs{};

    double median(double Figures::*figure) const {
        std::vector<double> values;
        for (const Figures& run : runs) values.push_back(run.*figure);
        return quantile(values, 0.5);
    }
};

enum { library, polling_library, by_hand, polling_by_hand };

std::vector<Contender> contenders(const test::RedisServer& server) {
    const std::string path = server.socket_path();
    return {{"RedisLock", [path] { return std::make_unique<ByLibrary>("unix://" + path); }},
            {"RedisLock, polling", [path] { return std::make_unique<ByLibrary>("unix://poller:any@" + path); }},
            {"hand-off by hand", [path] { return std::make_unique<HandOffByHand>(path); }},
            {"polling by hand", [path] { return std::make_unique<PollingByHand>(path); }}};
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
    }
    std::printf("\n");
    std::fflush(stdout);
}

constexpr int summed_up = 32; // waiters

/// Which bounds the library keeps, and what the same protocol by hand comes to.
std::string summary(const Conditions& conditions, const Contender& contender, const Contender& hand) {
    static constexpr struct {
        const char* text;
        double Figures::*figure;
        bool at_least;
        double bound;
    } bounds[] = {
        {"Jain index", &Figures::jain, true, 0.999},
        {"longest wait, x ideal", &Figures::ideals, false, 3},
        {"commands per hand-off", &Figures::commands, false, 5},
        {"hand-offs/s, ratio", &Figures::ratio, true, 0.9},
    };
    std::string text;
    for (const auto& [what, figure, at_least, bound] : bounds) {
        const double value = contender.median(figure);
        char line[128];
        std::snprintf(line, sizeof line, "%g ms inside  %-22s %s %-5g  %9.4f %-7s  (by hand %.4f)\n",
                      ms(conditions.section), what, at_least ? ">=" : "<=", bound, value,
                      (at_least ? value >= bound : value <= bound) ? "reached" : "MISSED", hand.median(figure));
        text += line;
    }
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
        "Figures are medians over the repeats; ratios are those within each repeat to the hand-offs/s of the hand-off\n"
        "by hand, and above 1 is faster. Commands and the server's CPU time are per hand-off. The ideal wait is a\n"
        "round of all waiters, each with its time inside and one hand-off. Who takes again what it has just released\n"
        "waits too, if not for long."};
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
    test::RedisServer server;
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
            std::vector<Contender> all = contenders(server);
            for (int i = 0; i < repeats; ++i) {
                // Each repeat starts with another one, so that none is always the one that follows the slowest.
                for (std::size_t j = 0; j < all.size(); ++j) {
                    Contender& contender = all[(j + static_cast<std::size_t>(i)) % all.size()];
                    contender.runs.push_back(measure(server, contender.make, conditions));
                }
                for (Contender& contender : all)
                    contender.runs.back().ratio = contender.runs.back().rate / all[by_hand].runs.back().rate;
            }
            print(conditions, all);
            if (count != summed_up) continue;
            summaries += summary(conditions, all[library], all[by_hand]);
            if (section != 1) continue;
            write_waits(waits, all[library]);
            write_waits(waits, all[polling_library]);
        }
    }
    measure_reactions(server);
    if (!summaries.empty()) std::printf("\nRedisLock, %d waiters:\n%s", summed_up, summaries.c_str());
    if (waits.is_open() && !waits.flush()) throw std::runtime_error{"can't write " + waits_name};
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
