/// What becomes of a socket on which something was sent that nobody waits for. It knows nothing of what that is.
/// tests/lingering_test.cpp goes red if it is wrong, and tests/session_test.cpp.
#pragma once

#include "../system/per_process.hpp"
#include "../system/threads.hpp"
#include "../system/wait.hpp"

#include <sys/socket.h>

#include <array>
#include <optional>
#include <vector>

namespace redislock::detail {

/// Sockets that stay open until the server has read what was sent on them: if we close first, the server's next write
/// fails and it drops our unread commands. The server has read it when it closes the connection, or 1 s after it has
/// answered. Each is closed after 10 s at the latest, the oldest when there are more than 64, and all where the process
/// has no descriptor left.
///
/// A thread waits for that; it runs only while there are such sockets. Where it can't be started, they are closed as
/// others come. Thread-safe.
class LingeringSockets {
public:
    LingeringSockets() = default;
    LingeringSockets(const LingeringSockets&) = delete;
    LingeringSockets& operator=(const LingeringSockets&) = delete;

    /// Joins the thread, which waits for nothing.
    ~LingeringSockets() {
        {
            const std::lock_guard guard{mutex_};
            over_ = true;
            if (wake_) wake_->set();
        }
        thread_.join();
    }

    /// Where there is no memory it is closed.
    void keep(Descriptor socket, const void* owner) noexcept try {
        if (!socket) return;
        Lingering one{std::move(socket), owner, later(now(), longest)};
        drain(one.socket.fd()); // what has come by now says nothing of what was sent last
        one.socket.set_aside();
        const std::lock_guard guard{mutex_};
        sweep(now());
        if (sockets_.size() >= most) sockets_.erase(sockets_.begin());
        sockets_.push_back(std::move(one));
        if (is_running_) return wake_->set();
        thread_.join(); // the last one, which is over
        wake_.emplace();
        thread_.start([this] { run(); });
        is_running_ = true;
    } catch (const std::exception&) { // no memory, descriptor or thread
    }

    /// Closes the owner's.
    void forget(const void* owner) noexcept {
        const std::lock_guard guard{mutex_};
        std::erase_if(sockets_, [owner](const Lingering& one) { return one.owner == owner; });
        if (is_running_) wake_->set();
    }

    /// Closes those that are done. Only needed where there is no thread.
    void sweep() noexcept {
        const std::lock_guard guard{mutex_};
        if (!is_running_) sweep(now());
    }

private:
    static constexpr std::size_t most = 64;
    static constexpr std::chrono::seconds longest{10}, after_an_answer{1};

    struct Lingering {
        Descriptor socket;
        const void* owner;
        TimePoint until;
    };

    enum class Heard { nothing, something, end };

    /// What is received is of no interest. No more at once than others can wait for.
    static Heard drain(int fd) noexcept {
        Heard heard = Heard::nothing;
        for (int reads = 0; reads < 16; ++reads) {
            char bytes[4096];
            const ssize_t got = ::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
            if (got > 0)
                heard = Heard::something;
            else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
                return heard;
            else
                return Heard::end;
        }
        return heard;
    }

    static bool is_done(Lingering& one, TimePoint now) noexcept {
        if (!one.socket.take_back()) return true; // it was closed for want of descriptors
        const Heard heard = drain(one.socket.fd());
        if (heard == Heard::something) one.until = std::min(one.until, later(now, after_an_answer));
        if (heard == Heard::end || one.until <= now) return true;
        one.socket.set_aside();
        return false;
    }

    void sweep(TimePoint now) noexcept {
        std::erase_if(sockets_, [now](Lingering& one) { return is_done(one, now); });
    }

    void run() noexcept {
        for (;;) {
            std::array<pollfd, 1 + most> entries{{{wake_->fd(), POLLIN, 0}}};
            std::size_t count = 1;
            TimePoint until = TimePoint::max();
            {
                const std::lock_guard guard{mutex_};
                wake_->unset();
                sweep(now());
                is_running_ = !over_ && !sockets_.empty();
                if (!is_running_) return wake_.reset();
                for (const Lingering& one : sockets_) {
                    entries[count++] = {one.socket.fd(), POLLIN, 0};
                    until = std::min(until, one.until);
                }
            }
            wait(std::span{entries}.first(count), until);
        }
    }

    std::mutex mutex_;
    std::vector<Lingering> sockets_; ///< the oldest first
    std::optional<Signal> wake_;
    bool is_running_ = false, over_ = false;
    System::Thread thread_;
};

/// The one of a process, and how many share it. Constant-initialised and never destroyed. Its lock is held for a few
/// instructions only, and says by whom: a child finds its parent's lock open.
class ProcessLingering {
public:
    constexpr ProcessLingering() noexcept = default;

    LingeringSockets& join() {
        auto fresh = std::make_unique<LingeringSockets>();
        const Locked locked{*this};
        if (shares_++ == 0) sockets_ = fresh.release();
        return *sockets_;
    }

    /// The last one to leave destroys it.
    void leave() noexcept {
        std::unique_ptr<LingeringSockets> last;
        const Locked locked{*this};
        if (--shares_ == 0) last.reset(std::exchange(sockets_, nullptr));
    }

private:
    struct Locked {
        explicit Locked(ProcessLingering& of) noexcept : what{of} {
            const Generation own = generation();
            for (Generation other = 0; !what.locked_by_.compare_exchange_weak(other, own);) {
                if (other != own) continue; // the lock of a process that isn't ours
                other = 0;
                ::sched_yield();
            }
            if (std::exchange(what.generation_, own) == own) return;
            what.shares_ = 0; // the parent's are none of ours, nor is its thread
            what.sockets_ = nullptr;
        }
        Locked(const Locked&) = delete;
        Locked& operator=(const Locked&) = delete;
        ~Locked() { what.locked_by_.store(0); }
        ProcessLingering& what;
    };

    std::atomic<Generation> locked_by_{0};
    Generation generation_ = 0;
    unsigned shares_ = 0;
    LingeringSockets* sockets_ = nullptr;
};
[[gnu::visibility("default")]] inline constinit ProcessLingering process_lingering{};

/// A share in the process's LingeringSockets. Those that were put there through it are closed with it.
class LingeringShare {
public:
    LingeringShare() = default;
    LingeringShare(const LingeringShare&) = delete;
    LingeringShare& operator=(const LingeringShare&) = delete;
    ~LingeringShare() {
        sockets.forget(this);
        process_lingering.leave();
    }

    /// Of a share that is the parent's nothing can be destroyed.
    bool abandon() noexcept { return false; }

    void keep(Descriptor socket) noexcept { sockets.keep(std::move(socket), this); }

    LingeringSockets& sockets = process_lingering.join();
};

} // namespace redislock::detail
