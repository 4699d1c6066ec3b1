/// The thread that keeps leases alive and tells their loss in time, whatever becomes of the server. It knows when to
/// come back to which lease; what is to be done with it the lease's HeldLease says, and a Port carries it out without
/// ever waiting. tests/renewal_test.cpp goes red if it is wrong.
#pragma once

#include "../system/per_process.hpp"
#include "../system/timers.hpp"
#include "callback_pool.hpp"

#include <deque>
#include <map>
#include <vector>

namespace redislock::detail {

/// One extension or release of a lease that is under way.
struct Renewal {
    std::shared_ptr<HeldLease> held_lease;
    Token token;
    TimePoint asked, deadline;

    Request request() const { return held_lease->worker_request(token, deadline); }

    /// Which of them may travel on one connection: WAIT blocks everything behind it, and a release that is overdue ends
    /// the connection.
    unsigned channel_group() const noexcept {
        constexpr unsigned of_releases = ~0U;
        return held_lease->is_pending_release() ? of_releases : held_lease->options.min_replicas;
    }
};

/// Renewals that have been answered since they were last looked at.
using AnsweredRenewals = std::vector<std::pair<Renewal, Answer>>;

/// One thread for all leases of a backend, started with the first of them.
/// Port: `send(Renewal)`, `advance(now, answered)` and `due()` as of Channel, `wait(alarm)` for whatever comes first;
/// and an Engine, as System is one.
template <class Port>
class Renewer {
public:
    template <class... Arguments>
    explicit Renewer(Arguments&&... arguments) : port_{std::forward<Arguments>(arguments)...} {}
    Renewer(const Renewer&) = delete;
    Renewer& operator=(const Renewer&) = delete;

    /// Joins the thread, which first tries once to release what was left behind: that takes a request timeout at most.
    /// Unless it is the one that destroys us, for an observer has called std::exit().
    ~Renewer() {
        {
            const std::lock_guard guard{mutex_};
            over_ = true;
        }
        alarm_.set(TimePoint{});
        if (thread_.is_current())
            thread_.detach();
        else
            thread_.join();
    }

    /// One that is kept already is come back to at `first` at the latest. If there is somebody to tell of its loss by
    /// now, a thread that does so stands by. Throws std::system_error if there is no thread to be had.
    void keep(std::shared_ptr<HeldLease> held_lease, TimePoint first) {
        const std::lock_guard guard{mutex_};
        if (!thread_.joinable()) thread_.start([this] { run(); });
        HeldLease* const address = held_lease.get();
        const auto entry = agenda_.find({address->due, address});
        const bool listened = entry != agenda_.end() && entry->second.listened;
        const bool listens = listened || held_lease->has_listeners();
        if (listens && !listened) {
            callbacks_.stand_by(listened_ + 1);
            first = std::min(first, held_lease->make_room(listened_));
        }
        if (entry == agenda_.end()) {
            agenda_.insert({{address->due = first, address}, {std::move(held_lease), listens}});
        } else {
            entry->second.listened = listens;
            reschedule(entry, first = std::min(first, address->due));
        }
        listened_ += listens && !listened;
        if (first < sleeps_until_) alarm_.set(sleeps_until_ = first);
    }

    /// The thread has no part in it any more, but for an answer that comes late, which HeldLease ignores.
    void drop(HeldLease& held_lease) noexcept {
        const std::lock_guard guard{mutex_};
        reschedule(agenda_.find({held_lease.due, &held_lease}), TimePoint::max());
    }

private:
    using Engine = typename Port::Engine;
    struct Kept {
        std::shared_ptr<HeldLease> held_lease;
        bool listened; ///< somebody is to be told of its loss
    };
    using Agenda = std::map<std::pair<TimePoint, HeldLease*>, Kept>;

    /// Ends in a child that an observer has forked: there it is the only thread, and the leases are the parent's.
    void run() {
        while (generation_ == generation()) {
            try {
                {
                    const std::lock_guard guard{mutex_};
                    if (over_ && !has_untried()) return;
                    take_steps(Engine::now());
                    for (; !to_tell_.empty(); to_tell_.pop_front()) callbacks_.tell(to_tell_.front(), Engine::now());
                }
                for (Renewal& renewal : std::exchange(to_send_, {})) port_.send(std::move(renewal));
                port_.advance(Engine::now(),
                              [this](const Renewal& renewal, const Answer& answer) { answered(renewal, answer); });
                callbacks_.relieve(Engine::now());
            } catch (const std::exception&) { // no memory, or no thread
                // What is missed by that is made up for: see to_tell_, and HeldLease on when it asks again.
            }
            {
                const std::lock_guard guard{mutex_};
                const TimePoint next = agenda_.empty() ? TimePoint::max() : agenda_.begin()->first.first;
                const TimePoint untold = to_tell_.empty() ? TimePoint::max() : later(Engine::now(), Millis{2});
                sleeps_until_ = std::min({next, port_.due(), callbacks_.due(), untold});
                if (over_ && !has_untried()) sleeps_until_ = TimePoint{};
                alarm_.set(sleeps_until_);
            }
            port_.wait(alarm_);
        }
    }

    bool has_untried() const noexcept {
        return std::any_of(agenda_.begin(), agenda_.end(),
                           [](const auto& entry) { return entry.second.held_lease->is_untried(); });
    }

    void answered(const Renewal& renewal, const Answer& answer) {
        const TimePoint now = Engine::now();
        std::optional<HeldLease::Renewed> renewed;
        {
            const std::lock_guard guard{mutex_}; // first, for no other lease of the same lock is to come in between
            renewed = renewal.held_lease->answered(renewal.token, answer, renewal.asked, now);
            const TimePoint due = renewal.held_lease->due;
            if (renewed && renewed->next < due)
                reschedule(agenda_.find({due, renewal.held_lease.get()}), renewed->next);
        }
        if (renewed) renewal.held_lease->tell(*renewed, answer, now - renewal.asked);
    }

    /// Of those whose time has come, and of those behind them whose time is near, so that they travel together: as many
    /// as the others' answers and losses can wait for.
    void take_steps(TimePoint now) {
        if (agenda_.empty() || agenda_.begin()->first.first > now) return;
        constexpr int most = 256;
        const TimePoint reach = now + agenda_.begin()->second.held_lease->slack();
        auto entry = agenda_.begin();
        for (int taken = 0; taken < most && entry != agenda_.end() && entry->first.first <= reach;) {
            const auto current = entry++;
            const std::shared_ptr<HeldLease>& held_lease = current->second.held_lease;
            const HeldLease::Step step = held_lease->step(now);
            if (step.act == HeldLease::Step::Act::nothing && step.next == current->first.first) continue;
            ++taken;
            if (step.act == HeldLease::Step::Act::ask) to_send_.push_back({held_lease, step.token, now, step.deadline});
            if (step.act == HeldLease::Step::Act::tell && (step.listeners || current->second.listened))
                to_tell_.push_back({held_lease, step});
            reschedule(current, step.next);
        }
    }

    /// TimePoint::max(): the entry is done with.
    void reschedule(typename Agenda::iterator entry, TimePoint next) noexcept {
        if (entry == agenda_.end()) return;
        auto node = agenda_.extract(entry);
        if (next == TimePoint::max()) {
            listened_ -= node.mapped().listened;
            return;
        }
        HeldLease* const held_lease = node.mapped().held_lease.get();
        node.key() = {held_lease->due = next, held_lease};
        agenda_.insert(agenda_.end(), std::move(node)); // where it belongs as a rule
    }

    Port port_;
    CallbackPool<Engine> callbacks_;
    typename Engine::Alarm alarm_;
    std::mutex mutex_;
    Agenda agenda_;
    std::size_t listened_ = 0; ///< entries of the agenda
    std::vector<Renewal> to_send_;
    std::deque<Message> to_tell_;
    TimePoint sleeps_until_ = TimePoint::max();
    bool over_ = false;
    const Generation generation_ = generation();
    typename Engine::Thread thread_;
};

/// A renewer that is made when the first lease is kept, in its process. Thread-safe.
template <class Port>
class Renewers {
public:
    template <class... Arguments>
    void keep(const std::shared_ptr<HeldLease>& held_lease, TimePoint when, Arguments&&... of_the_port) {
        Slot& slot = slot_.get();
        Renewer<Port>* renewer = slot.renewer.load();
        if (renewer == nullptr) {
            const std::lock_guard guard{slot.mutex};
            renewer = slot.renewer.load();
            if (renewer == nullptr) slot.renewer = renewer = new Renewer<Port>{std::forward<Arguments>(of_the_port)...};
        }
        renewer->keep(held_lease, when);
    }
    void drop(HeldLease& held_lease) noexcept {
        if (Renewer<Port>* renewer = slot_.get().renewer.load()) renewer->drop(held_lease);
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
