/// Threads that wait for a lock.
#pragma once

#include "troubles.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <atomic>
#include <deque>
#include <thread>
#include <vector>

namespace test {

/// A waiter looks for himself every half request timeout. Where that is 10 s, whoever is quick was woken.
inline constexpr redislock::Options looks_seldom{.ttl = std::chrono::seconds{60},
                                                 .request_timeout = std::chrono::seconds{20}};
inline constexpr std::chrono::seconds quick{5}; ///< on a machine that is busy with other tests

/// They wait for the lock "k" in the order in which they were added, and note in which order they had it. `Place` tells
/// by blocked_clients() how many stand in line there.
template <class Place, class Backend>
class Waiters {
public:
    Waiters(Place& place, Backend& backend, const redislock::Options& options)
        : place_{place}, backend_{backend}, options_{options} {}
    ~Waiters() { join(); }

    /// Returns when each stands in line.
    void add(int count = 1) {
        for (int i = 0; i < count; ++i) {
            const long long before = place_.blocked_clients();
            start();
            until([&] { return place_.blocked_clients() > before; });
        }
    }
    void start() {
        threads_.emplace_back([this, name = static_cast<int>(threads_.size())] {
            const redislock::Failure trouble = failure([&] {
                redislock::RedisLock lock{backend_, "k", options_};
                order_.push_back(name); // guarded by what is tested
            });
            if (trouble) ++failures;
        });
    }
    void join() {
        for (std::thread& thread : threads_)
            if (thread.joinable()) thread.join();
    }
    const std::vector<int>& order() const { return order_; }

    std::atomic<int> failures{0};

private:
    Place& place_;
    Backend& backend_;
    redislock::Options options_;
    std::vector<int> order_{};
    std::deque<std::thread> threads_{};
};

} // namespace test
