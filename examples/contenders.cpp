// Several processes contend for one lock. First they count together: without the lock increments get lost, with it none
// does. Then one of them is killed while it holds the lock, and the others go on when its lease has ended.
#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>

#include <hiredis/hiredis.h>

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace std::chrono_literals;
using redislock::Millis;
using redislock::RedisLock;
using Clock = std::chrono::steady_clock; // the same for all processes of a machine

namespace {

int whole(Millis span) { return static_cast<int>(span.count()); }

struct Settings {
    redislock::Address server{};
    std::string name{}; // of this run: all its keys begin with it
    int workers = 4;
    int rounds = 250;
    int ttl = 1000;
};

/// A process of ours. It ends with this object, and with the process that made it, whichever way that ends.
class Process {
public:
    /// To be called before there is any lock, so that the child has only what it makes itself.
    template <class Work>
    explicit Process(const Work& work) {
        std::fflush(stdout);
        const pid_t parent = ::getpid();
        pid_ = ::fork();
        if (pid_ < 0) throw std::system_error{errno, std::generic_category(), "fork"};
        if (pid_ > 0) return;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(1);
        try {
            work();
            ::_exit(0);
        } catch (const std::exception& error) {
            std::cerr << "process " << ::getpid() << ": " << error.what() << '\n';
            ::_exit(1);
        }
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() { kill(); }

    void kill() {
        if (!running_) return;
        ::kill(pid_, SIGKILL);
        wait();
    }

    /// True if its work is done.
    bool wait() {
        int status = 0;
        while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        running_ = false;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }

private:
    pid_t pid_ = 0;
    bool running_ = true;
};

/// What processes say to the one that made them.
struct Report {
    enum class Kind { waiting, locked, finished };
    Kind kind;
    pid_t pid = ::getpid();
    Clock::time_point when = Clock::now();
    Millis span{0}; // locked: what is left of the lease; finished: the longest wait
};

class Reports {
public:
    Reports() {
        if (::pipe(ends_) != 0) throw std::system_error{errno, std::generic_category(), "pipe"};
    }
    Reports(const Reports&) = delete;
    Reports& operator=(const Reports&) = delete;
    ~Reports() {
        only_read();
        ::close(ends_[0]);
    }

    /// So few bytes that a pipe keeps them together.
    void write(const Report& report) const {
        if (::write(ends_[1], &report, sizeof report) != sizeof report) ::_exit(1);
    }

    /// When all who write are forked: read() then also ends when the last of them has ended.
    void only_read() {
        if (ends_[1] >= 0) ::close(std::exchange(ends_[1], -1));
    }
    Report read() const {
        Report report{};
        if (::read(ends_[0], &report, sizeof report) != sizeof report)
            throw std::runtime_error{"a process has ended too early"};
        return report;
    }

private:
    int ends_[2];
};

/// A number in Redis that is read and written in two steps, as any record is that more than one command works on.
class Counter {
public:
    explicit Counter(const Settings& settings) : key_{settings.name + ":counter"} {
        const redislock::Address& server = settings.server;
        constexpr timeval patience{5, 0};
        context_.reset(server.path.empty()
                           ? ::redisConnectWithTimeout(server.host.c_str(), std::stoi(server.port), patience)
                           : ::redisConnectUnixWithTimeout(server.path.c_str(), patience));
        if (!context_ || context_->err != 0) fail(context_ ? context_->errstr : "out of memory", server.text());
        ::redisSetTimeout(context_.get(), patience);
        if (!server.password.empty())
            server.user.empty() ? command({"AUTH", server.password}) : command({"AUTH", server.user, server.password});
        if (server.db != 0) command({"SELECT", std::to_string(server.db)});
    }

    long long value() { return std::stoll(command({"GET", key_})); }

    /// It expires, lest it stays on somebody's server when this program is killed.
    void set(long long value) { command({"SET", key_, std::to_string(value), "EX", "600"}); }
    void remove() { command({"DEL", key_}); }

private:
    std::string command(const std::vector<std::string>& words) {
        std::vector<const char*> texts;
        std::vector<std::size_t> sizes;
        for (const std::string& word : words) {
            texts.push_back(word.data());
            sizes.push_back(word.size());
        }
        const int count = static_cast<int>(words.size());
        void* answer = ::redisCommandArgv(context_.get(), count, texts.data(), sizes.data());
        const std::unique_ptr<redisReply, void (*)(redisReply*)> reply{static_cast<redisReply*>(answer),
                                                                       [](redisReply* r) { ::freeReplyObject(r); }};
        if (!reply) fail(context_->errstr, words[0]);
        std::string text = reply->str ? reply->str : "";
        if (reply->type == REDIS_REPLY_ERROR || reply->type == REDIS_REPLY_NIL) fail(text, words[0]);
        return text;
    }

    [[noreturn]] static void fail(const std::string& why, const std::string& what) {
        throw std::runtime_error{"Redis, " + what + ": " + why};
    }

    struct Disconnect {
        void operator()(redisContext* context) const { ::redisFree(context); }
    };

    std::string key_;
    std::unique_ptr<redisContext, Disconnect> context_;
};

/// False, and nothing is written, if it is not permitted any longer. Others get their turn between the reading and the
/// writing, as they do wherever that takes time.
template <class Permission>
bool increment(Counter& counter, const Permission& permitted) {
    const long long value = counter.value();
    ::sched_yield();
    if (!permitted()) return false;
    counter.set(value + 1);
    return true;
}

void count_without_lock(const Settings& settings, int rounds) {
    Counter counter{settings};
    for (int i = 0; i < rounds; ++i) increment(counter, [] { return true; });
}

/// Returns the longest wait for the lock.
Millis count_with_lock(const Settings& settings, int rounds) {
    Counter counter{settings};
    redislock::Redis redis{settings.server};
    Clock::duration longest{};
    for (int done = 0; done < rounds;) {
        const auto asked = Clock::now();
        const RedisLock lock{redis, settings.name + ":lock", 10s};
        longest = std::max(longest, Clock::now() - asked);
        done += increment(counter, [&] { return lock.owns_lock(); }) ? 1 : 0;
    }
    return std::chrono::duration_cast<Millis>(longest);
}

/// Runs `work` in as many processes as there are workers. True if each of them has done it.
template <class Work>
bool in_each_worker(const Settings& settings, Work work) {
    std::deque<Process> workers;
    for (int i = 0; i < settings.workers; ++i) workers.emplace_back(work);
    bool good = true;
    for (Process& worker : workers) good = worker.wait() && good;
    return good;
}

/// It lies in the nature of a race that it may go well: then there are more rounds.
bool show_the_race(const Settings& settings) {
    std::printf("\nWithout a lock:\n");
    Counter counter{settings};
    for (int rounds = settings.rounds, tries = 0; tries < 5; rounds *= 4, ++tries) {
        counter.set(0);
        if (!in_each_worker(settings, [&] { count_without_lock(settings, rounds); })) return false;
        const long long wanted = static_cast<long long>(settings.workers) * rounds, counted = counter.value();
        std::printf("  The counter is %lld and should be %lld: %lld increments are lost.\n", counted, wanted,
                    wanted - counted);
        if (counted < wanted) return true;
        std::printf("  That was luck. The same with more rounds:\n");
    }
    std::printf("  Lucky each time: this machine shows no race, and so the next part shows little.\n");
    return true;
}

bool show_the_lock(const Settings& settings) {
    std::printf("\nWith the lock:\n");
    Counter counter{settings};
    counter.set(0);
    Reports reports;
    const auto started = Clock::now();
    const bool good = in_each_worker(settings, [&] {
        const Millis longest = count_with_lock(settings, settings.rounds);
        reports.write({.kind = Report::Kind::finished, .span = longest});
    });
    const std::chrono::duration<double> took = Clock::now() - started;
    reports.only_read();
    if (!good) return false;
    for (int i = 0; i < settings.workers; ++i) {
        const Report report = reports.read();
        std::printf("  Process %d made %d increments; its longest wait for the lock took %d ms.\n", report.pid,
                    settings.rounds, whole(report.span));
    }
    const long long wanted = static_cast<long long>(settings.workers) * settings.rounds, counted = counter.value();
    std::printf("  The counter is %lld and should be %lld: %lld increments are lost. It took %.2f s.\n", counted,
                wanted, wanted - counted, took.count());
    return counted == wanted;
}

/// False if the lock was given to another process before the lease of the killed one had ended.
bool show_a_death(const Settings& settings) {
    const std::string key = settings.name + ":lock";
    const Millis ttl{settings.ttl};
    std::printf("\nA process is killed while it holds the lock:\n");

    Reports of_holder;
    Process holder{[&] {
        redislock::Redis redis{settings.server};
        const RedisLock lock{redis, key, ttl};
        of_holder.write({.kind = Report::Kind::locked, .span = lock.remaining()});
        for (;;) ::pause();
    }};
    of_holder.only_read();
    const Report held = of_holder.read();
    const auto lease_end = held.when + held.span;
    const auto time = [&](Clock::time_point when) { return std::chrono::duration<double>{when - held.when}.count(); };
    const auto until_end = [&](Clock::time_point when) { return whole(std::chrono::floor<Millis>(lease_end - when)); };
    std::printf("  %.3f s  Process %d has the lock for %d ms, and may rely on %d ms of them.\n", 0.0, held.pid,
                settings.ttl, whole(held.span));

    Reports reports;
    std::deque<Process> others;
    const int count = settings.workers - 1;
    for (int i = 0; i < count; ++i) {
        others.emplace_back([&] {
            redislock::Redis redis{settings.server};
            RedisLock lock{redis, key, 10s, std::try_to_lock};
            if (!lock) {
                reports.write({.kind = Report::Kind::waiting});
                lock.lock();
            }
            reports.write({.kind = Report::Kind::locked});
        });
    }
    reports.only_read();

    bool good = true;
    for (int waiting = 0, locked = 0; locked < count;) {
        const Report report = reports.read();
        if (report.kind == Report::Kind::locked) {
            const int early = until_end(report.when);
            std::printf("  %.3f s  Process %d gets the lock", time(report.when), report.pid);
            if (report.when < lease_end)
                std::printf(", %d ms before the end of that lease!\n", early);
            else if (locked == 0)
                std::printf(", %d ms after the end of that lease.\n", -early);
            else
                std::printf(".\n");
            good = good && report.when >= lease_end;
            ++locked;
        } else if (++waiting == count) {
            std::printf("  %.3f s  The others find it taken, and wait.\n", time(report.when));
            holder.kill();
            const auto killed = Clock::now();
            std::printf("  %.3f s  Process %d is killed by SIGKILL; its lease goes on for %d ms.\n", time(killed),
                        held.pid, std::max(0, until_end(killed)));
        }
    }
    for (Process& other : others) good = other.wait() && good;
    return good;
}

/// A server may be shared with others, and with other runs of this program.
std::string unique_name() {
    std::random_device random;
    return "redislock-contenders:" + std::to_string(random()) + std::to_string(random());
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app{"Several processes contend for one lock, and then one of them is killed while it holds it."};
    Settings settings;
    app.add_option("--workers", settings.workers, "how many processes contend")
        ->check(CLI::Range(2, 64))
        ->capture_default_str();
    app.add_option("--rounds", settings.rounds, "how often each of them increments the counter")
        ->check(CLI::Range(1, 100'000))
        ->capture_default_str();
    app.add_option("--ttl", settings.ttl, "for how many ms the lock outlives the process that is killed")
        ->check(CLI::Range(100, 60'000))
        ->capture_default_str();
    app.footer(
        "The server is named by REDIS_URL; without it, it is redis://127.0.0.1:6379. The keys are removed at the end.");
    CLI11_PARSE(app, argc, argv);

    const char* url = std::getenv("REDIS_URL");
    settings.server = redislock::Address::parse(url != nullptr ? url : "redis://127.0.0.1:6379");
    settings.name = unique_name();
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    std::signal(SIGPIPE, SIG_IGN); // hiredis would raise it where the server is gone

    std::printf(
        "%d processes share a counter on %s.\nEach of them reads it, and writes it back one higher, %d times.\n",
        settings.workers, settings.server.text().c_str(), settings.rounds);
    const bool good = show_the_race(settings) && show_the_lock(settings) && show_a_death(settings);
    Counter{settings}.remove();
    std::printf(good ? "\nNo increment was lost, and no lease was cut short.\n" : "\nThis must not happen.\n");
    return good ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
