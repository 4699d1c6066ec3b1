/// One connection that speaks of locks: how each question is put, how a turn is waited for, and what the server's replies
/// mean. It knows nothing of leases, of the pool, or of trying again.
/// tests/session_test.cpp and tests/waiting_test.cpp go red if it is wrong.
#pragma once

#include "greeting.hpp"
#include "scripts.hpp"

namespace redislock::detail {

/// A connection that has introduced itself, and speaks in a lock's verbs.
class Session {
public:
    bool open(const Server& server, const Deadline& deadline) {
        const Greeting& greeting = server.greeting;
        if (!connection_.open(server.endpoints, deadline) || !connection_.write(greeting.bytes(), deadline))
            return refuse(why_not(connection_));
        for (std::size_t nth = 0; nth < greeting.awaited(); ++nth) {
            const Reply* reply = connection_.read(deadline);
            if (reply == nullptr) return refuse(why_not(connection_));
            if (Failure objection = greeting.objection(nth, *reply)) return refuse(std::move(objection));
            votes_from_ = later(now(), greeting.probation(nth, *reply));
        }
        if (greeting.has_name()) connection_.owe_reply();
        return true;
    }

    /// While an acquire waits for its turn, this connection is blocked: `look` makes an announcement, as announce() does,
    /// over another one.
    template <class Look>
    Answer ask(const Request& request, Look look) {
        switch (request.verb) {
        case Verb::acquire:
            if (const TimePoint time = now(); time < votes_from_) return {Verdict::no, restarted(votes_from_, time)};
            if (is_plain(request)) return acquire(request);
            if (request.key != polls_for_ && request.patience >= shortest_block) {
                Answer answer = stand_in_line(request, look);
                if (!good()) connection_.stop_blocking(answer.finds_no_connection() ? room_by(request) : TimePoint{});
                return answer;
            }
            return run(in_time(request), acquire_by_sha(request), acquire_by_body, undo(request));
        case Verb::extend: return run(request, extend_(request, extend_by_sha), extend_by_body, {});
        default: // a release whose script must be known even if nobody hears of it
            return request.wants_answer
                       ? run(request, release_(request, release_by_sha), release_by_body, undo(request))
                       : release_unanswered(request);
        }
    }

    /// Tells the releases to come, for a moment, that somebody waits. Busy, with the holder's remaining time: none
    /// if the key is free and the turn given to the first in line. All else is why that's not possible; an unknown without a
    /// reason: the caller's own turn came before the answer, which the next user of this connection skips.
    Answer announce(const Request& request) {
        if (!connection_.write(announce_by_sha(request), request.deadline)) return not_sent();
        if (request.deadline.turn != -1 && !connection_.arriving(request.deadline) &&
            stopped_by_turn(request.deadline)) {
            connection_.owe_reply();
            return {Verdict::unknown};
        }
        const Reply* reply = connection_.read(request.deadline);
        if (reply != nullptr && is_noscript(*reply)) {
            if (!connection_.write(announce_by_body(request), request.deadline)) return not_sent();
            reply = connection_.read(request.deadline);
        }
        return reply == nullptr ? unanswered() : announced(request, *reply);
    }

    /// Who has the key. Yes: somebody, who is then in `holder`; expired: nobody; all else is why that is not known. Who
    /// may not run scripts asks for the value in full, which may be more than a reply may have.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        const Answer answer = inspect_by(inspect_command(key), key, deadline, holder);
        if (answer.why.code != Errc::no_permission || !holder.value.empty()) return answer;
        return inspect_by(formatted({"GET", key}), key, deadline, holder);
    }

    /// While it is idle: see Connection.
    void set_aside() noexcept { connection_.set_aside(); }
    bool reusable() { return connection_.take_back() && connection_.reusable(); }
    bool good() const noexcept { return connection_.good(); }
    Descriptor take_lingering() noexcept { return connection_.take_lingering(); }
    const Failure& failure() const noexcept { return failure_; }

private:
    Answer inspect_by(const std::string& command, std::string_view key, const Deadline& deadline, Holder& holder) {
        if (!connection_.write(command + formatted({"PTTL", key}), deadline)) return not_sent();
        const Reply* value = connection_.read(deadline);
        if (value == nullptr) return unanswered();
        const bool is_string = value->type == REDIS_REPLY_STRING;
        const bool is_other = value->is_error() && meaning(value->text) == Errc::wrong_type;
        Answer answer{Verdict::yes};
        if (is_string)
            holder.value = value->text;
        else if (value->is_error() && !is_other)
            answer = {Verdict::no, {meaning(value->text), value->text}};
        const Reply* left = connection_.read(deadline);
        if (left == nullptr) return unanswered();
        if (answer.verdict != Verdict::yes) return answer;
        if (left->is_error()) return {Verdict::no, {meaning(left->text), left->text}};
        if (left->type != REDIS_REPLY_INTEGER) return not_understood();
        if (left->integer == -2 || (!is_string && !is_other)) return {Verdict::no, {Errc::expired, {}}};
        if (left->integer >= 0) holder.remaining = Millis{left->integer};
        return answer;
    }

    Answer acquire(const Request& request) {
        const std::string_view last_words = undo(request);
        if (!send(request, acquire_(request, set_command))) return not_sent(request);
        return answered(request, last_words);
    }

    /// The acquire of one who has found the key held: announce, block on the hand-off list, and SET, which the server carries
    /// out as soon as the block ends. They travel in one write once the server is known to permit them.
    ///
    /// A release ends the block by giving us the turn. For a lease that expires, or that a foreign client releases, nobody
    /// does: hence the looks. They are made over another connection, so that this one keeps its place in the line; and a
    /// server that does not answer them is not waited for. Nor is a turn that does not come: where look after look finds the key
    /// free, this connection is one that leads nowhere, or the server would have let the first in line have it.
    template <class Look>
    Answer stand_in_line(const Request& request, Look look) {
        std::string block =
            block_command(request).append(acquire_(request, request.fenced ? acquire_by_body : set_command));
        if (request.replicas > 0) block += replicas_command(request, now());
        const std::string_view last_words = undo(request);
        const Deadline end = within(request, request.patience);
        const Deadline soon = request.first_answer(now());
        Answer seen;
        if (!proven_) {
            seen = announce(in_time(request));
            if (!seen.is_busy()) return good() ? line_refused(in_time(request), seen) : Answer{Verdict::no, seen.why};
            if (!connection_.write(block, soon)) return told(not_sent(request), seen);
        } else {
            if (!connection_.write(announce_by_sha(request) + block, soon)) return not_sent(request);
            const Reply* reply = connection_.read(soon, last_words);
            if (reply == nullptr) return unanswered();
            if (is_noscript(*reply))
                seen = {Verdict::no, {Errc::busy, {}}, Millis::zero()}; // a look that is due at once will mend it
            else
                seen = announced(request, *reply);
        }
        const Failure trouble = wait_for_turn(request, end, seen, look);
        // A server with nothing else to do sleeps on for up to 100 ms when a block's time is up, until something arrives.
        nudged_ = now() >= end.at && !connection_.arriving(TimePoint{});
        if (nudged_) connection_.write(formatted({"PTTL", request.key}), request.deadline);
        // What has begun to come, or is due, is not waited for like a turn.
        Request taken = in_time(request);
        taken.patience = Millis::zero();
        const Reply* turn = connection_.read(trouble ? TimePoint{} : taken.deadline, last_words);
        if (turn == nullptr) return told(trouble ? Answer{Verdict::unknown, trouble} : unanswered(), seen);
        const bool blocked = !turn->is_error() || turn->text.starts_with("UNBLOCKED");
        proven_ = blocked;
        if (!blocked) polls_for_ = request.key;
        Answer answer = told(answered(taken, last_words), seen);
        skip_nudge();
        answer.queued = blocked;
        return answer;
    }

    /// Until something has come, or it is the end; if neither, returns what the trouble is. Looks in between, and leaves in `seen`
    /// what was seen last of the holder.
    template <class Look>
    Failure wait_for_turn(const Request& request, const Deadline& end, Answer& seen, Look& look) {
        TimePoint place_ends = keeps_place_until(request, seen), free_since = TimePoint::max();
        unsigned seen_free = 0;
        while (seen.is_busy() && !connection_.arriving(next_look(seen, request.recheck, end)) && !over(end)) {
            Request question = in_time(request);
            question.deadline.turn = connection_.fd();
            Answer latest = look(question);
            if (latest.is_busy()) {
                place_ends = keeps_place_until(request, latest);
                free_since = latest.was_held ? TimePoint::max() : std::min(free_since, now());
                seen_free = latest.was_held ? 0 : seen_free + 1;
                latest.was_held |= seen.was_held;
                seen = std::move(latest);
            } else if (connection_.arriving(TimePoint{})) {
                break; // it was not waited for
            } else if (!latest.finds_no_connection() ||
                       (now() >= place_ends && end.at > later(now(), 2 * request.recheck))) {
                return latest.why;
            }
            if (seen_free >= enough_looks && now() - free_since >= 2 * request.recheck)
                return {Errc::timed_out, "waiting for a turn"};
        }
        return seen.is_busy() ? Failure{} : seen.why;
    }

    /// Where no other connection can be had there is this one yet, and its place: but not for long after the announcement that a
    /// release looks for, nor after the holder's time.
    static TimePoint keeps_place_until(const Request& request, const Answer& seen) {
        return later(now(), std::min(3 * request.recheck, seen.holder_left.value_or(Millis::max())));
    }

    /// How long a place that is given up is waited for to be free again, for it may be the only one that we can have.
    static Deadline room_by(const Request& request) { return request.deadline.by(later(now(), request.recheck / 2)); }

    /// The reply to a nudge comes behind those to the question.
    void skip_nudge() noexcept {
        if (std::exchange(nudged_, false)) connection_.owe_reply();
    }

    /// What was seen of the holder tells more than that he is there, or that nobody answers.
    static Answer told(Answer answer, const Answer& seen) {
        if (answer.why.code == Errc::busy || (answer.why.code == Errc::timed_out && seen.never_ends()))
            answer.why = seen.why;
        answer.holder_left = seen.holder_left;
        answer.was_held = seen.was_held;
        return answer;
    }

    /// When the lease that was seen will have ended, and every now and then.
    static Deadline next_look(const Answer& seen, Millis recheck, const Deadline& end) {
        const Millis after = std::min(recheck, seen.holder_left.value_or(recheck) + Millis{1});
        return end.by(later(now(), after));
    }

    /// The same, without waiting for longer than for a sign of life.
    static Request in_time(const Request& request) {
        Request question = request;
        question.deadline = request.first_answer(now());
        return question;
    }

    static Deadline within(const Request& request, Millis span) { return request.deadline.by(later(now(), span)); }

    /// To those who may not stand in line a busy key is told like to those who don't want to.
    Answer line_refused(const Request& request, const Answer& seen) {
        if (!seen.is_trouble() && seen.why.code != Errc::out_of_memory) polls_for_ = request.key;
        return run(request, acquire_by_sha(request), acquire_by_body, undo(request));
    }

    Answer announced(const Request& request, const Reply& reply) {
        if (reply.is_error()) return settled(meaning_of(request, reply));
        if (reply.type == REDIS_REPLY_STATUS)
            return {
                .verdict = Verdict::no, .why = {Errc::wrong_type, "the key holds a " + reply.text}, .was_held = true};
        if (reply.type != REDIS_REPLY_INTEGER || reply.integer < -2 - turn_is_given.count()) return not_understood();
        return busy_for(reply.integer);
    }

    /// With the question about the replicas behind it, where that is wanted.
    bool send(const Request& request, std::string_view command) {
        if (request.replicas == 0) return connection_.write(command, request.deadline);
        return connection_.write(std::string{command} + replicas_command(request, now()), request.deadline);
    }

    /// What was sent so is answered.
    Answer answered(const Request& request, std::string_view last_words) {
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply == nullptr) return unanswered();
        return interpreted(request, *reply, last_words);
    }

    Answer interpreted(const Request& request, const Reply& reply, std::string_view last_words) {
        Answer answer = settled(meaning_of(request, reply));
        return request.replicas > 0 && good() ? replicated(request, std::move(answer), last_words) : answer;
    }

    Answer replicated(const Request& request, Answer answer, std::string_view last_words) {
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply == nullptr) return answer.verdict == Verdict::yes ? unanswered() : answer;
        Failure objection = shortage(request, *reply);
        if (objection.code == Errc::protocol_error) return not_understood();
        if (answer.verdict != Verdict::yes || !objection) return answer;
        if (request.verb == Verb::acquire) {
            skip_nudge();
            Request release = request;
            release.verb = Verb::release;
            release.replicas = 0;
            if (run(release, release_by_sha(release), release_by_body, {}).verdict == Verdict::yes)
                return {Verdict::no, std::move(objection)};
        }
        return {Verdict::unknown, std::move(objection)};
    }

    /// A script is called by its name, and sent in full where the server does not know it.
    Answer run(const Request& request, std::string_view by_sha, std::string (*by_body)(const Request&),
               std::string_view last_words) {
        if (!send(request, by_sha)) return not_sent(request);
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply == nullptr) return unanswered();
        if (!is_noscript(*reply)) return interpreted(request, *reply, last_words);
        if (request.replicas > 0 && connection_.read(request.deadline) == nullptr) return unanswered();
        return send(request, by_body(request)) ? answered(request, last_words) : not_sent(request);
    }

    /// By the script's body, since nobody would be there to send it after a NOSCRIPT.
    Answer release_unanswered(const Request& request) {
        if (!connection_.write(unanswered_(request, release_by_body), request.deadline)) return not_sent();
        connection_.owe_reply();
        return {Verdict::unknown};
    }

    std::string_view undo(const Request& request) { return unanswered_(request, release_by_body); }

    Answer unanswered() const { return {Verdict::unknown, why_not(connection_)}; }
    Answer not_sent() const { return {Verdict::no, why_not(connection_)}; }

    /// It was carried out all the same if nothing but the question about the replicas was left unsent.
    Answer not_sent(const Request& request) const {
        return {request.replicas > 0 ? Verdict::unknown : Verdict::no, why_not(connection_)};
    }

    Answer not_understood() { return settled({Verdict::unknown, {Errc::protocol_error, {}}}); }

    Answer settled(Answer answer) {
        if (ends_connection(answer)) connection_.close();
        return answer;
    }

    bool refuse(Failure failure) {
        failure_ = std::move(failure);
        connection_.close();
        return false;
    }

    /// What is left for a block to be worth it: a few ms are lost to rounding.
    static constexpr Millis shortest_block{5};

    /// How often in a row a key is seen free before nobody takes it: fewer looks may all fall between short leases.
    static constexpr unsigned enough_looks = 10;

    /// For how long at most a key is free, and somebody's turn: see announce_script.
    static constexpr Millis turn_is_given{20};

    Connection connection_;
    Failure failure_;
    TimePoint votes_from_{}; ///< nothing is to be acquired before
    bool proven_ = false;    ///< that this server lets this user wait for a turn
    bool nudged_ = false;    ///< a reply is to come that nobody needs
    std::string polls_for_;  ///< the key for which it last did not
    PreparedCommand acquire_, extend_, release_, unanswered_;
};

} // namespace redislock::detail
