/// The connections to one server that nobody uses at the moment. It knows nothing of what they are used for, but for
/// this: a holder can always release. tests/cleanup_test.cpp and tests/redis_test.cpp go red if it is wrong.
#pragma once

#include "channel_wait.hpp"

#include <mutex>
#include <vector>

namespace redislock::detail {

/// While leases are held, one idle connection is kept for extensions and releases: a server or a process that has room
/// for no other one must not cost a lease that was granted. Thread-safe. In a forked child it is empty.
class ChannelPool {
public:
    ChannelPool(const Server& server, std::size_t most_idle) : server_{server}, most_idle_{most_idle} {}
    ChannelPool(const ChannelPool&) = delete;
    ChannelPool& operator=(const ChannelPool&) = delete;

    /// An idle one, or else a new one, which opens itself when it is used.
    std::unique_ptr<Channel> take(Verb verb) {
        if (std::unique_ptr<Channel> idle = take_idle(verb)) return idle;
        server_.lingering.get().sockets.sweep();
        return std::make_unique<Channel>(server_, true);
    }

    /// The one used last, for its caches are warm, but no acquire takes the one that is kept. Null if there is none
    /// that is fit.
    std::unique_ptr<Channel> take_idle(Verb verb) {
        // A server that finds us gone drops what it has not read yet, beyond its first 16 KB.
        constexpr std::size_t most_owed = 16;
        for (auto& [mutex, own] = own_.get();;) {
            std::unique_ptr<Channel> channel;
            {
                const std::lock_guard guard{mutex};
                auto chosen = own.idle.rbegin();
                if (verb == Verb::acquire && own.leases > 0 && chosen != own.idle.rend() && chosen->get() == own.kept)
                    ++chosen;
                if (chosen == own.idle.rend()) {
                    if (verb != Verb::acquire && own.leases > 0) own.missed = now();
                    return nullptr;
                }
                channel = std::move(*chosen);
                own.idle.erase(std::next(chosen).base());
                if (channel.get() == own.kept) own.kept = nullptr;
            }
            if (channel->take_back(now()) && channel->owed() <= most_owed) return channel;
        }
    }

    const Locator& locator() const noexcept { return server_.locator; }

    /// For an acquire, where no connection can be made: also the one that is kept, unless it was wanted of late for a
    /// lease that is held.
    std::unique_ptr<Channel> take_spare() {
        constexpr Millis of_late{1'000};
        {
            auto& [mutex, own] = own_.get();
            const std::lock_guard guard{mutex};
            if (now() < own.missed + of_late) return nullptr;
        }
        return take_idle(Verb::release);
    }

    /// Where one has died, the others may be dead as well, though they don't know yet.
    void give_back(std::unique_ptr<Channel> channel) noexcept try {
        if (channel->has_died()) forget_idle();
        if (!channel->is_ready()) return;
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        const bool is_kept = own.leases > 0 && own.kept == nullptr;
        if (!is_kept && own.idle.size() >= most_idle_) return;
        own.idle.push_back(std::move(channel));
        if (is_kept)
            own.kept = own.idle.back().get();
        else
            own.idle.back()->set_aside();
    } catch (...) { // no room for it: it's closed
    }

    /// Counts the leases that are held. One that was given away, or has run out, counts for ever, and costs a
    /// connection that is kept.
    void count(const Request& request, const Answer& answer) noexcept {
        const bool takes = request.verb == Verb::acquire || (request.verb == Verb::extend && request.was_granted);
        const bool is_granted = takes && answer.verdict == Verdict::yes;
        const bool is_sent = !request.wants_answer && !answer.why;
        const bool is_over =
            request.verb == Verb::release && request.was_granted && (answer.is_about_the_key() || is_sent);
        if (!is_granted && !is_over) return;
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        if (is_granted)
            ++own.leases;
        else if (own.leases > 0)
            --own.leases;
    }

private:
    using Idle = std::vector<std::unique_ptr<Channel>>;
    struct Own {
        Idle idle{};
        const Channel* kept = nullptr; ///< for releases, among those that are idle. It is not set aside: want of
                                       ///< descriptors must not cost it
        std::size_t leases = 0;
        TimePoint missed{}; ///< when an extension or a release found none idle
    };

    void forget_idle() {
        Idle forgotten; // closed without the mutex
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        own.idle.swap(forgotten);
        own.kept = nullptr;
    }

    const Server& server_;
    const std::size_t most_idle_;
    PerProcess<Guarded<Own>> own_;
};

/// A channel that is borrowed from a pool for as long as answers are owed to it. Not thread-safe.
class BorrowedChannel {
public:
    explicit BorrowedChannel(ChannelPool& pool) noexcept : pool_{pool} {}

    void send(std::shared_ptr<Question> question) {
        if (!channel_) channel_ = pool_.take(question->request.verb);
        channel_->send(std::move(question));
    }
    void advance(TimePoint now) {
        if (!channel_) return;
        channel_->advance(now);
        if (channel_->owed() == 0) pool_.give_back(std::move(channel_));
    }
    TimePoint due() const noexcept { return channel_ ? channel_->due() : TimePoint::max(); }
    bool in_doubt() const noexcept { return channel_ && channel_->in_doubt(); }
    void add_to(ChannelWait& wait) const noexcept {
        if (channel_) wait.add(*channel_);
    }

private:
    ChannelPool& pool_;
    std::unique_ptr<Channel> channel_{};
};

} // namespace redislock::detail
