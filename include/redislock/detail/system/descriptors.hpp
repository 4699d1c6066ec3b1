/// The list of this process's open sockets, so that a forked child can close its copies, and those that are idle can be
/// closed where the process has no descriptor left. It knows neither who has forked nor what a socket is for.
/// tests/fork_test.cpp goes red if it is wrong.
#pragma once

#include "forks.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <new>

namespace redislock::detail {

/// Thread-safe, without locks: a child of a process with threads may use it in whatever state the fork has found it.
/// Constant-initialised and never destroyed.
class Descriptors {
public:
    /// Belongs to whoever owns the descriptor, until close().
    class Entry {
        friend Descriptors;
        std::atomic<std::uint64_t> mark_{0}; ///< a generation and a State
        int fd_ = -1;
        dev_t device_ = 0;
        ino_t inode_ = 0;
    };

    constexpr Descriptors() noexcept = default;
    Descriptors(const Descriptors&) = delete;
    Descriptors& operator=(const Descriptors&) = delete;

    /// Null where there is no memory, and for all but sockets: event and timer descriptors share one inode, so that
    /// nobody can tell ours from one that was opened later under the same number.
    Entry* add(int fd, Generation generation) noexcept {
        struct stat status {};
        if (::fstat(fd, &status) != 0 || !S_ISSOCK(status.st_mode)) return nullptr;
        Entry* const entry = free_entry(generation);
        if (entry == nullptr) return nullptr;
        entry->fd_ = fd;
        entry->device_ = status.st_dev;
        entry->inode_ = status.st_ino;
        entry->mark_.store(mark(generation, State::used));
        return entry;
    }

    /// The descriptor is closed before the entry is free: a child that is forked in between compares it, and leaves it
    /// alone.
    void close(Entry& entry, Generation generation) noexcept {
        for (std::uint64_t current = entry.mark_.load();;) {
            if (current == mark(generation, State::used)) {
                ::close(entry.fd_);
                return entry.mark_.store(0);
            }
            if (current == mark(generation, State::closed)) return entry.mark_.store(0);
            const bool is_spare = current == mark(generation, State::spare);
            const State next = is_spare ? State::used : State::left; // or it is being closed just now
            if (entry.mark_.compare_exchange_strong(current, mark(generation, next))) {
                if (!is_spare) return;
                current = mark(generation, next);
            }
        }
    }

    /// From now on it may be closed by close_spare(), until it is taken back.
    void spare(Entry& entry, Generation generation) noexcept { entry.mark_.store(mark(generation, State::spare)); }

    /// False: it was closed meanwhile.
    bool take_back(Entry& entry, Generation generation) noexcept {
        std::uint64_t current = mark(generation, State::spare);
        return entry.mark_.compare_exchange_strong(current, mark(generation, State::used)) ||
               current == mark(generation, State::used);
    }

    /// Closes all that can be spared. False: there was none.
    bool close_spare(Generation generation) noexcept {
        bool any = false;
        for_each([&](Entry& entry) {
            std::uint64_t current = mark(generation, State::spare);
            if (!entry.mark_.compare_exchange_strong(current, mark(generation, State::closing))) return;
            ::close(entry.fd_);
            any = true;
            if (entry.mark_.exchange(mark(generation, State::closed)) == mark(generation, State::left))
                entry.mark_.store(0);
        });
        return any;
    }

    /// In a child, by one thread: closes its copies of what its ancestors have opened. Nothing is sent, and nothing
    /// changes for them. A number that belongs to another file by now is left alone.
    void close_inherited(Generation generation) noexcept {
        const int before = errno;
        for_each([generation](Entry& entry) {
            const std::uint64_t current = entry.mark_.load();
            if (current == 0 || current >> state_bits == generation) return;
            const bool is_open = current != mark(current >> state_bits, State::adding);
            if (is_open && is_same(entry)) ::close(entry.fd_);
            entry.mark_.store(0);
        });
        errno = before;
    }

private:
    /// left: its owner has gone while it was being closed.
    enum class State : std::uint64_t { free, adding, used, spare, closing, closed, left };
    static constexpr unsigned state_bits = 8;

    static constexpr std::uint64_t mark(Generation generation, State state) noexcept {
        return generation << state_bits | static_cast<std::uint64_t>(state);
    }

    struct Chunk {
        std::array<Entry, 64> entries{};
        std::atomic<Chunk*> next{nullptr};
    };

    template <class Act>
    void for_each(Act act) noexcept {
        for (Chunk* chunk = &first_; chunk != nullptr; chunk = chunk->next.load())
            for (Entry& entry : chunk->entries) act(entry);
    }

    Entry* free_entry(Generation generation) noexcept {
        for (Chunk* chunk = &first_;;) {
            for (Entry& entry : chunk->entries) {
                std::uint64_t current = 0;
                if (entry.mark_.load(std::memory_order_relaxed) == 0 &&
                    entry.mark_.compare_exchange_strong(current, mark(generation, State::adding)))
                    return &entry;
            }
            Chunk* next = chunk->next.load();
            if (next == nullptr) {
                Chunk* const own = new (std::nothrow) Chunk;
                if (own == nullptr) return nullptr;
                if (chunk->next.compare_exchange_strong(next, own))
                    next = own;
                else
                    delete own;
            }
            chunk = next;
        }
    }

    static bool is_same(const Entry& entry) noexcept {
        struct stat status {};
        return ::fstat(entry.fd_, &status) == 0 && status.st_dev == entry.device_ && status.st_ino == entry.inode_;
    }

    Chunk first_{};
};

} // namespace redislock::detail
