/// Waiting in line for a key, as a conversation: announce, block until a release hands the lock on, take the key,
/// unless it is to be had of others as well. And what the looks that are made meanwhile over another connection say of
/// the place. A state machine without socket, clock and thread. tests/exchange_test.cpp and tests/waiting_test.cpp go
/// red if it is wrong.
#pragma once

#include "command_exchange.hpp"

namespace redislock::detail {

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

/// The acquire of one who has found the key held. Announcement, BLPOP and SET travel in one write once the server is
/// known to permit them: the server carries out the SET as soon as the block ends.
///
/// | state      | reply, or time             | next       | sends              | answer        |
/// |------------|----------------------------|------------|--------------------|---------------|
/// | announcing | NOSCRIPT, the first        | announcing | the script in full |               |
/// | announcing | held                       | blocked    | BLPOP, SET, WAIT   |               |
/// | announcing | anything else              | polling    | an acquire script  |               |
/// | in one     | held; NOSCRIPT             | blocked    |                    |               |
/// | in one     | anything else              |            |                    | unknown: why  |
/// | blocked    | the patience is over       | ending     | a nudge            |               |
/// | blocked, ending | BLPOP's               | taking     |                    |               |
/// | announcing, in one, for the turn alone | anything else |  |                 | no: why       |
/// | blocked, ending, for the turn alone | BLPOP's: a turn  |  |                 | yes           |
/// | blocked, ending, for the turn alone | BLPOP's: anything else | |             | what was seen |
/// | taking     | SET's: granted, with WAIT  | counting   |                    |               |
/// | taking     | SET's: anything else       |            |                    | what it means |
/// | counting   | WAIT's: as CommandExchange |            |                    |               |
/// | polling    | as CommandExchange         |            |                    |               |
///
/// A release ends the block by handing the lock on. For a lease that expires, or that a foreign client releases, nobody
/// does: hence the looks. They are made over another connection, so that this one keeps its place in the line. If the
/// key stays free over ten looks and no hand-off arrives, this connection is dead.
class LineExchange final : public CommandExchange {
public:
    enum class For { key, turn }; ///< turn: that it has come is a yes, and nothing has been taken

    LineExchange(std::shared_ptr<Question> question, TimePoint now, For what = For::key)
        : CommandExchange{std::move(question), 0}, taking_{request()}, takes_{what == For::key},
          due_{request().first_answer(now).at} {
        taking_.patience = Millis::zero();
    }

    void begin(Peer& peer, PreparedCommands&, TimePoint now, std::string& out) override {
        form_ = peer.release_form;
        end_ = std::min(request().deadline.at, later(now, request().patience));
        due_ = request().first_answer(now).at;
        out += announce_by_sha(request());
        if (!peer.lets_wait) return;
        state_ = State::in_one;
        send_block(now, out);
    }

    Next take(Peer& peer, const Reply& reply, TimePoint now, std::string& out) override {
        switch (state_) {
        case State::announcing: return announced(peer, reply, now, out);
        case State::in_one:
            // Where the script is not known, a look that is due at once announces us.
            seen_ = is_noscript(reply) ? busy_for(-2) : AnnounceExchange::announced(request(), reply);
            if (!seen_.is_busy()) return done({takes_ ? Verdict::unknown : Verdict::no, seen_.why}, Next::leave);
            return blocked(now);
        case State::blocked:
        case State::ending:
            was_in_line_ = !reply.is_error() || reply.text.starts_with("UNBLOCKED");
            peer.lets_wait = was_in_line_;
            if (!was_in_line_ && meaning(reply.text) != Errc::moved) peer.no_line_for = request().key;
            if (!takes_) return turn(reply);
            state_ = State::taking;
            due_ = request().first_answer(now).at;
            return Next::more;
        case State::taking: return taken(reply);
        case State::counting: return counted(reply, out);
        case State::polling: break;
        }
        if (is_undoing() && std::exchange(nudged_, false)) return Next::more;
        return CommandExchange::take(peer, reply, now, out);
    }

    Next counted(const Reply& reply, std::string& out) override {
        if (state_ == State::polling) return CommandExchange::counted(reply, out);
        state_ = State::polling; // an undo is judged as there
        return with_what_was_seen(CommandExchange::counted(reply, out));
    }

    unsigned counts_replicas() const noexcept override {
        return state_ == State::polling && !was_in_line_ ? CommandExchange::counts_replicas() : 0;
    }
    bool may_grant() const noexcept override { return takes_; }
    bool blocks() const noexcept override {
        return state_ == State::in_one || state_ == State::blocked || state_ == State::ending;
    }
    TimePoint due() const noexcept override { return due_; }
    unsigned surplus() const noexcept override { return surplus_ + (nudged_ ? 1 : 0); }

    /// A server with nothing else to do sleeps on for up to 100 ms when a block's time is up, until something arrives.
    bool is_overdue(TimePoint now, std::string& out) override {
        if (due_ > now) return false;
        if (state_ != State::blocked) return true;
        state_ = State::ending;
        nudged_ = true;
        out += formatted({"PTTL", request().key});
        due_ = request().first_answer(now).at;
        return due_ <= now;
    }

    Answer unanswered(Verdict verdict, const Failure& why) const override {
        return with_what_was_seen(CommandExchange::unanswered(verdict, why));
    }

    /// When the next look is due: when the lease that was seen will have ended, and every now and then.
    TimePoint look_at() const noexcept { return state_ == State::blocked ? look_at_ : TimePoint::max(); }

    /// What a look has said of the key. The place in the line is worth nothing any more if this is a failure. Where no
    /// other connection can be had there is this one yet, and its place: but not for long after the announcement that a
    /// release looks for, nor after the holder's time.
    Failure looked(Answer latest, TimePoint now) {
        if (latest.is_busy()) {
            free_since_ = latest.was_held ? TimePoint::max() : std::min(free_since_, now);
            seen_free_ = latest.was_held ? 0 : seen_free_ + 1;
            latest.was_held |= seen_.was_held;
            seen_ = std::move(latest);
            keep_place(now);
        } else if (!latest.finds_no_connection() || (now >= place_ends_ && end_ > later(now, 2 * request().recheck))) {
            return latest.why;
        }
        look_again(now);
        if (seen_free_ < enough_looks || now - free_since_ < 2 * request().recheck) return {};
        return {Errc::timed_out, "waiting for a hand-off"};
    }

private:
    /// How often in a row a key is seen free before nobody takes it: fewer looks may all fall between short leases.
    static constexpr unsigned enough_looks = 10;

    enum class State { announcing, in_one, blocked, ending, taking, counting, polling };

    Next announced(Peer& peer, const Reply& reply, TimePoint now, std::string& out) {
        if (is_noscript(reply) && !std::exchange(in_full_, true)) {
            out += announce_by_body(request());
            return Next::resent;
        }
        seen_ = AnnounceExchange::announced(request(), reply);
        if (seen_.is_busy()) {
            send_block(now, out);
            blocked(now);
            return Next::resent;
        }
        if (ends_connection(seen_)) return done({Verdict::no, seen_.why});
        // Those who may not stand in line are told of a busy key as those who do not want to.
        const bool is_elsewhere = seen_.why.code == Errc::out_of_memory || seen_.why.code == Errc::moved;
        if (!seen_.is_trouble() && !is_elsewhere) peer.no_line_for = request().key;
        if (!takes_) return done({Verdict::no, seen_.why});
        state_ = State::polling;
        due_ = request().first_answer(now).at;
        ask_by_name(out);
        return Next::resent;
    }

    void send_block(TimePoint now, std::string& out) const {
        out += block_command(request());
        if (!takes_) return;
        out += taking_.fencing ? acquire_by_body(taking_) : set_command(taking_);
        if (taking_.replicas > 0) out += replicas_command(taking_, now);
    }

    Next blocked(TimePoint now) noexcept {
        state_ = State::blocked;
        due_ = end_;
        keep_place(now);
        look_again(now);
        return Next::more;
    }

    void keep_place(TimePoint now) noexcept {
        place_ends_ = later(now, std::min(3 * request().recheck, seen_.holder_left.value_or(Millis::max())));
    }

    void look_again(TimePoint now) noexcept {
        const Millis recheck = request().recheck;
        look_at_ = later(now, std::min(recheck, seen_.holder_left.value_or(recheck) + Millis{1}));
    }

    Next turn(const Reply& reply) {
        if (!was_in_line_) return done(meaning_of(request(), reply));
        const bool has_come = !reply.is_error() && reply.type != REDIS_REPLY_NIL;
        return done(with_what_was_seen(has_come ? Answer{Verdict::yes} : Answer{Verdict::no, {Errc::busy, {}}}));
    }

    /// The count of replicas follows in any case, if there is one.
    Next taken(const Reply& reply) {
        const Next next = judge(meaning_of(taking_, reply));
        if (next == Next::count) {
            state_ = State::counting;
            return Next::more;
        }
        if (taking_.replicas > 0) surplus_ = 1;
        return with_what_was_seen(next);
    }

    Next with_what_was_seen(Next next) {
        if (next == Next::done) done(with_what_was_seen(take_answer()));
        return next;
    }

    /// What was seen of the holder tells more than that the key is held, or that nobody answers.
    Answer with_what_was_seen(Answer answer) const {
        if (answer.why.code == Errc::busy || (answer.why.code == Errc::timed_out && seen_.never_ends()))
            answer.why = seen_.why;
        answer.queued = was_in_line_;
        answer.holder_left = seen_.holder_left;
        answer.was_held = seen_.was_held;
        return answer;
    }

    Request taking_; ///< what follows the block
    const bool takes_;
    State state_ = State::announcing;
    Answer seen_{Verdict::unknown}; ///< of the holder, by the announcement and the last look
    bool in_full_ = false, was_in_line_ = false, nudged_ = false;
    unsigned surplus_ = 0;
    TimePoint due_, end_{}, look_at_{}, place_ends_{};
    TimePoint free_since_ = TimePoint::max();
    unsigned seen_free_ = 0; ///< looks, in a row
};

} // namespace redislock::detail
