/// The thread that keeps leases alive and tells their loss in time, whatever becomes of the server. It knows when to come back to
/// which lease; what is to be done with it the lease's Holding says, and a Port carries it out without ever waiting.
/// tests/renewal_test.cpp goes red if it is wrong.
#pragma once

#include "backend.hpp"
#include "per_process.hpp"

#include <deque>
#include <list>
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

/// Tell losses, in threads that callbacks may block for as long as they like. One stands by from the first lease on, since a
/// thread that is only then started would be late. Where something has not been told for 2 ms there are twice as many, up to 64.
/// They stay, for a thread that ends takes as long as what callbacks have left in it.
template <class Engine>
class Heralds {
public:
    Heralds() = default;
    Heralds(const Heralds&) = delete;
    Heralds& operator=(const Heralds&) = delete;

    /// They tell what is left. One that is in a callback is left behind, for that may last, or be what destroys us.
    ~Heralds() {
        std::unique_lock guard{shared_->mutex};
        shared_->over = true;
        shared_->news.notify_all();
        const auto waits = [](const Herald& herald) { return herald.state == Herald::State::waiting; };
        while (std::any_of(shared_->heralds.begin(), shared_->heralds.end(), waits)) shared_->settled.wait(guard);
        std::list<Herald> ended;
        for (auto herald = shared_->heralds.begin(); herald != shared_->heralds.end();) {
            const auto one = herald++;
            if (one->state == Herald::State::telling)
                one->thread.detach();
            else
                ended.splice(ended.end(), shared_->heralds, one);
        }
        guard.unlock(); // for what callbacks have left to be destroyed with their thread may tell, too
        for (Herald& herald : ended) herald.thread.join();
    }

    /// One more, that ends with us. Throws std::system_error if there is no thread to be had.
    void add() {
        const std::lock_guard guard{shared_->mutex};
        Herald& self = shared_->heralds.emplace_back();
        try {
            self.thread.start([shared = shared_, engine = engine_, &self] { run(*shared, engine, self); });
        } catch (...) {
            shared_->heralds.pop_back();
            throw;
        }
    }

    /// Takes the message, unless it throws.
    void tell(Message& message, TimePoint now) {
        const std::lock_guard guard{shared_->mutex};
        if (shared_->untold.empty()) relieve_at_ = later(now, Millis{2});
        shared_->untold.push_back(std::move(message));
        shared_->news.notify_one();
    }

    /// When somebody else is to take on what is held up by a callback.
    TimePoint due() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->untold.empty() || shared_->heralds.size() >= most ? TimePoint::max() : relieve_at_;
    }

    void relieve(TimePoint now) {
        if (now < due()) return;
        relieve_at_ = later(now, Millis{2});
        const std::size_t alive = count();
        for (std::size_t more = std::min(alive, most - alive); more > 0; --more) add();
    }

private:
    static constexpr std::size_t most = 64;

    struct Herald {
        enum class State { waiting, telling, over };
        State state = State::waiting;
        typename Engine::Thread thread{};
    };

    struct Shared {
        std::mutex mutex{};
        typename Engine::Condition news{}, settled{};
        std::deque<Message> untold{};
        std::list<Herald> heralds{};
        bool over = false;
    };

    static void run(Shared& shared, const Engine& engine, Herald& self) {
        std::unique_lock guard{shared.mutex};
        const auto becomes = [&](typename Herald::State state) {
            self.state = state;
            if (shared.over) shared.settled.notify_all();
        };
        for (;;) {
            if (!shared.untold.empty()) {
                Message message = std::move(shared.untold.front());
                shared.untold.pop_front();
                becomes(Herald::State::telling);
                guard.unlock();
                const Generation before = generation();
                engine.as_program([&] { message.tell(); });
                message = {};
                if (before != generation()) return; // in a child that it has forked: see Renewer
                guard.lock();
                becomes(Herald::State::waiting);
            } else if (shared.over) {
                return becomes(Herald::State::over);
            } else {
                shared.news.wait(guard);
            }
        }
    }

    std::size_t count() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->heralds.size();
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
        if (!thread_.joinable()) {
            heralds_.add();
            thread_.start([this] { run(); });
        }
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

    /// Ends in a child that an observer has forked: there it is the only thread, and the leases are the parent's.
    void run() {
        while (generation_ == generation()) {
            try {
                {
                    const std::lock_guard guard{mutex_};
                    if (over_) return;
                    take_steps(Engine::now());
                }
                for (; !to_tell_.empty(); to_tell_.pop_front()) heralds_.tell(to_tell_.front(), Engine::now());
                for (Renewal& renewal : std::exchange(to_send_, {})) port_.send(std::move(renewal));
                port_.advance(Engine::now(),
                              [this](const Renewal& renewal, const Answer& answer) { answered(renewal, answer); });
                heralds_.relieve(Engine::now());
            } catch (const std::exception&) { // no memory, or no thread
                // What is missed by that is made up for: see to_tell_, and Holding on when it asks again.
            }
            {
                const std::lock_guard guard{mutex_};
                const TimePoint next = agenda_.empty() ? TimePoint::max() : agenda_.begin()->first.first;
                const TimePoint untold = to_tell_.empty() ? TimePoint::max() : later(Engine::now(), Millis{2});
                sleeps_until_ = over_ ? TimePoint{} : std::min({next, port_.due(), heralds_.due(), untold});
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
            const TimePoint due = renewal.holding->due;
            if (renewed && renewed->next < due) reschedule(agenda_.find({due, renewal.holding.get()}), renewed->next);
        }
        if (renewed) renewal.holding->tell(*renewed, answer, now - renewal.asked);
    }

    /// Of those whose time has come, and of those behind them whose time is near, so that they travel together: as many as
    /// the others' answers and losses can wait for.
    void take_steps(TimePoint now) {
        if (agenda_.empty() || agenda_.begin()->first.first > now) return;
        constexpr int most = 256;
        const TimePoint reach = now + agenda_.begin()->second->slack();
        auto entry = agenda_.begin();
        for (int taken = 0; taken < most && entry != agenda_.end() && entry->first.first <= reach;) {
            const auto current = entry++;
            Holding& holding = *current->second;
            const Holding::Step step = holding.step(now);
            if (step.act == Holding::Step::Act::nothing && step.next == current->first.first) continue;
            ++taken;
            if (step.act == Holding::Step::Act::renew)
                to_send_.push_back({current->second, step.token, now, step.deadline});
            if (step.act == Holding::Step::Act::tell) to_tell_.push_back({current->second, step});
            reschedule(current, step.next);
        }
    }

    void reschedule(typename Agenda::iterator entry, TimePoint next) {
        if (entry == agenda_.end()) return;
        auto node = agenda_.extract(entry);
        if (next == TimePoint::max()) return;
        node.key() = {node.mapped()->due = next, node.mapped().get()};
        agenda_.insert(agenda_.end(), std::move(node)); // where it belongs as a rule
    }

    Port port_;
    Heralds<Engine> heralds_;
    typename Engine::Alarm alarm_;
    std::mutex mutex_;
    Agenda agenda_;
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
