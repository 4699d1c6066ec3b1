/// What a lock-unlock cycle costs over a majority of five servers: RedisLock against two ways by hand on hiredis, all
/// servers written to and then polled until three have answered, and one server after another; then with one and with
/// two servers that are stopped. All take turns within one run, so that a noisy machine is noisy for all of them.
#include "../support/redis_server.hpp"
#include "figures.hpp"

#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>

using namespace std::chrono_literals;

namespace {

constexpr const char* key = "benchmark:quorum";
constexpr std::size_t nodes = 5, majority = 3;

double now_in_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

/// Both ways by hand, over the same connections.
class ByHand {
public:
    explicit ByHand(std::deque<test::RedisServer>& servers) {
        for (test::RedisServer& server : servers) {
            contexts_.push_back(::redisConnectUnix(server.socket_path().c_str()));
            sha_ = server.text({"SCRIPT", "LOAD", script});
        }
    }
    ~ByHand() {
        for (redisContext* context : contexts_) ::redisFree(context);
    }

    void one_after_another() {
        const std::string token{redislock::detail::random_token().hex()};
        for (std::size_t n = 0; n < nodes; ++n)
            for (; owed_[n] > 0; --owed_[n]) read(contexts_[n]); // of the other way
        for (const auto& command : {set(token), release(token)})
            for (redisContext* context : contexts_) {
                ::redisAppendFormattedCommand(context, command.data(), command.size());
                read(context);
            }
    }

    void all_at_once() {
        const std::string token{redislock::detail::random_token().hex()};
        ask(set(token));
        ask(release(token));
    }

private:
    static constexpr const char* script =
        "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

    static void read(redisContext* context) {
        void* reply = nullptr;
        if (::redisGetReply(context, &reply) != REDIS_OK) fail(context->errstr);
        ::freeReplyObject(reply);
    }

    std::string set(const std::string& token) const {
        return redislock::detail::formatted({"SET", key, token, "NX", "PX", "10000"});
    }
    std::string release(const std::string& token) const {
        return redislock::detail::formatted({"EVALSHA", sha_, "1", key, token});
    }

    /// Replies that are not waited for are counted with the next ones.
    void ask(const std::string& command) {
        for (std::size_t n = 0; n < nodes; ++n) {
            if (::send(contexts_[n]->fd, command.data(), command.size(), MSG_NOSIGNAL) < 0) fail("by hand: send");
            ++owed_[n];
        }
        pollfd entries[nodes];
        for (std::size_t n = 0; n < nodes; ++n) entries[n] = {contexts_[n]->fd, POLLIN, 0};
        for (std::size_t answered = 0; answered < majority;) {
            if (::poll(entries, nodes, 10'000) <= 0) fail("by hand: no answer");
            for (std::size_t n = 0; n < nodes; ++n) {
                if (entries[n].revents == 0) continue;
                ::redisBufferRead(contexts_[n]);
                void* reply = nullptr;
                while (::redisGetReplyFromReader(contexts_[n], &reply) == REDIS_OK && reply != nullptr) {
                    ::freeReplyObject(reply);
                    if (--owed_[n] == 0) ++answered;
                }
            }
        }
    }

    std::vector<redisContext*> contexts_;
    int owed_[nodes] = {};
    std::string sha_;
};

struct Contender {
    std::string name;
    std::function<void()> cycle;
    std::vector<double> p50{}, p99{}, longest{};

    void repeat(int cycles) {
        std::vector<double> times(static_cast<std::size_t>(cycles));
        cycle();
        for (double& time : times) {
            const double start = now_in_us();
            cycle();
            time = now_in_us() - start;
        }
        std::sort(times.begin(), times.end());
        p50.push_back(times[times.size() / 2]);
        p99.push_back(times[times.size() * 99 / 100]);
        longest.push_back(times.back());
    }
};

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"A lock-unlock cycle over five servers, against the same by hand on hiredis.\n"
                 "Ratios are medians over the repeats of the ratio within each repeat; below 1 is faster."};
    int repeats = 15, cycles = 1000;
    app.add_option("--repeats", repeats, "how often the contenders take turns")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--cycles", cycles, "cycles in each turn")->check(CLI::Range(10, 10'000'000))->capture_default_str();
    CLI11_PARSE(app, argc, argv);

    std::deque<test::RedisServer> servers(nodes);
    std::deque<redislock::Redis> redis;
    std::vector<redislock::Redis*> all;
    for (test::RedisServer& server : servers) all.push_back(&redis.emplace_back(server.unix_uri()));
    redislock::Quorum quorum{all};
    const redislock::Options options{.ttl = 10s, .renew = false}, fencing{.ttl = 10s, .renew = false, .fencing = true};
    ByHand by_hand{servers};

    std::vector<Contender> contenders;
    contenders.push_back({"by hand, all at once", [&] { by_hand.all_at_once(); }});
    contenders.push_back({"by hand, one after another", [&] { by_hand.one_after_another(); }});
    contenders.push_back({"RedisLock", [&] { redislock::RedisLock lock{quorum, key, options}; }});
    contenders.push_back({"RedisLock, fencing", [&] { redislock::RedisLock lock{quorum, key, fencing}; }});
    std::printf("%d repeats of %d cycles each\n", repeats, cycles);
    for (int i = 0; i < repeats; ++i)
        for (std::size_t j = 0; j < contenders.size(); ++j)
            contenders[(j + static_cast<std::size_t>(i)) % contenders.size()].repeat(cycles);
    std::printf("%-34s %9s %9s %18s %18s\n", "", "p50 us", "p99 us", "of all at once", "of one by one");
    for (const Contender& c : contenders)
        std::printf("%-34s %9.1f %9.1f %18.2f %18.2f\n", c.name.c_str(), median(c.p50), median(c.p99),
                    ratio(c.p50, contenders[0].p50), ratio(c.p50, contenders[1].p50));

    // In pairs, healthy and not, since the machine may change meanwhile.
    for (const std::size_t stopped : {1u, 2u}) {
        Contender healthy{"", contenders[2].cycle}, ill{"", contenders[2].cycle};
        double first = 0;
        for (int i = 0; i < repeats; ++i) {
            healthy.repeat(cycles);
            for (std::size_t n = 0; n < stopped; ++n) servers[n].stop();
            const double start = now_in_us();
            ill.cycle();
            first = std::max(first, now_in_us() - start);
            ill.repeat(cycles);
            for (std::size_t n = 0; n < stopped; ++n) servers[n].go_on();
            std::this_thread::sleep_for(1100ms); // until they are asked again
        }
        std::printf("%zu of %zu stopped: p50 %.1f us, %.2f of the healthy one; longest %.1f ms, the first attempt %.1f "
                    "ms at most\n",
                    stopped, nodes, median(ill.p50), ratio(ill.p50, healthy.p50),
                    *std::max_element(ill.longest.begin(), ill.longest.end()) / 1000, first / 1000);
    }
}
