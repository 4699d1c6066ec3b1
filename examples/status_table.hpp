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
#include <set>
#include <sstream>
#include <string>
#include <vector>

/// Asks the servers anew for each text. `Server`: a Redis or a Cluster.
template <class Server>
class StatusTable {
public:
    StatusTable(std::deque<Server>& servers, redislock::Millis request_timeout)
        : servers_{servers}, request_timeout_{request_timeout} {}

    /// One key; or, where there is none, all that the pattern matches.
    std::string text(const std::string& key, const std::string& pattern) {
        troubles_.clear();
        const std::set<std::string> keys = key.empty() ? keys_like(pattern) : std::set{key};
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
                state.holder ? votes : "-", state.holder ? redislock::detail::printable(state.holder->value) : "");
        }
        if (keys.empty()) out << "(no key is like that)\n";
        for (const auto& [name, trouble] : troubles_) out << trouble << '\n';
        return out.str();
    }

    /// Whether no server has answered; then that is what is wrong with the first of them.
    std::string trouble() const { return troubles_.size() < servers_.size() ? "" : troubles_.begin()->second; }

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
                const auto holder = redislock::inspect(server, key, request_timeout_);
                ++state.known;
                if (!holder) return;
                state.is_awaited |= holder->is_awaited;
                if (const std::size_t count = ++votes[holder->value]; count > state.votes) {
                    state.votes = count;
                    state.holder = holder;
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

    /// Of all servers, without those that a lock has beside its own. It walks over all keys that a server has.
    std::set<std::string> keys_like(const std::string& pattern) {
        using redislock::detail::formatted;
        const char* const script = "local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 200) "
                                   "table.insert(found[2], 1, found[1]) return found[2]";
        std::set<std::string> keys;
        if constexpr (std::same_as<Server, redislock::Redis>)
            for (Server& server : servers_)
                ask(server, [&] {
                    std::string cursor = "0";
                    do {
                        std::vector<redislock::detail::Reply> replies;
                        const auto answer = server.run({formatted({"EVAL", script, "0", cursor, pattern})},
                                                       redislock::later(server.now(), request_timeout_), replies);
                        if (answer.verdict != redislock::Verdict::yes) redislock::raise(answer.why);
                        if (replies.at(0).is_error())
                            redislock::raise({redislock::Errc::server_error, server.name() + ": " + replies[0].text});
                        std::istringstream lines{replies[0].text};
                        std::getline(lines >> std::ws, cursor);
                        for (std::string key; std::getline(lines, key);)
                            if (key.find(":redislock:") == key.npos) keys.insert(key);
                    } while (cursor != "0");
                });
        return keys;
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
};
