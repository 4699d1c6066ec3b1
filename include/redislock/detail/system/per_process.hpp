/// What a process has of its own, and a forked child can't share with its parent. It knows nothing of what that is.
/// tests/process_test.cpp goes red if it is wrong; of its races the run with the thread sanitizer.
#pragma once

#include "process.hpp"

#include <atomic>
#include <memory>
#include <mutex>

namespace redislock::detail {

/// A value and its mutex.
template <class T>
struct Guarded {
    std::mutex mutex{};
    T value{};

    /// In a forked child: drops what is the parent's. False: one of the parent's threads had it locked, and nobody will
    /// ever unlock it.
    bool abandon() noexcept {
        const std::unique_lock lock{mutex, std::try_to_lock};
        if (lock) value = T{};
        return lock.owns_lock();
    }
};

/// A T, and in a forked child another one, made when it is first asked for. Thread-safe. T is default-constructible,
/// and has `bool abandon() noexcept`, which the child calls for the T of its parent, in whatever state the fork has
/// found it. False: it can't be destroyed.
template <class T>
class PerProcess {
public:
    PerProcess() = default;
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;
    ~PerProcess() {
        Entry* const current = entry_.load();
        if (current->generation == generation() || current->abandon()) delete current;
    }

    T& get() {
        Entry* current = entry_.load();
        if (current->generation == generation()) return *current;
        auto own = std::make_unique<Entry>();
        if (!entry_.compare_exchange_strong(current, own.get())) return *current;
        if (current->abandon())
            own->parents.reset(current); // alive, for other threads may be looking at its generation
        return *own.release();
    }

private:
    struct Entry : T {
        const Generation generation = detail::generation();
        std::unique_ptr<Entry> parents{};
    };

    std::atomic<Entry*> entry_{new Entry};
};

} // namespace redislock::detail
