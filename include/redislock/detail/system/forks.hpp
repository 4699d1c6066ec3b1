/// How a process learns that it is a forked child, whatever made it: fork(), _Fork() or a system call. It knows nothing
/// of what is to be done about that. tests/fork_test.cpp goes red if it is wrong.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <new>

namespace redislock::detail {

/// By what a process knows itself again. It is made of the pid, so that several copies of the library in a process
/// agree on it, and of a count, for pids repeat.
using Generation = std::uint64_t;

/// A Generation that is another one in a forked child. It stands in a page that the kernel fills with zeros in a child
/// (MADV_WIPEONFORK), so that no handler is needed, which could run too late, or not at all. A child that shares its
/// parent's memory, as after vfork(), is the same to us.
///
/// A kernel before 4.14 refuses such a page. There each look compares the process's number, and forked() must be called
/// in a child of fork() besides: in a new pid namespace a child may have its parent's number.
///
/// Thread-safe, without locks, and may be used in a child of a process with threads. Constant-initialised and never
/// destroyed: it may be used before and after everything else.
class Forks {
public:
    /// `can_wipe` is false in tests only: as if the kernel refused.
    constexpr explicit Forks(bool can_wipe = true) noexcept : can_wipe_{can_wipe} {}
    Forks(const Forks&) = delete;
    Forks& operator=(const Forks&) = delete;

    /// This process's number; 0: look().
    Generation known() const noexcept { return page_.load(std::memory_order_acquire)->load(std::memory_order_acquire); }

    struct Look {
        Generation generation;
        bool is_new; ///< nobody in this process has seen it before
    };

    /// Finds out. Keeps errno.
    Look look() noexcept {
        const int before = errno;
        Page* page = page_.load(std::memory_order_acquire);
        if (page == &unmapped_) page = mapped();
        const Look found = page == &refused_ ? look_at_pid() : numbered(*page);
        errno = before;
        return found;
    }

    /// In a child of fork(), if it isn't the kernel that tells us.
    void forked() noexcept {
        if (page_.load() == &refused_) seen_ = 0;
    }

private:
    using Page = std::atomic<Generation>;
    static constexpr unsigned pid_bits = 22; // PID_MAX_LIMIT of Linux

    /// `last_` is ahead of what is put into the page, whenever another thread forks: no child repeats a number of its
    /// ancestors'.
    Look numbered(Page& page) noexcept {
        Generation number = 0;
        const Generation next = next_for(pid());
        if (page.compare_exchange_strong(number, next)) return {next, true};
        return {number, false};
    }

    Look look_at_pid() noexcept {
        const Generation own = pid();
        for (Generation seen = seen_.load();;) {
            if (seen % (Generation{1} << pid_bits) == own) return {seen, false};
            const Generation next = next_for(own);
            if (seen_.compare_exchange_strong(seen, next)) return {next, true};
        }
    }

    Generation next_for(Generation pid) noexcept { return Generation{last_.fetch_add(1) + 1} << pid_bits | pid; }

    /// Not the C library's, for older ones remember it.
    static Generation pid() noexcept { return static_cast<Generation>(::syscall(SYS_getpid)); }

    /// Once, for all threads and children.
    Page* mapped() noexcept {
        const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        Page* const own = can_wipe_ ? wiped_page(size) : nullptr;
        Page* const chosen = own != nullptr ? own : &refused_;
        Page* current = &unmapped_;
        if (page_.compare_exchange_strong(current, chosen)) return chosen;
        if (own != nullptr) ::munmap(own, size);
        return current;
    }

    static Page* wiped_page(std::size_t size) noexcept {
        void* const page = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) return nullptr;
#if defined(MADV_WIPEONFORK)
        if (::madvise(page, size, MADV_WIPEONFORK) == 0) return new (page) Page{0};
#endif
        ::munmap(page, size);
        return nullptr;
    }

    Page unmapped_{0}, refused_{0}; ///< stand for a page that isn't there yet, or never will be
    std::atomic<Page*> page_{&unmapped_};
    std::atomic<std::uint32_t> last_{0};
    std::atomic<Generation> seen_{0}; ///< without a page: of who looked last
    const bool can_wipe_;
};

} // namespace redislock::detail
