// What redis-flock --status shows of several keys: who holds each, for how long yet, and at how many servers.
#pragma once

#include <redislock/inspect.hpp>
#include <redislock/redis.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <deque>
#include <iomanip>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

/// What it replies, as text. Throws std::system_error, with `purpose` where the server refuses.
inline std::string run(redislock::Redis& server, const std::string& purpose,
                       std::initializer_list<std::string_view> command, redislock::Millis request_timeout) {
    std::vector<redislock::detail::Reply> replies;
    const auto answer = server.run(std::vector{redislock::detail::formatted(command)},
                                   redislock::later(server.now(), request_timeout), replies);
    if (answer.verdict != redislock::Verdict::yes) redislock::raise(answer.why);
    const std::string& text = replies.at(0).text;
    if (replies[0].is_error())
        redislock::raise({redislock::detail::meaning(text),
                          server.name() + ": " + purpose + ": " + redislock::detail::printable(text)});
    return text;
}

/// Asks the servers anew for each text. `Server`: a Redis or a Cluster.
template <class Server>
class StatusTable {
public:
    StatusTable(std::deque<Server>& servers, redislock::Millis request_timeout)
        : servers_{servers}, request_timeout_{request_timeout} {}

    /// One key; or, where there is none, all that the pattern matches.
    std::string text(const std::string& key, const std::string& pattern) {
        troubles_.clear();
        refusals_.clear();
        const std::set<std::string> keys = pattern.empty() ? std::set{key} : keys_like(pattern);
        std::size_t width = 3;
        for (const std::string& one : keys) width = std::max(width, one.size());
        std::ostringstream out;
        const auto row = [&](const auto& name, const auto& left, const auto& line, const auto& votes, const auto& by) {
            out << std::left << std::setw(static_cast<int>(std::min<std::size_t>(width, 40))) << name << "  "
                << std::right << std::setw(8) << left << "  " << std::left << std::setw(7) << line << "  "
                << std::setw(7) << votes << "  " << by << '\n';
        };
        row("KEY", "LEFT", "WAITERS", "SERVERS", "TOKEN");
        for (const std::string& one : keys) {
            const State state = state_of(one);
            const std::string votes = std::to_string(state.votes) + " of " + std::to_string(servers_.size());
            row(redislock::detail::printable(one), left(state), state.is_awaited ? "yes" : "-",
                state.holder ? votes : "-", token(state.holder));
        }
        if (keys.empty())
            out << (troubles_.empty() ? "(no key is like that)\n"
                                      : "(unknown: not all servers could list their keys)\n");
        for (const auto& [server, trouble] : troubles_) out << trouble << '\n';
        for (const std::string& refusal : refusals_) out << refusal << '\n';
        return out.str();
    }

    /// Where no majority of the servers has answered: what is wrong with one of the others.
    std::string trouble() const { return 2 * troubles_.size() < servers_.size() ? "" : troubles_.begin()->second; }

private:
    struct State {
        std::optional<redislock::Holder> holder{}; ///< that most of the servers name
        std::size_t votes = 0;                     ///< how many do
        bool is_awaited = false;
        std::size_t known = 0; ///< how many servers have answered
    };

    State state_of(const std::string& key) {
        State state;
        std::map<std::string, std::size_t> votes;
        for (Server& server : servers_) {
            ask(server, [&] {
                try {
                    const auto holder = redislock::inspect(server, key, request_timeout_);
                    ++state.known;
                    if (!holder) return;
                    state.is_awaited |= holder->is_awaited;
                    if (const std::size_t count = ++votes[holder->value]; count > state.votes) {
                        state.votes = count;
                        state.holder = holder;
                    }
                } catch (const std::system_error& error) { // with the key, or with the server
                    if (error.code() != redislock::Errc::bad_key && error.code() != redislock::Errc::no_permission)
                        throw;
                    refusals_.insert(error.what());
                }
            });
        }
        return state;
    }

    std::string left(const State& state) const {
        if (!state.holder) return state.known > servers_.size() / 2 ? "free" : "unknown";
        if (!state.holder->remaining) return "no end";
        std::ostringstream text;
        text << std::fixed << std::setprecision(1) << std::chrono::duration<double>{*state.holder->remaining}.count()
             << " s";
        return text.str();
    }

    static std::string token(const std::optional<redislock::Holder>& holder) {
        if (!holder) return "";
        const auto token = holder->token();
        return token ? std::string{token->hex()} : "(none: a value of another kind)";
    }

    /// Those that a lock has beside its own.
    static bool is_auxiliary(const std::string& key) {
        static const std::regex name{":redislock:(tagged:|numbered:)?(waiting|turn|given|fence)$"};
        return std::regex_search(key, name);
    }

    /// Of all servers. It walks over all keys that a server has. They come in hexadecimal digits, for they may be any
    /// bytes.
    std::set<std::string> keys_like(const std::string& pattern) {
        const char* const script = R"lua(
            local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 200)
            local lines = {found[1]}
            for _, key in ipairs(found[2]) do
                lines[#lines + 1] = key:gsub('.', function(c) return string.format('%02x', c:byte()) end)
            end
            return lines)lua";
        std::set<std::string> keys;
        if constexpr (std::same_as<Server, redislock::Redis>)
            for (Server& server : servers_)
                ask(server, [&] {
                    std::string cursor = "0";
                    do {
                        std::istringstream lines{
                            run(server, "to list keys", {"EVAL", script, "0", cursor, pattern}, request_timeout_)};
                        std::getline(lines >> std::ws, cursor);
                        for (std::string line; std::getline(lines, line);)
                            if (const std::string key = decoded(line); !is_auxiliary(key)) keys.insert(key);
                    } while (cursor != "0");
                });
        return keys;
    }

    static std::string decoded(const std::string& digits) {
        std::string bytes;
        for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
            bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
        return bytes;
    }

    template <class Question>
    void ask(Server& server, Question question) {
        if (troubles_.contains(&server)) return; // a silent one costs one time-out, and not one for each key
        try {
            question();
        } catch (const std::system_error& error) {
            troubles_[&server] = error.what();
        }
    }

    std::deque<Server>& servers_;
    const redislock::Millis request_timeout_;
    std::map<const Server*, std::string> troubles_{};
    std::set<std::string> refusals_{}; ///< of single keys
};
