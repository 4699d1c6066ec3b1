/// One Redis server as a backend: sessions with it, kept in a pool. It knows nothing of leases, or of trying again.
/// tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include "channel.hpp"
#include "renewer.hpp"
#include "session.hpp"
#include "ways.hpp"

#include <atomic>
#include <mutex>

namespace redislock {

/// How to talk to a server, beyond its URI. An aggregate, for designated initialisers.
struct RedisOptions {
    /// What CLIENT LIST shows; printable, without spaces. Empty: not set. A server that forbids it is used all the same.
    std::string client_name = "redislock";

    /// Connections kept open while nobody uses them. More are opened as more threads ask at once.
    std::size_t idle_connections = 16;

    /// For a server that may lose its data when it ends: the longest ttl of any client, up to 24 h. A server that has been up for less, and
    /// for up to a second and 2 % more, may have forgotten leases that go on: it grants nothing (Errc::restarted), and in a Quorum it has no
    /// vote. A longer ttl is refused. Each new connection asks the server by INFO how long it has been up; a proxy that keeps connections
    /// over a restart hides it. 0: not asked.
    Millis restart_delay{0};
};

namespace detail {
/// The way of renewals to a server.
class ServerPort {
public:
    using Engine = System;

    explicit ServerPort(const Server& server) : ways_{{&server}} {}

    void send(Renewal renewal) {
        Channel<Renewal>& way = ways_.to(0, renewal.holding->options.min_replicas);
        way.send(std::move(renewal));
    }
    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        for (Channel<Renewal>& way : ways_.all) way.advance(now, answered);
    }
    TimePoint due() const noexcept { return ways_.due(); }
    void wait(const Alarm& alarm) const { Channel<Renewal>::wait({TimePoint::max(), alarm.fd()}, ways_.all); }

private:
    Ways<Channel<Renewal>, const Server> ways_;
};
} // namespace detail

/// One server. Thread-safe; neither copied nor moved, since its locks refer to it; to be destroyed after them.
/// Nothing is connected until a lock asks. In a forked child it makes connections of its own, and its copies of the parent's are closed.
class Redis {
public:
    /// Resolves the host's name, once: that may block for as long as the system's resolver does, unless it is numeric.
    /// Throws std::system_error: Errc::bad_uri, Errc::unresolved, Errc::bad_option.
    explicit Redis(std::string_view uri, RedisOptions options = {}) : Redis{Address::parse(uri), std::move(options)} {}

    /// Where the environment has no such variable, std::getenv() gives a null pointer: Errc::bad_uri.
    explicit Redis(const char* uri, RedisOptions options = {})
        : Redis{uri ? Address::parse(uri) : throw std::system_error{Errc::bad_uri, "a null pointer"},
                std::move(options)} {}
    explicit Redis(std::nullptr_t, RedisOptions options = {}) = delete;

    explicit Redis(Address address, RedisOptions options = {})
        : address_{std::move(address)}, options_{checked(std::move(options))},
          server_{detail::resolve(address_), detail::Greeting{address_, options_.client_name, options_.restart_delay}} {
    }

    Redis(const Redis&) = delete;
    Redis& operator=(const Redis&) = delete;
    ~Redis() { at_the_end_.begin(); }

    static constexpr bool numbers_grants = true;

    /// For messages.
    std::string name() const { return address_.text(); }

    /// What a Quorum makes of it: a way on which nothing waits, and the clock and the threads beside it.
    using Engine = detail::System;
    template <class Errand>
    struct Link : detail::Channel<Errand> {
        explicit Link(const Redis& redis) : detail::Channel<Errand>{redis.server_} {}
    };

    /// Throws Errc::bad_option for a lease that could be forgotten, and given again before its end: see RedisOptions::restart_delay.
    void check_ttl(Millis ttl) const {
        if (options_.restart_delay > Millis::zero() && ttl > options_.restart_delay)
            detail::refuse("ttl", detail::in_ms(ttl),
                           "up to the restart_delay of " + name() + ", " + detail::in_ms(options_.restart_delay));
    }

    TimePoint now() const noexcept { return detail::now(); }
    Token fresh() const { return detail::random_token(); }
    void pause(const Deadline& until) const noexcept { detail::wait(-1, 0, until); }

    /// Blocks until `request.deadline` at the latest. Throws nothing but std::bad_alloc. An acquire that waits for its turn
    /// has a connection to itself for as long, and now and then another one for a moment.
    Answer ask(const Request& request) {
        const bool alone = next_try_ != 0;
        Answer answer = with_session(request.first_answer(now()), [&](detail::Session& session) {
            Answer said = session.ask(alone ? shortened(request) : request, [&](const Request& question) {
                return !alone || is_time_to_try(question) ? look(question) : nowhere;
            });
            if (said.verdict == Verdict::unknown && said.finds_no_connection()) next_try_ = 1;
            return said;
        });
        detail::locate(answer.why, *this);
        return answer;
    }

    /// Who has the key; nothing if nobody has. By the deadline; one question, without trying again.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        Answer answer =
            with_session(deadline, [&](detail::Session& session) { return session.inspect(key, deadline, holder); });
        detail::locate(answer.why, *this);
        return answer;
    }

    /// Renewals travel on a connection of their own, in a thread that is started with the first of them.
    void keep(const std::shared_ptr<detail::Holding>& holding, TimePoint when) {
        renewers_.keep(holding, when, server_);
    }
    void drop(detail::Holding& holding) noexcept { renewers_.drop(holding); }

private:
    /// What a waiter sees of the key over another connection.
    Answer look(const Request& question) {
        Answer seen = with_session(question.deadline, [&](detail::Session& other) { return other.announce(question); });
        if (seen.is_about_the_key()) next_try_ = 0;
        return seen;
    }

    /// For a waiter that can have no other connection: it blocks for not much longer than from one look to the next, and looks over
    /// its own connection in between. One of all waiters tries now and then whether there is another one again.
    static Request shortened(Request request) {
        request.patience = std::min(request.patience, request.recheck * 3 / 2);
        return request;
    }
    bool is_time_to_try(const Request& question) noexcept {
        const TimePoint time = now();
        TimePoint::rep due = next_try_;
        return due <= time.time_since_epoch().count() &&
               next_try_.compare_exchange_strong(due, later(time, question.recheck).time_since_epoch().count());
    }

    /// With one from the pool, or else a new one, if it's open by the deadline.
    template <class Use>
    Answer with_session(const Deadline& deadline, Use use) {
        std::unique_ptr<detail::Session> session = idle_session();
        if (!session) {
            server_.lingering.get().sockets.sweep();
            session = std::make_unique<detail::Session>();
            if (!session->open(server_, deadline)) return {Verdict::no, session->failure()};
        }
        Answer answer = use(*session);
        if (session->good()) {
            give_back(std::move(session));
        } else {
            server_.lingering.get().keep(session->take_lingering());
            if (!detail::stopped(deadline)) forget_idle();
        }
        return answer;
    }

    static RedisOptions checked(RedisOptions options) {
        for (const char c : options.client_name)
            if (c <= ' ' || c >= 127)
                detail::refuse("client_name", "\"" + options.client_name + "\"",
                               "ASCII that is printable, without spaces");
        if (options.restart_delay < Millis::zero() || options.restart_delay > Options::longest_ttl)
            detail::refuse("restart_delay", detail::in_ms(options.restart_delay),
                           "0 to " + detail::in_ms(Options::longest_ttl));
        return options;
    }

    inline static const Answer nowhere{Verdict::no, {Errc::unreachable, {}}};

    using Idle = std::vector<std::unique_ptr<detail::Session>>;

    /// The one used last, for its caches are warm; null if there is none that is fit.
    std::unique_ptr<detail::Session> idle_session() {
        for (auto& [mutex, idle] = idle_.get();;) {
            std::unique_ptr<detail::Session> session;
            {
                const std::lock_guard guard{mutex};
                if (idle.empty()) return nullptr;
                session = std::move(idle.back());
                idle.pop_back();
            }
            if (session->reusable()) return session;
        }
    }

    void give_back(std::unique_ptr<detail::Session> session) noexcept try {
        auto& [mutex, idle] = idle_.get();
        const std::lock_guard guard{mutex};
        if (idle.size() >= options_.idle_connections) return;
        session->set_aside();
        idle.push_back(std::move(session));
    } catch (...) { // no room for it: it's closed
    }

    /// Where one has died the others may be dead as well, though they don't know yet.
    void forget_idle() {
        Idle forgotten; // closed without the mutex
        auto& [mutex, idle] = idle_.get();
        const std::lock_guard guard{mutex};
        idle.swap(forgotten);
    }

    detail::Uncancelled at_the_end_{std::defer_lock};
    const Address address_;
    const RedisOptions options_;
    const detail::Server server_;
    detail::PerProcess<detail::Guarded<Idle>> idle_;
    std::atomic<TimePoint::rep> next_try_{0}; ///< at a second connection, since a waiter could have none; 0: it could
    detail::Renewers<detail::ServerPort> renewers_;
};

static_assert(Backend<Redis>);

} // namespace redislock
