/// The thread that keeps leases alive and tells their loss in time, whatever becomes of the server. It knows when to
/// come back to which lease; what is to be done with it the WorkerTask says, and a Port carries it out without
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
    std::shared_ptr<WorkerTask> task;
    Token token;
    TimePoint asked, deadline;

    Request request() const { return task->worker_request(token, deadline); }

    unsigned channel_group() const noexcept { return task->channel_group(); }
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
    void keep(std::shared_ptr<WorkerTask> task, TimePoint first) {
        const std::lock_guard guard{mutex_};
        if (!thread_.joinable()) thread_.start([this] { run(); });
        WorkerTask* const address = task.get();
        const auto entry = agenda_.find({address->due, address});
        const bool listened = entry != agenda_.end() && entry->second.listened;
        const bool listens = listened || task->has_listeners();
        if (listens && !listened) {
            callbacks_.stand_by(listened_ + 1);
            first = std::min(first, task->make_room(listened_));
        }
        const bool begins_to_watch = may_move() && agenda_.empty();
        if (entry == agenda_.end()) {
            agenda_.insert({{address->due = first, address}, {std::move(task), listens}});
        } else {
            entry->second.listened = listens;
            reschedule(entry, first = std::min(first, address->due));
        }
        listened_ += listens && !listened;
        if (begins_to_watch) first = TimePoint{};
        if (first < sleeps_until_) alarm_.set(sleeps_until_ = first);
    }

    /// The thread has no part in it any more, but for an answer that comes late, which the task ignores.
    void drop(WorkerTask& task) noexcept {
        const std::lock_guard guard{mutex_};
        reschedule(agenda_.find({task.due, &task}), TimePoint::max());
    }

private:
    using Engine = typename Port::Engine;
    struct Kept {
        std::shared_ptr<WorkerTask> task;
        bool listened; ///< somebody is to be told of its loss
    };
    using Agenda = std::map<std::pair<TimePoint, WorkerTask*>, Kept>;

    /// Ends in a child that an observer has forked: there it is the only thread, and the leases are the parent's.
    void run() {
        while (generation_ == generation()) {
            try {
                bool is_kept = false;
                {
                    const std::lock_guard guard{mutex_};
                    if (over_ && !has_untried()) return;
                    is_kept = !agenda_.empty();
                    take_steps(Engine::now());
                    for (; !to_tell_.empty(); to_tell_.pop_front()) callbacks_.tell(to_tell_.front(), Engine::now());
                }
                for (Renewal& renewal : std::exchange(to_send_, {})) port_.send(std::move(renewal));
                watch(is_kept);
                port_.advance(Engine::now(),
                              [this](const Renewal& renewal, const Answer& answer) { answered(renewal, answer); });
                if (has_moved_) ask_all_anew(Engine::now());
                callbacks_.relieve(Engine::now());
            } catch (const std::exception&) { // no memory, or no thread
                // What is missed by that is made up for: see to_tell_, and HeldLease on when it asks again.
            }
            {
                const std::lock_guard guard{mutex_};
                const TimePoint next = agenda_.empty() ? TimePoint::max() : agenda_.begin()->first.first;
                const TimePoint untold = to_tell_.empty() ? TimePoint::max() : later(Engine::now(), Millis{2});
                sleeps_until_ = std::min({next, port_.due(), callbacks_.due(), untold, watch_at_});
                if (over_ && !has_untried()) sleeps_until_ = TimePoint{};
                alarm_.set(sleeps_until_);
            }
            port_.wait(alarm_);
        }
    }

    /// The backend's server may become another one: that is watched while leases are kept. Where it can't, nobody is
    /// woken for that.
    static constexpr bool watches = requires(Port & port) { port.has_moved(); };
    bool may_move() const noexcept {
        if constexpr (watches) return port_.may_move();
        return false;
    }
    void watch(bool is_kept) {
        if constexpr (watches) {
            watch_at_ = is_kept ? port_.watch(Engine::now()) : TimePoint::max();
            has_moved_ |= port_.has_moved();
        }
    }

    /// What is under way was answered before, for who was asked is left.
    void ask_all_anew(TimePoint now) {
        const std::lock_guard guard{mutex_};
        std::vector<typename Agenda::key_type> all;
        for (const auto& [key, kept] : agenda_) all.push_back(key);
        for (const auto& key : all) reschedule(agenda_.find(key), key.second->ask_anew(now));
        has_moved_ = false;
    }

    bool has_untried() const noexcept {
        return std::any_of(agenda_.begin(), agenda_.end(),
                           [](const auto& entry) { return entry.second.task->is_untried(); });
    }

    void answered(const Renewal& renewal, const Answer& answer) {
        const TimePoint now = Engine::now();
        std::optional<WorkerTask::Progress> progress;
        {
            const std::lock_guard guard{mutex_}; // first, for no other lease of the same lock is to come in between
            progress = renewal.task->answered(renewal.token, answer, renewal.asked, now);
            const TimePoint due = renewal.task->due;
            if (progress && progress->next < due) reschedule(agenda_.find({due, renewal.task.get()}), progress->next);
        }
        if (progress) renewal.task->tell(*progress, answer, now - renewal.asked);
    }

    /// Of those whose time has come, and of those behind them whose time is near, so that they travel together: as many
    /// as the others' answers and losses can wait for.
    void take_steps(TimePoint now) {
        if (agenda_.empty() || agenda_.begin()->first.first > now) return;
        constexpr int most = 256;
        const TimePoint reach = now + agenda_.begin()->second.task->slack();
        auto entry = agenda_.begin();
        for (int taken = 0; taken < most && entry != agenda_.end() && entry->first.first <= reach;) {
            const auto current = entry++;
            const std::shared_ptr<WorkerTask>& task = current->second.task;
            const WorkerTask::Step step = task->step(now);
            if (step.act == WorkerTask::Step::Act::nothing && step.next == current->first.first) continue;
            ++taken;
            if (step.act == WorkerTask::Step::Act::ask) to_send_.push_back({task, step.token, now, step.deadline});
            if (step.act == WorkerTask::Step::Act::tell && (step.listeners || current->second.listened))
                to_tell_.push_back({task, step});
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
        WorkerTask* const task = node.mapped().task.get();
        node.key() = {task->due = next, task};
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
    TimePoint sleeps_until_ = TimePoint::max(), watch_at_ = TimePoint::max();
    bool over_ = false, has_moved_ = false;
    const Generation generation_ = generation();
    typename Engine::Thread thread_;
};

/// A renewer that is made when the first lease is kept, in its process. Thread-safe.
template <class Port>
class Renewers {
public:
    template <class... Arguments>
    void keep(const std::shared_ptr<WorkerTask>& task, TimePoint when, Arguments&&... of_the_port) {
        Slot& slot = slot_.get();
        Renewer<Port>* renewer = slot.renewer.load();
        if (renewer == nullptr) {
            const std::lock_guard guard{slot.mutex};
            renewer = slot.renewer.load();
            if (renewer == nullptr) slot.renewer = renewer = new Renewer<Port>{std::forward<Arguments>(of_the_port)...};
        }
        renewer->keep(task, when);
    }
    void drop(WorkerTask& task) noexcept {
        if (Renewer<Port>* renewer = slot_.get().renewer.load()) renewer->drop(task);
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
