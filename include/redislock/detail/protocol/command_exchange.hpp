/// One command, by name or in full, and what its reply means. A state machine without socket, clock and thread.
/// tests/exchange_test.cpp goes red if it is wrong.
#pragma once

#include "exchange.hpp"

namespace redislock::detail {

/// Asks for one thing with one command, by name or in full, and judges its reply. If replicas are to have it, they are
/// counted; where an acquire has too few of them it is released again.
///
/// An acquire from a server of which it is not proven that it takes releases first asks for that of its own token,
/// which does no harm: what could not be released is not granted.
///
/// | state          | reply                           | next     | sends              | answer                  |
/// |----------------|---------------------------------|----------|--------------------|-------------------------|
/// | proving        | anything, and it is revoked     |          |                    | no                      |
/// | proving        | the command is refused          | proving  | the next form      |                         |
/// | proving        | the last form is refused        |          |                    | no: the first refusal   |
/// | proving        | any other error                 |          |                    | no: why                 |
/// | proving        | anything else                   | asked    | the acquire        |                         |
/// | asked          | NOSCRIPT, not revoked           | in full  | the script in full |                         |
/// | asked, in full | a release's or an extension's command is refused | in full  | the next form |             |
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
        form_ = peer.release_form;
        if (request().verb == Verb::acquire && !peer.is_release_proven)
            return try_form(ReleaseForm::script, State::proving, out);
        ask(peer, prepared, out);
    }

    Next take(Peer& peer, const Reply& reply, TimePoint, std::string& out) override {
        if (state_ == State::undoing) return undone(reply);
        if (state_ == State::proving) return proven(peer, reply, out);
        if (state_ == State::asked && is_noscript(reply) && !revoked_) {
            state_ = State::in_full;
            out += script();
            return Next::resent;
        }
        if (request().verb == Verb::acquire) return judge(meaning_of(request(), reply));
        Answer answer = meaning_in(form_, request(), reply);
        if (refuses_command(answer)) {
            if (!objection_) objection_ = answer.why;
            if (form_ != ReleaseForm::delex && !revoked_) {
                try_form(next_form(), State::in_full, out);
                return Next::resent;
            }
            answer.why = objection_;
        } else if (answer.verdict == Verdict::yes) {
            peer.release_form = form_;
        }
        return judge(std::move(answer));
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

    unsigned counts_replicas() const noexcept override {
        return state_ == State::undoing || state_ == State::proving ? 0 : request().replicas;
    }

    /// A grant that is being undone may still be there, though nothing of the undo was sent.
    Answer unanswered(Verdict verdict, const Failure& why) const override {
        return {state_ == State::undoing ? Verdict::unknown : verdict, why};
    }
    bool may_grant() const noexcept override { return request().verb == Verb::acquire; }
    bool needs_undo() const noexcept override {
        return may_grant() || (request().verb == Verb::release && state_ == State::asked);
    }
    void revoke() noexcept override { revoked_ = true; }
    bool is_proving() const noexcept override { return state_ == State::proving; }

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
    enum class State { proving, asked, in_full, undoing };
    static constexpr const char* no_commands =
        "; is it a sentinel? Its primary is had by redis+sentinel://, with the service's name";

    void ask(Peer& peer, PreparedCommands& prepared, std::string& out) {
        const Request& r = request();
        if (r.verb == Verb::acquire && (is_plain(r) || (is_command(form_) && !r.fencing))) {
            state_ = State::in_full;
            out += prepared.acquire(r, set_command);
            return;
        }
        if (r.verb != Verb::acquire && form_ > ReleaseForm::script) {
            state_ = State::in_full;
            out += script();
            return;
        }
        // The first use of a script on a connection teaches it, which saves a round trip where the server does not know
        // it. A release whose answer nobody waits for is sent in full each time: nobody would be there to send it
        // again.
        const bool known = std::exchange(peer.knows_script[static_cast<std::size_t>(r.verb)], true);
        state_ = known && r.wants_answer ? State::asked : State::in_full;
        if (r.verb == Verb::release)
            out += prepared.release(r, state_ == State::asked ? release_by_sha : release_by_body);
        else if (state_ == State::asked && r.verb == Verb::extend)
            out += prepared.extend(r, extend_by_sha);
        else
            out += script();
    }

    ReleaseForm next_form() const noexcept { return static_cast<ReleaseForm>(static_cast<int>(form_) + 1); }
    void try_form(ReleaseForm form, State state, std::string& out) {
        form_ = form;
        state_ = state;
        out += state == State::proving ? proof_of(form, request()) : script();
    }

    /// The reply to the release that comes before the first acquire.
    Next proven(Peer& peer, const Reply& reply, std::string& out) {
        if (!reply.is_error() && reply.type != REDIS_REPLY_INTEGER)
            return done({Verdict::no, {Errc::protocol_error, {}}});
        const Answer answer = reply.is_error() ? meaning_of(request(), reply) : Answer{Verdict::yes};
        if (revoked_) return done({Verdict::no, {Errc::timed_out, "not asked"}}); // its release is on its way
        if (refuses_command(answer)) {
            if (!objection_) objection_ = {answer.why.code, "locks could not be released here: " + answer.why.detail};
            if (form_ == ReleaseForm::delex) {
                if (objection_.code == Errc::unsupported) objection_.detail += no_commands;
                return done({Verdict::no, objection_});
            }
            try_form(next_form(), State::proving, out);
            return Next::resent;
        }
        if (reply.is_error() && answer.why.code != Errc::wrong_type) return done(answer);
        peer.release_form = form_;
        peer.is_release_proven = true;
        peer.knows_script[static_cast<std::size_t>(Verb::release)] = form_ == ReleaseForm::script;
        objection_ = {};
        PreparedCommands fresh; // not worth keeping: this happens once
        ask(peer, fresh, out);
        return Next::resent;
    }

    std::string script() const {
        const Request& r = request();
        const bool in_full = state_ == State::in_full;
        switch (r.verb) {
        case Verb::acquire: return in_full ? acquire_by_body(r) : acquire_by_sha(r);
        case Verb::extend: return in_full ? extend_in_full(form_, r) : extend_by_sha(r);
        default: return in_full ? release_in_full(form_, r) : release_by_sha(r);
        }
    }

    Next undone(const Reply& reply) {
        const bool is_released = reply.type == REDIS_REPLY_INTEGER && reply.integer > 0;
        return done({is_released ? Verdict::no : Verdict::unknown, objection_});
    }

    State state_ = State::asked;
    bool revoked_ = false;
    Answer granted_{Verdict::unknown};
    Failure objection_{};
};

} // namespace redislock::detail
