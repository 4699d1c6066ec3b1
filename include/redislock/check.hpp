/// A check at the start of a program, or by an operator: whether locks can be had of a server, and how good they are.
/// tests/check_test.cpp goes red if it is wrong.
#pragma once

#include "redis.hpp"

namespace redislock {

namespace detail {

/// Tries each command that locks need, and then a lock, under a key that nobody else has.
class ServerCheck {
public:
    /// `has_restart_delay`: there could be one.
    ServerCheck(Redis& redis, const Token& token, std::string key, const Deadline& deadline, bool has_restart_delay)
        : redis_{redis}, token_{token}, key_{std::move(key)}, deadline_{deadline}, has_restart_delay_{
                                                                                       has_restart_delay} {}

    /// One that nobody else has.
    static std::string key(std::string_view prefix, const Token& token) {
        std::string key = std::string{prefix} + ":" + std::string{token.hex()};
        check_key(key);
        return key;
    }

    std::vector<std::string> run() {
        std::vector<std::string> commands;
        for (const Trial& trial : trials_) commands.push_back(trial.command);
        std::vector<Reply> replies;
        demand(redis_.run(commands, deadline_, replies));
        const std::string forbidden = refused(Need::locks, replies);
        const Answer acquired = ask(Verb::acquire), extended = ask(Verb::extend), released = ask(Verb::release);
        for (const Answer& answer : {acquired, extended, released}) {
            if (answer.verdict == Verdict::yes) continue;
            if (forbidden.empty()) demand(answer);
            raise({meaning(first_refusal_), redis_.name() + ": locks need " + forbidden});
        }
        warn("locks are had by commands in place of scripts: who waits polls, and there are no fencing tokens",
             forbidden);
        warn("who waits can not stand in line, and polls", refused(Need::waiting, replies));
        warn("there are no fencing tokens", refused(Need::fencing, replies));
        warn("min_replicas can not be used", refused(Need::replicas, replies));
        warn(std::string{has_restart_delay_ ? "restart_delay can not be used, and " : ""} +
                 "nothing is known of eviction and persistence",
             refused(Need::information, replies));
        look_at(replies.back().is_error() ? std::string_view{} : std::string_view{replies.back().text});
        return std::move(warnings_);
    }

private:
    static constexpr Millis ttl{1'000};

    enum class Need { locks, waiting, fencing, replicas, information };
    struct Trial {
        Trial(Need what, std::initializer_list<std::string_view> words)
            : need{what}, name{*words.begin()}, command{formatted(words)} {}
        Need need;
        std::string name, command;
    };

    /// The commands of `need` that were refused, and what the server said to the first; empty: none was.
    std::string refused(Need need, const std::vector<Reply>& replies) {
        std::string names;
        first_refusal_.clear();
        for (std::size_t i = 0; i < trials_.size(); ++i) {
            if (trials_[i].need != need || !replies[i].is_error() || is_noscript(replies[i])) continue;
            if (first_refusal_.empty()) first_refusal_ = replies[i].text;
            if (names.find(trials_[i].name) == names.npos) names += (names.empty() ? "" : ", ") + trials_[i].name;
        }
        return names.empty() ? names : names + ": " + printable(first_refusal_);
    }

    Answer ask(Verb verb) const {
        return redis_.ask({.verb = verb, .key = key_, .token = token_, .ttl = ttl, .deadline = deadline_});
    }
    void demand(const Answer& answer) const {
        if (answer.verdict != Verdict::yes) raise(answer.why ? answer.why : Failure{Errc::timed_out, redis_.name()});
    }
    void warn(const std::string& consequence, const std::string& names) {
        if (!names.empty()) warnings_.push_back(consequence + ", without " + names);
    }

    void look_at(std::string_view info) {
        const std::string_view policy = field(info, "maxmemory_policy:");
        if (!policy.empty() && policy != "noeviction")
            warnings_.push_back("maxmemory-policy is " + printable(std::string{policy}) +
                                ": locks have a ttl, and are what is evicted; it should be noeviction");
        if (field(info, "aof_enabled:") == "0" && redis_.restart_delay() == Millis::zero())
            warnings_.push_back(std::string{"appendonly is off"} +
                                (has_restart_delay_ ? ", and restart_delay is 0" : "") +
                                ": a server that restarts forgets leases, and grants them again");
    }

    Redis& redis_;
    const Token token_;
    const std::string key_;
    const Deadline deadline_;
    const bool has_restart_delay_;
    const AuxiliaryKeys beside_{key_};
    const std::string ttl_{std::to_string(ttl.count())}, nothing_{std::string(40, '0')};
    const std::vector<Trial> trials_{
        {Need::locks, {"SET", key_, "", "NX", "PX", ttl_}},
        {Need::locks, {"GET", key_}},
        {Need::locks, {"PTTL", key_}},
        {Need::locks, {"PEXPIRE", key_, ttl_}},
        {Need::locks, {"EVAL", "return 1", "1", key_}},
        {Need::locks, {"EVALSHA", nothing_, "1", key_}},
        {Need::locks, {"DEL", key_}},
        {Need::waiting, {"SET", beside_.waiting, "", "PX", "20"}},
        {Need::waiting, {"RPUSH", beside_.turn, "", ""}},
        {Need::waiting, {"PEXPIRE", beside_.turn, "1000"}},
        {Need::waiting, {"LPOP", beside_.turn}},
        {Need::waiting, {"BLPOP", beside_.turn, "0.01"}},
        {Need::fencing, {"TIME"}},
        {Need::fencing, {"SET", beside_.fencing_counter, "1", "PX", "20"}},
        {Need::fencing, {"GET", beside_.fencing_counter}},
        {Need::replicas, {"WAIT", "0", "1"}},
        {Need::information, {"INFO"}}, // the last: see run()
    };
    std::string first_refusal_{};
    std::vector<std::string> warnings_{};
};

} // namespace detail

/// Whether locks can be had: the server is reached, by TLS if so, and the user may do all that locks need on keys that
/// begin with `key`. It leaves nothing behind for longer than a second. Blocks for at most `within`. Throws
/// std::system_error with what forbids locks, all refused commands in one sentence. Returns what makes locks less than
/// they could be, a sentence each; nothing, if all is well: no waiting in line, no fencing tokens, eviction, a server
/// that forgets. For the last two the user may do INFO.
inline std::vector<std::string> check(Redis& redis, std::string_view key, Millis within = Millis{5'000}) {
    const detail::Uncancelled call;
    const Token token = redis.fresh();
    const Deadline deadline{later(redis.now(), within)};
    return detail::ServerCheck{redis, token, detail::ServerCheck::key(key, token), deadline, true}.run();
}

} // namespace redislock
