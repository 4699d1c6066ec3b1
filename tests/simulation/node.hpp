/// Client processes with locks over a majority of servers, all of it simulated: clocks, network, servers, threads and
/// what goes wrong with them. One seed makes one history, the same one each time. The code of the library is the one
/// that is shipped; what is below the quorum's connections is the simulation's.
#pragma once

#include "fiber.hpp"

#include <redislock/redislock.hpp>

#include <cstdio>
#include <limits>

namespace simulation {

using namespace redislock;

/// True time, in ns, which nobody in the world knows.
using Time = std::int64_t;
inline constexpr Time never = std::numeric_limits<Time>::max(), us = 1'000, ms = 1'000'000, s = 1'000'000'000;

/// splitmix64, of S. Vigna.
class Random {
public:
    explicit Random(std::uint64_t seed) noexcept : state_{seed} {}
    std::uint64_t bits() noexcept {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    double unit() noexcept { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    bool chance(double probability) noexcept { return unit() < probability; }
    Time between(Time least, Time most) noexcept {
        return least + static_cast<Time>(bits() % static_cast<std::uint64_t>(most - least + 1));
    }
    template <class T, std::size_t n>
    T one_of(const T (&values)[n]) noexcept {
        return values[bits() % n];
    }

private:
    std::uint64_t state_;
};

struct Clock {
    Time offset = 0;
    double rate = 0; ///< by which it is too fast

    Time at(Time t) const noexcept { return offset + t + static_cast<Time>(static_cast<double>(t) * rate); }
    /// When it first shows `moment`, or later than that.
    Time when(Time moment) const noexcept {
        if (moment >= never / 2) return never;
        auto t = static_cast<Time>(static_cast<double>(moment - offset) / (1 + rate)) - 2;
        while (at(t) < moment) ++t;
        return t;
    }
};

/// What is broken on purpose: an assumption of the library, so that checks must find that it matters.
enum class Broken { nothing, clocks, memory, tokens, replicas };

struct Report {
    std::uint64_t seed = 0, trace = 0xcbf29ce484222325; ///< equal traces: equal histories
    std::uint64_t events = 0, grants = 0, faults = 0;
    std::string violation{}; ///< empty: none
};

/// What is sent: a lock's question, or what a waiter in line asks.
enum class Kind { command, announce, line };

struct Question {
    Kind kind;
    Verb verb;
    Token token;
    Millis ttl;
    Millis patience;
    bool fencing;
    std::chrono::microseconds fencing_step;
    std::uint64_t fencing_token;
    unsigned replicas;
    Millis recheck;
    bool hands_on;
};

struct Wire;

/// What a server knows of the one key, and its replicas with it.
struct Memory {
    std::optional<Token> holder{};
    Time ends = 0; ///< in ms
    std::optional<std::uint64_t> counter{};
};

/// One Redis, and what the scripts of the library do there. Its clock's milliseconds are cut off as the pessimist would
/// do it.
struct Server : Memory {
    int id = 0;
    Clock clock{};
    Time wall = 0; ///< in us, when its clock shows 0
    bool up = true, frozen = false;
    unsigned life = 0;
    std::deque<std::function<void()>> backlog{}; ///< what has come while it was frozen
    std::vector<std::weak_ptr<Wire>> wires{};
    std::optional<Time> up_since{}; ///< in ns, if it came without its memory
    Memory replicated{};            ///< what a replica has of it
    Server* successor = nullptr;    ///< a replica that was promoted, which the others follow
    bool lies = false;              ///< the key is held, it says to those in line, and it gives nobody a turn
    Time announced = 0, given = 0;  ///< as the auxiliary keys: until then, in ms
    bool turn = false;              ///< nobody has taken it yet
    std::deque<std::weak_ptr<Wire>> line{};

    /// What INFO says there, as the library judges it. One that kept its memory is known not to lose it, and is not
    /// asked.
    Answer greet(Time t, Millis restart_delay) const {
        if (!up_since || restart_delay == Millis::zero()) return {Verdict::yes};
        const auto uptime = std::to_string(clock.at(t) / s - *up_since / s); // seconds that have begun count
        const detail::Handshake handshake{{}, "", restart_delay};
        const detail::Reply info{REDIS_REPLY_STRING, 0, "\nuptime_in_seconds:" + uptime};
        return handshake.cool_down(0, info).value_or(Millis::zero()) > Millis::zero()
                   ? Answer{Verdict::no, {Errc::restarted, {}}}
                   : Answer{Verdict::yes};
    }

    /// All replicas have what is asked to be had by some, or none of them; else they have it when it is of no use.
    Answer act(const Question& q, Time t) {
        const Memory before = *this;
        Answer answer = act_alone(q, t);
        if (q.replicas == 0 || answer.verdict != Verdict::yes) return answer;
        if (successor == nullptr) return replicated = *this, answer;
        if (q.verb == Verb::acquire) static_cast<Memory&>(*this) = before; // it is released again
        return {q.verb == Verb::acquire ? Verdict::no : Verdict::unknown, {Errc::no_replicas, {}}};
    }

    Answer act_alone(const Question& q, Time t) {
        const Time time = clock.at(t), now = time / ms;
        const auto no = [](Errc why) { return Answer{Verdict::no, {why, {}}}; };
        if (holder && now >= ends) holder.reset();
        if (q.verb == Verb::acquire) {
            if (holder && !q.fencing && q.patience <= Millis::zero()) return no(Errc::busy);
            if (holder) return detail::busy_for(ends - now);
            holder = q.token;
            ends = now + q.ttl.count();
            if (!q.fencing) return {Verdict::yes};
            const auto number = static_cast<std::uint64_t>(wall + time / us);
            counter = counter
                          ? std::max(*counter + 1, number - number % static_cast<std::uint64_t>(q.fencing_step.count()))
                          : number;
            return {.verdict = Verdict::yes, .fencing_token = *counter};
        }
        if (holder && holder != q.token) return no(Errc::stolen);
        const bool is_awaited = q.verb == Verb::release && q.hands_on && now < announced;
        if (is_awaited && (holder || now >= given)) hand_on(now);
        if (!holder) return no(Errc::expired);
        if (q.verb == Verb::release) {
            holder.reset();
        } else {
            ends = std::max(ends, now + q.ttl.count());
            if (q.fencing_token > 0) counter = std::max(counter.value_or(0), q.fencing_token);
        }
        return {Verdict::yes};
    }

    /// As announce_script.
    Answer announce(const Question& q, Time t) {
        const Time now = clock.at(t) / ms;
        if (lies) return detail::busy_for(1'000);
        if (holder && now >= ends) holder.reset();
        if (!holder && now >= given) return hand_on(now), detail::busy_for(-2);
        announced = std::max(announced, now + 2 * q.recheck.count());
        return detail::busy_for(holder ? ends - now : -2 - (given - now));
    }
    void hand_on(Time now) noexcept {
        turn = !lies;
        given = now + 20;
    }

    void forget() noexcept {
        static_cast<Memory&>(*this) = replicated = {};
        announced = given = 0;
        turn = false;
    }
};

class World;
struct Client;

struct Task {
    Task(Client& of, std::function<void()> work) : client{of}, fiber{std::move(work)} {}
    Client& client;
    Fiber fiber;
    std::uint64_t sleep = 0; ///< 0: it doesn't
    Task* joined_by = nullptr;
    unsigned haste = 0; ///< waits in a row that took no time
};

/// A connection: in each direction nothing overtakes anything.
struct Wire {
    Client& client;
    Server& server;
    const unsigned life; ///< the server's, to which it leads
    Time up = 0, down = 0;
    Time lag = 0;                                      ///< of all answers
    bool cut = false, broken = false;                  ///< broken: and the client can see it
    bool up_is_silent = false, down_is_silent = false; ///< all is swallowed, and nobody told
    std::vector<Answer> inbox{};
    Task* waiter = nullptr;
};

inline World* world = nullptr; ///< the one that is running

/// A server as a client sees it: what Quorum wants of a Redis.
struct SimNode {
    Client& client;
    Server* server;
    std::string known_as;

    TimePoint now() const noexcept;
    Token fresh() const;
    void pause(const Deadline& until) noexcept;
    const std::string& name() const noexcept { return known_as; }
    bool has_line() const noexcept { return true; }
    Answer inspect(std::string_view, const Deadline&, Holder&) { return {Verdict::unknown}; }

    class Alarm {
    public:
        Alarm();
        Alarm(const Alarm&) = delete;
        Alarm& operator=(const Alarm&) = delete;
        ~Alarm();
        int fd() const noexcept { return fd_; }
        void set(TimePoint moment) noexcept;

        TimePoint moment = TimePoint::max();
        Task* waiter = nullptr;

        /// Those below are real, of waits that may be stopped: whoever does that wakes the waiter, too.
        static constexpr int first_fd = 1'000'000;

    private:
        int fd_;
    };

    struct Engine {
        using Alarm = SimNode::Alarm;
        struct SpinWait {
            template <class Arrived>
            bool operator()(Arrived) noexcept {
                return false;
            }
        };
        class Thread {
        public:
            void start(std::function<void()> work);
            bool joinable() const noexcept { return task_ != nullptr; }
            bool is_current() const noexcept;
            void join();
            void detach() noexcept { task_ = nullptr; }

        private:
            Task* task_ = nullptr;
        };
        class Condition {
        public:
            void wait(std::unique_lock<std::mutex>& guard);
            void notify_one() noexcept;
            void notify_all() noexcept;

        private:
            std::deque<Task*> waiters_{};
        };
        static TimePoint now() noexcept;
        template <class Work>
        void as_program(Work work) const {
            work();
        }
    };

    class Link;
};

using Lock = RedisLock<Quorum<SimNode>>;

struct Client {
    int id = 0;
    Clock clock{};
    Time frozen_until = 0;
    unsigned freezes = 0;
    bool dead = false, finished = false;
    std::deque<SimNode> nodes{};
    const Lock* lock = nullptr;

    TimePoint shows(Time t) const noexcept { return TimePoint{TimePoint::duration{clock.at(t)}}; }
};

class World {
public:
    explicit World(std::uint64_t seed, Broken broken = Broken::nothing, bool tells = false)
        : random_{seed}, broken_{broken}, tells_{tells} {
        report_.seed = seed;
        world = this;
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World() { world = nullptr; }

    Report run();

    // What the simulated part of the library calls.
    Time now() const noexcept { return now_; }
    Task* running() const noexcept { return running_; }
    Random& random() noexcept { return random_; }
    Token fresh(const Client& client) noexcept;
    std::vector<SimNode::Alarm*>& alarms() noexcept { return alarms_; }
    Task& start(Client& client, std::function<void()> work);
    void sleep(Time until);
    void wake(Task* task);
    void hurry(bool took_no_time);
    std::shared_ptr<Wire> connect(const SimNode& node);
    void send(const std::shared_ptr<Wire>& wire, std::optional<Question> question);
    void reply(const std::shared_ptr<Wire>& wire, Answer answer);
    void violated(const std::string& what) {
        if (report_.violation.empty()) report_.violation = what + " at " + std::to_string(now_ / us) + " us";
        tell("VIOLATION: %s", what.c_str());
    }
    template <class... Values>
    void tell(const char* format, Values... values) {
        if (!tells_) return;
        std::printf("%12.3f ms  ", static_cast<double>(now_) / ms);
        std::printf(format, values...);
        std::printf("\n");
    }

private:
    static constexpr Time longest_ttl = 2 * s, longest_delay = 3 * s, enough = 12 * s;

    class InTime;

    enum class Trouble { standstill, restart, amnesia, pause, death, failover };
    static constexpr Time to_hear_of_it = s; ///< a failover

    struct Event {
        Time at;
        std::uint64_t number;
        std::size_t action; ///< which of them: events are moved about a lot
        friend bool operator<(const Event& a, const Event& b) noexcept {
            return a.at != b.at ? a.at > b.at : a.number > b.number;
        }
    };

    void at(Time t, std::function<void()> what) {
        if (spare_actions_.empty()) spare_actions_.push_back(actions_.size()), actions_.emplace_back();
        actions_[spare_actions_.back()] = std::move(what);
        queue_.push_back({std::max(t, now_), ++numbers_, spare_actions_.back()});
        spare_actions_.pop_back();
        std::push_heap(queue_.begin(), queue_.end());
    }
    void note(std::uint64_t what) noexcept {
        report_.trace = (report_.trace ^ what ^ static_cast<std::uint64_t>(now_)) * 0x100000001b3;
    }
    void set_up();
    void resume(Task& task, std::uint64_t sleep);
    void arrive(const std::shared_ptr<Wire>& wire, const std::optional<Question>& question);
    void repeat(const Wire& wire, const Question& question);
    void stand_in_line(const std::shared_ptr<Wire>& wire, const Question& question);
    void serve(Server& server);
    void cut(const std::shared_ptr<Wire>& wire);
    Time delay();
    void trouble();
    void crash(Server& server, Time until);
    void fail_over(Server& server);
    void move(SimNode& node, Server& to);
    void thaw(Server& server);
    void calm_down();
    void bury();
    void judge(const Client& client);
    void judge(const Question& release);
    void granted(Client& client, Lock& lock, bool fencing);
    void live(Client& client);
    void turn(Client& client, Quorum<SimNode>& quorum);
    void work(Client& client, Lock& lock, const Options& options);
    void last_turn(Client& client, Quorum<SimNode>& quorum);
    std::stop_token stop_after(const Client& client, Millis span);
    void rest(Client& client, Time span) {
        SimNode& node = client.nodes.front();
        node.pause({later(node.now(), std::chrono::nanoseconds{span})});
    }

    Random random_;
    const Broken broken_;
    const bool tells_;
    Report report_{};
    Time now_ = 0;
    std::uint64_t numbers_ = 0, sleeps_ = 0;
    std::vector<Event> queue_;
    std::deque<std::function<void()>> actions_;
    std::vector<std::size_t> spare_actions_;
    Task* running_ = nullptr;
    std::deque<Server> servers_;
    std::deque<Client> clients_;
    std::deque<Task> tasks_;
    std::vector<SimNode::Alarm*> alarms_;
    std::size_t done_ = 0;

    double slow_ = 0, reset_ = 0, silent_ = 0, repeated_ = 0;
    std::vector<Trouble> troubles_{};
    Millis restart_delay_{0}; ///< of all clients
    unsigned replicas_ = 0;   ///< all that a server has, which all clients ask for
    Time usual_delay_ = 0, trouble_every_ = 0, calm_at_ = 0, calm_by_ = 0;
    bool calm_ = false, over_ = false;
    std::uint64_t last_fence_ = 0;
};

inline TimePoint SimNode::now() const noexcept { return client.shows(world->now()); }
inline TimePoint SimNode::Engine::now() noexcept { return world->running()->client.shows(world->now()); }
inline Token SimNode::fresh() const { return world->fresh(client); }
inline Time true_time(const Client& client, TimePoint moment) noexcept {
    return client.clock.when(moment.time_since_epoch().count());
}
inline void SimNode::pause(const Deadline& until) noexcept {
    for (const Time end = std::max(true_time(client, until.at), world->now() + us);
         world->now() < end && !detail::stopped(until);) {
        world->sleep(end);
        if (client.dead) return;
    }
}

inline SimNode::Alarm::Alarm() : fd_{first_fd + static_cast<int>(world->alarms().size())} {
    world->alarms().push_back(this);
}
inline SimNode::Alarm::~Alarm() { world->alarms()[static_cast<std::size_t>(fd_ - first_fd)] = nullptr; }
inline void SimNode::Alarm::set(TimePoint when) noexcept {
    moment = when;
    world->wake(waiter);
}

inline void SimNode::Engine::Thread::start(std::function<void()> work) {
    task_ = &world->start(world->running()->client, std::move(work));
}
inline bool SimNode::Engine::Thread::is_current() const noexcept {
    return task_ != nullptr && task_ == world->running();
}
inline void SimNode::Engine::Thread::join() {
    if (task_ == nullptr) return;
    task_->joined_by = world->running();
    while (!task_->fiber.done()) world->sleep(never);
    task_ = nullptr;
}

inline void SimNode::Engine::Condition::wait(std::unique_lock<std::mutex>& guard) {
    Task* const self = world->running();
    waiters_.push_back(self);
    guard.unlock();
    world->sleep(never);
    guard.lock();
    std::erase(waiters_, self);
}
inline void SimNode::Engine::Condition::notify_one() noexcept {
    if (waiters_.empty()) return;
    world->wake(waiters_.front());
    waiters_.pop_front();
}
inline void SimNode::Engine::Condition::notify_all() noexcept {
    while (!waiters_.empty()) notify_one();
}

/// As detail::Channel, over a Wire: in the same states it gives the same answers.
class SimNode::Link {
public:
    explicit Link(const SimNode& node) noexcept : node_{node} {}

    template <class... Links>
    static void wait(const Deadline& deadline, const Links&... groups) {
        std::vector<const Link*> links;
        const auto add = [&](const auto& group) {
            for (const Link& link : group) links.push_back(&link);
        };
        (add(groups), ...);
        Task* const self = world->running();
        Alarm* const alarm = deadline.stop < Alarm::first_fd
                                 ? nullptr
                                 : world->alarms()[static_cast<std::size_t>(deadline.stop - Alarm::first_fd)];
        TimePoint until = alarm ? std::min(deadline.at, alarm->moment) : deadline.at;
        bool ready = false;
        for (const Link* link : links) {
            until = std::min(until, link->due());
            ready |= link->owed() > 0 && link->readable();
        }
        ready |= until <= self->client.shows(world->now());
        world->hurry(ready);
        if (ready) return;
        const auto watch = [&](Task* waiter) {
            for (const Link* link : links)
                if (link->wire_) link->wire_->waiter = waiter;
            if (alarm) alarm->waiter = waiter;
        };
        watch(self);
        world->sleep(true_time(self->client, until));
        watch(nullptr);
    }

    TimePoint due() const noexcept { return owed_.empty() ? TimePoint::max() : due_; }
    bool is_closed() const noexcept { return wire_ == nullptr; }
    bool is_opening() const noexcept { return wire_ && !replies_heard_; }
    bool has_asked() const noexcept { return !is_opening(); }
    bool in_doubt() const noexcept { return in_doubt_; }
    std::size_t owed() const noexcept { return owed_.size(); }
    bool owes_an_acquire(const Token& token) const noexcept {
        return owes([&](const Request& r) { return r.token == token && r.verb == Verb::acquire; });
    }
    bool owes_an_acquire() const noexcept {
        return owes([](const Request& request) { return request.verb == Verb::acquire; });
    }

    /// As detail::LineExchange, of whom the server says first how the key stands.
    class Line {
    public:
        TimePoint look_at() const noexcept { return look_at_; }
        Failure looked(const Answer& answer, TimePoint now) {
            if (!answer.is_busy() && (!answer.finds_no_connection() || now >= place_ends_)) return answer.why;
            const Millis most = request_.recheck;
            if (answer.is_busy()) place_ends_ = later(now, 3 * most);
            look_at_ = later(now, std::min(most, answer.holder_left.value_or(most) + Millis{1}));
            return {};
        }

    private:
        friend Link;
        explicit Line(const Request& of) : request_{of} {}
        const Request& request_;
        TimePoint look_at_ = TimePoint::max(), place_ends_{};
    };

    void send(std::shared_ptr<detail::Question> question, std::size_t node) {
        const TimePoint due = question->request.deadline.at;
        send({std::move(question), node, Kind::command, due});
    }
    void announce(std::shared_ptr<detail::Question> question, std::size_t node) {
        const TimePoint due = question->request.deadline.at;
        send({std::move(question), node, Kind::announce, due});
    }
    Line& stand_in_line(std::shared_ptr<detail::Question> question, TimePoint now) {
        const Request& request = question->request;
        line_.reset(new Line{request});
        send({std::move(question), 0, Kind::line, request.first_answer(now).at});
        return *line_;
    }
    void abandon(const Failure& why) { fail(why); }

    void advance(TimePoint now) {
        if (!wire_ && !owed_.empty()) {
            wire_ = world->connect(node_);
            replies_heard_ = false;
        }
        if (wire_ && !owed_.empty()) {
            auto inbox = std::exchange(wire_->inbox, {});
            auto answer = inbox.begin();
            if (!replies_heard_ && answer != inbox.end()) {
                if (answer->verdict == Verdict::no) return fail(answer->why);
                replies_heard_ = true, ++answer;
            }
            if (replies_heard_) flush();
            for (; answer != inbox.end(); ++answer) {
                in_doubt_ = false;
                if (owed_.front().kind == Kind::line && line_->look_at() == TimePoint::max()) { // it has a place
                    line_->looked(*answer, now);
                    owed_.front().due = owed_.front().question->request.deadline.at;
                    continue;
                }
                const Owed owed = std::move(owed_.front());
                owed_.pop_front();
                if (!owed.is_answered) owed.question->answered(owed.node, *answer);
            }
            if (wire_->broken) fail({replies_heard_ ? Errc::disconnected : Errc::unreachable, {}});
        }
        if (due_ > now) return;
        bool any = false, others = false, only_extensions = true;
        due_ = TimePoint::max();
        for (const Owed& owed : owed_) {
            if (owed.is_answered) continue;
            if (owed.due > now) due_ = std::min(due_, owed.due);
            only_extensions &= owed.due > now || owed.question->request.verb == Verb::extend;
            (owed.due > now ? others : any) = true;
        }
        if (any && others && only_extensions)
            answer_overdue(now);
        else if (any)
            fail({Errc::timed_out, {}});
    }

private:
    static Question question(const Request& r, Kind kind) {
        return {kind,           r.verb,          r.token,    r.ttl,     r.patience, r.fencing,
                r.fencing_step, r.fencing_token, r.replicas, r.recheck, r.hands_on};
    }

    struct Owed {
        std::shared_ptr<detail::Question> question;
        std::size_t node;
        Kind kind;
        TimePoint due;
        bool is_answered = false;
    };

    void send(Owed owed) {
        if (owed_.empty() && readable()) wire_.reset();
        due_ = std::min(due_, owed.due);
        owed_.push_back(std::move(owed));
        ++unsent_;
    }

    void answer_overdue(TimePoint now) {
        in_doubt_ = true;
        for (Owed& owed : owed_)
            if (owed.due <= now && !std::exchange(owed.is_answered, true))
                owed.question->answered(owed.node, {Verdict::unknown, {Errc::timed_out, {}}});
    }

    bool readable() const noexcept { return wire_ && (wire_->broken || !wire_->inbox.empty()); }

    template <class Which>
    bool owes(Which which) const noexcept {
        return std::any_of(owed_.begin(), owed_.end(), [&](const Owed& owed) {
            return owed.kind == Kind::command && which(owed.question->request);
        });
    }

    void flush() {
        for (; unsent_ > 0; --unsent_) {
            const Owed& owed = *(owed_.end() - static_cast<std::ptrdiff_t>(unsent_));
            world->send(wire_, question(owed.question->request, owed.kind));
        }
    }

    void fail(const Failure& why) {
        if (replies_heard_ && !wire_->broken)
            for (const Owed& owed : owed_)
                if (owed.kind == Kind::command && owed.question->request.verb == Verb::acquire &&
                    owed.question->gives_up()) {
                    Question undo = question(owed.question->request, Kind::command);
                    undo.verb = Verb::release;
                    undo.replicas = 0;
                    world->send(wire_, undo);
                }
        wire_.reset();
        unsent_ = 0;
        in_doubt_ = false;
        due_ = TimePoint::max();
        const Answer answer{replies_heard_ ? Verdict::unknown : Verdict::no, why};
        for (const Owed& owed : std::exchange(owed_, {}))
            if (!owed.is_answered) owed.question->answered(owed.node, answer);
    }

    const SimNode& node_;
    std::shared_ptr<Wire> wire_{};
    bool replies_heard_ = false, in_doubt_ = false;
    std::deque<Owed> owed_{};
    std::unique_ptr<Line> line_{};
    std::size_t unsent_ = 0; ///< of those that are owed, the last
    TimePoint due_ = TimePoint::max();
};

} // namespace simulation
