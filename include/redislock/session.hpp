/// One connection that speaks of locks: the scripts, how each question is put, and what the server's replies mean. It knows
/// nothing of leases, of other connections, or of trying again.
#pragma once

#include "connection.hpp"

namespace redislock::detail {

/// KEYS[1] the lock's key, ARGV[1] the token.
/// Returns 1: it was ours and is deleted; 0: it is another's; -1: there is none.
inline constexpr std::string_view release_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return holder and 0 or -1
)lua";

/// KEYS[1] the lock's key, ARGV[1] the token, ARGV[2] the time to live in ms.
/// Returns 1: it is ours, and lives for that long or longer; 0: it is another's; -1: there is none.
inline constexpr std::string_view extend_script = R"lua(local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
  return holder and 0 or -1
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
)lua";

/// The scripts' SHA1, by which EVALSHA knows them; a test compares them with what the server says.
inline constexpr std::string_view release_sha = "12e42f4b65c0cc77c56a259d6a519f37202e29da";
inline constexpr std::string_view extend_sha = "0c8369d15cf0e3be0a5b56371717efbacfbd4546";

/// What a server's error reply means, by its first word. Servers before 7.0 wrap the errors of a script's commands, so
/// the word is also looked for inside.
inline Errc meaning(std::string_view error) noexcept {
    struct Row {
        std::string_view word;
        Errc code;
    };
    static constexpr Row words[] = {
        {"OOM", Errc::out_of_memory},
        {"READONLY", Errc::read_only},
        {"LOADING", Errc::loading},
        {"NOAUTH", Errc::auth_required},
        {"WRONGPASS", Errc::auth_failed},
        {"NOPERM", Errc::no_permission},
        {"DENIED", Errc::no_permission},
        {"BUSY", Errc::script_running},
        {"MISCONF", Errc::misconfigured},
        {"MOVED", Errc::moved},
        {"ASK", Errc::moved},
        {"CLUSTERDOWN", Errc::cluster_down},
        {"TRYAGAIN", Errc::cluster_down},
        {"MASTERDOWN", Errc::master_down},
        {"NOREPLICAS", Errc::no_replicas},
        {"WRONGTYPE", Errc::wrong_type},
    };
    static constexpr Row sentences[] = {
        {"max number of clients", Errc::max_clients},   {"user executing the script can't", Errc::no_permission},
        {"nknown command", Errc::unsupported},          {"nknown Redis command", Errc::unsupported},
        {"DB index is out of range", Errc::no_such_db}, {"SELECT is not allowed", Errc::no_such_db},
    };
    const std::string_view first = error.substr(0, error.find(' '));
    for (const Row& row : words)
        if (first == row.word) return row.code;
    if (first != "ERR") return Errc::server_error;
    for (const Row& row : sentences)
        if (error.find(row.word) != error.npos) return row.code;
    for (const Row& row : words)
        for (auto at = error.find(row.word); at != error.npos; at = error.find(row.word, at + 1))
            if (error[at - 1] == '-' && error.substr(at + row.word.size()).starts_with(' ')) return row.code;
    return Errc::server_error;
}

/// A command that differs from its last use, as a rule, in the token alone: then only that is written over.
class PreparedCommand {
public:
    std::string_view operator()(const Request& request, std::string (*format)(const Request&)) {
        if (bytes_.empty() || key_ != request.key || ttl_ != request.ttl) {
            bytes_ = format(request);
            key_ = request.key;
            ttl_ = request.ttl;
            token_at_ = bytes_.rfind(request.token.hex());
        }
        request.token.hex().copy(bytes_.data() + token_at_, Token::digits);
        return bytes_;
    }

private:
    std::string bytes_;
    std::string key_;
    Millis ttl_{};
    std::size_t token_at_ = 0;
};

inline std::string set_command(const Request& r) {
    return formatted({"SET", r.key, r.token.hex(), "NX", "PX", std::to_string(r.ttl.count())});
}
inline std::string extend_by_sha(const Request& r) {
    return formatted({"EVALSHA", extend_sha, "1", r.key, r.token.hex(), std::to_string(r.ttl.count())});
}
inline std::string extend_by_body(const Request& r) {
    return formatted({"EVAL", extend_script, "1", r.key, r.token.hex(), std::to_string(r.ttl.count())});
}
inline std::string release_by_sha(const Request& r) {
    return formatted({"EVALSHA", release_sha, "1", r.key, r.token.hex()});
}
inline std::string release_by_body(const Request& r) {
    return formatted({"EVAL", release_script, "1", r.key, r.token.hex()});
}

/// A connection that has introduced itself, and speaks in a lock's verbs.
class Session {
public:
    /// AUTH, SELECT and CLIENT SETNAME, as far as they are needed, travel in one write. Nothing else is sent before we know
    /// who we are and where; the name is a courtesy, whose reply is skipped, for a server may forbid it.
    bool open(const std::vector<Endpoint>& endpoints, const Address& address, const std::string& client_name,
              TimePoint deadline) {
        std::string greeting;
        const bool auth = !address.password.empty(), select = address.db != 0, name = !client_name.empty();
        if (auth)
            greeting += address.user.empty() ? formatted({"AUTH", address.password})
                                             : formatted({"AUTH", address.user, address.password});
        if (select) greeting += formatted({"SELECT", std::to_string(address.db)});
        if (name) greeting += formatted({"CLIENT", "SETNAME", client_name});
        if (!connection_.open(endpoints, deadline) || !connection_.write(greeting, deadline))
            return refuse(connection_.failure());
        if ((auth && !authenticated(deadline)) || (select && !selected(deadline))) return false;
        if (name) connection_.owe_reply();
        return true;
    }

    Answer ask(const Request& request) {
        switch (request.verb) {
        case Verb::acquire: return request.patience > Millis::zero() ? acquire_or_look(request) : acquire(request);
        case Verb::extend: return run(request, extend_(request, extend_by_sha), extend_by_body);
        default:
            return request.wants_answer ? run(request, release_(request, release_by_sha), release_by_body)
                                        : release_unanswered(request);
        }
    }

    bool reusable() { return connection_.reusable(); }
    bool good() const noexcept { return connection_.good(); }
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
        const Millis milliseconds{known ? left->integer : 0};
        const Reply* type = good() ? connection_.read(request.deadline) : nullptr;
        if (answer.why.code != Errc::busy) return answer;
        if (type != nullptr && type->type == REDIS_REPLY_STATUS && type->text != "string" && type->text != "none")
            answer.why = {Errc::wrong_type, "the key holds a " + type->text};
        else if (known && milliseconds == Millis{-1})
            answer.why = {Errc::no_expiry, {}};
        if (known && milliseconds != Millis{-1})
            answer.holder_left = std::clamp(milliseconds, Millis::zero(), Millis{Options::longest_ttl});
        return answer;
    }

    Answer acquired(const Request& request, std::string_view last_words) {
        const Reply* reply = connection_.read(request.deadline, last_words);
        if (reply == nullptr) return unanswered();
        if (reply->type == REDIS_REPLY_STATUS && reply->text == "OK") return {Verdict::yes};
        if (reply->type == REDIS_REPLY_NIL) return {Verdict::no, {Errc::busy, {}}};
        return reply->is_error() ? refused(request, *reply) : not_understood();
    }

    Answer run(const Request& request, std::string_view by_sha, std::string (*by_body)(const Request&)) {
        if (!connection_.write(by_sha, request.deadline)) return not_sent();
        const bool releasing = request.verb == Verb::release; // whose script must be known even if nobody hears of it
        const Reply* reply = connection_.read(request.deadline, releasing ? undo(request) : std::string_view{});
        if (reply != nullptr && reply->is_error() && reply->text.starts_with("NOSCRIPT")) {
            if (!connection_.write(by_body(request), request.deadline)) return not_sent();
            reply = connection_.read(request.deadline);
        }
        if (reply == nullptr) return unanswered();
        if (reply->is_error()) {
            Answer answer = refused(request, *reply);
            if (answer.why.code == Errc::wrong_type) answer.why.code = Errc::stolen;
            return answer;
        }
        if (reply->type != REDIS_REPLY_INTEGER || reply->integer < -1 || reply->integer > 1) return not_understood();
        if (reply->integer == 1) return {Verdict::yes};
        return {Verdict::no, {reply->integer == 0 ? Errc::stolen : Errc::expired, {}}};
    }

    /// By the script's body, since nobody would be there to send it after a NOSCRIPT.
    Answer release_unanswered(const Request& request) {
        if (!connection_.write(unanswered_(request, release_by_body), request.deadline)) return not_sent();
        connection_.owe_reply();
        return {Verdict::unknown};
    }

    std::string_view undo(const Request& request) { return unanswered_(request, release_by_body); }

    /// A server that won't have us says so before it is asked, in place of the first reply, and hangs up.
    Answer unanswered() const {
        Answer answer{Verdict::unknown, connection_.failure()};
        const std::string& said = connection_.objection();
        if (answer.why.code == Errc::disconnected && (said.starts_with("DENIED") || meaning(said) == Errc::max_clients))
            answer.why = {meaning(said), said};
        return answer;
    }

    Answer not_sent() const { return {Verdict::no, connection_.failure()}; }

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

    /// Nothing of the error is repeated but its code: a server may echo the password.
    bool authenticated(TimePoint deadline) {
        const Reply* reply = connection_.read(deadline);
        if (reply == nullptr) return refuse(connection_.failure());
        if (!reply->is_error()) return true;
        const Answer answer{Verdict::no, {meaning(reply->text), {}}};
        return refuse(answer.is_trouble() ? answer.why : Failure{Errc::auth_failed, {}});
    }

    bool selected(TimePoint deadline) {
        const Reply* reply = connection_.read(deadline);
        if (reply == nullptr) return refuse(connection_.failure());
        if (!reply->is_error()) return true;
        const Errc code = meaning(reply->text);
        return refuse({code == Errc::server_error ? Errc::no_such_db : code, reply->text});
    }

    bool refuse(Failure failure) {
        failure_ = std::move(failure);
        connection_.close();
        return false;
    }

    Connection connection_;
    Failure failure_;
    PreparedCommand acquire_, extend_, release_, unanswered_;
};

} // namespace redislock::detail
