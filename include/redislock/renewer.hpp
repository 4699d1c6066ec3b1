/// The thread that keeps leases alive and tells their loss in time, whatever becomes of the server. It knows when to come back to
/// which lease; what is to be done with it the lease's Holding says, and a Port carries it out without ever waiting.
#pragma once

#include "channel.hpp"
#include "runtime.hpp"

#include <signal.h>

#include <map>
#include <thread>

namespace redislock::detail {

/// A thread of ours runs no signal handler of the program's.
template <class Work>
std::thread quiet_thread(Work work) {
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    struct Restore {
        ~Restore() { ::pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
        const sigset_t& mask;
    } const restore{before};
    return std::thread{std::move(work)};
}

/// Requests stops, in threads that callbacks may block for as long as they like. Losses are rare: a thread is started when
/// there is something to tell, and one more for each that has not been told within 2 ms; they end when nothing is left.
class Heralds {
public:
    Heralds() noexcept { ::pthread_sigmask(SIG_SETMASK, nullptr, &programs_mask_); }

    void tell(std::stop_source source, TimePoint now) {
        {
            const std::lock_guard guard{shared_->mutex};
            if (shared_->untold.empty()) relieve_at_ = now + Millis{2};
            shared_->untold.push_back(std::move(source));
            if (shared_->threads > 0) return;
        }
        add();
    }

    void relieve(TimePoint now) {
        if (now < due()) return;
        relieve_at_ = now + Millis{2};
        for (std::size_t left = untold(); left > 0; --left) add();
    }

    /// When somebody else is to take on what is held up by a callback.
    TimePoint due() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->untold.empty() ? TimePoint::max() : relieve_at_;
    }

private:
    struct Shared {
        std::mutex mutex{};
        std::deque<std::stop_source> untold{};
        int threads = 0;
    };

    static void run(Shared& shared) {
        for (;;) {
            std::stop_source source{std::nostopstate};
            {
                const std::lock_guard guard{shared.mutex};
                if (shared.untold.empty()) {
                    --shared.threads;
                    return;
                }
                source = std::move(shared.untold.front());
                shared.untold.pop_front();
            }
            source.request_stop();
        }
    }

    void add() {
        {
            const std::lock_guard guard{shared_->mutex};
            ++shared_->threads;
        }
        try {
            quiet_thread([shared = shared_, mask = programs_mask_] {
                ::pthread_sigmask(SIG_SETMASK, &mask, nullptr); // what callbacks start is the program's again
                run(*shared);
            }).detach();
        } catch (...) { // no thread is to be had: then in this one
            run(*shared_);
        }
    }

    std::size_t untold() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->untold.size();
    }

    std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
    sigset_t programs_mask_{};
    TimePoint relieve_at_{};
};

/// One thread for all leases of a backend, started with the first of them. Port: `fd()`, `events()`, `due()`, `send(Renewal)` and
/// `advance(now, answered)`, as of Channel.
template <class Port>
class Renewer {
public:
    template <class... Arguments>
    explicit Renewer(Arguments&&... arguments) : port_{std::forward<Arguments>(arguments)...} {}
    Renewer(const Renewer&) = delete;
    Renewer& operator=(const Renewer&) = delete;

    /// Joins the thread, which waits for nothing.
    ~Renewer() {
        {
            const std::lock_guard guard{mutex_};
            over_ = true;
        }
        alarm_.set(TimePoint{});
        if (thread_.joinable()) thread_.join();
    }

    void keep(std::shared_ptr<Holding> holding, TimePoint first) {
        const std::lock_guard guard{mutex_};
        if (!thread_.joinable()) thread_ = quiet_thread([this] { run(); });
        Holding* const address = holding.get();
        agenda_.erase({address->due, address});
        agenda_.insert_or_assign({address->due = first, address}, std::move(holding));
        if (first < sleeps_until_) alarm_.set(sleeps_until_ = first);
    }

    /// The thread has no part in it any more, but for an answer that comes late, which Holding ignores.
    void drop(Holding& holding) noexcept {
        const std::lock_guard guard{mutex_};
        agenda_.erase({holding.due, &holding});
    }

private:
    using Agenda = std::map<std::pair<TimePoint, Holding*>, std::shared_ptr<Holding>>;

    void run() {
        const auto answered = [this](const Renewal& renewal, const Answer& answer) {
            const std::lock_guard guard{mutex_}; // first, for no other lease of the holding is to come in between
            const auto next = renewal.holding->answered(renewal.token, answer, renewal.asked, now());
            if (next) reschedule(agenda_.extract({renewal.holding->due, renewal.holding.get()}), *next);
        };
        for (;;) {
            try {
                {
                    const std::lock_guard guard{mutex_};
                    if (over_) return;
                    take_steps(now());
                }
                for (std::stop_source& source : to_tell_) heralds_.tell(std::move(source), now());
                to_tell_.clear();
                for (Renewal& renewal : to_send_) port_.send(std::move(renewal));
                to_send_.clear();
                port_.advance(now(), answered);
                heralds_.relieve(now());
            } catch (const std::bad_alloc&) { // a renewal may be lost by that; when its lease ends, that is told
            }
            {
                const std::lock_guard guard{mutex_};
                const TimePoint next = agenda_.empty() ? TimePoint::max() : agenda_.begin()->first.first;
                sleeps_until_ = over_ ? TimePoint{} : std::min({next, port_.due(), heralds_.due()});
                alarm_.set(sleeps_until_);
            }
            wait(port_.fd(), port_.events(), {TimePoint::max(), alarm_.fd()});
        }
    }

    /// Of all whose time has come, and of those behind them whose time is near, so that they travel together.
    void take_steps(TimePoint now) {
        if (agenda_.empty() || agenda_.begin()->first.first > now) return;
        const TimePoint reach = now + agenda_.begin()->second->slack();
        std::vector<std::pair<typename Agenda::node_type, TimePoint>> moved;
        for (auto entry = agenda_.begin(); entry != agenda_.end() && entry->first.first <= reach;) {
            const auto current = entry++;
            Holding& holding = *current->second;
            const Holding::Step step = holding.step(now);
            if (step.act == Holding::Step::Act::nothing && step.next == current->first.first) continue;
            if (step.act == Holding::Step::Act::renew)
                to_send_.push_back(
                    {current->second, step.token, now, std::min(step.next, now + holding.options.answers_within())});
            if (step.act == Holding::Step::Act::tell)
                if (auto listeners = holding.listeners()) to_tell_.push_back(std::move(*listeners));
            moved.emplace_back(agenda_.extract(current), step.next);
        }
        for (auto& [entry, next] : moved) reschedule(std::move(entry), next);
    }

    void reschedule(typename Agenda::node_type entry, TimePoint next) {
        if (!entry || next == TimePoint::max()) return;
        entry.key() = {entry.mapped()->due = next, entry.mapped().get()};
        agenda_.insert(std::move(entry));
    }

    Port port_;
    Heralds heralds_;
    Alarm alarm_;
    std::mutex mutex_;
    Agenda agenda_;
    std::vector<Renewal> to_send_;
    std::vector<std::stop_source> to_tell_;
    TimePoint sleeps_until_ = TimePoint::max();
    bool over_ = false;
    std::thread thread_;
};

} // namespace redislock::detail
