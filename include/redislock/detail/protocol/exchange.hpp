/// One request to a server and its whole conversation: which bytes to send, how many replies will come, and what they
/// amount to. These are state machines. They know no socket, no clock and no thread: replies and the time come in as
/// arguments. tests/exchange_test.cpp goes red if they are wrong.
#pragma once

#include "../../outcome.hpp"
#include "meaning.hpp"
#include "scripts.hpp"

#include <array>

namespace redislock::detail {

/// What is known of the server at the other end of one connection. It is forgotten when the connection is closed.
struct Peer {
    std::array<bool, 3> knows_script{}; ///< by Verb: it is called by its name; else in full, which teaches it
    bool lets_wait = false;             ///< BLPOP was permitted: the next wait can be sent in one write
    std::string no_line_for{};          ///< the key for which BLPOP was refused last
};

/// Commands that are sent for one key again and again. They survive the connection.
struct PreparedCommands {
    PreparedCommand acquire, extend, release;
};

/// The base of all conversations. Its replies come in order, each to take().
class Exchange {
public:
    enum class Next {
        more,   ///< its next reply is the next one of the connection
        resent, ///< it has sent something again: its next reply comes behind those of all others
        count,  ///< it is granted, and waits for the count of replicas that have it: see counted()
        done,   ///< see take_answer()
        leave,  ///< the same, and the connection is of no more use
    };

    Exchange(std::shared_ptr<Question> question, std::size_t node) noexcept
        : question_{std::move(question)}, node_{node} {}
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    virtual ~Exchange() = default;

    const Request& request() const noexcept { return question_->request; }

    /// Appends what is sent first.
    virtual void begin(Peer& peer, PreparedCommands& prepared, TimePoint now, std::string& out) = 0;

    /// The next reply to what it has sent. May append to `out`.
    virtual Next take(Peer& peer, const Reply& reply, TimePoint now, std::string& out) = 0;

    /// The number of replicas that have what was written before. Only after Next::count.
    virtual Next counted(const Reply&, std::string&) { return Next::done; }

    /// How many replicas are to be counted behind what it has just sent; 0: none, or it counts them itself.
    virtual unsigned counts_replicas() const noexcept { return 0; }

    /// Whether it may be granted the key unknown to us, so that undo() must be sent behind it if nobody waits for it
    /// any more.
    virtual bool may_grant() const noexcept { return false; }
    std::string undo() const { return release_by_body(request()); }

    /// Whether undo() is to be sent behind it when nobody waits for it any more: also behind a release by name, for
    /// nobody would be there to send it in full if the server does not know it.
    virtual bool needs_undo() const noexcept { return may_grant(); }

    /// Whether the server serves nothing else on this connection until it is done.
    virtual bool blocks() const noexcept { return false; }

    /// The release of what it asks for has been sent behind it: it must not be sent again.
    virtual void revoke() noexcept {}

    /// When it has waited for too long, unless a reply comes.
    virtual TimePoint due() const noexcept { return request().deadline.at; }

    /// It has. False: it goes on for a while, and has perhaps appended something to `out` that makes the server answer.
    virtual bool is_overdue(TimePoint now, std::string&) { return due() <= now; }

    /// How many replies are still to come, that nobody needs, after it is done.
    virtual unsigned surplus() const noexcept { return 0; }

    /// Of an exchange that is done.
    Answer take_answer() noexcept { return std::move(answer_); }

    /// Of one whose answer will not come. May add what is known of the key.
    virtual Answer unanswered(Verdict verdict, const Failure& why) const { return {verdict, why}; }

    /// Once: what comes later is of no interest.
    void tell(Answer answer) {
        if (!std::exchange(is_told_, true)) question_->answered(node_, std::move(answer));
    }
    bool is_told() const noexcept { return is_told_; }
    bool gives_up() const noexcept { return question_->gives_up(); }

protected:
    Next done(Answer answer, Next how = Next::done) noexcept {
        answer_ = std::move(answer);
        return how;
    }

private:
    const std::shared_ptr<Question> question_;
    const std::size_t node_;
    bool is_told_ = false;
    Answer answer_{Verdict::unknown};
};

/// Asks for one thing with one command, by name or in full, and judges its reply. If replicas are to have it, they are
/// counted; where an acquire has too few of them it is released again.
///
/// | state          | reply                           | next     | sends              | answer                  |
/// |----------------|---------------------------------|----------|--------------------|-------------------------|
/// | asked          | NOSCRIPT, not revoked           | in full  | the script in full |                         |
/// | asked, in full | yes, and replicas are wanted    | counting |                    |                         |
/// | asked, in full | anything else                   |          |                    | what it means           |
/// | counting       | enough replicas                 |          |                    | yes                     |
/// | counting       | too few, of an acquire          | undoing  | the release        |                         |
/// | counting       | too few, of an extension        |          |                    | unknown: why            |
/// | counting       | no number                       |          |                    | unknown: protocol_error |
/// | undoing        | released                        |          |                    | no: why                 |
/// | undoing        | anything else                   |          |                    | unknown: why            |
class CommandExchange : public Exchange {
public:
    using Exchange::Exchange;

    void begin(Peer& peer, PreparedCommands& prepared, TimePoint, std::string& out) override {
        const Request& r = request();
        if (r.verb == Verb::acquire && is_plain(r)) {
            state_ = State::in_full;
            out += prepared.acquire(r, set_command);
            return;
        }
        // The first use of a script on a connection teaches it, which saves a round trip where the server does not know
        // it. A release whose answer nobody waits for is sent in full each time: nobody would be there to send it
        // again.
        const bool known = std::exchange(peer.knows_script[static_cast<std::size_t>(r.verb)], true);
        state_ = known && r.wants_answer ? State::asked : State::in_full;
        if (state_ == State::asked && r.verb == Verb::release)
            out += prepared.release(r, release_by_sha);
        else if (state_ == State::asked && r.verb == Verb::extend)
            out += prepared.extend(r, extend_by_sha);
        else
            out += script();
    }

    Next take(Peer&, const Reply& reply, TimePoint, std::string& out) override {
        if (state_ == State::undoing) return undone(reply);
        if (state_ == State::asked && is_noscript(reply) && !revoked_) {
            state_ = State::in_full;
            out += script();
            return Next::resent;
        }
        return judge(meaning_of(request(), reply));
    }

    Next counted(const Reply& reply, std::string& out) override {
        objection_ = shortage(request(), reply);
        if (!objection_) return done(std::move(granted_));
        if (objection_.code == Errc::protocol_error || request().verb != Verb::acquire)
            return done({Verdict::unknown, objection_});
        state_ = State::undoing;
        out += undo();
        return Next::resent;
    }

    unsigned counts_replicas() const noexcept override { return state_ == State::undoing ? 0 : request().replicas; }

    /// A grant that is being undone may still be there, though nothing of the undo was sent.
    Answer unanswered(Verdict verdict, const Failure& why) const override {
        return {state_ == State::undoing ? Verdict::unknown : verdict, why};
    }
    bool may_grant() const noexcept override { return request().verb == Verb::acquire; }
    bool needs_undo() const noexcept override {
        return may_grant() || (request().verb == Verb::release && state_ == State::asked);
    }
    void revoke() noexcept override { revoked_ = true; }

protected:
    /// By its name from now on, until the server says that it does not know it.
    void ask_by_name(std::string& out) {
        state_ = State::asked;
        out += script();
    }

    Next judge(Answer answer) {
        if (answer.verdict != Verdict::yes || request().replicas == 0) return done(std::move(answer));
        granted_ = std::move(answer);
        return Next::count;
    }

    bool is_undoing() const noexcept { return state_ == State::undoing; }

private:
    enum class State { asked, in_full, undoing };

    std::string script() const {
        const Request& r = request();
        const bool in_full = state_ == State::in_full;
        switch (r.verb) {
        case Verb::acquire: return in_full ? acquire_by_body(r) : acquire_by_sha(r);
        case Verb::extend: return in_full ? extend_by_body(r) : extend_by_sha(r);
        default: return in_full ? release_by_body(r) : release_by_sha(r);
        }
    }

    Next undone(const Reply& reply) {
        const bool is_released = reply.type == REDIS_REPLY_INTEGER && reply.integer == 1;
        return done({is_released ? Verdict::no : Verdict::unknown, objection_});
    }

    State state_ = State::asked;
    bool revoked_ = false;
    Answer granted_{Verdict::unknown};
    Failure objection_{};
};

/// Tells the releases to come that somebody waits, and asks how long the key is held. The answer is busy, with the
/// holder's remaining time: none if the key is free, and the lock is handed to the first in line. All else is why that
/// is not possible.
class AnnounceExchange final : public Exchange {
public:
    using Exchange::Exchange;

    void begin(Peer&, PreparedCommands&, TimePoint, std::string& out) override { out += announce_by_sha(request()); }

    Next take(Peer&, const Reply& reply, TimePoint, std::string& out) override {
        if (is_noscript(reply) && !std::exchange(in_full_, true)) {
            out += announce_by_body(request());
            return Next::resent;
        }
        return done(announced(request(), reply));
    }

    /// What the reply to an announcement means.
    static Answer announced(const Request& request, const Reply& reply) {
        if (reply.is_error()) return meaning_of(request, reply);
        if (reply.type == REDIS_REPLY_STATUS)
            return {
                .verdict = Verdict::no, .why = {Errc::wrong_type, "the key holds a " + reply.text}, .was_held = true};
        if (reply.type != REDIS_REPLY_INTEGER || reply.integer < -2 - hand_off_takes.count())
            return {Verdict::unknown, {Errc::protocol_error, {}}};
        return busy_for(reply.integer);
    }

private:
    /// For how long at most a key is free, and handed to somebody: see announce_script.
    static constexpr Millis hand_off_takes{20};

    bool in_full_ = false;
};

/// Who has the key. Yes: somebody, who is then in `holder`; expired: nobody; all else is why that is not known. Who may
/// not run scripts asks for the value in full, which may be more than a reply may have.
class InspectExchange final : public Exchange {
public:
    /// `holder` must live until the question is answered.
    InspectExchange(std::shared_ptr<Question> question, Holder& holder) noexcept
        : Exchange{std::move(question), 0}, holder_{holder} {}

    void begin(Peer&, PreparedCommands&, TimePoint, std::string& out) override {
        out += inspect_command(request().key);
        out += formatted({"PTTL", request().key});
    }

    Next take(Peer&, const Reply& reply, TimePoint, std::string& out) override {
        if (!std::exchange(has_value_, true)) return take_value(reply);
        if (value_.why.code == Errc::no_permission && !std::exchange(in_full_, true)) {
            value_ = {Verdict::yes};
            has_value_ = false;
            out += formatted({"GET", request().key});
            out += formatted({"PTTL", request().key});
            return Next::resent;
        }
        if (value_.verdict != Verdict::yes) return done(std::move(value_));
        if (reply.is_error()) return done({Verdict::no, {meaning(reply.text), reply.text}});
        if (reply.type != REDIS_REPLY_INTEGER) return done({Verdict::unknown, {Errc::protocol_error, {}}});
        if (reply.integer == -2 || is_nil_) return done({Verdict::no, {Errc::expired, {}}});
        if (reply.integer >= 0) holder_.remaining = Millis{reply.integer};
        return done(std::move(value_));
    }

private:
    Next take_value(const Reply& reply) {
        const bool is_other_type = reply.is_error() && meaning(reply.text) == Errc::wrong_type;
        is_nil_ = reply.type != REDIS_REPLY_STRING && !is_other_type;
        if (reply.type == REDIS_REPLY_STRING)
            holder_.value = reply.text;
        else if (reply.is_error() && !is_other_type)
            value_ = {Verdict::no, {meaning(reply.text), reply.text}};
        return Next::more;
    }

    Holder& holder_;
    Answer value_{Verdict::yes};
    bool has_value_ = false, is_nil_ = false, in_full_ = false;
};

} // namespace redislock::detail
