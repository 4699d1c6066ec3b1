/// One connection to a server, and the exchanges that are under way on it. It opens itself, sends, receives and fails;
/// it never waits. What is asked and what replies mean the exchanges know. tests/session_test.cpp and
/// tests/wire_test.cpp go red if it is wrong.
#pragma once

#include "../protocol/asking_exchange.hpp"
#include "../protocol/exchange_queue.hpp"
#include "../system/spin_wait.hpp"
#include "connector.hpp"

namespace redislock::detail {

/// Opens itself when there is something to send, and again after a failure: see Connector. Not thread-safe.
class Channel {
public:
    /// `knows_scripts`: they are called by their names from the first time on. Where the server does not know one, that
    /// costs another way to and fro; else its first use on each connection is sent in full, which costs the server
    /// more.
    explicit Channel(const Server& server, bool knows_scripts = false)
        : server_{server}, queue_{knows_scripts, server.release} {}
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    /// When to come back even if nothing has arrived by then, for the next answer may be overdue.
    TimePoint due() const noexcept {
        if (owed() == 0) return TimePoint::max();
        if (is_pausing_ || (is_ready() && queue_.has_unsent())) return TimePoint{};
        return std::min({queue_.due(), watch_at_, is_opening() ? connector_.until() : TimePoint::max()});
    }

    bool is_closed() const noexcept { return connector_.phase() == Connector::Phase::closed; }
    bool is_ready() const noexcept { return connector_.phase() == Connector::Phase::ready; }
    bool is_opening() const noexcept { return connector_.is_opening(); }

    /// Whether it was closed by the other end, or for its silence.
    bool has_died() const noexcept { return is_closed() && was_heard_ && !is_given_up_; }

    /// Whether an extension was not answered in time, and nothing was heard since: the connection may be dead. It is
    /// kept for those who have more time; a new question had better take another one.
    bool in_doubt() const noexcept { return is_in_doubt_; }

    /// How many answers are still to come, also to extensions that are overdue; and whether one to an acquire, with
    /// this token or with any.
    std::size_t owed() const noexcept { return queue_.size(); }
    bool owes_an_acquire() const noexcept { return queue_.owes_an_acquire(); }
    bool owes_an_acquire(const Token& token, unsigned replicas = 0) const noexcept {
        return queue_.owes_an_acquire(token, replicas);
    }

    /// Whether what it was given is on its way, or has come to nothing.
    bool has_asked() const noexcept { return owed() == 0 || (is_ready() && queue_.has_asked()); }

    /// Whether all that was sent has left this process.
    bool is_flushed() const noexcept { return is_ready() && !queue_.has_unsent() && queue_.out.empty(); }

    /// Whether the server lets us wait in line for this key, as far as is known.
    bool lets_wait(std::string_view key) const noexcept { return queue_.lets_wait(key); }

    /// It goes out with the next advance(). Its question is answered once: with a *no* if it was never sent, with an
    /// *unknown* if its answer will not come.
    void send(std::unique_ptr<Exchange> exchange) {
        // With nothing under way there is nothing to be read, unless the server has hung up, or is out of step. And
        // who is to grant is to be the primary yet.
        const bool is_old = exchange->request().verb == Verb::acquire && server_.locator.is_old(detail::now());
        if (is_ready() && owed() == 0 && (is_old || !connection_.reusable())) hang_up();
        if (exchange->request().asking) exchange = std::make_unique<AskingExchange>(std::move(exchange));
        queue_.push(std::move(exchange));
    }
    void send(std::shared_ptr<Question> question, std::size_t node = 0) {
        send(std::make_unique<CommandExchange>(std::move(question), node));
    }

    /// Goes on as far as that needs no waiting.
    void advance(TimePoint now) {
        if (owed() > 0) watch_at_ = server_.locator.watch(now);
        if (connector_.has_moved()) leave_the_old();
        if (is_closed() && queue_.has_unsent()) open(now);
        if (is_opening() && !connector_.advance(now, queue_.due())) fail(connector_.failure());
        if (is_ready()) exchange(now);
        fail_if_broken();
        if (!is_pausing_ && queue_.due() <= now) answer_overdue(now);
        fail_if_broken();
    }

    /// What its connection is to be polled for.
    pollfd entry() const noexcept {
        if (is_opening()) return connector_.entry();
        const bool sends = !queue_.out.empty() || connection_.wants_to_write();
        return {connection_.fd(), static_cast<short>(sends ? POLLIN | POLLOUT : POLLIN), 0};
    }

    /// While nobody uses it: see Descriptor. False: it was closed meanwhile, or is now.
    void set_aside() noexcept { connection_.set_aside(); }
    [[nodiscard]] bool take_back(TimePoint now) {
        if (is_ready() && connection_.take_back()) advance(now); // what was answered meanwhile
        return is_ready() && connection_.good();
    }

    /// Nobody waits any more for what is under way: its replies are skipped.
    void disown() { queue_.disown(); }

    /// Gives up all that is under way: as when its time is up.
    void abandon(const Failure& why) {
        is_given_up_ = true;
        if (owed() > 0) fail(why);
    }

    /// A look for the reply before it is waited for: see SpinWait.
    template <class Arrived>
    bool spin_wait(Arrived arrived) {
        return spin_wait_(arrived);
    }

private:
    void open(TimePoint now) {
        was_heard_ = is_given_up_ = false;
        if (!connector_.begin(now, queue_.due())) fail(connector_.failure());
    }

    /// Who was the primary goes on answering for a while, and what it says is worth nothing.
    void leave_the_old() {
        is_given_up_ = true; // where the new one is is known, and not in doubt
        fail({Errc::disconnected, "the sentinels name another primary"});
    }

    void fail_if_broken() {
        if (is_ready() && !connection_.good()) fail(why_not(connection_));
    }

    /// Where there is no memory the connection is closed: a reply may have been read and not judged.
    void exchange(TimePoint now) try {
        queue_.begin(now, connector_.grants_from());
        flush();
        receive(now);
    } catch (...) {
        connection_.close();
        throw;
    }

    bool flush() {
        const std::size_t before = queue_.out.size();
        const bool all = connection_.flush(queue_.out);
        queue_.has_sent(before - queue_.out.size());
        return all;
    }

    /// As many answers as others can wait for meanwhile.
    void receive(TimePoint now) {
        constexpr int most = 256;
        is_pausing_ = false;
        for (int received = 0; queue_.awaits_reply() && !is_pausing_; is_pausing_ = ++received == most) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) break;
            if (!was_heard_ && reply->is_error() && meaning(reply->text) == Errc::max_clients) {
                connection_.refuse({Errc::max_clients, reply->text});
                break;
            }
            is_in_doubt_ = false;
            was_heard_ = true;
            const ExchangeQueue::Taken taken = queue_.take(*reply, now);
            if (taken.leaves) return fail(taken.ends);
            for (unsigned surplus = taken.surplus; surplus > 0; --surplus) connection_.owe_reply();
            if (taken.ends) connection_.refuse(taken.ends);
        }
        if (!queue_.awaits_reply() && connection_.is_out_of_step()) connection_.refuse({Errc::protocol_error, {}});
        queue_.count_replicas(now);
        if (!queue_.out.empty()) flush();
    }

    void answer_overdue(TimePoint now) {
        using Overdue = ExchangeQueue::Overdue;
        const Verdict verdict = is_ready() ? Verdict::unknown : Verdict::no;
        switch (queue_.answer_overdue(now, verdict, connector_.overdue())) {
        case Overdue::none: flush(); break; // an exchange that goes on may have said something
        case Overdue::answered_alone: is_in_doubt_ = true; break;
        case Overdue::all: fail(connector_.overdue());
        }
    }

    void fail(Failure why) {
        const bool has_spoken = connector_.phase() >= Connector::Phase::handshake;
        const bool is_hung_up_on = why.code == Errc::disconnected && has_spoken && !was_heard_;
        if (is_hung_up_on) server_.refuses_names = connector_.names_itself(); // as some proxies do
        // A server that expects TLS hangs up on what it does not understand.
        if (is_hung_up_on && !server_.tls) why.detail += "; nothing was heard before: is it a port for TLS?";
        ExchangeQueue failed{false, server_.release}; // what may throw comes first
        if (!is_given_up_) connector_.doubt();
        if (server_.locator.may_change()) server_.release.is_proven = false; // the next may be another one
        const bool is_refused = why.code == Errc::max_clients && !was_heard_;
        const bool is_left = has_spoken && connection_.good();
        if (is_left) leave();
        queue_.move_to(failed);
        hang_up();
        failed.tell_all(why, is_left, is_refused);
    }

    void leave() {
        ExchangeQueue::ClosingWrite last = queue_.closing_write();
        if (!is_ready()) last.bytes.replace(0, queue_.out.size(), connector_.unsent());
        connection_.leave(last.bytes, last.is_blocked);
        server_.lingering.get().keep(connection_.take_lingering());
    }

    void hang_up() noexcept {
        connector_.close();
        is_pausing_ = is_in_doubt_ = false;
        queue_.forget_connection();
    }

    const Server& server_;
    Connection connection_;
    Connector connector_{server_, connection_};
    SpinWait spin_wait_;
    bool is_pausing_ = false; ///< more may have been received than was read
    bool is_in_doubt_ = false;
    bool was_heard_ = false; ///< a question was answered since a connection was made last
    bool is_given_up_ = false;
    TimePoint watch_at_ = TimePoint::max(); ///< when sentinels are to be asked, or have answered
    ExchangeQueue queue_;
};

} // namespace redislock::detail
