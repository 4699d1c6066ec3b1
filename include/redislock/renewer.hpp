/// The thread that keeps leases alive and tells their loss in time, whatever becomes of the server. It knows when to come back to
/// which lease; what is to be done with it the lease's Holding says, and a Port carries it out without ever waiting.
#pragma once

#include "backend.hpp"
#include "per_process.hpp"

#include <deque>
#include <map>
#include <vector>

namespace redislock::detail {

/// One extension of a lease that is under way.
struct Renewal {
    std::shared_ptr<Holding> holding;
    Token token;
    TimePoint asked, deadline;

    Request request() const noexcept {
        Request request{Verb::extend, holding->key, token, holding->options.ttl, deadline};
        request.recheck = holding->options.recheck();
        request.replicas = holding->options.min_replicas;
        return request;
    }
};

/// A loss, to be told outside all mutexes: first to those who wait for the signal of that lease.
struct Message {
    std::shared_ptr<Holding> holding{};
    Holding::Step step{};

    void tell() {
        if (step.listeners) step.listeners->request_stop();
        holding->tell_lost(step.why);
    }
};

/// Tell losses, in threads that callbacks may block for as long as they like. Losses are rare: a thread is started when
/// there is something to tell, and one more for each that has not been told within 2 ms; they end when nothing is left.
template <class Engine>
class Heralds {
public:
    void tell(Message message, TimePoint now) {
        {
            const std::lock_guard guard{shared_->mutex};
            if (shared_->untold.empty()) relieve_at_ = now + Millis{2};
            shared_->untold.push_back(std::move(message));
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
        std::deque<Message> untold{};
        int threads = 0;
    };

    static void run(Shared& shared) {
        for (;;) {
            Message message;
            {
                const std::lock_guard guard{shared.mutex};
                if (shared.untold.empty()) {
                    --shared.threads;
                    return;
                }
                message = std::move(shared.untold.front());
                shared.untold.pop_front();
            }
            message.tell();
        }
    }

    void add() {
        {
            const std::lock_guard guard{shared_->mutex};
            ++shared_->threads;
        }
        try {
            engine_.detach([shared = shared_] { run(*shared); });
        } catch (...) { // no thread is to be had: then in this one
            run(*shared_);
        }
    }

    std::size_t untold() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->untold.size();
    }

    std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
    Engine engine_;
    TimePoint relieve_at_{};
};

/// One thread for all leases of a backend, started with the first of them.
/// Port: `send(Renewal)`, `advance(now, answered)` and `due()` as of Channel, `wait(alarm)` for whatever comes first; and an Engine,
/// as System is one.
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
        thread_.join();
    }

    void keep(std::shared_ptr<Holding> holding, TimePoint first) {
        const std::lock_guard guard{mutex_};
        if (!thread_.joinable()) thread_.start([this] { run(); });
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
    using Engine = typename Port::Engine;
    using Agenda = std::map<std::pair<TimePoint, Holding*>, std::shared_ptr<Holding>>;

    void run() {
        for (;;) {
            try {
                {
                    const std::lock_guard guard{mutex_};
                    if (over_) return;
                    take_steps(Engine::now());
                }
                for (auto& message : to_tell_) heralds_.tell(std::move(message), Engine::now());
                to_tell_.clear();
                for (Renewal& renewal : to_send_) port_.send(std::move(renewal));
                to_send_.clear();
                port_.advance(Engine::now(),
                              [this](const Renewal& renewal, const Answer& answer) { answered(renewal, answer); });
                heralds_.relieve(Engine::now());
            } catch (const std::bad_alloc&) { // a renewal may be lost by that; when its lease ends, that is told
            }
            {
                const std::lock_guard guard{mutex_};
                const TimePoint next = agenda_.empty() ? TimePoint::max() : agenda_.begin()->first.first;
                sleeps_until_ = over_ ? TimePoint{} : std::min({next, port_.due(), heralds_.due()});
                alarm_.set(sleeps_until_);
            }
            port_.wait(alarm_);
        }
    }

    void answered(const Renewal& renewal, const Answer& answer) {
        const TimePoint now = Engine::now();
        std::optional<Holding::Renewed> renewed;
        {
            const std::lock_guard guard{mutex_}; // first, for no other lease of the holding is to come in between
            renewed = renewal.holding->answered(renewal.token, answer, renewal.asked, now);
            if (renewed) reschedule(agenda_.extract({renewal.holding->due, renewal.holding.get()}), renewed->next);
        }
        if (renewed && renewed->slack) renewal.holding->tell_renewed(now - renewal.asked, *renewed->slack);
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
            if (step.act == Holding::Step::Act::tell) to_tell_.push_back({current->second, step});
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
    Heralds<Engine> heralds_;
    typename Engine::Alarm alarm_;
    std::mutex mutex_;
    Agenda agenda_;
    std::vector<Renewal> to_send_;
    std::vector<Message> to_tell_;
    TimePoint sleeps_until_ = TimePoint::max();
    bool over_ = false;
    typename Engine::Thread thread_;
};

/// A renewer that is made when the first lease is kept, in its process. Thread-safe.
template <class Port>
class Renewers {
public:
    template <class... Arguments>
    void keep(const std::shared_ptr<Holding>& holding, TimePoint when, Arguments&&... of_the_port) {
        Slot& slot = slot_.get();
        Renewer<Port>* renewer = slot.renewer.load();
        if (renewer == nullptr) {
            const std::lock_guard guard{slot.mutex};
            renewer = slot.renewer.load();
            if (renewer == nullptr) slot.renewer = renewer = new Renewer<Port>{std::forward<Arguments>(of_the_port)...};
        }
        renewer->keep(holding, when);
    }
    void drop(Holding& holding) noexcept {
        if (Renewer<Port>* renewer = slot_.get().renewer.load()) renewer->drop(holding);
    }

private:
    struct Slot {
        std::mutex mutex{};
        std::atomic<Renewer<Port>*> renewer{nullptr};
        ~Slot() { delete renewer.load(); }
        bool abandon() noexcept { return false; } // its thread is the parent's, and its mutex may be locked for ever
    };
    PerProcess<Slot> slot_;
};

} // namespace redislock::detail
