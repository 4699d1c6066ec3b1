/// The threads that tell of lost leases: they request the tokens of RedisLock::lost(), and run what may block, the
/// tokens' callbacks and the observer's `lost`. They know nothing of renewing.
/// tests/renewal_test.cpp goes red if it is wrong.
#pragma once

#include "../lease/worker_task.hpp"
#include "../system/process.hpp"

#include <list>
#include <map>
#include <mutex>
#include <vector>

namespace redislock::detail {

/// A loss, to be told outside all mutexes: first to those who wait for the token of that lease.
struct Message {
    std::shared_ptr<WorkerTask> task{};
    WorkerTask::Step step{};

    void tell() {
        tell([] {});
    }

    /// Calls `requested` as soon as the token is requested, before its callbacks: libstdc++ and libc++ run the one that
    /// was registered last first. (Elsewhere, or if a callback is registered at this very moment, it is called later.)
    /// If another thread is requesting the same token, it is called there.
    template <class Requested>
    void tell(Requested requested) {
        if (step.listeners) {
            const std::stop_callback first{step.listeners->get_token(), requested};
            step.listeners->request_stop();
        } else {
            requested();
        }
        task->tell_lost(step.why);
    }
};

/// A pool with as many idle threads as there are leases with a listener, up to `most`, since a thread that is only
/// started when a lease is lost would be late. Idle threads are woken as they are needed, and stay until the pool ends.
///
/// A token is requested by the thread that runs its callbacks, and one can't ask whether there are any. So each thread
/// takes one message, and if its callback blocks, others are woken for the rest. Where that would take longer than the
/// messages' deadlines allow, a thread requests several tokens before it runs the callbacks of the last of them; then
/// these callbacks run one after another.
template <class Engine>
class CallbackPool {
public:
    static constexpr std::size_t most = 1'024;

    CallbackPool() = default;
    CallbackPool(const CallbackPool&) = delete;
    CallbackPool& operator=(const CallbackPool&) = delete;

    /// The threads tell what is left. One that is in a callback is left behind, for that may last, or be what destroys
    /// us.
    ~CallbackPool() {
        std::unique_lock guard{shared_->mutex};
        shared_->over = true;
        while (shared_->wake_one()) {
        }
        while (shared_->any([](const Worker& one) { return one.state <= State::woken; })) shared_->settled.wait(guard);
        std::list<Worker> ended;
        for (auto worker = shared_->workers.begin(); worker != shared_->workers.end();) {
            const auto one = worker++;
            if (one->state == State::telling)
                one->thread.detach();
            else
                ended.splice(ended.end(), shared_->workers, one);
        }
        guard.unlock(); // for what callbacks have left to be destroyed with their thread may tell, too
        for (Worker& worker : ended) worker.thread.join();
    }

    /// Starts what is missing of one idle thread for each of so many leases. Throws std::system_error if there is none
    /// to be had.
    void stand_by(std::size_t leases) {
        const std::lock_guard guard{shared_->mutex};
        const std::size_t wanted = std::min(most, shared_->telling + shared_->untold.size() + leases);
        while (shared_->workers.size() < wanted) start();
    }

    /// Takes the message, unless it throws.
    void tell(Message& message, TimePoint now) {
        const std::lock_guard guard{shared_->mutex};
        const TimePoint by = std::max(message.step.deadline - Millis{1}, later(now, Millis{1}));
        shared_->untold.emplace(by, std::move(message));
        if (shared_->untold.size() > 1) return;
        look_at_ = later(now, blocked);
        wave_ = 1;
        shared_->wake_one();
        shared_->wake_one(); // the first may have to wait for a processor
    }

    /// When relieve() is to be called, for callbacks that block may hold up messages.
    TimePoint due() const {
        const std::lock_guard guard{shared_->mutex};
        return shared_->untold.empty() || shared_->idle.empty() ? TimePoint::max() : look_at_;
    }

    /// Wakes more threads, twice as many each time, where all that are awake are blocked, or the next deadline is near.
    void relieve(TimePoint now) {
        const std::lock_guard guard{shared_->mutex};
        if (shared_->untold.empty() || now < look_at_) return;
        look_at_ = later(now, blocked);
        const bool works = shared_->any(
            [&](const Worker& one) { return one.state == State::telling && now < later(one.since, blocked); });
        const bool urgent = shared_->untold.begin()->first < later(now, Millis{2});
        if (works && !urgent) return;
        const bool more_to_come = shared_->any([](const Worker& one) { return one.state == State::woken; });
        std::size_t count = more_to_come ? 1 : wave_ *= 2; // one: the others may wait for a processor that is not ours
        for (count = std::min(count, shared_->untold.size()); count > 0 && shared_->wake_one(); --count) {
        }
    }

private:
    /// After so long in a callback it is taken for one that blocks.
    static constexpr std::chrono::microseconds blocked{250};

    enum class State { idle, woken, telling, over };

    struct Worker {
        State state = State::idle;
        TimePoint since{}; ///< telling: when it took the message
        typename Engine::Condition wake{};
        typename Engine::Thread thread{};
    };

    struct Shared {
        std::mutex mutex{};
        std::multimap<TimePoint, Message> untold{}; ///< by deadline
        std::list<Worker> workers{};
        std::vector<Worker*> idle{}; ///< the one that was idle last is woken first
        std::size_t telling = 0;
        typename Engine::Condition settled{};
        bool over = false;

        bool wake_one() noexcept {
            if (idle.empty()) return false;
            Worker& worker = *idle.back();
            idle.pop_back();
            worker.state = State::woken;
            worker.wake.notify_one();
            return true;
        }

        template <class Which>
        bool any(Which which) const {
            return std::any_of(workers.begin(), workers.end(), which);
        }

        /// How many messages a thread takes, so that all are told by the first one's deadline.
        std::size_t share(TimePoint now) const {
            constexpr std::size_t most_in_a_row = 128;               // each has its place on the stack
            constexpr std::chrono::microseconds to_wake_another{50}; // on a busy machine; else 10
            const TimePoint::duration left = untold.begin()->first - now;
            if (left <= left.zero()) return most_in_a_row;
            const auto needed = (untold.size() * to_wake_another + left - TimePoint::duration{1}) / left;
            return std::min(most_in_a_row, static_cast<std::size_t>(needed));
        }

        Message take() {
            Message message = std::move(untold.begin()->second);
            untold.erase(untold.begin());
            return message;
        }
    };

    /// The mutex is locked.
    void start() {
        Worker& self = shared_->workers.emplace_back();
        try {
            shared_->idle.reserve(shared_->workers.size());
            self.thread.start([shared = shared_, engine = engine_, &self] { run(*shared, engine, self); });
        } catch (...) {
            shared_->workers.pop_back();
            throw;
        }
    }

    static void run(Shared& shared, const Engine& engine, Worker& self) {
        std::unique_lock guard{shared.mutex};
        const auto becomes = [&](State state) {
            self.state = state;
            if (shared.over) shared.settled.notify_all();
        };
        for (;;) {
            if (!shared.untold.empty()) {
                self.since = Engine::now();
                ++shared.telling;
                becomes(State::telling);
                bool ours = true;
                engine.as_program([&] { ours = tell_some(shared, guard); });
                if (!ours) return; // in a child that a callback has forked: see Renewer
                --shared.telling;
                becomes(State::woken);
            } else if (shared.over) {
                return becomes(State::over);
            } else {
                self.state = State::idle;
                shared.idle.push_back(&self); // without allocating: see start()
                while (self.state == State::idle) self.wake.wait(guard);
            }
        }
    }

    /// Tells the most urgent message; and as soon as its token is requested the next one, if there are so many, and so
    /// on. The mutex is locked, before and after; but not where this is false: a callback has forked, and this is the
    /// child, whose mutex may be locked for ever.
    static bool tell_some(Shared& shared, std::unique_lock<std::mutex>& guard, std::size_t depth = 1) {
        const Generation before = generation();
        Message message = shared.take();
        guard.unlock();
        message.tell([&, self = std::this_thread::get_id()] {
            if (std::this_thread::get_id() != self) return;
            guard.lock();
            const bool more = !shared.untold.empty() && depth < shared.share(Engine::now());
            if (!more || tell_some(shared, guard, depth + 1)) guard.unlock();
        });
        message = {};
        if (before != generation()) return false;
        guard.lock();
        return true;
    }

    std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
    Engine engine_;
    TimePoint look_at_{};
    std::size_t wave_ = 1; ///< how many threads were woken at once
};

} // namespace redislock::detail
