// Our side of tests/interop: does on one key what each line of its input says, and says in a line what came of it.
#include <redislock/redislock.hpp>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>

using namespace std::chrono_literals;
using redislock::Millis;
using redislock::Outcome;
using Clock = std::chrono::steady_clock;
using Lock = redislock::RedisLock<redislock::Redis>;

namespace {

std::string word(Outcome outcome) {
    switch (outcome) {
    case Outcome::confirmed: return "confirmed";
    case Outcome::expired: return "expired";
    case Outcome::stolen: return "stolen";
    case Outcome::unknown: return "unknown";
    case Outcome::not_held: return "not held";
    }
    return "?";
}

class Worker {
public:
    Worker(const char* url, std::string key, std::string log)
        : redis_{url}, key_{std::move(key)}, log_{std::move(log)} {}

    std::string does(const std::string& verb, Millis first, Millis second) {
        if (verb == "lock") return fresh(first).try_lock() ? "held" : "busy";
        if (verb == "wait") return fresh(first).try_lock_for(second) ? "held" : "busy";
        if (verb == "keep") return fresh(first, true).try_lock() ? "held" : "busy";
        if (verb == "extend") return word(lock_->extend(first));
        if (verb == "unlock") return word(lock_->unlock());
        if (verb == "token") return std::string{lock_->token().hex()};
        if (verb == "look") return look();
        if (verb == "work") return std::to_string(work(first));
        return "what is \"" + verb + "\"?";
    }

private:
    Lock& fresh(Millis ttl, bool renew = false) {
        return lock_.emplace(redis_, key_, redislock::Options{.ttl = ttl, .renew = renew}, std::defer_lock);
    }

    std::string look() {
        const std::optional<redislock::Holder> holder = redislock::inspect(redis_, key_);
        if (!holder) return "free";
        return holder->value + ' ' + std::to_string(holder->remaining ? holder->remaining->count() : -1);
    }

    int work(Millis span) {
        int sections = 0;
        // Waiters look twice in the request timeout whether it was one of theirs who released, and told nobody.
        Lock lock{redis_, key_, {.ttl = 60s, .renew = false, .request_timeout = 250ms}, std::defer_lock};
        std::minstd_rand random{std::random_device{}()};
        for (const auto end = Clock::now() + span; Clock::now() < end; ++sections) {
            lock.lock();
            std::string log;
            std::getline(std::ifstream{log_}, log);
            std::this_thread::sleep_for(1ms);
            std::ofstream{log_} << log + 'o';
            if (lock.unlock() != Outcome::confirmed) throw std::runtime_error{"a section was interrupted"};
            std::this_thread::sleep_for(random() % 20 * 1ms);
        }
        return sections;
    }

    redislock::Redis redis_;
    std::string key_, log_;
    std::optional<Lock> lock_;
};

} // namespace

int main(int, char** arguments) try {
    Worker worker{std::getenv("REDIS_URL"), arguments[1], arguments[2]};
    for (std::string verb, line; std::cin >> verb && std::getline(std::cin, line);) {
        std::istringstream numbers{line};
        long first = 0, second = 0;
        numbers >> first >> second;
        try {
            std::cout << worker.does(verb, Millis{first}, Millis{second}) << std::endl;
        } catch (const std::system_error& error) {
            std::cout << error.code().message() << std::endl;
        }
    }
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
