/// What happens in a World: its servers, network and troubles, what its clients do, and what must be true of it.
#pragma once

#include "node.hpp"

namespace simulation {

inline Task& World::start(Client& client, std::function<void()> work) {
    Task& task = tasks_.emplace_back(client, [this, work = std::move(work)] {
        try {
            work();
        } catch (const std::exception& error) {
            violated(std::string{"thrown out of a thread: "} + error.what());
        }
    });
    task.sleep = ++sleeps_;
    at(now_, [this, &task, sleep = task.sleep] { resume(task, sleep); });
    return task;
}

/// No other has it, nor had it ever; if tokens are broken, a client has eight of them.
inline Token World::fresh(const Client& client) noexcept {
    const std::uint64_t high = random_.bits();
    if (broken_ == Broken::tokens) return Token::from_bits(high >> 61 << 61, static_cast<std::uint64_t>(client.id));
    return Token::from_bits(high, random_.bits());
}

inline void World::sleep(Time until) {
    Task& self = *running_;
    const std::uint64_t sleep = self.sleep = ++sleeps_;
    if (until != never) at(until, [this, &self, sleep] { resume(self, sleep); });
    self.fiber.yield();
}

inline void World::wake(Task* task) {
    if (task == nullptr || task->sleep == 0) return;
    if (running_ == nullptr) return resume(*task, task->sleep);
    at(now_, [this, task, sleep = task->sleep] { resume(*task, sleep); });
}

/// A thread that waits for ever without time passing would hang the simulation, too.
inline void World::hurry(bool took_no_time) {
    if (!took_no_time) running_->haste = 0;
    if (++running_->haste < 1'000) return;
    violated("a thread of client " + std::to_string(running_->client.id) + " waits without waiting");
    sleep(now_ + ms);
}

/// Lets a thread go on, unless it has been woken by something else, or its process stands still.
inline void World::resume(Task& task, std::uint64_t sleep) {
    Client& client = task.client;
    if (task.sleep != sleep || (client.dead && !over_)) return;
    if (now_ < client.frozen_until && !over_) return at(client.frozen_until, [=, this, &task] { resume(task, sleep); });
    task.sleep = 0;
    running_ = &task;
    task.fiber.resume();
    running_ = nullptr;
    judge(client);
    if (!task.fiber.done()) return;
    ++done_;
    wake(task.joined_by);
}

inline std::shared_ptr<Wire> World::connect(const SimNode& node) {
    const auto wire = std::make_shared<Wire>(Wire{node.client, *node.server, node.server->life});
    wire->broken = node.client.dead;
    if (random_.chance(slow_)) wire->lag = random_.between(0, random_.one_of({20 * ms, 500 * ms}));
    wire->up_is_silent = random_.chance(silent_);
    wire->down_is_silent = random_.chance(silent_);
    report_.faults += wire->lag > 0 || wire->up_is_silent || wire->down_is_silent;
    auto& wires = node.server->wires;
    std::erase_if(wires, [](const auto& one) { return one.expired(); });
    wires.push_back(wire);
    send(wire, std::nullopt);
    return wire;
}

inline Time World::delay() {
    const Time usual = random_.between(usual_delay_ / 4, usual_delay_);
    if (!random_.chance(slow_)) return usual;
    ++report_.faults;
    return usual + random_.between(0, random_.one_of({20 * ms, 200 * ms, longest_delay}));
}

/// A question, or the handshake.
inline void World::send(const std::shared_ptr<Wire>& wire, std::optional<Question> question) {
    if (wire->client.dead || wire->cut || wire->up_is_silent) return;
    if (question && question->kind == Kind::command && random_.chance(repeated_)) repeat(*wire, *question);
    if (random_.chance(reset_)) return ++report_.faults, cut(wire);
    wire->up = std::max(wire->up + 1, now_ + delay());
    at(wire->up, [this, wire, question = std::move(question)] { arrive(wire, question); });
}

/// As a proxy may do it: what was sent is carried out on another connection too, whatever becomes of it on its own, and
/// sooner or later than there. Nobody hears that answer.
inline void World::repeat(const Wire& wire, const Question& question) {
    ++report_.faults;
    const Time late = random_.between(usual_delay_ / 4, random_.one_of({20 * ms, 200 * ms, longest_delay}));
    at(now_ + late, [this, &client = wire.client, &server = wire.server, question] {
        tell("client %d's request comes to server %d on another connection", client.id, server.id);
        arrive(std::make_shared<Wire>(
                   Wire{.client = client, .server = server, .life = server.life, .down_is_silent = true}),
               question);
    });
}

inline void World::arrive(const std::shared_ptr<Wire>& wire, const std::optional<Question>& question) {
    Server& server = wire->server;
    if (wire->cut) return;
    if (!server.up || server.life != wire->life) return cut(wire);
    if (server.frozen) return server.backlog.push_back([=, this] { arrive(wire, question); });
    if (question && question->kind == Kind::line) return stand_in_line(wire, *question);
    if (question && question->verb == Verb::release) judge(*question);
    Answer answer = question && question->kind == Kind::announce ? server.announce(*question, now_)
                    : question                                   ? server.act(*question, now_)
                                                                 : server.greet(now_, restart_delay_);
    if (question)
        tell("server %d: client %d, verb %d of %.4s: %d, fence %llu", server.id, wire->client.id,
             static_cast<int>(question->verb), question->token.hex().data(), static_cast<int>(answer.verdict),
             static_cast<unsigned long long>(answer.fencing_token));
    if (random_.chance(reset_)) return ++report_.faults, cut(wire);
    reply(wire, std::move(answer));
    serve(server);
}

/// How the key stands; and then that it is the client's turn, or that his patience is over.
inline void World::stand_in_line(const std::shared_ptr<Wire>& wire, const Question& question) {
    Server& server = wire->server;
    reply(wire, server.announce(question, now_));
    server.line.push_back(wire);
    at(now_ + std::max(question.patience.count() - 2, Time{1}) * ms, [this, wire, &server] {
        const auto at =
            std::find_if(server.line.begin(), server.line.end(), [&](const auto& one) { return one.lock() == wire; });
        if (at == server.line.end() || server.frozen) return; // in time it goes on, and the client has other means
        server.line.erase(at);
        reply(wire, {Verdict::no, {Errc::busy, {}}, {}, true});
    });
    serve(server);
}

/// Whose turn it is.
inline void World::serve(Server& server) {
    for (; server.turn && !server.line.empty(); server.line.pop_front()) {
        const auto wire = server.line.front().lock();
        if (!wire || wire->cut || wire->broken || wire->client.dead || server.life != wire->life) continue;
        server.turn = false;
        tell("server %d: it is client %d's turn", server.id, wire->client.id);
        reply(wire, {.verdict = Verdict::yes, .queued = true});
    }
}

inline void World::reply(const std::shared_ptr<Wire>& wire, Answer answer) {
    if (wire->down_is_silent) return;
    wire->down = std::max(wire->down + 1, now_ + wire->lag + delay());
    at(wire->down, [this, wire, answer = std::move(answer)]() mutable {
        if (wire->broken) return;
        wire->inbox.push_back(std::move(answer));
        wake(wire->waiter);
    });
}

/// Nothing passes any more, and in a while the client sees it.
inline void World::cut(const std::shared_ptr<Wire>& wire) {
    if (std::exchange(wire->cut, true) || wire->down_is_silent) return;
    at(now_ + delay(), [this, wire] {
        wire->broken = true;
        wake(wire->waiter);
    });
}

inline void World::set_up() {
    const double rates = broken_ == Broken::clocks ? 0.3 : 0.0049; // of both, and just within Options::drift
    for (int n = random_.one_of({1, 3, 3, 5}); n > 0; --n) {
        Server& server = servers_.emplace_back();
        server.id = n;
        server.clock = {random_.between(0, 3600 * s), random_.one_of({rates, -rates, 0.0})};
    }
    if (servers_.size() > 1 && random_.chance(0.1)) servers_.front().lies = true;
    const bool disagree = random_.chance(0.2); // on where the line is: the place depends on the servers' names
    for (int n = random_.one_of({2, 2, 3, 4}); n > 0; --n) {
        Client& client = clients_.emplace_back();
        client.id = n;
        client.clock = {random_.between(0, 3600 * s), random_.one_of({rates, -rates, 0.0})};
        const std::string as = disagree ? " of client " + std::to_string(n) : "";
        for (Server& server : servers_)
            client.nodes.push_back({client, &server, "server " + std::to_string(server.id) + as});
    }
    usual_delay_ = random_.one_of({100 * us, 500 * us, 3 * ms});
    if (random_.chance(0.5)) slow_ = random_.unit() * random_.one_of({0.1, 0.5});
    if (random_.chance(0.5)) reset_ = random_.unit() * 0.05;
    if (random_.chance(0.3)) silent_ = random_.unit() * 0.3;
    if (random_.chance(0.2)) repeated_ = random_.unit() * random_.one_of({0.05, 0.2});
    for (const Trouble trouble :
         {Trouble::standstill, Trouble::restart, Trouble::amnesia, Trouble::pause, Trouble::death})
        if (random_.chance(0.4)) troubles_.push_back(trouble);
    if (random_.chance(0.2)) restart_delay_ = Millis{longest_ttl / ms};
    if (random_.chance(0.2)) { // either of the two is enough
        troubles_.push_back(Trouble::failover);
        if (restart_delay_ == Millis::zero()) replicas_ = 2;
    }
    if (broken_ == Broken::replicas) {
        troubles_.assign(1, Trouble::failover);
        restart_delay_ = Millis::zero();
        replicas_ = 0;
    }
    if (broken_ == Broken::memory) {
        troubles_.assign(1, Trouble::amnesia);
        restart_delay_ = Millis::zero();
    }
    if (broken_ == Broken::tokens) { // nothing else goes wrong but what is carried out twice
        slow_ = reset_ = silent_ = 0;
        repeated_ = 0.2;
        troubles_.clear();
    }
    // Numbers are to rise where clocks are wrong, or where memories are lost: not where both are.
    const bool loses_grants = replicas_ == 0 && std::count(troubles_.begin(), troubles_.end(), Trouble::failover) > 0;
    const bool forgetful = loses_grants || std::count(troubles_.begin(), troubles_.end(), Trouble::amnesia) > 0;
    const Time wrong_by = forgetful ? s / 2 : 86400 * s;
    for (Server& server : servers_)
        server.wall = (1'700'000'000 * s + random_.between(-wrong_by, wrong_by) - server.clock.offset) / us;
    trouble_every_ = random_.between(10 * ms, 400 * ms);
    calm_at_ = random_.between(100 * ms, 2 * s);
    at(calm_at_, [this] { calm_down(); });
    if (!troubles_.empty()) at(random_.between(0, trouble_every_), [this] { trouble(); });
    for (Client& client : clients_) start(client, [this, &client] { live(client); });
}

inline void World::trouble() {
    if (calm_) return;
    const Time span = random_.one_of({5 * ms, 50 * ms, 500 * ms, 3 * s});
    const Time end = now_ + random_.between(1, span);
    Server& server = servers_[random_.bits() % servers_.size()];
    Client& client = clients_[random_.bits() % clients_.size()];
    const Trouble what = troubles_[random_.bits() % troubles_.size()];
    tell("trouble %d: server %d or client %d, for %.3f ms", static_cast<int>(what), server.id, client.id,
         static_cast<double>(end - now_) / ms);
    ++report_.faults;
    switch (what) {
    case Trouble::standstill:
        if (server.frozen) break;
        server.frozen = true;
        at(end, [this, &server] { thaw(server); });
        break;
    case Trouble::restart: crash(server, end); break;
    case Trouble::amnesia: { // to have no vote for the longest ttl is what such a server owes to all others
        if (!server.up) break;
        const bool at_once = broken_ == Broken::memory || restart_delay_ > Millis::zero();
        const Time back = now_ + (at_once ? ms : longest_ttl + longest_ttl / 50);
        server.forget();
        server.up_since = server.clock.at(back);
        crash(server, back);
        break;
    }
    case Trouble::pause:
        client.frozen_until = std::max(client.frozen_until, end);
        ++client.freezes;
        break;
    case Trouble::death:
        if (std::count_if(clients_.begin(), clients_.end(), [](const Client& one) { return !one.dead; }) > 1)
            client.dead = true;
        break;
    case Trouble::failover: fail_over(server); break;
    }
    at(now_ + random_.between(1, 2 * trouble_every_), [this] { trouble(); });
}

inline void World::crash(Server& server, Time until) {
    if (!server.up) return;
    server.up = false;
    ++server.life;
    server.backlog.clear();
    for (const auto& one : std::exchange(server.wires, {}))
        if (const auto wire = one.lock()) cut(wire);
    at(until, [&server] { server.up = true; });
}

/// A replica is the primary from now on, without what it has not received. Who was it goes on until all have heard.
inline void World::fail_over(Server& server) {
    if (!server.up || server.successor != nullptr) return;
    if (replicas_ == 0 && random_.chance(0.5)) server.replicated = server; // it had received all
    Server& promoted = servers_.emplace_back();
    promoted.id = server.id + 10;
    promoted.clock = server.clock;
    promoted.wall = server.wall;
    static_cast<Memory&>(promoted) = promoted.replicated = server.replicated;
    if (restart_delay_ > Millis::zero()) promoted.up_since = server.clock.at(now_ + 2 * to_hear_of_it);
    server.successor = &promoted;
    for (Client& client : clients_)
        for (SimNode& node : client.nodes)
            if (node.server == &server)
                at(now_ + random_.between(0, to_hear_of_it), [this, &node, &promoted] { move(node, promoted); });
    at(now_ + 10 * to_hear_of_it, [this, &server] { crash(server, never); });
}

/// A client has heard of it: its connections to the old primary are given up.
inline void World::move(SimNode& node, Server& to) {
    for (const auto& one : node.server->wires)
        if (const auto wire = one.lock(); wire && &wire->client == &node.client) cut(wire);
    node.server = &to;
    if (to.successor != nullptr) at(now_, [this, &node, &to] { move(node, *to.successor); });
}

inline void World::thaw(Server& server) {
    server.frozen = false;
    for (const auto& arrival : std::exchange(server.backlog, {})) arrival();
}

/// No new faults from now on; servers that are away return in time, and so do processes that stand still.
inline void World::calm_down() {
    calm_ = true;
    calm_by_ = now_ + longest_delay + longest_ttl + enough;
    slow_ = reset_ = silent_ = repeated_ = 0;
    tell("%s", "calm");
    at(calm_by_, [this] {
        for (const Client& client : clients_)
            if (!client.dead && !client.finished)
                violated("client " + std::to_string(client.id) + " does not get the lock");
        bury();
    });
    for (Server& server : servers_)
        if (server.frozen) thaw(server);
}

/// The end: those who died are woken too, with no way to any server, to let their destructors run.
inline void World::bury() {
    if (std::exchange(over_, true)) return;
    for (Server& server : servers_)
        if (server.successor == nullptr && server.holder && server.clock.at(now_) / ms < server.ends)
            violated("a key is left on a server");
    for (Task& task : tasks_)
        if (task.sleep != 0) at(now_, [this, &task, sleep = task.sleep] { resume(task, sleep); });
}

/// Between two moments at which its process does something a client can only lose the lock. So it is enough to look
/// then.
inline void World::judge(const Client& client) {
    const auto owns = [](const Client& one) { return !one.dead && one.lock != nullptr && one.lock->owns_lock(); };
    if (over_ || !owns(client)) return;
    for (const Client& other : clients_)
        if (&other != &client && owns(other))
            violated("clients " + std::to_string(client.id) + " and " + std::to_string(other.id) + " have the lock");
}

/// A lease ends before it is released. Else servers that count as having granted it may give the lock to another one.
inline void World::judge(const Question& release) {
    for (const Client& client : clients_)
        if (!over_ && !client.dead && client.lock != nullptr && client.lock->token() == release.token)
            violated("the lease that client " + std::to_string(client.id) + " has is being released");
}

inline void World::granted(Client& client, Lock& lock, bool fencing) {
    ++report_.grants;
    note(0x100 + static_cast<std::uint64_t>(client.id));
    judge(client);
    const std::uint64_t fencing_token = fencing ? lock.fencing_token() : 0;
    tell("client %d has the lock, fence %llu", client.id, static_cast<unsigned long long>(fencing_token));
    if (fencing && std::exchange(last_fence_, fencing_token) >= fencing_token)
        violated("client " + std::to_string(client.id) + "'s fence is not above the last one");
}

inline void World::live(Client& client) {
    Quorum<SimNode> quorum{[&] {
        std::vector<SimNode*> nodes;
        for (SimNode& node : client.nodes) nodes.push_back(&node);
        return nodes;
    }()};
    while (!calm_) turn(client, quorum);
    last_turn(client, quorum);
    client.finished = true;
    if (!over_ &&
        std::all_of(clients_.begin(), clients_.end(), [](const Client& one) { return one.dead || one.finished; }))
        at(now_ + longest_delay + longest_ttl + longest_ttl / 50, [this] { bury(); });
    while (!over_) sleep(never);
}

/// That a call ends in time, by the client's own clock, unless its process stands still meanwhile.
class World::InTime {
public:
    InTime(World& of, const Client& client, Millis bound, const char* what)
        : world_{of}, client_{client}, what_{what}, bound_{bound}, started_{client.shows(of.now_)},
          freezes_{client.freezes} {}
    InTime(const InTime&) = delete;
    InTime& operator=(const InTime&) = delete;
    ~InTime() {
        if (world_.over_ || client_.freezes != freezes_ || client_.shows(world_.now_) - started_ <= bound_ + Millis{1})
            return;
        world_.violated(std::string{what_} + " takes too long, client " + std::to_string(client_.id));
    }

private:
    World& world_;
    const Client& client_;
    const char* const what_;
    const Millis bound_;
    const TimePoint started_;
    const unsigned freezes_;
};

/// By another thread of the process, and by its clock.
inline std::stop_token World::stop_after(const Client& client, Millis span) {
    std::stop_source source;
    at(true_time(client, client.shows(now_) + span), [this, source, waiter = running_]() mutable {
        if (!source.request_stop()) return;
        tell("client %d stops waiting", waiter->client.id);
        wake(waiter);
    });
    return source.get_token();
}

inline void World::turn(Client& client, Quorum<SimNode>& quorum) {
    Options options{.ttl = Millis{random_.one_of({30, 50, 100, 200, 500, 1000, 2000})}, .renew = random_.chance(0.6)};
    if (random_.chance(0.2)) options.max_hold = Millis{random_.between(10, 1000)};
    if (random_.chance(0.5)) options.request_timeout = Millis{random_.between(2, options.usable().count() - 1)};
    options.max_retry_delay = Millis{random_.one_of({2, 10, 50})};
    options.confirm_release = random_.chance(0.7);
    options.fencing = random_.chance(0.7);
    options.min_replicas = replicas_;
    struct Forget {
        ~Forget() { client.lock = nullptr; }
        Client& client;
    } const forget{client};
    Lock lock{quorum, "key", options, std::defer_lock};
    client.lock = &lock;
    for (int rounds = random_.one_of({1, 2, 4}); rounds > 0 && !calm_; --rounds) {
        bool locked = false;
        try {
            const Millis span{random_.between(1, 2 * options.ttl.count())};
            if (random_.chance(0.3)) {
                const InTime watch{*this, client, options.effective_request_timeout(), "try_lock"};
                locked = lock.try_lock();
            } else if (random_.chance(0.7)) {
                const InTime watch{*this, client, span, "try_lock_for"};
                locked = lock.try_lock_for(span);
            } else if (random_.chance(0.1)) {
                const InTime watch{*this, client, span, "a lock() that is stopped"};
                locked = lock.lock(stop_after(client, span));
            } else {
                lock.lock();
                locked = true;
            }
        } catch (const std::system_error& error) {
            if (error.code() == std::errc::resource_deadlock_would_occur || error.code() == Errc::bad_option) throw;
            tell("client %d: %s", client.id, error.what());
        }
        if (!locked && lock.owns_lock())
            violated("client " + std::to_string(client.id) + " has a lock that it was refused");
        if (locked) {
            granted(client, lock, options.fencing);
            work(client, lock, options);
            if (random_.chance(0.2)) return; // the destructor unlocks
            const InTime watch{*this, client, options.effective_request_timeout(), "unlock"};
            lock.unlock();
        }
        rest(client, random_.between(0, random_.one_of({ms, 10 * ms, 50 * ms})));
    }
}

inline void World::work(Client& client, Lock& lock, const Options& options) {
    const bool until_it_lapses = random_.chance(0.1);
    const std::stop_token lost = random_.chance(0.3) ? lock.lost() : std::stop_token{};
    for (int steps = random_.one_of({0, 1, 3, 6}); steps > 0 && !over_ && !calm_ && lock.owns_lock(); --steps) {
        rest(client, random_.between(0, random_.one_of({ms, 20 * ms, options.ttl.count() * ms / 2})));
        if (random_.chance(0.15)) {
            const InTime watch{*this, client, options.effective_request_timeout(), "extend"};
            static_cast<void>(lock.extend(Millis{random_.one_of({20, 100, 500, 2000})}));
        }
    }
    while (until_it_lapses && !over_ && !calm_ && lock.owns_lock()) rest(client, 10 * ms);
    if (over_ || !lost.stop_possible() || lock.owns_lock()) return;
    rest(client, ms);
    if (!over_ && !lost.stop_requested()) violated("client " + std::to_string(client.id) + " is not told of its loss");
}

/// Whoever lives gets the lock, now that nothing is in the way.
inline void World::last_turn(Client& client, Quorum<SimNode>& quorum) {
    for (bool locked = false; !locked && !over_;) {
        Lock lock{quorum, "key", {.ttl = Millis{1'000}, .fencing = true, .min_replicas = replicas_}, std::defer_lock};
        client.lock = &lock;
        try {
            if ((locked = lock.try_lock_for(Millis{1'000}))) granted(client, lock, true);
        } catch (const std::system_error&) { // what was lost in the troubles may be noticed only now
        }
        if (locked) rest(client, ms);
        lock.unlock();
        client.lock = nullptr;
    }
}

inline Report World::run() {
    set_up();
    for (constexpr std::uint64_t too_many = 300'000;
         !queue_.empty() && done_ < tasks_.size() && report_.events < too_many; ++report_.events) {
        std::pop_heap(queue_.begin(), queue_.end());
        const Event event = queue_.back();
        queue_.pop_back();
        now_ = event.at;
        note(event.number);
        const auto action = std::exchange(actions_[event.action], nullptr);
        spare_actions_.push_back(event.action);
        action();
    }
    if (done_ < tasks_.size()) violated("a thread does not end");
    return report_;
}

} // namespace simulation
