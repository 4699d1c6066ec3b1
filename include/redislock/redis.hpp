/// One Redis server as a backend: connections to it, kept in a pool. It knows nothing of leases, or of trying again.
/// tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/protocol/line.hpp"
#include "detail/renewal/server_port.hpp"
#include "detail/system/lifetime.hpp"
#include "detail/system/random.hpp"
#include "uri.hpp"

#include <atomic>

namespace redislock {

/// How to talk to a server, beyond its URI. An aggregate, for designated initialisers.
struct RedisOptions {
    /// What CLIENT LIST shows; printable, without spaces. Empty: not set. A server that forbids it is used all the
    /// same.
    std::string client_name = "redislock";

    /// Connections kept open while nobody uses them. More are opened as more threads ask at once.
    std::size_t idle_connections = 16;

    /// For a server that may lose its data when it ends: the longest ttl of any client, up to 24 h. A server that has
    /// been up for less, and for up to a second and 2 % more, may have forgotten leases that go on: it grants nothing
    /// (Errc::restarted), and in a Quorum it has no vote. A longer ttl is refused. Each new connection asks the server
    /// by INFO how long it has been up; a proxy that keeps connections over a restart hides it. 0: not asked.
    Millis restart_delay{0};
};

/// One server. Thread-safe; neither copied nor moved, since its locks refer to it; to be destroyed after them. That
/// takes a request timeout at most, where a lock's release was not answered; else no time. Nothing is connected until a
/// lock asks. In a forked child it makes connections of its own, and its copies of the parent's are closed.
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
          server_{detail::resolve(address_),
                  detail::Handshake{address_, options_.client_name, options_.restart_delay}} {}

    Redis(const Redis&) = delete;
    Redis& operator=(const Redis&) = delete;
    ~Redis() { at_the_end_.begin(); }

    static constexpr bool has_fencing_tokens = true;

    /// For messages.
    std::string name() const { return address_.text(); }

    /// What a Quorum makes of it: a way on which nothing waits, and the clock and the threads beside it.
    using Engine = detail::System;
    struct Link : detail::Channel {
        explicit Link(const Redis& redis) : detail::Channel{redis.server_} {}
        template <class Links>
        static void wait(const Deadline& deadline, const Links& links) {
            detail::ChannelWait{deadline, links}();
        }
    };

    /// Throws Errc::bad_option for a lease that could be forgotten, and given again before its end: see
    /// RedisOptions::restart_delay.
    void check_ttl(Millis ttl) const {
        if (options_.restart_delay > Millis::zero() && ttl > options_.restart_delay)
            detail::refuse("ttl", detail::in_ms(ttl),
                           "up to the restart_delay of " + name() + ", " + detail::in_ms(options_.restart_delay));
    }

    /// For those that it must outlive.
    detail::Life life() const noexcept { return lifetime_.life(); }

    TimePoint now() const noexcept { return detail::now(); }
    Token fresh() const { return detail::random_token(); }
    void pause(const Deadline& until) const noexcept { detail::wait(-1, 0, until); }

    /// Blocks until `request.deadline` at the latest. Throws nothing but std::bad_alloc. An acquire that waits for its
    /// turn has a connection to itself for as long, and now and then another one for a moment.
    Answer ask(const Request& request) {
        Answer answer = request.wants_answer ? ask_and_wait(request) : send(request);
        detail::locate(answer.why, *this);
        return answer;
    }

    /// Who has the key; nothing if nobody has. By the deadline; one question, without trying again.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        const auto question = std::make_shared<AwaitedQuestion>(
            Request{.verb = Verb::acquire, .key = std::string{key}, .token = {}, .ttl = {}, .deadline = deadline});
        std::unique_ptr<Channel> channel = pool_.take(Verb::acquire);
        channel->send(std::make_unique<detail::InspectExchange>(question, holder));
        drive(*question, *channel, deadline);
        pool_.give_back(std::move(channel));
        detail::locate(question->answer->why, *this);
        return std::move(*question->answer);
    }

    /// In a thread that is started with the first lease that is kept; over connections that nobody else uses.
    void keep(const std::shared_ptr<detail::HeldLease>& held_lease, TimePoint when) {
        renewers_.keep(held_lease, when, pool_);
    }
    void drop(detail::HeldLease& held_lease) noexcept { renewers_.drop(held_lease); }

private:
    using Channel = detail::Channel;
    using AwaitedQuestion = detail::AwaitedQuestion;

    Answer ask_and_wait(Request request) {
        std::unique_ptr<Channel> channel = pool_.take(request.verb);
        const bool waits = request.patience >= shortest_block && channel->lets_wait(request.key);
        if (!waits) request.deadline = request.first_answer(now());
        const bool is_alone = next_try_ != 0;
        // A waiter that can have no other connection blocks for not much longer than from one look to the next, and
        // looks over its own connection in between.
        if (waits && is_alone) request.patience = std::min(request.patience, request.recheck * 3 / 2);
        // Owned by its exchange as well: an extension that is overdue may be answered alone, and its exchange stays in
        // the pool.
        auto question = std::make_shared<AwaitedQuestion>(std::move(request));
        if (waits)
            stand_in_line(question, *channel, is_alone);
        else
            drive(question, *channel);
        if (!waits && may_ask_elsewhere(*question))
            if (std::unique_ptr<Channel> spare = pool_.take_spare()) {
                auto again = std::make_shared<AwaitedQuestion>(question->request);
                drive(again, *spare);
                if (again->answer->is_about_the_key()) question = std::move(again);
                pool_.give_back(std::move(spare));
            }
        pool_.count(question->request, *question->answer);
        pool_.give_back(std::move(channel));
        return std::move(*question->answer);
    }

    /// No connection can be made, and there is time left for one that is there.
    bool may_ask_elsewhere(const AwaitedQuestion& question) const noexcept {
        const Answer& answer = *question.answer;
        return answer.verdict == Verdict::no && answer.finds_no_connection() &&
               !detail::over(question.request.deadline);
    }

    void drive(const std::shared_ptr<AwaitedQuestion>& question, Channel& channel) {
        channel.send(question);
        drive(*question, channel, question->request.deadline);
    }

    /// Until there is an answer, which the channel has at the latest by the question's deadline.
    void drive(AwaitedQuestion& question, Channel& channel, const Deadline& deadline) {
        const auto arrives = [&] { return channel.advance(now()), question.answer.has_value(); };
        while (!arrives() && !channel.spin_wait(arrives)) wait_for(channel, deadline);
    }

    void wait_for(Channel& channel, const Deadline& deadline) {
        detail::ChannelWait wait{deadline};
        wait.add(channel);
        wait();
        if (detail::stopped(deadline)) channel.abandon({Errc::timed_out, "stopped"});
    }

    /// A look of a waiter over another connection.
    struct Look {
        std::unique_ptr<Channel> channel{};
        std::shared_ptr<AwaitedQuestion> question{};
    };

    /// Two connections: one has the place in the line, and over the other one it is looked whether that is worth
    /// anything. Both are waited for at once.
    void stand_in_line(const std::shared_ptr<AwaitedQuestion>& question, Channel& own, bool is_alone) {
        auto exchange = std::make_unique<detail::LineExchange>(question, now());
        detail::LineExchange& line = *exchange; // until there is an answer
        own.send(std::move(exchange));
        const Deadline& deadline = question->request.deadline;
        const auto arrives = [&] { return own.advance(now()), question->answer.has_value(); };
        std::optional<Look> look;
        if (arrives() || own.spin_wait(arrives)) return;
        while (!arrives()) {
            if (!look && line.look_at() <= now()) {
                if (!is_alone || is_time_to_try(question->request))
                    begin(look, question->request);
                else if (const Failure lost = line.looked(nowhere, now()))
                    own.abandon(lost);
                if (!look) continue;
            }
            if (look) look->channel->advance(now());
            if (look && look->question->answer) {
                if (const Failure lost = end(look, line)) own.abandon(lost);
                continue;
            }
            detail::ChannelWait wait{{look ? TimePoint::max() : line.look_at(), deadline.stop}};
            wait.add(own);
            if (look) wait.add(*look->channel);
            wait();
            if (detail::stopped(deadline)) own.abandon({Errc::timed_out, "stopped"});
        }
        if (question->answer->verdict == Verdict::unknown && question->answer->finds_no_connection()) next_try_ = 1;
        if (!look) return;
        look->channel->disown();
        pool_.give_back(std::move(look->channel));
    }

    void begin(std::optional<Look>& look, Request announcement) {
        announcement.deadline = announcement.first_answer(now());
        Look fresh{pool_.take(Verb::acquire), std::make_shared<AwaitedQuestion>(std::move(announcement))};
        fresh.channel->send(std::make_unique<detail::AnnounceExchange>(fresh.question, 0));
        look = std::move(fresh);
    }

    /// Why the place in the line is worth nothing any more, if so.
    Failure end(std::optional<Look>& look, detail::LineExchange& line) {
        if (look->question->answer->is_about_the_key()) next_try_ = 0;
        Failure lost = line.looked(std::move(*look->question->answer), now());
        pool_.give_back(std::move(look->channel));
        look.reset();
        return lost;
    }

    /// One of all waiters tries now and then whether there is another connection again.
    bool is_time_to_try(const Request& question) noexcept {
        const TimePoint time = now();
        TimePoint::rep due = next_try_;
        return due <= time.time_since_epoch().count() &&
               next_try_.compare_exchange_strong(due, later(time, question.recheck).time_since_epoch().count());
    }

    /// A question whose answer nobody waits for, beyond its being sent.
    Answer send(Request request) {
        const Deadline deadline = request.deadline;
        request.deadline.at = TimePoint::max(); // of its answer: there is no time by which that must be here
        const auto question = std::make_shared<AwaitedQuestion>(std::move(request));
        std::unique_ptr<Channel> channel = pool_.take(question->request.verb);
        channel->send(question);
        channel->advance(now());
        while (!channel->is_flushed() && !question->answer) {
            if (now() >= deadline.at) channel->abandon({Errc::timed_out, "sending"});
            if (question->answer) break;
            wait_for(*channel, deadline);
            channel->advance(now());
        }
        const Answer answer = question->answer.value_or(Answer{Verdict::unknown});
        channel->disown();
        pool_.count(question->request, answer);
        pool_.give_back(std::move(channel));
        return answer.why ? answer : Answer{Verdict::unknown};
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

    /// What is left for a block to be worth it: a few ms are lost to rounding.
    static constexpr Millis shortest_block{5};

    detail::Uncancelled at_the_end_{std::defer_lock};
    const detail::Lifetime lifetime_{};
    const Address address_;
    const RedisOptions options_;
    const detail::Server server_;
    detail::ChannelPool pool_{server_, options_.idle_connections};
    std::atomic<TimePoint::rep> next_try_{0}; ///< at a second connection, since a waiter could have none; 0: it could
    detail::Renewers<detail::ServerPort> renewers_;
};

static_assert(Backend<Redis>);

} // namespace redislock
