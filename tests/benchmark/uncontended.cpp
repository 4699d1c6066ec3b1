/// What a lock-unlock cycle costs when nobody contends: RedisLock against the same two commands written by hand on
/// blocking hiredis, the contenders taking turns within one run, so that a noisy machine is noisy for all of them.
#include "../support/redis_cluster.hpp"
#include "figures.hpp"

#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <new>
#include <optional>

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

/// One command and its reply: true if that is as it should be.
using Ask = std::function<bool(int count, const char** texts, const std::size_t* sizes)>;

/// On blocking hiredis.
Ask on_hiredis(redisContext* context) {
    return [owner = std::shared_ptr<redisContext>{context, &::redisFree}](int count, const char** texts,
                                                                          const std::size_t* sizes) {
        const test::Reply reply{static_cast<redisReply*>(::redisCommandArgv(owner.get(), count, texts, sizes)),
                                &::freeReplyObject};
        return reply && (reply->type == REDIS_REPLY_STATUS || reply->integer == 1);
    };
}

#ifdef REDISLOCK_TLS
/// On a blocking socket and OpenSSL: hiredis has TLS in a library of its own, which Debian 12 has not.
Ask on_openssl(int port, const std::string& ca_file) {
    SSL_CTX* const context = ::SSL_CTX_new(::TLS_client_method());
    ::SSL_CTX_load_verify_locations(context, ca_file.c_str(), nullptr);
    ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
    SSL* const session = ::SSL_new(context);
    ::SSL_CTX_free(context);
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::SSL_set_fd(session, fd);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::SSL_connect(session) != 1) {
        std::fprintf(stderr, "by hand: no TLS\n");
        std::exit(1);
    }
    return
        [owner = std::shared_ptr<SSL>{session, &::SSL_free}](int count, const char** texts, const std::size_t* sizes) {
            char* command = nullptr;
            const auto size = ::redisFormatCommandArgv(&command, count, texts, sizes);
            const int sent = ::SSL_write(owner.get(), command, static_cast<int>(size));
            ::redisFreeCommand(command);
            char reply[256];
            const int got = sent > 0 ? ::SSL_read(owner.get(), reply, sizeof reply) : -1;
            return got > 3 && (std::string_view{reply, 3} == "+OK" || std::string_view{reply, 2} == ":1");
        };
}
#endif

/// The two commands as a careful user writes them, with a token from the system's generator.
class ByHand {
public:
    ByHand(Ask ask, std::string sha) : ask_{std::move(ask)}, sha_{std::move(sha)} {}

    static constexpr const char* script =
        "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

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
    void ask(std::initializer_list<const char*> words) {
        const char* texts[8];
        std::size_t sizes[8];
        int count = 0;
        for (const char* word : words) {
            texts[count] = word;
            sizes[count++] = std::strlen(word);
        }
        if (ask_(count, texts, sizes)) return;
        std::fprintf(stderr, "by hand: %s failed\n", texts[0]);
        std::exit(1);
    }

    Ask ask_;
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

void take_turns(std::vector<Contender>& contenders, int repeats, int cycles) {
    for (int i = 0; i < repeats; ++i) {
        // Each repeat starts with another one, so that none is always the one that follows the slowest.
        for (std::size_t j = 0; j < contenders.size(); ++j)
            contenders[(j + static_cast<std::size_t>(i)) % contenders.size()].repeat(cycles);
    }
}

/// Ratios are to the first one.
void print(const char* transport, const std::vector<Contender>& contenders) {
    std::printf("\n%-6s %-36s %9s %9s %9s %8s %9s %9s\n", transport, "", "p50 us", "p99 us", "cpu us", "allocs",
                "p50 ratio", "cpu ratio");
    for (const Contender& c : contenders) {
        const auto [low, high] = std::minmax_element(c.p50.begin(), c.p50.end());
        std::printf("%-6s %-36s %9.1f %9.1f %9.2f %8.1f %9.2f %9.2f   (p50 per repeat %.1f to %.1f)\n", "",
                    c.name.c_str(), median(c.p50), median(c.p99), median(c.cpu), median(c.allocated),
                    ratio(c.p50, contenders[0].p50), ratio(c.cpu, contenders[0].cpu), *low, *high);
    }
}

void measure(const char* transport, redislock::Redis& redis, ByHand by_hand, int repeats, int cycles) {
    redislock::RedisLock kept{redis, key, {.ttl = 10s, .renew = false}, std::defer_lock};
    std::vector<Contender> contenders;
    contenders.push_back({"by hand", [&] { by_hand.cycle(); }});
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
    take_turns(contenders, repeats, cycles);
    print(transport, contenders);
}

/// A Cluster whose slots are known, against a Redis that is told which node has the key.
void measure_cluster(test::RedisCluster& servers, int repeats, int cycles) {
    const std::size_t home = servers.home(key);
    redislock::Redis redis{servers.uri(home)};
    redislock::Cluster cluster{servers.uri(servers.elsewhere(key))};
    const auto scoped = [](auto& backend, bool renew) {
        return [&backend, renew] { redislock::RedisLock lock{backend, key, {.ttl = 10s, .renew = renew}}; };
    };
    std::vector<Contender> contenders;
    contenders.push_back({"Redis, scoped", scoped(redis, false)});
    contenders.push_back({"Cluster, scoped", scoped(cluster, false)});
    contenders.push_back({"Redis, scoped and renewed", scoped(redis, true)});
    contenders.push_back({"Cluster, scoped and renewed", scoped(cluster, true)});
    take_turns(contenders, repeats, cycles);
    print("tcp", contenders);
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "A lock-unlock cycle without contention, against the same commands by hand on blocking hiredis (over TLS: on\n"
        "OpenSSL).\n"
        "Ratios are medians over the repeats of the ratio within each repeat; below 1 is faster than by hand."};
    int repeats = 15, cycles = 4000;
    std::vector<unsigned> busy{0, 1, 2};
    app.add_option("--repeats", repeats, "how often the contenders take turns")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--cycles", cycles, "cycles in each turn")->check(CLI::Range(10, 10'000'000))->capture_default_str();
    app.add_option("--busy", busy, "how many threads spin alongside; tables for each")
        ->check(CLI::Range(0, 1'000))
        ->capture_default_str();
    bool with_cluster = false;
    app.add_flag("--cluster", with_cluster, "a table of a Cluster of three nodes against a Redis, too");
    CLI11_PARSE(app, argc, argv);
#ifdef REDISLOCK_TLS
    const test::Certificates certificates{{"server"}};
    const int tls_port = test::free_port();
    test::RedisServer server{certificates.at_port(tls_port, "server")};
#else
    test::RedisServer server;
#endif
    const std::string sha = server.text({"SCRIPT", "LOAD", ByHand::script});
    std::string version = server.text({"INFO", "server"});
    version.erase(0, version.find("redis_version:") + 14);
    std::printf("%d repeats of %d cycles each; redis-server %s, hiredis %d.%d.%d\n", repeats, cycles,
                version.substr(0, version.find("\r")).c_str(), HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH);
    std::optional<test::RedisCluster> cluster;
    if (with_cluster) cluster.emplace();
    for (const unsigned threads : busy) {
        const Spinning spinning{threads};
        std::printf("\n%u threads spin alongside\n", threads);
        redislock::Redis by_unix{server.unix_uri()}, by_tcp{server.tcp_uri()};
        measure("unix", by_unix, {on_hiredis(::redisConnectUnix(server.socket_path().c_str())), sha}, repeats, cycles);
        measure("tcp", by_tcp, {on_hiredis(::redisConnect("127.0.0.1", server.port())), sha}, repeats, cycles);
#ifdef REDISLOCK_TLS
        redislock::Redis by_tls{"rediss://127.0.0.1:" + std::to_string(tls_port),
                                {.tls = {.ca_file = certificates.file("ca.pem")}}};
        measure("tls", by_tls, {on_openssl(tls_port, certificates.file("ca.pem")), sha}, repeats, cycles);
#endif
        if (cluster) measure_cluster(*cluster, repeats, cycles);
    }
}
