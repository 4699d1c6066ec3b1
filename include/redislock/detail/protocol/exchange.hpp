/// One request to a server and its whole conversation: which bytes to send, how many replies will come, and what they
/// amount to. These are state machines. They know no socket, no clock and no thread: replies and the time come in as
/// arguments. tests/exchange_test.cpp goes red if they are wrong.
#pragma once

#include "release_form.hpp"

#include <array>

namespace redislock::detail {

/// What is known of the server at the other end of one connection. It is forgotten when the connection is closed.
struct Peer {
    std::array<bool, 3> knows_script{}; ///< by Verb: it is called by its name; else in full, which teaches it
    bool lets_wait = false;             ///< BLPOP was permitted: the next wait can be sent in one write
    std::string no_line_for{};          ///< the key for which BLPOP was refused last
    ReleaseForm release_form = ReleaseForm::script; ///< of the server, whichever connection has learnt it
    bool is_release_proven = true;                  ///< if not, an acquire tries first whether it is permitted
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
    const std::shared_ptr<Question>& question() const noexcept { return question_; }
    std::size_t node() const noexcept { return node_; }

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
    virtual std::string undo() const { return release_in_full(form_, request()); }

    /// Whether undo() is to be sent behind it when nobody waits for it any more: also behind a release by name, for
    /// nobody would be there to send it in full if the server does not know it.
    virtual bool needs_undo() const noexcept { return may_grant(); }

    /// Whether it may stay unanswered without an end of the connection: nothing has to be sent behind it.
    bool can_be_left() const noexcept { return !may_grant() && request().verb != Verb::release; }

    /// Whether what it asks for has yet to be sent, when another reply has come.
    virtual bool is_proving() const noexcept { return false; }

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

    ReleaseForm form_ = ReleaseForm::script; ///< of the server's, from begin() on

private:
    const std::shared_ptr<Question> question_;
    const std::size_t node_;
    bool is_told_ = false;
    Answer answer_{Verdict::unknown};
};

} // namespace redislock::detail
