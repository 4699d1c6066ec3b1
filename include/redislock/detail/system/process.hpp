/// What there is once in a process: the number that tells a forked child from its parent, and the list of sockets. And
/// the owner of a descriptor. tests/fork_test.cpp goes red if it is wrong.
#pragma once

#include "descriptors.hpp"

#include <pthread.h>

#include <utility>

namespace redislock::detail {

/// Visible among shared libraries, whatever they are built with, so that all of a process have one.
struct Process {
    Forks forks{};
    Descriptors descriptors{};
};
[[gnu::visibility("default")]] inline constinit Process process{};

/// Of a process that was not known: a new one, or a forked child.
[[gnu::cold]] inline Generation look_again() noexcept {
    const auto [generation, is_new] = process.forks.look();
    if (is_new) process.descriptors.close_inherited(generation);
    return generation;
}

/// A number that is another one in a forked child: what remembers an older one belongs to the parent. A nanosecond.
inline Generation generation() noexcept {
    const Generation known = process.forks.known();
    return known != 0 ? known : look_again();
}

/// Each library has a handler of its own, that goes with it. So a child of fork() closes its copies of the sockets at
/// once, and others when they first use anything of ours.
[[gnu::visibility("hidden")]] inline constinit std::atomic<bool> is_watched{false};
[[gnu::visibility("hidden")]] inline void after_fork() noexcept {
    process.forks.forked();
    static_cast<void>(generation());
}
[[gnu::visibility("hidden")]] inline void watch_forks() noexcept {
    if (!is_watched.load(std::memory_order_relaxed) && !is_watched.exchange(true))
        ::pthread_atfork(nullptr, nullptr, &after_fork);
}

/// An open descriptor. In a forked child it is the parent's: not used, and not closed by this object, for the number
/// may be another file's by then. A child's copies of sockets are closed by Descriptors::close_inherited().
class Descriptor {
public:
    Descriptor() = default;
    explicit Descriptor(int fd) noexcept : fd_{fd} {
        if (fd < 0) return;
        watch_forks();
        generation_ = generation();
        entry_ = process.descriptors.add(fd, generation_);
    }
    Descriptor(Descriptor&& other) noexcept
        : fd_{std::exchange(other.fd_, -1)}, generation_{other.generation_}, entry_{other.entry_} {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        Descriptor old{std::move(*this)};
        fd_ = std::exchange(other.fd_, -1);
        generation_ = other.generation_;
        entry_ = other.entry_;
        return *this;
    }
    ~Descriptor() {
        if (!*this) return;
        if (entry_ != nullptr)
            process.descriptors.close(*entry_, generation_);
        else
            ::close(fd_);
    }

    int fd() const noexcept { return fd_; }
    explicit operator bool() const noexcept { return fd_ >= 0 && generation_ == generation(); }

    /// While nobody uses it, it may be closed for want of descriptors. To be taken back before it's used again; then
    /// false: it was closed.
    void set_aside() noexcept {
        if (*this && entry_ != nullptr) process.descriptors.spare(*entry_, generation_);
    }
    [[nodiscard]] bool take_back() noexcept {
        if (!*this) return false;
        if (entry_ == nullptr || process.descriptors.take_back(*entry_, generation_)) return true;
        *this = {};
        return false;
    }

private:
    int fd_ = -1;
    Generation generation_ = 0;
    Descriptors::Entry* entry_ = nullptr;
};

/// What `open()` gives; -1 and errno are its failure. Where there is no descriptor left, those that were set aside are
/// closed, and it is tried once more.
template <class Open>
Descriptor opened(Open open) noexcept {
    int fd = open();
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        const int error = errno;
        const bool again = process.descriptors.close_spare(generation());
        errno = error;
        if (again) fd = open();
    }
    return Descriptor{fd};
}

} // namespace redislock::detail
