/// Threads that take one lock in turn, each as a client of its own, and note for how long each has believed to hold it.
#pragma once

#include <redislock/redislock.hpp>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace test {

/// One grant, as its holder sees it.
struct Belief {
    redislock::TimePoint granted, until;
    std::uint64_t fencing_token;
    redislock::Token token;
};

class Rivals {
public:
    /// `make()` makes a client's own backend, by a pointer.
    template <class MakeBackend>
    Rivals(int count, const redislock::Options& options, MakeBackend make) {
        for (int i = 0; i < count; ++i)
            threads_.emplace_back([this, options, backend = std::shared_ptr{make()}, seed = static_cast<unsigned>(i)] {
                contend(*backend, options, seed);
            });
    }
    Rivals(const Rivals&) = delete;
    Rivals& operator=(const Rivals&) = delete;
    ~Rivals() { stop(); }

    /// All grants so far, in their order.
    std::vector<Belief> beliefs() const {
        std::vector<Belief> all;
        {
            const std::lock_guard guard{mutex_};
            all = beliefs_;
        }
        std::sort(all.begin(), all.end(), [](const Belief& a, const Belief& b) { return a.granted < b.granted; });
        return all;
    }
    std::size_t grants() const {
        const std::lock_guard guard{mutex_};
        return beliefs_.size();
    }

    void stop() {
        over_ = true;
        for (std::thread& thread : threads_)
            if (thread.joinable()) thread.join();
    }

    /// For how long two have believed to hold the lock at once, at most; and how many came with a fencing token that is
    /// not above all earlier ones, which a resource refuses.
    struct Verdict {
        redislock::TimePoint::duration overlap{};
        int overlaps = 0, refused = 0;
    };
    static Verdict judge(const std::vector<Belief>& beliefs) {
        Verdict verdict;
        redislock::TimePoint latest{};
        std::uint64_t highest = 0;
        for (const Belief& one : beliefs) {
            if (latest > one.granted) {
                ++verdict.overlaps;
                verdict.overlap = std::max(verdict.overlap, std::min(latest, one.until) - one.granted);
            }
            verdict.refused += one.fencing_token <= highest;
            highest = std::max(highest, one.fencing_token);
            latest = std::max(latest, one.until);
        }
        return verdict;
    }

private:
    template <class Backend>
    void contend(Backend& backend, const redislock::Options& options, unsigned seed) {
        using namespace std::chrono_literals;
        std::minstd_rand random{seed + 1};
        redislock::RedisLock<Backend> lock{backend, "k", options, std::defer_lock};
        while (!over_) {
            try {
                if (!lock.try_lock_for(200ms)) continue;
            } catch (const std::system_error&) { // a failover is trouble
                continue;
            }
            Belief mine{backend.now(), {}, lock.fencing_token(), lock.token()};
            const auto end = mine.granted + std::chrono::milliseconds{random() % 30};
            for (auto now = mine.granted; now < end && lock.owns_lock(); now = backend.now()) {
                mine.until = now;
                std::this_thread::sleep_for(500us); // the work
            }
            if (lock.owns_lock()) mine.until = backend.now();
            lock.unlock();
            const std::lock_guard guard{mutex_};
            beliefs_.push_back(mine);
        }
    }

    std::atomic<bool> over_{false};
    mutable std::mutex mutex_{};
    std::vector<Belief> beliefs_{};
    std::vector<std::thread> threads_{};
};

} // namespace test
