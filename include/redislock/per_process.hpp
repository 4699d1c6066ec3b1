/// What a process has of its own, and a forked child can't share with its parent. It knows nothing of what that is.
#pragma once

#include "runtime.hpp"

#include <atomic>
#include <memory>
#include <mutex>

namespace redislock::detail {

/// What a mutex guards. A forked child can't know whether its parent's will ever be unlocked: if it is locked, all is left as it is.
struct Guarded {
    std::mutex mutex{};
    bool abandon() noexcept {
        if (!mutex.try_lock()) return false;
        mutex.unlock();
        return true;
    }
};

/// A T, and in a forked child another one, made when it is first asked for. Thread-safe. T is default-constructible, and has
/// `bool abandon() noexcept`: it is the parent's, in whatever state it was as we were forked; whether it can be destroyed in the child.
template <class T>
class PerProcess {
public:
    PerProcess() = default;
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;
    ~PerProcess() {
        get();
        delete entry_.load();
    }

    T& get() {
        Entry* current = entry_.load();
        if (current->generation == generation()) return *current;
        auto own = std::make_unique<Entry>();
        if (!entry_.compare_exchange_strong(current, own.get())) return *current;
        if (current->abandon()) delete current;
        return *own.release();
    }

private:
    struct Entry : T {
        const unsigned generation = detail::generation();
    };

    std::atomic<Entry*> entry_{new Entry};
};

} // namespace redislock::detail
