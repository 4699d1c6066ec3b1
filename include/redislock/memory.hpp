/// A map as a backend, with simulated time, latency and faults: for our tests and for those of the library's users.
/// It keeps every sentence of backend.hpp, but that tokens repeat from one memory to the next. What a server would do
/// the Keyspace does; this is its clock, its faults and the way to it. tests/memory_test.cpp goes red if it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/lease/faults.hpp"
#include "detail/lease/keyspace.hpp"
#include "detail/renewal/renewer.hpp"
#include "detail/renewal/simulated_worker.hpp"
#include "detail/system/lifetime.hpp"
#include "detail/system/random.hpp"
#include "detail/system/threads.hpp"
#include "detail/system/wait.hpp"

#include <mutex>

namespace redislock {

/// A place for leases without a server. Thread-safe; neither copied nor moved.
///
/// Its time is simulated: it stands still, but moves on by itself while a lock waits, for the holder or for an answer,
/// so that minutes of waiting take microseconds. In a test with several threads a holder would find its lease gone as
/// soon as another waits; they want `Memory{Memory::Time::real}`. And who waits for ever, in the same thread, for a
/// lock that is renewed, waits for ever: use try_lock_for().
class Memory {
public:
    enum class Time { simulated, real };

    explicit Memory(Time time = Time::simulated) noexcept : real_{time == Time::real} {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { at_the_end_.begin(); }

    static constexpr bool has_fencing_tokens = true;

    /// For those that it must outlive.
    detail::Life life() const noexcept { return lifetime_.life(); }

    TimePoint now() const noexcept {
        const std::lock_guard guard{mutex_};
        return time();
    }

    /// Repeatable: the n-th token of every memory is the same.
    Token fresh() {
        const std::lock_guard guard{mutex_};
        const std::uint64_t n = ++tokens_;
        return Token::from_bits(detail::scrambled(2 * n), detail::scrambled(2 * n + 1));
    }

    /// Simulated: moves the time on to `until`, and returns.
    void pause(const Deadline& until) noexcept {
        std::unique_lock guard{mutex_};
        wait(guard, until);
    }

    Answer ask(const Request& request) {
        std::unique_lock guard{mutex_};
        const Fault fault = faults_.next();
        const TimePoint arrival = time() + std::exchange(delay_, Millis::zero()) + latency_ / 2;
        TimePoint reply = arrival + latency_ / 2;
        if (!real_) work_until(guard, std::min(arrival, request.deadline.at));
        Answer answer{Verdict::unknown};
        if (faults_.refusal) {
            answer = *faults_.refusal;
        } else if (!detail::Faults::is_lost(fault)) {
            answer = deliver(request, request.verb, arrival);
            if (answer.is_busy() && request.patience > Millis::zero()) {
                answer = stand_in_line(guard, request, arrival);
                reply = std::max(reply, time() + latency_ / 2);
            }
        }
        if (!request.wants_answer && !faults_.refusal) return {Verdict::unknown};
        if (fault == Fault::reset_before || fault == Fault::reset_after) {
            wait(guard, {std::min(reply, request.deadline.at), request.deadline.stop});
            return {Verdict::unknown, {Errc::disconnected, {}}};
        }
        const bool answered = answer.verdict != Verdict::unknown || answer.why;
        if (fault == Fault::none && answered && reply <= request.deadline.at) {
            wait(guard, {reply, request.deadline.stop});
            if (time() >= reply) return answer;
        }
        wait(guard, fault == Fault::none ? request.deadline : request.first_answer(time()));
        if (request.verb == Verb::acquire && fault != Fault::request_lost && !faults_.refusal)
            deliver(request, Verb::release, std::max(arrival, time() + latency_ / 2));
        return {Verdict::unknown, {Errc::timed_out, {}}};
    }

    /// Simulated: renewals are due, and losses told, as the time moves on, in the thread that moves it.
    void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) {
        if (real_) return renewers_.keep(task, when, *this);
        const std::lock_guard guard{mutex_};
        worker_.keep(task, when);
    }
    void drop(detail::WorkerTask& task) noexcept {
        if (real_) return renewers_.drop(task);
        const std::lock_guard guard{mutex_};
        worker_.drop(task);
    }

    /// How many stand in line for the key.
    std::size_t waiting(std::string_view key) const {
        const std::lock_guard guard{mutex_};
        return keys_.waiting(key);
    }

    /// Who has the key: at once.
    Answer inspect(std::string_view key, const Deadline&, Holder& holder) {
        const std::lock_guard guard{mutex_};
        if (faults_.refusal) return *faults_.refusal;
        const auto* entry = keys().find(key, time());
        if (entry == nullptr) return {Verdict::no, {Errc::expired, {}}};
        holder.is_awaited = keys_.waiting(key) > 0;
        holder.value = entry->value.substr(0, Holder::longest_value);
        if (entry->expiry != TimePoint::max()) holder.remaining = std::chrono::floor<Millis>(entry->expiry - time());
        return {Verdict::yes};
    }

    /// Time passes, while nobody waits. Simulated time only.
    void advance(Millis span) { pause(later(now(), span)); }

    /// A message's way to and fro takes this long from now on.
    void set_latency(Millis round_trip) {
        const std::lock_guard guard{mutex_};
        latency_ = round_trip;
    }

    /// Befalls one request: the next that has no fault yet. Calls queue up.
    void inject(Fault fault) {
        const std::lock_guard guard{mutex_};
        faults_.once.push_back(fault);
    }

    /// Befalls every request, until it is set to none. A deaf server's requests are lost, a mute one's replies.
    void set_fault(Fault fault) {
        const std::lock_guard guard{mutex_};
        faults_.lasting = fault;
    }

    /// The server refuses every request with this error, as one does that is loading, read only, out of memory, behind
    /// a new password, or down (`Errc::unreachable`). `Errc{}`: it serves again.
    void refuse(Errc why) {
        const std::lock_guard guard{mutex_};
        faults_.refusal.reset();
        if (why != Errc{}) faults_.refusal = Answer{Verdict::no, {why, {}}};
    }

    /// The next request arrives this much later, and what is later than its deadline is carried out all the same.
    void delay_next(Millis by) {
        const std::lock_guard guard{mutex_};
        delay_ = by;
    }

    /// How many replicas there are from now on; at first there are as many as anyone asks for.
    void set_replicas(unsigned count) {
        const std::lock_guard guard{mutex_};
        keys_.set_replicas(count);
    }

    /// What another client, or an operator, may do to a key behind our back. Without `ttl` it stays for ever.
    void put(std::string key, std::string value, std::optional<Millis> ttl = {}) {
        const std::lock_guard guard{mutex_};
        keys().put(std::move(key), {std::move(value), ttl ? later(time(), *ttl) : TimePoint::max(), true});
    }

    /// A value that is no string, as the locks of some other libraries are.
    void put_hash(std::string key) {
        const std::lock_guard guard{mutex_};
        keys().put(std::move(key), {{}, TimePoint::max(), false});
    }

    void erase(std::string_view key) {
        const std::lock_guard guard{mutex_};
        keys().erase(key);
    }

    /// What the key holds now; nothing if it is free.
    std::optional<std::string> get(std::string_view key) {
        const std::lock_guard guard{mutex_};
        const auto* entry = keys().find(key, time());
        return entry != nullptr ? std::optional{entry->value} : std::nullopt;
    }

private:
    /// The way of renewals in real time: each is carried out, and answered, when its latency is over.
    class Port {
    public:
        using Engine = detail::System;

        explicit Port(Memory& memory) noexcept : memory_{memory} {}
        TimePoint due() const noexcept { return under_way_.empty() ? TimePoint::max() : under_way_.front().first; }
        void send(detail::Renewal renewal) {
            const std::lock_guard guard{memory_.mutex_};
            under_way_.emplace_back(later(renewal.asked, memory_.latency_), std::move(renewal));
        }
        template <class Answered>
        void advance(TimePoint now, Answered answered) {
            while (due() <= now) {
                const detail::Renewal renewal = std::move(under_way_.front().second);
                under_way_.pop_front();
                answered(renewal, memory_.answer_worker(renewal.request()));
            }
        }
        void wait(const detail::Alarm& alarm) const noexcept { detail::wait(alarm.fd(), POLLIN, TimePoint::max()); }

    private:
        Memory& memory_;
        std::deque<std::pair<TimePoint, detail::Renewal>> under_way_;
    };

    TimePoint time() const noexcept { return real_ ? detail::now() : simulated_; }

    /// As they are by now.
    detail::Keyspace& keys() {
        keys_.carry_out_until(time());
        return keys_;
    }

    /// `signal` ends it as well, in real time: in simulated time nobody else is there to give it.
    void wait(std::unique_lock<std::mutex>& guard, const Deadline& until, int signal = -1) noexcept {
        if (real_) {
            guard.unlock();
            detail::wait(signal, POLLIN, until);
            guard.lock();
        } else if (!detail::stopped(until)) {
            work_until(guard, until.at);
            simulated_ = std::max(simulated_, until.at);
        }
    }

    /// What the worker has to do by then it does, each at its time.
    void work_until(std::unique_lock<std::mutex>& guard, TimePoint end) {
        worker_.run_until(end, simulated_, guard, [this](const Request& request) { return answer_worker(request); });
    }

    Answer answer_worker(const Request& request) {
        const std::lock_guard guard{mutex_};
        const Fault fault = faults_.next();
        const Answer silence{Verdict::unknown, {Errc::timed_out, {}}};
        if (faults_.refusal) return *faults_.refusal;
        if (detail::Faults::is_lost(fault)) return silence;
        const Answer done = keys().carry_out({request, request.verb, time()});
        return fault == Fault::none ? done : silence;
    }

    /// As in a server's line: whoever is first has the key as soon as a release hands it on. A key that goes in any
    /// other way is noticed by the looks of those who wait. Unknown: the time was up before it was our turn.
    Answer stand_in_line(std::unique_lock<std::mutex>& guard, const Request& request, TimePoint arrival) {
        wait(guard, {std::min(arrival, request.deadline.at), request.deadline.stop});
        detail::Keyspace::Waiter self{keys_, {request, Verb::acquire, arrival}};
        const TimePoint ends = arrival + request.patience;
        while (!self.answer && time() < request.deadline.at && !detail::stopped(request.deadline)) {
            if (faults_.refusal) return *faults_.refusal;
            const auto* holder = keys_.find(request.key, time());
            if (holder == nullptr) keys_.hand_on(self.message.key, time());
            if (self.answer || time() >= ends) break;
            TimePoint next = std::min({ends, request.deadline.at, later(time(), request.recheck)});
            if (holder != nullptr) next = std::min(next, holder->expiry);
            next = std::min(next, std::max(keys_.next_arrival(), time()));
            wait(guard, {next, request.deadline.stop}, self.turn.fd());
            keys_.carry_out_until(time());
        }
        if (self.answer) return *self.answer;
        if (time() < ends) return {Verdict::unknown};
        self.message.arrival = time();
        Answer answer = keys_.carry_out(self.message);
        answer.queued = true;
        return answer;
    }

    /// Carried out now as seen by the one who asks, whose clock stands still until then; what is late, when it is due.
    Answer deliver(const Request& request, Verb verb, TimePoint arrival) {
        if (arrival <= request.deadline.at && verb == request.verb) {
            keys_.carry_out_until(std::max(time(), arrival));
            return keys_.carry_out({request, verb, arrival});
        }
        keys().send({request, verb, arrival});
        return {Verdict::unknown};
    }

    detail::Uncancelled at_the_end_{std::defer_lock};
    const detail::Lifetime lifetime_{};
    const bool real_;
    mutable std::mutex mutex_;
    TimePoint simulated_{std::chrono::hours{1}};
    detail::Keyspace keys_;
    detail::Faults faults_;
    Millis delay_{0};
    TimePoint::duration latency_{0};
    std::uint64_t tokens_ = 0;
    detail::SimulatedWorker worker_;
    detail::Renewers<Port> renewers_; ///< in real time
};

static_assert(Backend<Memory>);

} // namespace redislock
