/// One connection that speaks of locks: how each question is put, how a turn is waited for, and what the server's replies
/// mean. It knows nothing of leases, of the pool, or of trying again.
#pragma once

#include "greeting.hpp"
#include "scripts.hpp"

namespace redislock::detail {

/// A connection that has introduced itself, and speaks in a lock's verbs.
class Session {
public:
    bool open(const std::vector<Endpoint>& endpoints, const Greeting& greeting, const Deadline& deadline) {
        if (!connection_.open(endpoints, deadline) || !connection_.write(greeting.bytes(), deadline))
            return refuse(why_not());
        for (std::size_t nth = 0; nth < greeting.awaited(); ++nth) {
            const Reply* reply = connection_.read(deadline);
            if (reply == nullptr) return refuse(why_not());
            if (Failure objection = greeting.objection(nth, *reply)) return refuse(std::move(objection));
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
            if (request.patience <= Millis::zero()) return acquire(request);
            if (request.key != polls_for_ && request.patience >= shortest_block) return stand_in_line(request, look);
            return acquire_or_look(in_time(request));
        case Verb::extend: return settle(request, extend_(request, extend_by_sha), extend_by_body, {});
        default: // a release whose script must be known even if nobody hears of it
            return request.wants_answer
                       ? settle(request, release_(request, release_by_sha), release_by_body, undo(request))
                       : release_unanswered(request);
        }
    }

    /// Tells the releases to come, for a moment, that somebody waits. Busy, with the holder's remaining time: none
    /// if the key is free and the turn given to the first in line. All else is why that's not possible.
    Answer announce(const Request& request) {
        return run(request, announce_by_sha(request), announce_by_body, {},
                   [this](const Reply& reply) { return announced(reply); });
    }

    /// Who has the key. Yes: somebody, who is then in `holder`; expired: nobody; all else is why that is not known.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        if (!connection_.write(formatted({"GET", key}) + formatted({"PTTL", key}), deadline)) return not_sent();
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

    bool reusable() { return connection_.reusable(); }
    bool good() const noexcept { return connection_.good(); }
    Socket take_lingering() noexcept { return connection_.take_lingering(); }
    const Failure& failure() const noexcept { return failure_; }

private:
    Answer acquire(const Request& request) {
        const std::string_view last_words = undo(request);
        if (!connection_.write(acquire_(request, set_command), request.deadline)) return not_sent();
        return acquired(request, last_words);
    }

    /// The same, and without waiting in between: what the holder has left, and of what type the key is. Where the server
    /// won't tell, the answer goes without.
    Answer acquire_or_look(const Request& request) {
        const std::string look = formatted({"PTTL", request.key}) + formatted({"TYPE", request.key});
        const std::string_view last_words = undo(request);
        if (!connection_.write(acquire_(request, set_command), request.deadline)) return not_sent();
        connection_.write(look, request.deadline); // if that fails, so does reading
        Answer answer = acquired(request, last_words);
        const Reply* left = good() ? connection_.read(request.deadline) : nullptr;
        const bool known = left != nullptr && left->type == REDIS_REPLY_INTEGER;
        if (known && answer.why.code == Errc::busy) answer = busy_for(left->integer);
        const Reply* type = good() ? connection_.read(request.deadline) : nullptr;
        if (answer.is_busy() && type != nullptr && type->type == REDIS_REPLY_STATUS && type->text != "string" &&
            type->text != "none")
            answer.why = {Errc::wrong_type, "the key holds a " + type->text};
        return answer;
    }

    /// The acquire of one who has found the key held: announce, block on the hand-off list, and SET, which the server carries
    /// out as soon as the block ends. They travel in one write once the server is known to permit them.
    ///
    /// A release ends the block by giving us the turn. For a lease that expires, or that a foreign client releases, nobody
    /// does: hence the looks. They are made over another connection, so that this one keeps its place in the line; and a
    /// server that does not answer them is not waited for.
    template <class Look>
    Answer stand_in_line(const Request& request, Look look) {
        const std::string block = block_command(request).append(acquire_(request, set_command));
        const std::string_view last_words = undo(request);
        const Deadline end = within(request, request.patience);
        const Deadline soon = request.first_answer(now());
        Answer seen;
        if (!proven_) {
            seen = announce(in_time(request));
            if (!seen.is_busy()) return good() ? line_refused(in_time(request), seen) : Answer{Verdict::no, seen.why};
            if (!connection_.write(block, soon)) return not_sent();
        } else {
            if (!connection_.write(announce_by_sha(request) + block, soon)) return not_sent();
            const Reply* reply = connection_.read(soon, last_words);
            if (reply == nullptr) return unanswered();
            if (is_noscript(*reply))
                seen = {Verdict::no, {Errc::busy, {}}, Millis::zero()}; // a look that is due at once will mend it
            else
                seen = reply->is_error() ? refused(request, *reply) : announced(*reply);
        }
        TimePoint held_until = seen.holder_left ? later(now(), *seen.holder_left) : TimePoint::max();
        while (seen.is_busy() && !connection_.arriving(next_look(seen, request.recheck, end)) && !over(end)) {
            Answer latest = look(in_time(request));
            // Where no other connection is to be had there is this one yet, and its place, while the holder has time left.
            const bool no_other = latest.why.code == Errc::max_clients || latest.why.code == Errc::unreachable;
            if (!no_other || now() >= held_until) {
                seen = std::move(latest);
                held_until = seen.holder_left ? later(now(), *seen.holder_left) : TimePoint::max();
            }
        }
        // A server with nothing else to do sleeps on for up to 100 ms when a block's time is up, until something arrives.
        const bool nudged = now() >= end.at && !connection_.arriving(TimePoint{});
        if (nudged) connection_.write(formatted({"PTTL", request.key}), request.deadline);
        const Reply* turn = connection_.read(seen.is_busy() ? request.deadline : TimePoint{}, last_words);
        if (turn == nullptr) return seen.is_busy() ? unanswered() : Answer{Verdict::unknown, seen.why};
        const bool blocked = !turn->is_error() || turn->text.starts_with("UNBLOCKED");
        proven_ = blocked;
        if (!blocked) polls_for_ = request.key;
        Answer answer = acquired(request, last_words);
        if (nudged) connection_.owe_reply();
        answer.queued = blocked;
        answer.holder_left = seen.holder_left;
        if (answer.why.code == Errc::busy) answer.why = seen.why;
        return answer;
    }

    /// When the lease that was seen will have ended, and every now and then.
    static Deadline next_look(const Answer& seen, Millis recheck, const Deadline& end) {
        const Millis after = std::min(recheck, seen.holder_left.value_or(recheck) + Millis{1});
        return {std::min(end.at, later(now(), after)), end.stop};
    }

    /// The same, without waiting for longer than for a sign of life.
    static Request in_time(const Request& request) {
        Request question = request;
        question.deadline = request.first_answer(now());
        return question;
    }

    static Deadline within(const Request& request, Millis span) {
        return {std::min(request.deadline.at, later(now(), span)), request.deadline.stop};
    }

    /// To those who may not stand in line a busy key is told like to those who don't want to.
    Answer line_refused(const Request& request, const Answer& seen) {
        if (!seen.is_trouble() && seen.why.code != Errc::out_of_memory) polls_for_ = request.key;
        return acquire_or_look(request);
    }

    Answer announced(const Reply& reply) {
        if (reply.type == REDIS_REPLY_STATUS) return {Verdict::no, {Errc::wrong_type, "the key holds a " + reply.text}};
        if (reply.type != REDIS_REPLY_INTEGER || reply.integer < -2) return not_understood();
        return busy_for(reply.integer);
    }

    /// `pttl` is what PTTL says: -1 without an expiry, -2 gone by now.
    static Answer busy_for(long long pttl) {
        if (pttl == -1) return {Verdict::no, {Errc::no_expiry, {}}};
        return {Verdict::no, {Errc::busy, {}}, std::clamp(Millis{pttl}, Millis::zero(), Millis{Options::longest_ttl})};
    }

    Answer acquired(const Request& request, std::string_view last_words) {
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply == nullptr) return unanswered();
        if (reply->type == REDIS_REPLY_STATUS && reply->text == "OK") return {Verdict::yes};
        if (reply->type == REDIS_REPLY_NIL) return {Verdict::no, {Errc::busy, {}}};
        return reply->is_error() ? refused(request, *reply) : not_understood();
    }

    /// A script is called by its name, and sent in full where the server does not know it.
    template <class Meaning>
    Answer run(const Request& request, std::string_view by_sha, std::string (*by_body)(const Request&),
               std::string_view last_words, Meaning meaning) {
        if (!connection_.write(by_sha, request.deadline)) return not_sent();
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply != nullptr && is_noscript(*reply)) {
            if (!connection_.write(by_body(request), request.deadline)) return not_sent();
            reply = connection_.read(request.deadline);
        }
        if (reply == nullptr) return unanswered();
        return reply->is_error() ? refused(request, *reply) : meaning(*reply);
    }

    /// Extends or releases.
    Answer settle(const Request& request, std::string_view by_sha, std::string (*by_body)(const Request&),
                  std::string_view last_words) {
        Answer answer = run(request, by_sha, by_body, last_words, [this](const Reply& reply) {
            const std::optional<Answer> settled = settlement(reply);
            return settled ? *settled : not_understood();
        });
        if (answer.why.code == Errc::wrong_type) answer.why.code = Errc::stolen;
        return answer;
    }

    static bool is_noscript(const Reply& reply) { return reply.is_error() && reply.text.starts_with("NOSCRIPT"); }

    /// By the script's body, since nobody would be there to send it after a NOSCRIPT.
    Answer release_unanswered(const Request& request) {
        if (!connection_.write(unanswered_(request, release_by_body), request.deadline)) return not_sent();
        connection_.owe_reply();
        return {Verdict::unknown};
    }

    std::string_view undo(const Request& request) { return unanswered_(request, release_by_body); }

    Answer unanswered() const { return {Verdict::unknown, why_not()}; }
    Answer not_sent() const { return {Verdict::no, why_not()}; }

    /// A server that won't have us says so before it is asked, in place of the first reply, and hangs up.
    Failure why_not() const {
        const std::string& said = connection_.objection();
        const bool refused = said.starts_with("DENIED") || meaning(said) == Errc::max_clients;
        if (connection_.failure().code == Errc::disconnected && refused) return {meaning(said), said};
        return connection_.failure();
    }

    Answer not_understood() {
        connection_.close();
        return {Verdict::unknown, {Errc::protocol_error, {}}};
    }

    /// A server echoes arguments in some errors: neither they nor the token leave this function. One that has become a
    /// replica is left, since the next connection to its address may lead to the primary.
    Answer refused(const Request& request, const Reply& reply) {
        std::string sentence = reply.text.substr(0, reply.text.find(", with args beginning with"));
        for (auto at = sentence.find(request.token.hex()); at != sentence.npos; at = sentence.find(request.token.hex()))
            sentence.replace(at, Token::digits, "<token>");
        const Errc code = meaning(reply.text);
        if (code == Errc::read_only) connection_.close();
        return {Verdict::no, {code, std::move(sentence)}};
    }

    bool refuse(Failure failure) {
        failure_ = std::move(failure);
        connection_.close();
        return false;
    }

    /// What is left for a block to be worth it: a few ms are lost to rounding.
    static constexpr Millis shortest_block{5};

    Connection connection_;
    Failure failure_;
    bool proven_ = false;   ///< that this server lets this user wait for a turn
    std::string polls_for_; ///< the key for which it last did not
    PreparedCommand acquire_, extend_, release_, unanswered_;
};

} // namespace redislock::detail
