/// What a lock-unlock cycle costs when nobody contends: RedisLock against the same two commands written by hand on
/// blocking hiredis, the contenders taking turns within one run, so that a noisy machine is noisy for all of them.
#include "../support/redis_server.hpp"
#include "figures.hpp"

#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <new>

using namespace std::chrono_literals;

namespace {
std::atomic<unsigned long> allocations{0};
}

// hiredis allocates with malloc, we with new: counting at malloc sees both.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* malloc(std::size_t size) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    return __libc_realloc(old, size);
}
}

namespace {

constexpr const char* key = "benchmark:uncontended";

/// The two commands as a careful user of hiredis writes them, with a token from the system's generator.
class ByHand {
public:
    explicit ByHand(redisContext* context) : context_{context} {
        Reply reply{static_cast<redisReply*>(::redisCommand(context_, "SCRIPT LOAD %s", script)), &::freeReplyObject};
        sha_.assign(reply->str, static_cast<std::size_t>(reply->len));
    }
    ~ByHand() { ::redisFree(context_); }

    void cycle() {
        char token[33];
        std::uint64_t bits[2];
        if (::getrandom(bits, sizeof bits, 0) != sizeof bits) std::abort();
        for (int i = 0; i < 32; ++i) token[i] = "0123456789abcdef"[(bits[i / 16] >> (4 * (i % 16))) & 15];
        token[32] = '\0';
        ask({"SET", key, token, "NX", "PX", "10000"});
        ask({"EVALSHA", sha_.c_str(), "1", key, token});
    }

private:
    using Reply = test::Reply;
    static constexpr const char* script =
        "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

    void ask(std::initializer_list<const char*> words) {
        const char* texts[8];
        std::size_t sizes[8];
        int count = 0;
        for (const char* word : words) {
            texts[count] = word;
            sizes[count++] = std::strlen(word);
        }
        Reply reply{static_cast<redisReply*>(::redisCommandArgv(context_, count, texts, sizes)), &::freeReplyObject};
        const bool good = reply && (reply->type == REDIS_REPLY_STATUS || reply->integer == 1);
        if (!good) {
            std::fprintf(stderr, "by hand: %s\n", reply ? reply->str : context_->errstr);
            std::exit(1);
        }
    }

    redisContext* context_;
    std::string sha_;
};

double microseconds(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

struct Contender {
    std::string name;
    std::function<void()> cycle;
    std::vector<double> p50{}, p99{}, cpu{}, allocated{};

    void repeat(int cycles) {
        std::vector<double> times(static_cast<std::size_t>(cycles));
        cycle();
        const unsigned long allocated_before = allocations;
        const double cpu_before = microseconds(CLOCK_THREAD_CPUTIME_ID);
        for (double& time : times) {
            const double start = microseconds(CLOCK_MONOTONIC);
            cycle();
            time = microseconds(CLOCK_MONOTONIC) - start;
        }
        cpu.push_back((microseconds(CLOCK_THREAD_CPUTIME_ID) - cpu_before) / cycles);
        allocated.push_back(static_cast<double>(allocations - allocated_before) / cycles);
        std::sort(times.begin(), times.end());
        p50.push_back(times[times.size() / 2]);
        p99.push_back(times[times.size() * 99 / 100]);
    }
};

void measure(const char* transport, const std::string& uri, redisContext* context, int repeats, int cycles) {
    ByHand by_hand{context};
    redislock::Redis redis{uri};
    redislock::RedisLock kept{redis, key, {.ttl = 10s, .renew = false}, std::defer_lock};
    std::vector<Contender> contenders;
    contenders.push_back({"hiredis by hand", [&] { by_hand.cycle(); }});
    contenders.push_back({"RedisLock, scoped", [&] {
                              redislock::RedisLock lock{redis, key, {.ttl = 10s, .renew = false}};
                          }});
    contenders.push_back({"RedisLock, scoped and renewed", [&] { redislock::RedisLock lock{redis, key, 10s}; }});
    contenders.push_back({"RedisLock, kept", [&] {
                              kept.lock();
                              if (kept.unlock() != redislock::Outcome::confirmed) std::exit(1);
                          }});
    contenders.push_back(
        {"RedisLock, confirm_release = false", [&] {
             redislock::RedisLock lock{redis, key, {.ttl = 10s, .renew = false, .confirm_release = false}};
         }});
    for (int i = 0; i < repeats; ++i) {
        // Each repeat starts with another one, so that none is always the one that follows the slowest.
        for (std::size_t j = 0; j < contenders.size(); ++j)
            contenders[(j + static_cast<std::size_t>(i)) % contenders.size()].repeat(cycles);
    }
    std::printf("\n%-6s %-36s %9s %9s %9s %8s %9s %9s\n", transport, "", "p50 us", "p99 us", "cpu us", "allocs",
                "p50 ratio", "cpu ratio");
    for (const Contender& c : contenders) {
        const auto [low, high] = std::minmax_element(c.p50.begin(), c.p50.end());
        std::printf("%-6s %-36s %9.1f %9.1f %9.2f %8.1f %9.2f %9.2f   (p50 per repeat %.1f to %.1f)\n", "",
                    c.name.c_str(), median(c.p50), median(c.p99), median(c.cpu), median(c.allocated),
                    ratio(c.p50, contenders[0].p50), ratio(c.cpu, contenders[0].cpu), *low, *high);
    }
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "A lock-unlock cycle without contention, against the same commands by hand on blocking hiredis.\n"
        "Ratios are medians over the repeats of the ratio within each repeat; below 1 is faster than by hand."};
    int repeats = 15, cycles = 4000;
    app.add_option("--repeats", repeats, "how often the contenders take turns")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--cycles", cycles, "cycles in each turn")->check(CLI::Range(10, 10'000'000))->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    test::RedisServer server;
    std::string version = server.text({"INFO", "server"});
    version.erase(0, version.find("redis_version:") + 14);
    std::printf("%d repeats of %d cycles each; redis-server %s, hiredis %d.%d.%d\n", repeats, cycles,
                version.substr(0, version.find("\r")).c_str(), HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH);
    measure("unix", server.unix_uri(), ::redisConnectUnix(server.socket_path().c_str()), repeats, cycles);
    measure("tcp", server.tcp_uri(), ::redisConnect("127.0.0.1", server.port()), repeats, cycles);
}
