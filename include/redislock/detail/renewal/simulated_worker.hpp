/// A worker without a thread: it comes back to its tasks as simulated time moves on, in the thread that moves it.
/// tests/memory_test.cpp and tests/renewal_test.cpp go red if it is wrong.
#pragma once

#include "callback_pool.hpp"

namespace redislock::detail {

/// Its owner's mutex guards it.
class SimulatedWorker {
public:
    void keep(const std::shared_ptr<WorkerTask>& task, TimePoint when) {
        task->due = when;
        if (find(*task) == tasks_.end()) tasks_.push_back(task);
    }
    void drop(WorkerTask& task) noexcept {
        if (const auto kept = find(task); kept != tasks_.end()) tasks_.erase(kept);
    }

    /// Takes the steps that are due by `end`, each at its time, to which `clock` moves on; `ask(request)` is its
    /// answer, at once. The owner's mutex is not locked meanwhile, for observers and callbacks may do what they like.
    template <class Ask>
    void run_until(TimePoint end, TimePoint& clock, std::unique_lock<std::mutex>& guard, Ask ask) {
        using Act = WorkerTask::Step::Act;
        for (;;) {
            const auto first = std::min_element(tasks_.begin(), tasks_.end(),
                                                [](const auto& a, const auto& b) { return a->due < b->due; });
            if (first == tasks_.end() || (*first)->due > end) return;
            const std::shared_ptr<WorkerTask> task = *first;
            const TimePoint now = clock = std::max(clock, task->due);
            const WorkerTask::Step step = task->step(now);
            task->due = step.next;
            if (task->due == TimePoint::max()) tasks_.erase(first);
            std::optional<WorkerTask::Progress> progress;
            guard.unlock();
            if (step.act == Act::ask) {
                const Answer answer = ask(task->worker_request(step.token, step.deadline));
                progress = task->answered(step.token, answer, now, now);
                if (progress) task->tell(*progress, answer, {});
            } else if (step.act == Act::tell) {
                Message{task, step}.tell();
            }
            guard.lock();
            if (progress && find(*task) != tasks_.end()) task->due = progress->next; // else it was dropped meanwhile
        }
    }

private:
    using Tasks = std::vector<std::shared_ptr<WorkerTask>>;

    Tasks::iterator find(const WorkerTask& task) noexcept {
        return std::find_if(tasks_.begin(), tasks_.end(), [&](const auto& one) { return one.get() == &task; });
    }

    Tasks tasks_;
};

} // namespace redislock::detail
