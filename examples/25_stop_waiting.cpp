// A wait that ends at ^C, or when anybody else requests the stop.
#include <redislock/redislock.hpp>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <thread>
#include <unistd.h>

namespace {

/// Requested at the first ^C. To be called before any thread is started, for each inherits which signals are blocked.
std::stop_token interrupted() {
    static std::stop_source source;
    static sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread{[] {
        int signal = 0;
        sigwait(&signals, &signal);
        source.request_stop();
    }}.detach();
    return source.get_token();
}

int write_report(redislock::Redis& redis, const std::stop_token& stop) {
    // [stop_waiting]
    using namespace std::chrono_literals;
    redislock::RedisLock lock{redis, "reports:weekly", {.ttl = 10s}, std::defer_lock}; // options, and a tag
    if (!lock.lock(stop)) {
        std::cout << "Interrupted while another one had the lock.\n";
        return 0;
    }
    // [stop_waiting]
    std::cout << "The report is written.\n";
    return 0;
}

} // namespace

int main() try {
    const std::stop_token stop = interrupted();
    const char* url = std::getenv("REDIS_URL");
    redislock::Redis redis{url ? url : "redis://127.0.0.1:6379"};
    const redislock::RedisLock another{redis, "reports:weekly", std::chrono::seconds{10}};
    const std::jthread presses_the_keys{[] {
        std::this_thread::sleep_for(std::chrono::milliseconds{100});
        kill(getpid(), SIGINT);
    }};
    return write_report(redis, stop);
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
