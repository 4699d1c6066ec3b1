/// One Redis server as a backend: connections to it, kept in a pool. It knows nothing of leases, or of trying again.
/// tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/net/node_channel.hpp"
#include "detail/net/sentinels.hpp"
#include "detail/protocol/commands_exchange.hpp"
#include "detail/protocol/inspect_exchange.hpp"
#include "detail/renewal/server_port.hpp"
#include "detail/system/lifetime.hpp"
#include "detail/system/random.hpp"
#include "redis_options.hpp"

#include <atomic>

namespace redislock {

/// One server. Thread-safe; neither copied nor moved, since its locks refer to it; to be destroyed after them. That
/// takes a request timeout at most, where a lock's release was not answered; else no time. Nothing is connected until a
/// lock asks. In a forked child it makes connections of its own, and its copies of the parent's are closed.
class Redis {
public:
    /// Blocks for nothing: a host's name is looked up when a lock asks, in a thread beside, and again when a connection
    /// fails; one that has no address is Errc::unresolved then. Throws std::system_error: Errc::bad_uri,
    /// Errc::bad_option.
    explicit Redis(std::string_view uri, RedisOptions options = {}) : Redis{Address::parse(uri), std::move(options)} {}

    /// Where the environment has no such variable, std::getenv() gives a null pointer: Errc::bad_uri.
    explicit Redis(const char* uri, RedisOptions options = {})
        : Redis{uri ? Address::parse(uri) : throw std::system_error{Errc::bad_uri, "a null pointer"},
                std::move(options)} {}
    explicit Redis(std::nullptr_t, RedisOptions options = {}) = delete;

    explicit Redis(Address address, RedisOptions options = {})
        : address_{std::move(address)}, options_{detail::checked(std::move(options))},
          server_{address_, options_, detail::Sentinels::of(address_, options_)} {}

    Redis(const Redis&) = delete;
    Redis& operator=(const Redis&) = delete;
    ~Redis() { at_the_end_.begin(); }

    static constexpr bool has_fencing_tokens = true;

    /// For messages.
    std::string name() const { return address_.text(); }

    /// What a Quorum makes of it: a way on which nothing waits, and the clock and the threads beside it.
    using Engine = detail::System;
    struct Link : detail::NodeChannel {
        explicit Link(const Redis& redis) : detail::NodeChannel{redis.server_} {}
    };

    /// What a Cluster makes of it: the connections on which its worker asks, like Redis' own.
    detail::ChannelPool& pool() noexcept { return pool_; }

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
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder, bool asking = false) {
        return ask_about(
            key, deadline, [&](const auto& of) { return std::make_unique<detail::InspectExchange>(of, holder); },
            asking);
    }

    /// For a check: runs these commands, in the server's protocol, in one write. Yes: `replies` has a reply to each,
    /// which may be an error. By the deadline.
    Answer run(const std::vector<std::string>& commands, const Deadline& deadline,
               std::vector<detail::Reply>& replies) {
        return ask_about({}, deadline, [&](const auto& of) {
            return std::make_unique<detail::CommandsExchange>(of, commands, replies);
        });
    }
    Millis restart_delay() const noexcept { return options_.restart_delay; }

    /// The line is kept by scripts; and nobody is granted a lock whose release is not proven to be taken.
    bool has_line() const noexcept { return server_.release.is_proven && !is_command(server_.release.form.load()); }

    /// Whether somebody stood in line when the key was released here, of late.
    bool is_contended(std::string_view key) const noexcept { return server_.release.contended.has(key, now()); }

    /// Whether it may become another server: leases are watched then, whether they are renewed or not.
    bool may_move() const noexcept { return server_.locator.is_service(); }

    /// For a Quorum's worker.
    const detail::Locator& locator() const noexcept { return server_.locator; }

    /// In a thread that is started with the first lease that is kept; over connections that nobody else uses.
    void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) { renewers_.keep(task, when, pool_); }
    void drop(detail::WorkerTask& task) noexcept { renewers_.drop(task); }

private:
    using Channel = detail::Channel;
    using AwaitedQuestion = detail::AwaitedQuestion;

    /// Asks once, for what is no lock's request.
    template <class MakeExchange>
    Answer ask_about(std::string_view key, const Deadline& deadline, MakeExchange make_exchange, bool asking = false) {
        std::unique_ptr<Channel> channel = pool_.take(Verb::acquire);
        Request request{.verb = Verb::acquire, .key = std::string{key}, .token = {}, .ttl = {}, .deadline = deadline};
        request.asking = asking;
        const auto question = converse(std::move(request), *channel, make_exchange);
        pool_.give_back(std::move(channel));
        detail::locate(question->answer->why, *this);
        return std::move(*question->answer);
    }

    Answer ask_and_wait(Request request) {
        std::unique_ptr<Channel> channel = pool_.take(request.verb);
        const bool waits = request.can_wait() && has_line() && channel->lets_wait(request.key);
        if (!waits) request.deadline = request.first_answer(now());
        const bool is_alone = next_try_ != 0;
        // A waiter that can have no other connection blocks for not much longer than from one look to the next, and
        // looks over its own connection in between.
        if (waits && is_alone) request.patience = std::min(request.patience, request.recheck * 3 / 2);
        std::shared_ptr<AwaitedQuestion> question;
        if (waits)
            stand_in_line(question = std::make_shared<AwaitedQuestion>(std::move(request)), *channel, is_alone);
        else
            question = converse(std::move(request), *channel,
                                [](const auto& of) { return std::make_unique<detail::CommandExchange>(of, 0); });
        pool_.count(question->request, *question->answer);
        pool_.give_back(std::move(channel));
        return std::move(*question->answer);
    }

    /// Asks over this channel; where it can make no connection, and there is time left, over one that is there. The
    /// question is owned by its exchange as well: an extension that is overdue may be answered alone, and its exchange
    /// stays in the pool.
    template <class MakeExchange>
    std::shared_ptr<AwaitedQuestion> converse(Request request, Channel& channel, MakeExchange make_exchange) {
        const auto ask_over = [&](Request what, Channel& way) {
            auto question = std::make_shared<AwaitedQuestion>(std::move(what));
            way.send(make_exchange(question));
            drive(*question, way, question->request.deadline);
            return question;
        };
        std::shared_ptr<AwaitedQuestion> question = ask_over(std::move(request), channel);
        const Answer& answer = *question->answer;
        const bool finds_none = answer.verdict == Verdict::no && answer.finds_no_connection();
        if (!finds_none || detail::over(question->request.deadline)) return question;
        if (std::unique_ptr<Channel> spare = pool_.take_spare()) {
            std::shared_ptr<AwaitedQuestion> again = ask_over(question->request, *spare);
            // What it may have done must not be forgotten for a no of before.
            if (again->answer->is_about_the_key() || again->answer->verdict == Verdict::unknown)
                question = std::move(again);
            pool_.give_back(std::move(spare));
        }
        return question;
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

    inline static const Answer nowhere{Verdict::no, {Errc::unreachable, {}}};

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
