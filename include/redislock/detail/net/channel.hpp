/// One connection to a server, and the exchanges that are under way on it. It connects, introduces itself, sends,
/// receives and fails; it never waits. What is asked and what replies mean the exchanges know. tests/session_test.cpp
/// and tests/wire_test.cpp go red if it is wrong.
#pragma once

#include "../protocol/exchange_queue.hpp"
#include "server.hpp"

namespace redislock::detail {

/// Opens itself when there is something to send, and again after a failure, with the server's next address. Not
/// thread-safe.
///
/// | phase      | event                                  | next       |
/// |------------|----------------------------------------|------------|
/// | closed     | there is something to send             | connecting |
/// | connecting | connected                              | handshake   |
/// | connecting, handshake | failed, or its time is up; there is another address | connecting |
/// | handshake   | all replies of the handshake have come | ready      |
/// | any        | failed; an answer is overdue           | closed     |
class Channel {
public:
    /// `knows_scripts`: they are called by their names from the first time on. Where the server does not know one, that
    /// costs another way to and fro; else its first use on each connection is sent in full, which costs the server
    /// more.
    explicit Channel(const Server& server, bool knows_scripts = false) : server_{server}, queue_{knows_scripts} {}
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    /// When to come back even if nothing has arrived by then, for the next answer may be overdue.
    TimePoint due() const noexcept {
        if (owed() == 0) return TimePoint::max();
        if (is_pausing_ || (phase_ == Phase::ready && queue_.has_unsent())) return TimePoint{};
        return is_opening() && tried_ < server_.endpoints.size() ? std::min(queue_.due(), open_by_) : queue_.due();
    }

    bool is_closed() const noexcept { return phase_ == Phase::closed; }
    bool is_ready() const noexcept { return phase_ == Phase::ready; }
    bool is_opening() const noexcept { return phase_ == Phase::connecting || phase_ == Phase::handshake; }

    /// Whether it was closed by the other end, or for its silence.
    bool has_died() const noexcept { return is_closed() && was_heard_ && !is_given_up_; }

    /// Whether an extension was not answered in time, and nothing was heard since: the connection may be dead. It is
    /// kept for those who have more time; a new question had better take another one.
    bool in_doubt() const noexcept { return is_in_doubt_; }

    /// How many answers are still to come, also to extensions that are overdue; and whether one to an acquire, with
    /// this token or with any.
    std::size_t owed() const noexcept { return queue_.size(); }
    bool owes_an_acquire() const noexcept { return queue_.owes_an_acquire(); }
    bool owes_an_acquire(const Token& token) const noexcept { return queue_.owes_an_acquire(token); }

    /// Whether all that was sent has left this process.
    bool is_flushed() const noexcept { return phase_ == Phase::ready && !queue_.has_unsent() && queue_.out.empty(); }

    /// Whether the server lets us wait in line for this key, as far as is known.
    bool lets_wait(std::string_view key) const noexcept { return queue_.lets_wait(key); }

    /// It goes out with the next advance(). Its question is answered once: with a *no* if it was never sent, with an
    /// *unknown* if its answer will not come.
    void send(std::unique_ptr<Exchange> exchange) {
        // With nothing under way there is nothing to be read, unless the server has hung up, or is out of step.
        if (phase_ == Phase::ready && owed() == 0 && !connection_.reusable()) hang_up();
        queue_.push(std::move(exchange));
    }
    void send(std::shared_ptr<Question> question, std::size_t node = 0) {
        send(std::make_unique<CommandExchange>(std::move(question), node));
    }

    /// Goes on as far as that needs no waiting.
    void advance(TimePoint now) {
        if (phase_ == Phase::closed && queue_.has_unsent()) open(now, 0);
        if (phase_ == Phase::connecting && detail::wait(connection_.fd(), POLLOUT, TimePoint{}) &&
            connection_.finish_open(endpoint()))
            phase_ = Phase::handshake;
        if (phase_ == Phase::handshake && flush(hello_) && is_introduced()) phase_ = Phase::ready;
        if (phase_ == Phase::ready) exchange(now);
        while (is_opening() && tried_ < server_.endpoints.size() && (!connection_.good() || now >= open_by_))
            open(now, tried_);
        if (phase_ != Phase::closed && !connection_.good()) fail(why_not(connection_));
        if (!is_pausing_ && queue_.due() <= now) answer_overdue(now);
        if (phase_ != Phase::closed && !connection_.good()) fail(why_not(connection_));
    }

    /// What its connection is to be polled for.
    pollfd entry() const noexcept {
        return {connection_.fd(), static_cast<short>(wants_to_write() ? POLLIN | POLLOUT : POLLIN), 0};
    }

    /// While nobody uses it: see Descriptor. False: it was closed meanwhile, or is now.
    void set_aside() noexcept { connection_.set_aside(); }
    [[nodiscard]] bool take_back(TimePoint now) {
        if (phase_ == Phase::ready && connection_.take_back()) advance(now); // what was answered meanwhile
        return phase_ == Phase::ready && connection_.good();
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
    enum class Phase { closed, connecting, handshake, ready };

    bool wants_to_write() const noexcept {
        return phase_ == Phase::connecting || (phase_ == Phase::handshake && !hello_.empty()) ||
               (phase_ == Phase::ready && !queue_.out.empty());
    }

    const Endpoint& endpoint() const noexcept { return server_.endpoints[nth_ % server_.endpoints.size()]; }

    /// The next address, after `tried` others; each has its share of the time.
    void open(TimePoint now, std::size_t tried) {
        if (tried > 0) ++nth_;
        open_by_ = now + (std::max(queue_.due(), now) - now) / static_cast<int>(server_.endpoints.size() - tried);
        tried_ = tried + 1;
        connection_ = {};
        hello_ = server_.handshake.bytes();
        replies_heard_ = 0;
        was_heard_ = is_given_up_ = false;
        phase_ = Phase::connecting;
        connection_.begin_open(endpoint());
    }

    bool is_introduced() {
        for (; replies_heard_ < server_.handshake.awaited(); ++replies_heard_) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return false;
            if (Failure objection = server_.handshake.objection(replies_heard_, *reply)) {
                connection_.refuse(std::move(objection));
                return false;
            }
            // Counted from now on, and not from when it was said.
            if (const auto cool_down = server_.handshake.cool_down(replies_heard_, *reply); cool_down > Millis::zero())
                grants_from_ = later(detail::now(), *cool_down);
        }
        if (server_.handshake.has_name()) connection_.owe_reply();
        return true;
    }

    /// Where there is no memory the connection is closed: a reply may have been read and not judged.
    void exchange(TimePoint now) try {
        queue_.begin(now, grants_from_);
        flush();
        receive(now);
    } catch (...) {
        connection_.close();
        throw;
    }

    bool flush() {
        const std::size_t before = queue_.out.size();
        const bool all = flush(queue_.out);
        queue_.has_sent(before - queue_.out.size());
        return all;
    }

    /// False: not all could be sent, or the connection has failed.
    bool flush(std::string& bytes) {
        if (bytes.empty()) return connection_.good();
        std::string_view rest = bytes;
        const bool good = connection_.write_some(rest);
        bytes.erase(0, bytes.size() - rest.size());
        return good && bytes.empty();
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
        const Verdict verdict = phase_ == Phase::ready ? Verdict::unknown : Verdict::no;
        switch (queue_.answer_overdue(now, verdict, why_overdue())) {
        case Overdue::none: flush(); break; // an exchange that goes on may have said something
        case Overdue::answered_alone: is_in_doubt_ = true; break;
        case Overdue::all: fail(why_overdue());
        }
    }

    Failure why_overdue() const {
        if (phase_ == Phase::connecting)
            return {Errc::unreachable, endpoint().text + ": " + std::system_category().message(ETIMEDOUT)};
        return {Errc::timed_out, "waiting for a reply"};
    }

    void fail(const Failure& why) {
        ExchangeQueue failed{false}; // what may throw comes first
        const bool is_refused = why.code == Errc::max_clients && !was_heard_;
        const bool is_left = phase_ >= Phase::handshake && connection_.good();
        if (is_left) leave();
        queue_.move_to(failed);
        hang_up();
        ++nth_;
        failed.tell_all(why, is_left, is_refused);
    }

    void leave() {
        ExchangeQueue::LastWords last = queue_.last_words();
        if (phase_ != Phase::ready) last.bytes.replace(0, queue_.out.size(), hello_);
        connection_.leave(last.bytes, last.is_blocked);
        server_.lingering.get().keep(connection_.take_lingering());
    }

    void hang_up() noexcept {
        connection_.close();
        phase_ = Phase::closed;
        is_pausing_ = is_in_doubt_ = false;
        grants_from_ = {};
        queue_.forget_connection();
    }

    const Server& server_;
    Connection connection_;
    SpinWait spin_wait_;
    Phase phase_ = Phase::closed;
    std::size_t nth_ = 0, tried_ = 0, replies_heard_ = 0;
    TimePoint open_by_{};
    TimePoint grants_from_{}; ///< nothing is to be acquired before: see RedisOptions::restart_delay
    bool is_pausing_ = false; ///< more may have been received than was read
    bool is_in_doubt_ = false;
    bool was_heard_ = false; ///< a question was answered since a connection was made last
    bool is_given_up_ = false;
    std::string hello_;
    ExchangeQueue queue_;
};

} // namespace redislock::detail
